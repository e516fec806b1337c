"""Making a sparse state, and reading and replacing the masks inside any state."""

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxsparse import trees
from jaxsparse.checks import traced
from jaxsparse.inner_state import project
from jaxsparse.masks import apply, density, living
from jaxsparse.meshes import mesh_sharding
from jaxsparse.recognition import as_float
from jaxsparse.sparse._layout import is_compressed
from jaxsparse.sparse._states import holds_kernels, keeps_places, take_out, with_shape
from jaxsparse.state_tree import (
    VALUE,
    Declared,
    as_masks,
    field,
    find,
    is_state,
    masks_by_path,
    replace,
    replaced,
    starting_from,
)
from jaxsparse.types import Array, Masks, Params, Prunable


def get_masks(opt_state: Any, params: Params) -> Masks:
    """The masks inside an optimizer state, in the structure of `params`.

    Those of compressed parameters are made from their places. Others are found through `chain`,
    `partition`, `masked`, `MultiSteps`, `inject_hyperparams`, in an `nnx.Optimizer` or an
    `nnx.State`, in the plain dict that a checkpoint restored without a template gives, and in any
    state that declares `masks`, `churn`, `last_update` and `postponed`; leaves that no part of the
    state knows are dense.

    Args:
      opt_state: any state that holds the state of a sparse algorithm, or an object that has one as
        `opt_state`.
      params: the parameters, for their structure and shapes.

    Raises:
      ValueError: there is no sparse state, or it has a mask for a leaf that is not in `params`.

    Example:
      >>> import jax.numpy as jnp, optax, jaxsparse
      >>> params = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
      >>> tx = optax.chain(optax.clip(1.0), jaxsparse.rigl(optax.sgd(0.1), 0.5, key=0, every=10))
      >>> int(get_masks(tx.init(params), params)["kernel"].sum())
      8
    """
    found = masks_by_path(_find(opt_state, params))
    leaves, treedef = jax.tree.flatten_with_path(params, is_leaf=is_compressed)
    paths = {trees.name(path) for path, _ in leaves}
    found = {_known(path, paths): mask for path, mask in found.items()}
    stray = next((path for path in found if path not in paths), None)
    if stray is not None:
        raise ValueError(f"the state has a mask for {stray!r}, but `params` has no such leaf.")

    def mask(path: str, leaf: Any) -> Any:
        if is_compressed(leaf):
            return leaf.mask
        if not trees.is_array(leaf):
            return leaf
        if path not in found:
            return jnp.ones(leaf.shape, bool)
        if found[path].dtype != jnp.bool_:
            return with_shape(found[path], leaf.shape).mask
        if found[path].shape != leaf.shape:
            raise ValueError(
                f"the state's mask at {path!r} has shape {found[path].shape}, the parameter "
                f"{leaf.shape}."
            )
        return found[path]

    return treedef.unflatten(mask(trees.name(path), leaf) for path, leaf in leaves)


def _known(path: str, paths: set[str]) -> str:
    """The path as `params` spells it: paths of restored Flax variables may end with `value`."""
    spelled = (path, path.removesuffix(VALUE), path + VALUE)
    return next((name for name in spelled if name in paths), path)


def set_masks(opt_state: Any, masks: Masks, *, tx: Any = None, params: Params | None = None) -> Any:
    """The same optimizer state with other masks; apply them to the parameters yourself.

    Masks of leaves that the algorithm keeps dense must stay all True, and a density still counts
    the leaves that the algorithm was given. With `tx` and `params`, weights that come to life here
    get the inner state that `tx.init(params)` gives them; without, they keep the state that they
    had. Weights that a later mask update brings to life start with a fresh state in any case,
    including those that died here. `jaxsparse.reset` resets the whole state.

    Args:
      opt_state: any state that holds the state of a sparse algorithm, in any form that `get_masks`
        accepts.
      masks: boolean arrays in the structure of the parameters.
      tx: the transformation that made `opt_state`.
      params: the parameters, including those of the weights that come to life.

    Raises:
      ValueError: no sparse state, or a mask is missing or has another shape; `tx` without `params`
        or `params` without `tx`, or a state that `tx` did not make.
      TypeError: a mask is not boolean, or `tx` is not a transformation.

    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxsparse
      >>> params = {"kernel": jnp.ones((4, 4))}
      >>> state = jaxsparse.fixed(optax.sgd(0.1), sparsity=0.5, key=0).init(params)
      >>> state = set_masks(state, jaxsparse.random_masks(1, params, 0.75))
      >>> int(get_masks(state, params)["kernel"].sum())
      4
    """
    _find(opt_state, masks)
    if keeps_places(opt_state):
        raise ValueError(
            'set_masks is for storage="masked": with a compressed storage the masks decide the '
            "shapes. Begin with them: masks= of the method, then jaxsparse.init(tx, params)."
        )
    if (tx is None) != (params is None):
        raise ValueError("tx and params go together: weights that come to life need both.")

    def state(node: Any, fresh: Any = None) -> Any:
        if not is_state(node):
            return node
        before = field(node, "masks", "set_masks")
        new = replace(node, masks=replaced(before, masks))
        if tx is None:
            return new
        if type(node) is not type(fresh):
            raise ValueError("opt_state must be what tx.init gives, if tx is given.")
        return _with_fresh(new, as_masks(before), fresh)

    if tx is None:
        return jax.tree.map(state, opt_state, is_leaf=is_state)
    return jax.tree.map(state, opt_state, _fresh(tx, params, masks), is_leaf=is_state)


