"""The selection as a compiled kernel."""

import jax
import jax.numpy as jnp

from jaxsparse import compiled
from jaxsparse.types import Array

_TYPES = ("float32", "bfloat16", "float16")


def exists(scores: Array) -> bool:
    """Whether there is a kernel for these scores here."""
    able = scores.size > 0 and scores.dtype.name in _TYPES
    return able and compiled.choose(
        "auto", lambda: compiled.library("selection.cc", ("top_k_mask",))
    )


def mask(k: Array, scores: Array, where: Array) -> Array:
    """The mask of the `k` largest scores among those of `where`, or among all if that is empty."""
    shape = jax.ShapeDtypeStruct(scores.shape, jnp.bool_)
    call = jax.ffi.ffi_call("jaxsparse_top_k_mask", shape, vmap_method="sequential")
    return call(scores, where, k)
