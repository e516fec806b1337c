"""Arrays of one leaf that are computed where they are used, so that few exist at a time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse import trees
from jaxsparse.meshes import on_one_device
from jaxsparse.packed import PackedMask
from jaxsparse.plans._leaf import LeafPlan
from jaxsparse.selection import kernels
from jaxsparse.types import Array


class Later(NamedTuple):
    """An array of one leaf, not yet computed.

    Attributes:
      function: `(leaf plan, *leaves) -> array`.
      leaves: the leaves that it reads.
    """

    function: Callable[..., Array]
    leaves: tuple[Any, ...]


def elements(values: Array) -> list[Later]:
    """The elements of an array, each of which is read where it is used.

    The index is data, because XLA would compile a program for every constant one.
    """
    return [Later(_element, (values, jnp.int32(i))) for i in range(len(values))]


def call(function: Callable[..., Any], leaf: LeafPlan, *given: Any) -> Any:
    """`function(leaf, *arrays)`; a mask that is made from a packed one is packed again."""
    found = function(leaf, *(_read(leaf, x) for x in given))
    packed = next((x for x in given if isinstance(x, PackedMask)), None)
    same = packed and trees.is_array(found) and (found.shape, found.dtype) == (leaf.shape, bool)
    return packed.like(found) if packed and same else found


def _read(leaf: LeafPlan, given: Any) -> Any:
    if isinstance(given, Later):
        return given.function(leaf, *(_read(leaf, x) for x in given.leaves))
    return given.mask if isinstance(given, PackedMask) else given


def _element(_: LeafPlan, values: Array, index: Array) -> Array:
    return (_by_kernel if kernels.exist() else _by_slice)(values, index)


def _by_slice(values: Array, index: Array) -> Array:
    return jax.lax.dynamic_index_in_dim(values, index, keepdims=False)


_by_kernel = on_one_device(
    kernels.row, _by_slice, lambda values, _: jax.ShapeDtypeStruct(values.shape[1:], values.dtype)
)