def _fresh(tx: Any, params: Params, masks: Masks) -> Any:
    """What `tx.init` gives with these masks instead of its own."""
    _check_transformation(tx, params)
    with starting_from(masks):
        return tx.init(params)


def _with_fresh(state: Any, before: Masks, fresh: Any) -> Any:
    """The state, fresh for weights that live now and did not before."""
    old, new = (field(node, "inner_state", "set_masks with tx") for node in (state, fresh))
    after = as_masks(field(state, "masks", "set_masks"))
    kept = jax.tree.map(lambda a, b: a | ~b if trees.is_array(a) else a, before, after)
    like = jax.tree.map(lambda m: as_float(m) if trees.is_array(m) else m, kept)
    return replace(state, inner_state=project(old, new, like, kept))


def init(tx: Any, params: Params) -> tuple[Params, Any]:
    """Draws the masks and applies them, so that training starts sparse.

    Args:
      tx: an Optax transformation that holds a sparse algorithm.
      params: the dense parameters.

    Returns:
      `(params, opt_state)` in new buffers, so that both can be donated. If the parameters are on a
      mesh, so is all of the state: what is shaped like a weight is sharded like the weight, and the
      rest is replicated on every device. With `storage="compressed"` the parameters are compressed,
      at free places.

    Raises:
      TypeError: `tx` is not a transformation, or a leaf of `params` is not an array.
      ValueError: `tx` holds no sparse algorithm.

    Example:
      >>> import jax.numpy as jnp, optax, jaxsparse
      >>> tx = jaxsparse.rigl(optax.sgd(0.1), sparsity=0.75, key=0, every=100)
      >>> params, opt_state = init(tx, {"kernel": jnp.ones((4, 4))})
      >>> int(params["kernel"].sum())
      4
    """
    _check_transformation(tx, params)
    _check_arrays(params)
    opt_state = tx.init(params)
    if not find(opt_state):
        raise ValueError(
            "tx holds no sparse algorithm: it is a dense optimizer. Wrap it first, such as "
            "tx = jaxsparse.rigl(optimizer, sparsity=0.9, key=0)."
        )
    everywhere = _everywhere(params)
    if holds_kernels(opt_state):
        params, opt_state = take_out(params, opt_state)
    else:
        params = apply(params, get_masks(opt_state, params))

    def copy(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array):
            return leaf
        own = jnp.array(leaf, copy=True)
        settled = everywhere is None or traced(own) or own.committed
        return own if settled else jax.device_put(own, everywhere)

    return jax.tree.map(copy, params), jax.tree.map(copy, opt_state)


def _everywhere(params: Params) -> NamedSharding | None:
    """Replication over the mesh that the parameters are on; None if they are on none."""
    on_mesh = filter(None, map(mesh_sharding, jax.tree.leaves(params)))
    return next((NamedSharding(at.mesh, PartitionSpec()) for at in on_mesh), None)


def reset(tx: Any, opt_state: Any, params: Params) -> Any:
    """A fresh state (count 0, new inner state) that keeps the masks, for rewinding.

    Args:
      tx: the transformation that made `opt_state`.
      opt_state: the state whose masks are kept.
      params: the rewound parameters.

    Example:
      >>> import jax.numpy as jnp, optax, jaxsparse
      >>> params = {"kernel": jnp.ones((4, 4))}
      >>> tx = jaxsparse.fixed(optax.adam(0.1), sparsity=0.5, key=0)
      >>> state = tx.init(params)
      >>> _, state = tx.update(params, state, params)
      >>> int(reset(tx, state, params).count)
      0
    """
    masks = get_masks(opt_state, params)
    fresh = _fresh(tx, params, masks)
    return fresh if keeps_places(fresh) else set_masks(fresh, masks)


