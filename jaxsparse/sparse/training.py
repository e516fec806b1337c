"""Training with places that move: the whole step, and a change of capacities during training."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse.checks import check_flag, check_function
from jaxsparse.sparse._accelerate import accelerate
from jaxsparse.sparse._flat import Patch, at_places
from jaxsparse.sparse._layout import is_compressed
from jaxsparse.sparse._moving import Move, compressed_leaves, kernels_of, masks_of, moments
from jaxsparse.sparse._states import nodes, own_places
from jaxsparse.sparse._values import expand, values, with_values
from jaxsparse.sparse._watched import Watched
from jaxsparse.state_tree import as_masks, field, is_state, replace, starting_from
from jaxsparse.types import Params


def train_step(loss: Callable[..., Any], tx: Any, *, has_aux: bool = False) -> Callable[..., Any]:
    """A whole training step for compressed parameters, to be compiled and called repeatedly.

    It takes the gradients of the living values and lets `tx` update them. No dense weight,
    gradient or moment is made, except where masks change or the method observes gradients.

    Args:
      loss: `(params, *args) -> scalar`, or `(scalar, aux)` with `has_aux`; any function that
        multiplies by the kernels.
      tx: an Optax transformation that contains a sparse algorithm with `storage="compressed"`. With
        `"compressed_state"`, the living weights of dense parameters are written in place if the
        algorithm is the outermost transformation. Otherwise the step is the ordinary one.
      has_aux: whether the loss returns something besides its value.

    Returns:
      `(params, opt_state, *args) -> (params, opt_state, value)`, or `(value, aux)` with `has_aux`;
      `params` and `opt_state` can be donated.

    Raises:
      TypeError: `loss` is not a function, or `tx` is not a transformation.

    Example:
      >>> import jax, jax.numpy as jnp, jaxsparse, optax
      >>> def loss(params, x):
      ...     return jnp.mean((x @ params["kernel"]) ** 2)
      >>> tx = jaxsparse.rigl(optax.adam(0.1), 0.75, key=0, every=2, storage="compressed")
      >>> params, opt_state = jaxsparse.init(tx, {"kernel": jnp.ones((8, 8))})
      >>> step = jax.jit(train_step(loss, tx), donate_argnums=(0, 1))
      >>> for _ in range(3):
      ...     params, opt_state, value = step(params, opt_state, jnp.ones((2, 8)))
      >>> (
      ...     params["kernel"].values.shape,
      ...     int(jaxsparse.metrics(opt_state, params=params)["last_update"]),
      ... )
      ((16,), 2)
    """
    check_function("loss", loss, "(params, *args) -> scalar")
    check_flag("has_aux", has_aux)
    if not callable(getattr(tx, "update", None)):
        raise TypeError(f"tx must be an Optax transformation, got {tx!r}.")
    fast = accelerate(loss)

    def step(params: Params, opt_state: Any, *args: Any) -> tuple[Params, Any, Any]:
        def of_values(living: Params) -> Any:
            return fast(with_values(params, living), *args)

        def dense_grads(dense: Params) -> Params:
            kernels = jax.tree.map(
                lambda p, d: Watched.of(p, d) if is_compressed(p) else d,
                params,
                dense,
                is_leaf=is_compressed,
            )

            def of_all(matrices: Params) -> Any:
                return fast(with_values(kernels, matrices), *args)

            found = jax.grad(of_all, has_aux=has_aux)(values(kernels))
            return expand(with_values(kernels, found[0] if has_aux else found))

        value, grads = jax.value_and_grad(of_values, has_aux=has_aux)(values(params))
        more: dict[str, Any] = {}
        if any(compressed_leaves(params)):
            more = {"dense_grads": dense_grads}
        elif is_state(opt_state) and own_places(opt_state):  # no other transformation follows
            more = {"patches": True}
        updates, opt_state = tx.update(grads, opt_state, params, **more)
        return apply_updates(params, updates), opt_state, value

    return step


def apply_updates(params: Params, updates: Params) -> Params:
    """`optax.apply_updates` for compressed parameters too: a kernel moves to its update's places.

    Args:
      params: the parameters.
      updates: what `tx.update` returned: for a compressed leaf the kernel that replaces it, for any
        other leaf what is to be added.

    Example:
      >>> import jax.numpy as jnp
      >>> apply_updates({"bias": jnp.ones(2)}, {"bias": jnp.ones(2)})["bias"].tolist()
      [2.0, 2.0]
    """

    def leaf(p: Any, u: Any) -> Any:
        if is_compressed(p):
            return u
        if isinstance(u, Patch):
            return u.applied(p)
        return None if p is None else jnp.asarray(p + u).astype(jnp.asarray(p).dtype)

    return jax.tree.map(leaf, params, updates, is_leaf=lambda p: p is None or is_compressed(p))


def fit(tx: Any, params: Params, opt_state: Any) -> tuple[Params, Any]:
    """New capacities that fit the weights that live now; everything else continues unchanged.

    Use it for gradual pruning, whose leaves shrink during training, and for methods that move
    weights between layers, where a mask update is postponed if a leaf has no room for it. It works
    on the host, and a compiled step compiles again for the new shapes.

    Args:
      tx: the transformation that made `opt_state`, with storage "compressed" or "compressed_state".
      params: the parameters.
      opt_state: the state.

    Returns:
      `(params, opt_state)`.

    Raises:
      ValueError: `opt_state` holds no compressed storage.

    Example:
      >>> import jax.numpy as jnp, jaxsparse, optax
      >>> tx = jaxsparse.gradual(optax.sgd(0.1), 0.75, start=0, stop=1, storage="compressed")
      >>> params, opt_state = jaxsparse.init(tx, {"kernel": jnp.arange(16.0).reshape(4, 4)})
      >>> step = train_step(lambda params: jnp.sum(jnp.ones((1, 4)) @ params["kernel"]), tx)
      >>> for _ in range(2):
      ...     params, opt_state, _ = step(params, opt_state)
      >>> params["kernel"].values.shape, fit(tx, params, opt_state)[0]["kernel"].values.shape
      ((16,), (4,))
    """
    compact = any(compressed_leaves(params))
    dense, olds = expand(params), nodes(opt_state)
    if not compact and not own_places(opt_state):
        raise ValueError(
            "opt_state keeps masks, which have no capacity: fit is for the storages "
            '"compressed" and "compressed_state".'
        )
    with starting_from(_all_masks(params, olds)):
        fresh = tx.init(dense)
    for old, new in zip(olds, nodes(fresh), strict=True):
        before = params if compact else at_places(old.masks, dense)
        after = new.masks if compact else at_places(new.masks, dense)
        inner = _carried(field(old, "inner_state", "fit"), new.inner_state, before, after)
        masks = old.masks if compact else new.masks
        opt_state = _replaced(opt_state, old, replace(old, masks=masks, inner_state=inner))
        params = after if compact else params
    return params, opt_state


def _carried(inner_state: Any, fresh: Any, before: Params, after: Params) -> Any:
    """The state of an optimizer of values, with vectors of the length of the new kernels."""
    leaves, treedef = jax.tree.flatten(inner_state)
    new, move = jax.tree.leaves(fresh), Move(kernels_of(before), kernels_of(after))
    for i, w in moments(inner_state, before, values(before)).items():
        leaves[i] = move.carry(w, leaves[i], new[i])
    return treedef.unflatten(leaves)


def _all_masks(params: Params, states: list[Any]) -> Params:
    if any(compressed_leaves(params)):
        return masks_of(params)
    (state,) = states
    return as_masks(state.masks)


def _replaced(tree: Any, old: Any, new: Any) -> Any:
    return jax.tree.map(lambda node: new if node is old else node, tree, is_leaf=is_state)
