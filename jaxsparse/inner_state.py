"""The inner optimizer's state: which of its leaves belong to weights, and how they are reset."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxsparse import trees
from jaxsparse.state_tree import as_masks
from jaxsparse.types import Array, Masks, Params


def reset_dead(
    inner_state: Any,
    fresh: Callable[[], Any],
    params: Params,
    masks: Masks,
    sparse: list[bool],
    fired: Array,
    some: Array,
) -> tuple[Any, Array]:
    """Resets weight-shaped state off the masks to what `inner.init` gives there.

    It loops zero or one times, because a conditional or a select would copy the whole state.

    Args:
      inner_state: the state of the inner optimizer.
      fresh: returns what `inner.init` returns.
      params: the parameters.
      masks: where the state is kept; in the form that a sparse state stores.
      sparse: which leaves of the parameters may be sparse.
      fired: whether to reset.
      some: whether to reset any replicate under `vmap`.

    Returns:
      The state, and `some` as a value that is available only after the masks have been read: what
      waits for it may overwrite them.
    """
    leaves, treedef = jax.tree.flatten(inner_state)
    owned = weights(inner_state, params, sparse)
    if not owned:
        return inner_state, some

    def reset(_: Array, carry: tuple[list[Array], Array]) -> tuple[list[Array], Array]:
        initial, alive = jax.tree.leaves(fresh()), jax.tree.leaves(as_masks(masks))
        return [
            jnp.where(alive[w], leaf, jnp.where(fired, initial[i].astype(leaf.dtype), leaf))
            for (i, w), leaf in zip(owned.items(), carry[0], strict=True)
        ], jnp.asarray(True)

    start = [leaves[i] for i in owned], jnp.asarray(False)
    carry, some = lax.fori_loop(0, some.astype(jnp.int32), reset, start)
    for i, leaf in zip(owned, carry, strict=True):
        leaves[i] = leaf
    return jax.tree.unflatten(treedef, leaves), some


def weights(inner_state: Any, params: Params, sparse: list[bool]) -> dict[int, int]:
    """Which leaves of the state belong to sparse leaves of the parameters, and to which of them."""
    find = owners(params)
    found = {}
    for i, (path, leaf) in enumerate(jax.tree.leaves_with_path(inner_state)):
        if trees.is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact):
            owner = find(path, leaf)
            if owner is not None and sparse[owner]:
                found[i] = owner
    return found


def owners(params: Params) -> Callable[[tuple[Any, ...], Any], int | None]:
    """A function `(path, leaf) -> index` that says which leaf of `params` an array of another tree
    belongs to: its path ends with that leaf's, and its last axes have that leaf's shape (a history
    of updates has one more axis in front)."""
    leaves = {path: (i, p) for i, (path, p) in enumerate(jax.tree.leaves_with_path(params))}

    def find(path: tuple[Any, ...], leaf: Any) -> int | None:
        endings = (path[start:] for start in range(len(path) + 1))  # the longest first
        found = next((leaves[ending] for ending in endings if ending in leaves), None)
        if found is None or not trees.is_array(leaf):
            return None
        i, p = found
        return i if leaf.shape[leaf.ndim - p.ndim :] == p.shape else None

    return find


def project(inner_state: Any, fresh: Any, params: Params, masks: Masks) -> Any:
    """Replaces weight-shaped state off the masks by that of `fresh`, of the same structure."""
    sparse = [trees.is_float(leaf) for leaf in jax.tree.leaves(params)]
    leaves, treedef = jax.tree.flatten(inner_state)
    masks, initial = jax.tree.leaves(masks), jax.tree.leaves(fresh)
    for i, w in weights(inner_state, params, sparse).items():
        leaves[i] = jnp.where(masks[w], leaves[i], initial[i])
    return jax.tree.unflatten(treedef, leaves)
