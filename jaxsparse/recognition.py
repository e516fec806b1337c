"""Which leaves of a tree may be sparse, and why the others stay dense."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse import trees
from jaxsparse.types import Array, Params, Prunable

_DENSE_NAMES = ("bias", "scale", "embedding")


def default_prunable(path: str, leaf: Any) -> bool:
    """The default filter: at least two axes longer than 1, and no bias, scale or embedding.

    Example:
      >>> import jax.numpy as jnp
      >>> default_prunable("fc1/kernel", jnp.ones((4, 3))), default_prunable("bias", jnp.ones((4,)))
      (True, False)
    """
    return why_dense(path, leaf) is None


def why_dense(path: str, leaf: Any) -> str | None:
    """Why the default filter leaves a leaf dense, in a few words; None where it may be sparse."""
    if not trees.is_float(leaf):
        return "not a floating array"
    last = path.rsplit("/", 1)[-1]
    if last in _DENSE_NAMES:
        return f"named {last}"
    if sum(size > 1 for size in leaf.shape) < 2:
        return "fewer than two axes"
    return None


def sparse_leaves(params: Params, prunable: Prunable | None) -> list[bool]:
    """One bool per leaf: floating and let through by the filter.

    Raises:
      ValueError: there are array leaves, and the filter lets none of them through.
    """
    prunable = prunable or default_prunable
    found = jax.tree.leaves_with_path(params)
    chosen = [
        trees.is_float(leaf) and bool(prunable(trees.name(path), leaf)) for path, leaf in found
    ]
    arrays = [trees.name(path) for path, leaf in found if trees.is_array(leaf)]
    if arrays and not any(chosen):
        raise ValueError(
            f"prunable: the filter matches none of the {len(arrays)} array leaves "
            f"({', '.join(arrays[:5])}{', ...' if len(arrays) > 5 else ''}). Only floating arrays "
            "count; pass prunable=lambda path, leaf: ... that is True for the leaves to prune."
        )
    return chosen


def as_float(leaf: Array) -> Any:
    """What a filter is asked about a mask: a float of its shape; other arrays are as they are."""
    return jax.ShapeDtypeStruct(leaf.shape, jnp.float32) if leaf.dtype == jnp.bool_ else leaf