def metrics(
    opt_state: Any, *, params: Params | None = None, prunable: Prunable | None = None
) -> dict[str, Array]:
    """The mask metrics to log, as scalars; works under `jit`.

    Args:
      opt_state: any state that holds the state of a sparse algorithm.
      params: the parameters, to count weights off the masks that are not zero.
      prunable: `(path, leaf) -> bool`: the leaves that count in the density; by default those that
        the algorithm was given.

    Returns:
      `density` (float32, living fraction of the prunable leaves), `churn` (float32, fraction of
      living weights that the last mask update brought to life), `last_update` (int32, its count, -1
      before the first), `postponed` (int32, steps at which a mask update had to wait for finite
      scores); and with `params`, `off_mask` (int32, how many weights off the masks are not zero:
      none, unless something after the wrapper moved them).

    Raises:
      ValueError: there is no sparse state, or it does not fit `params`.

    Example:
      >>> import jax.numpy as jnp, optax, jaxsparse
      >>> tx = jaxsparse.rigl(optax.sgd(0.1), sparsity=0.75, key=0, every=100)
      >>> params = {"kernel": jnp.ones((4, 4))}
      >>> found = metrics(tx.init(params), params=params)  # the masks are not applied yet
      >>> float(found["density"]), int(found["off_mask"])
      (0.25, 12)
    """
    states = _find(opt_state, params)
    known, masks = states, None
    if params is not None:
        masks = get_masks(states, params)
        known = [state._replace(masks=masks) for state in states]

    def each(name: str) -> list[Array]:
        # Leaves, because the frameworks wrap the arrays of a state.
        return [jax.tree.leaves(getattr(state, name))[0] for state in states]

    latest = jnp.stack(each("last_update"))
    found = {
        "density": density(known, prunable),
        "churn": jnp.stack(each("churn"))[jnp.argmax(latest)],
        "last_update": jnp.max(latest),
        "postponed": functools.reduce(operator.add, each("postponed")),
    }
    return found if params is None else found | {"off_mask": _off_mask(masks, params)}


def _off_mask(masks: Masks, params: Params) -> Array:
    leaves = jax.tree.leaves(params, is_leaf=is_compressed)
    pairs = zip(leaves, jax.tree.leaves(masks), strict=True)
    return _not_zero_off([pair for pair in pairs if trees.is_array(pair[0])])


@jax.jit
def _not_zero_off(pairs: list[tuple[Array, Array]]) -> Array:
    total, most = jnp.int32(0), jnp.iinfo(jnp.int32).max
    for leaf, mask in pairs:
        count = living((leaf != jnp.zeros((), leaf.dtype)) & ~mask)
        total += jnp.minimum(count, most - total)
    return total


def _check_arrays(params: Params) -> None:
    for path, leaf in jax.tree.leaves_with_path(params, is_leaf=is_compressed):
        if not is_compressed(leaf) and not trees.is_array(leaf):
            raise TypeError(
                f"params at {trees.name(path)!r} must be an array, got {leaf!r}. Leave out what is "
                "not trained; of an Equinox model, pass eqx.filter(model, eqx.is_inexact_array)."
            )


def _check_transformation(tx: Any, params: Any) -> None:
    if callable(getattr(tx, "init", None)) and callable(getattr(tx, "update", None)):
        return
    if callable(getattr(params, "init", None)) and callable(getattr(params, "update", None)):
        raise TypeError("tx and params are swapped: the transformation comes first.")
    raise TypeError(f"tx must be an Optax transformation, got {type(tx).__name__}.")


def _find(opt_state: Any, other: Any = None) -> list[Declared]:
    """The sparse states; `other` is the caller's other argument, to detect a swap."""
    states = find(opt_state)
    if states:
        return states
    if other is not None and find(other):
        raise ValueError(
            "opt_state holds no sparse state, but the next argument does: they are swapped, the "
            "state comes first."
        )
    raise ValueError(
        f"opt_state holds no sparse state (got {type(opt_state).__name__}); it comes from the "
        "init of an optimizer wrapped by jaxsparse, such as jaxsparse.rigl(...)."
    )
