"""Compiled kernels that make masks, draw scores and count, for one CPU device."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse import compiled
from jaxsparse.selection import _rank_keys
from jaxsparse.types import Array

_TARGETS = ("top_k_mask", "kth_key", "living", "all_finite", "checked", "row", "uniform")
_SCORES = ("float32", "bfloat16", "float16")


def exist() -> bool:
    """Whether these kernels are available on this machine."""
    return compiled.choose("auto", lambda: compiled.library("masks.cc", _TARGETS))


def select(scores: Array) -> bool:
    """Whether there is a kernel that selects among these scores."""
    return scores.size > 0 and scores.dtype.name in _SCORES and exist()


def top_k_mask(k: Array, scores: Array, where: Array) -> Array:
    """The mask of the `k` largest scores among those of `where`, or among all if that is empty."""
    return _call("top_k_mask", scores.shape, jnp.bool_, scores, where, k)


def kth_key(k: Array, scores: Array) -> Array:
    """The rank key of the `k`-th largest score, for k in [1, n]."""
    return _call("kth_key", (), _rank_keys.kind(scores.dtype), scores, k)


def uniform(key: Array, shape: tuple[int, ...]) -> Array:
    """The float32 numbers of `jax.random.uniform` with JAX's default generator, from the two words
    of a key."""
    return _call("uniform", shape, jnp.float32, key)


def living(*masks: Array) -> Array:
    """How many bits of each mask are set, int32 of shape (masks,); booleans have one each."""
    return _call("living", (len(masks),), jnp.int32, *masks)


def born(*masks: Array) -> Array:
    """Per mask of the first half, how many bits are set that its partner in the second lacks."""
    return _call("living", (len(masks) // 2,), jnp.int32, *masks)


def all_finite(*arrays: Array) -> Array:
    """Whether no number of these float32 arrays is infinite or NaN."""
    return _call("all_finite", (), jnp.bool_, *arrays)


def checked(array: Array) -> tuple[Array, Array]:
    """The same float32 array, in the same memory if nothing else reads it there, and whether all
    its numbers are finite."""
    kinds = [jax.ShapeDtypeStruct(array.shape, array.dtype), jax.ShapeDtypeStruct((), jnp.bool_)]
    same, finite = jax.ffi.ffi_call(
        "jaxsparse_checked", kinds, vmap_method="sequential", input_output_aliases={0: 0}
    )(array)
    return same, finite


def row(rows: Array, index: Array) -> Array:
    """A row of an array."""
    return _call("row", rows.shape[1:], rows.dtype, rows, index)


def _call(name: str, shape: Sequence[int], dtype: Any, *operands: Array) -> Array:
    kind = jax.ShapeDtypeStruct(tuple(shape), dtype)
    return jax.ffi.ffi_call(f"jaxsparse_{name}", kind, vmap_method="sequential")(*operands)
