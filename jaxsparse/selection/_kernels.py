"""Compiled kernels that make masks, draw scores and count, for one CPU device."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import ShapeDtypeStruct as Result

from jaxsparse import compiled
from jaxsparse.selection import _rank_keys
from jaxsparse.types import Array

_TARGETS = (
    *("top_k_mask", "grown_mask", "kth_key", "uniform"),
    *("living", "all_finite", "checked", "row"),
)
_SCORES = ("float32", "bfloat16", "float16")


def exist() -> bool:
    """Whether these kernels are available on this machine."""
    return compiled.choose("auto", lambda: compiled.library("masks.cc", _TARGETS))


def select(scores: Array) -> bool:
    """Whether there is a kernel that selects among these scores."""
    return scores.size > 0 and scores.dtype.name in _SCORES and exist()


def top_k_mask(k: Array, scores: Array, where: Array) -> Array:
    """The mask of the `k` largest scores among those of `where`, or among all if that is empty."""
    return _call("top_k_mask", Result(scores.shape, jnp.bool_), scores, where, k)


def grown_mask(k: Array, scores: Array, mask: Array) -> Array:
    """A mask, in its own memory if nothing else reads it there, and the `k` largest scores off
    it."""
    return _call("grown_mask", Result(scores.shape, jnp.bool_), scores, mask, k, in_place=1)


def kth_key(k: Array, scores: Array) -> Array:
    """The rank key of the `k`-th largest score, for k in [1, n]."""
    return _call("kth_key", Result((), _rank_keys.kind(scores.dtype)), scores, k)


def uniform(key: Array, shape: tuple[int, ...]) -> Array:
    """The float32 numbers of `jax.random.uniform` with JAX's default generator, from the two words
    of a key."""
    return _call("uniform", Result(shape, jnp.float32), key)


def living(*masks: Array) -> Array:
    """How many bits of each mask are set, int32 of shape (masks,); booleans have one each."""
    return _call("living", Result((len(masks),), jnp.int32), *masks)


def born(*masks: Array) -> Array:
    """Per mask of the first half, how many bits are set that its partner in the second lacks."""
    return _call("living", Result((len(masks) // 2,), jnp.int32), *masks)


def all_finite(*arrays: Array) -> Array:
    """Whether no number of these float32 arrays is infinite or NaN."""
    return _call("all_finite", Result((), jnp.bool_), *arrays)


def checked(array: Array) -> tuple[Array, Array]:
    """The same float32 array, in the same memory if nothing else reads it there, and whether all
    its numbers are finite."""
    kinds = Result(array.shape, array.dtype), Result((), jnp.bool_)
    same, finite = _call("checked", kinds, array, in_place=0)
    return same, finite


def row(rows: Array, index: Array) -> Array:
    """A row of an array."""
    return _call("row", Result(rows.shape[1:], rows.dtype), rows, index)


def _call(name: str, result: Any, *operands: Array, in_place: int | None = None) -> Any:
    """Calls a target, whose first result may take the memory of one of the operands."""
    aliases = None if in_place is None else {in_place: 0}
    return jax.ffi.ffi_call(
        f"jaxsparse_{name}", result, vmap_method="sequential", input_output_aliases=aliases
    )(*operands)
