"""The state that `sparsify` keeps, and how to find, read and replace the masks inside any state."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse import trees
from jaxsparse.masks import apply, density
from jaxsparse.types import Array, Masks, Params, Prunable

FORMAT = 1


class SparseState(NamedTuple):
    """The state of `sparsify`: arrays only, so it can be sharded, mapped and checkpointed.

    Attributes:
      version: int32, the format of this state.
      count: int32, updates done so far.
      key: raw data of the random key; the draws of an update use `fold_in(key, count)`.
      masks: booleans in the structure of the parameters; dense leaves are all True.
      inner_state: the state of the inner optimizer.
      rule_state: what the rule keeps.
      pending: bool, a mask update is overdue.
      postponed: int32, steps at which a mask update had to wait for finite scores.
      last_update: int32, the count of the last mask update, -1 before the first.
      churn: float32 in [0, 1], the fraction of living weights that were dead before it.
    """

    version: Array
    count: Array
    key: Array
    masks: Masks
    inner_state: Any
    rule_state: Any
    pending: Array
    postponed: Array
    last_update: Array
    churn: Array


def get_masks(opt_state: Any, params: Params) -> Masks:
    """The masks inside an optimizer state, in the structure of `params`.

    Finds them through `chain`, `partition`, `masked`, `MultiSteps`, `inject_hyperparams` and an
    `nnx.Optimizer`; leaves that no part of the state knows are dense.

    Args:
      opt_state: any state that holds the state of a sparse algorithm, or an object that has one as
        `opt_state`.
      params: the parameters, for their structure and shapes.

    Raises:
      ValueError: there is no sparse state, or it has a leaf that `params` has not.

    Example:
      >>> import jax.numpy as jnp, optax, jaxsparse
      >>> params = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
      >>> tx = optax.chain(optax.clip(1.0), jaxsparse.rigl(optax.sgd(0.1), 0.5, key=0, every=10))
      >>> int(get_masks(tx.init(params), params)["kernel"].sum())
      8
    """
    found: dict[str, Array] = {}
    for state in _find(opt_state):
        for path, mask in jax.tree.leaves_with_path(state.masks):
            path = trees.name(path)
            found[path] = found[path] & mask if path in found else mask
    names = {trees.name(path) for path, _ in jax.tree.leaves_with_path(params)}
    stray = next((path for path in found if path not in names), None)
    if stray is not None:
        raise ValueError(f"the state has a mask for {stray!r}, which `params` has not.")

    def mask(path: str, leaf: Array) -> Array:
        return found[path] if path in found else jnp.ones(leaf.shape, bool)

    return trees.map_arrays(mask, params)


def set_masks(opt_state: Any, masks: Masks) -> Any:
    """The same optimizer state with other masks; apply them to the parameters yourself.

    Masks of leaves that the algorithm holds dense must stay all True. The inner state of weights
    that die or come to life here is left alone; `jaxsparse.reset` starts it anew. Weights that a
    later mask update brings to life start with a fresh state, those that died here among them.

    Args:
      opt_state: any state that holds the state of a sparse algorithm.
      masks: boolean arrays in the structure of the parameters.

    Raises:
      ValueError: no sparse state, or a mask is missing or has another shape.
      TypeError: a mask is not boolean.

    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxsparse
      >>> params = {"kernel": jnp.ones((4, 4))}
      >>> state = jaxsparse.fixed(optax.sgd(0.1), sparsity=0.5, key=0).init(params)
      >>> state = set_masks(state, jaxsparse.random_masks(1, params, 0.75))
      >>> int(get_masks(state, params)["kernel"].sum())
      4
    """
    _find(opt_state)
    given = {trees.name(path): mask for path, mask in jax.tree.leaves_with_path(masks)}

    def replaced(path: tuple[Any, ...], old: Any) -> Any:
        path, new = trees.name(path), given.get(trees.name(path))
        if not trees.is_array(old):
            return old
        if new is None:
            raise ValueError(f"masks: there is none for {path!r}.")
        if new.dtype != jnp.bool_:
            raise TypeError(f"masks at {path!r} must be boolean, got {new.dtype}.")
        if new.shape != old.shape:
            raise ValueError(f"masks at {path!r} has shape {new.shape}, the state {old.shape}.")
        return new

    def state(node: Any) -> Any:
        if not isinstance(node, SparseState):
            return node
        return node._replace(masks=jax.tree.map_with_path(replaced, node.masks))

    return jax.tree.map(state, opt_state, is_leaf=_is_state)


def init(tx: Any, params: Params) -> tuple[Params, Any]:
    """Draws the masks and applies them, so that training starts sparse.

    Args:
      tx: an Optax transformation that holds a sparse algorithm.
      params: the dense parameters.

    Returns:
      `(params, opt_state)` in buffers of their own, so that both can be donated.

    Example:
      >>> import jax.numpy as jnp, optax, jaxsparse
      >>> tx = jaxsparse.rigl(optax.sgd(0.1), sparsity=0.75, key=0, every=100)
      >>> params, opt_state = init(tx, {"kernel": jnp.ones((4, 4))})
      >>> int(params["kernel"].sum())
      4
    """
    opt_state = tx.init(params)
    params = apply(params, get_masks(opt_state, params))

    def copy(leaf: Any) -> Any:
        return jnp.array(leaf, copy=True) if isinstance(leaf, jax.Array) else leaf

    return jax.tree.map(copy, params), jax.tree.map(copy, opt_state)


def reset(tx: Any, opt_state: Any, params: Params) -> Any:
    """A fresh state (count 0, inner state anew) that keeps the masks: for rewinding.

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
    return set_masks(tx.init(params), get_masks(opt_state, params))


def metrics(opt_state: Any, *, prunable: Prunable | None = None) -> dict[str, Array]:
    """What a log wants to know of the masks, as scalars; works under `jit`.

    Returns:
      `density` (float32, living fraction of the prunable leaves), `churn` (float32, fraction of
      living weights that the last mask update brought to life), `last_update` (int32, its count,
      -1 before the first), `postponed` (int32, steps at which a mask update had to wait for finite
      scores).

    Example:
      >>> import jax.numpy as jnp, optax, jaxsparse
      >>> tx = jaxsparse.rigl(optax.sgd(0.1), sparsity=0.75, key=0, every=100)
      >>> float(metrics(tx.init({"kernel": jnp.ones((4, 4))}))["density"])
      0.25
    """
    states = _find(opt_state)
    values = [jax.tree.leaves(s._replace(masks=(), inner_state=(), rule_state=())) for s in states]
    plain = [SparseState(*v[:3], (), (), (), *v[3:]) for v in values]
    latest = jnp.stack([s.last_update for s in plain])
    return {
        "density": density([s.masks for s in states], prunable),
        "churn": jnp.stack([s.churn for s in plain])[jnp.argmax(latest)],
        "last_update": jnp.max(latest),
        "postponed": sum(s.postponed for s in plain),
    }


def _is_state(node: Any) -> bool:
    return isinstance(node, SparseState)


def _find(opt_state: Any) -> list[SparseState]:
    held = getattr(opt_state, "opt_state", opt_state)
    states = [node for node in jax.tree.leaves(held, is_leaf=_is_state) if _is_state(node)]
    if not states:
        raise ValueError(
            f"opt_state holds no sparse state (got {type(opt_state).__name__}); it comes from the "
            "init of an optimizer wrapped by jaxsparse, such as jaxsparse.rigl(...)."
        )
    return states
