"""Moves living values to other places: those of kernels, and of the optimizer state for them."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse import jaxprs
from jaxsparse.inner_state import weights
from jaxsparse.masks import living
from jaxsparse.sparse._layout import Compressed, is_compressed, map_compressed
from jaxsparse.types import Array, Masks, Params


def compressed_leaves(params: Params) -> list[bool]:
    """Which leaves are compressed kernels."""
    return [is_compressed(leaf) for leaf in jax.tree.leaves(params, is_leaf=is_compressed)]


def kernels_of(params: Params) -> list[Any]:
    """The compressed kernels of a tree."""
    return [k for k in jax.tree.leaves(params, is_leaf=is_compressed) if is_compressed(k)]


def with_kernels(params: Params, kernels: list[Any]) -> Params:
    """The tree with these kernels in place of its own compressed kernels."""
    found = iter(kernels)
    return map_compressed(lambda _: next(found), params)


def at_kernels(params: Params, tree: Any) -> list[Any]:
    """The leaves of a tree in the structure of the parameters where the latter are compressed."""
    pairs = zip(compressed_leaves(params), jax.tree.leaves(tree), strict=True)
    return [leaf for compressed, leaf in pairs if compressed]


def masks_of(params: Params) -> Masks:
    """Where weights live: the masks of compressed kernels, all True elsewhere."""

    def mask(leaf: Any) -> Any:
        return leaf.mask if is_compressed(leaf) else jnp.ones(jnp.shape(leaf), bool)

    return jax.tree.map(mask, params, is_leaf=is_compressed)


def entries(kernel: Compressed, mask: Array) -> Array:
    """How many entries of the kernel's format (weights, blocks) a mask fills."""
    of_one = max(kernel.values.size // max(len(kernel.values), 1), 1)
    return living(mask) // of_one


class Move:
    """From the places of some kernels to those of others, in the same leaves.

    Attributes:
      born: one boolean array for each kernel: which of the new values did not live before. It is
        True where no value lives.
    """

    def __init__(self, old: list[Any], new: list[Any]):
        self._from = [jaxprs.apart(_numbers)(o, n) for o, n in zip(old, new, strict=True)]
        self._ndims = [kernel.values.ndim for kernel in old]
        self.born = [
            jnp.broadcast_to(_column(where < 0, n.values.ndim), n.values.shape)
            for where, n in zip(self._from, new, strict=True)
        ]

    def carry(self, which: int, values: Array, fresh: Array) -> Array:
        """The values of old kernel number `which` at the new places; fresh ones at new weights.

        Values may have additional leading axes.
        """
        axis = values.ndim - self._ndims[which]
        found = jnp.take(values, jnp.maximum(self._from[which], 0), axis, mode="clip")
        return jnp.where(self.born[which], fresh.astype(values.dtype), found)


def _numbers(old: Any, new: Any) -> Array:
    """Which entry of the old kernel each entry of the new one was; -1 where there was none."""
    count, ndim = len(old.values), old.values.ndim
    ones = jnp.arange(1, count + 1, dtype=jnp.int32)
    spread = old.spread(jnp.broadcast_to(_column(ones, ndim), old.values.shape))
    return new.gather(spread).reshape(len(new.values), -1)[:, 0] - 1


def _column(vector: Array, ndim: int) -> Array:
    return vector.reshape(-1, *[1] * (ndim - 1))


def moments(inner_state: Any, params: Params, values: Params) -> dict[int, int]:
    """Which leaves of an optimizer's state belong to the values of kernels, and to which of them.

    Args:
      inner_state: the state of an optimizer that was initialized with the values.
      params: parameters with compressed kernels.
      values: the values of these parameters.
    """
    found = weights(inner_state, values, compressed_leaves(params))
    number = {w: n for n, w in enumerate(i for i, c in enumerate(compressed_leaves(params)) if c)}
    return {i: number[w] for i, w in found.items()}
