"""Masks as bits: in a state, a weight takes one bit, and a dense leaf one byte in all."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse import trees
from jaxsparse.meshes import automatic
from jaxsparse.types import Array, Masks


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["words"], meta_fields=["shape", "dense"]
)
@dataclasses.dataclass(frozen=True)
class PackedMask:
    """The mask of one leaf, eight weights per byte.

    Attributes:
      words: uint8, of the mask's shape except for the packed axis, which has an eighth of its size;
        for a dense leaf one byte, of shape `(1, ..., 1)`. Axes of replicates may come first.
      shape: the shape of the mask.
      dense: whether the whole leaf is dense.
    """

    words: Array
    shape: tuple[int, ...]
    dense: bool = False

    @classmethod
    def of(cls, mask: Array, dense: bool = False) -> "PackedMask":
        """A boolean mask as bits; for a dense leaf, only its shape is kept."""
        if dense:
            return cls(jnp.full((1,) * mask.ndim, 255, jnp.uint8), mask.shape, True)
        return cls(automatic(_packed, mask)(mask), mask.shape)

    @property
    def mask(self) -> Array:
        """Boolean, of the mask's shape."""
        return unpacked(self.words, self.shape)

    def like(self, mask: Array) -> "PackedMask":
        """Another mask of this leaf, in the same form; a dense leaf stays dense."""
        if self.dense:
            return self
        return dataclasses.replace(self, words=automatic(_packed, self.words)(mask))


def pack_leaves(masks: Masks, sparse: list[bool], everywhere: bool = True) -> Any:
    """The masks of all leaves as bits; those that are packed already stay as they are.

    Args:
      masks: boolean arrays, or packed masks.
      sparse: one bool per leaf: may it have dead weights?
      everywhere: whether to pack even masks that a mesh of these devices might divide within a
        byte.
    """

    def one(mask: Any, used: bool) -> Any:
        if trees.is_array(mask) and (everywhere or not used or _keeps_bytes_whole(mask.shape)):
            return PackedMask.of(mask, dense=not used)
        return mask

    leaves, treedef = jax.tree.flatten(masks, is_leaf=lambda x: isinstance(x, PackedMask))
    return treedef.unflatten(one(*each) for each in zip(leaves, sparse, strict=True))


def _keeps_bytes_whole(shape: tuple[int, ...]) -> bool:
    """Whether every mesh of these devices that divides such a mask evenly divides no byte."""
    devices, axis = jax.device_count(), _axis(shape)
    return devices == 1 or (axis is not None and shape[axis] % (8 * devices) == 0)


def unpacked(words: Array, shape: tuple[int, ...]) -> Array:
    """The mask of a given shape from its bits, with any axes of replicates in front."""
    axis, lead = _axis(shape), words.shape[: words.ndim - len(shape)]
    if axis is None or [*words.shape[len(lead) :]] != _with(shape, axis, -(-shape[axis] // 8)):
        return jnp.broadcast_to(words != 0, (*lead, *shape))
    rows = 8 * words.shape[axis]

    def bits(words: Array) -> Array:
        found = (jnp.expand_dims(words, axis) & _bits(axis)) != 0
        found = found.reshape(*lead, *_with(shape, axis, rows))
        return found if rows == shape[axis] else found[..., : shape[axis]]

    return automatic(bits, words)(words)


def _packed(mask: Array) -> Array:
    """Like `numpy.packbits`, but in few operations, because a step has many of these to compile."""
    axis = _axis(mask.shape)
    if axis is None:
        return mask.astype(jnp.uint8)
    if axis == -1 and mask.shape[-1] % 8:
        mask = jnp.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, -mask.shape[-1] % 8)])
    split = list(mask.shape)
    split[axis:] = [split[axis] // 8, 8, *split[len(split) + axis + 1 :]]
    apart = jnp.where(mask.reshape(split), _bits(axis), jnp.uint8(0))
    return jnp.sum(apart, axis=axis, dtype=jnp.uint8)


def _bits(axis: int) -> np.ndarray:
    """The bits of a byte, the highest first, along an axis counted from the end."""
    return (128 >> np.arange(8)).astype(np.uint8).reshape(8, *(1,) * (-axis - 1))


def _with(shape: tuple[int, ...], axis: int, size: int) -> list[int]:
    """A shape with another size along an axis."""
    sizes = list(shape)
    sizes[axis] = size
    return sizes


def _axis(shape: tuple[int, ...]) -> int | None:
    """Which axis is packed: the second to last, if eight divides it, because it is unpacked in
    whole vectors; else the last."""
    if not shape:
        return None
    return -2 if len(shape) > 1 and shape[-2] % 8 == 0 else -1
