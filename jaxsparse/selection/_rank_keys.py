"""Rank keys: unsigned integers in the order of floating scores, so that scores can be counted.

Integer arithmetic throughout, because floating comparisons may treat subnormals as zero.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax


@jax.jit
def rank_keys(scores: Array, where: Array | None) -> Array:
    """Unsigned integers in the order of the scores: 0 = not eligible, 1 = NaN, zeros are equal."""
    unsigned, sign, infinity = _layout(scores.dtype)
    bits = lax.bitcast_convert_type(lax.stop_gradient(scores), unsigned)
    magnitude = bits & (sign - unsigned.type(1))
    negative = (bits >= sign) & (magnitude > 0)
    keys = jnp.where(negative, ~bits, magnitude | sign)
    keys = jnp.where(magnitude > infinity, unsigned.type(1), keys)
    return keys if where is None else jnp.where(where, keys, unsigned.type(0))


def tie_orders(keys: Sequence[Array]) -> list[Array]:
    """The order among equal keys, largest first: n - flat index, continued from leaf to leaf."""
    left, orders = sum(x.size for x in keys), []
    for x in keys:
        order, stride = jnp.full(x.shape, left, jnp.uint32), 1
        for d in reversed(range(x.ndim)):
            order -= lax.broadcasted_iota(jnp.uint32, x.shape, d) * jnp.uint32(stride)
            stride *= x.shape[d]
        left -= x.size
        orders.append(order)
    return orders


@partial(jax.jit, static_argnames="dtype")
def score_of(key: Array, dtype: np.dtype) -> Array:
    """The score that has this rank key (0.0 for either zero)."""
    unsigned, sign, infinity = _layout(dtype)
    bits = jnp.where(key >= sign, key ^ sign, ~key)
    bits = jnp.where(key == 1, infinity | (infinity >> unsigned.type(1)), bits)
    return lax.bitcast_convert_type(bits, dtype)


def widen(scores: Array, itemsize: int) -> Array:
    """An exact conversion to float32 or, for 8 bytes, float64; by bits where a cast could flush."""
    if scores.dtype == jnp.bfloat16:
        bits = lax.bitcast_convert_type(scores, jnp.uint16).astype(jnp.uint32) << 16
        scores = lax.bitcast_convert_type(bits, jnp.float32)
    wide = scores.astype(jnp.float64 if itemsize == 8 else jnp.float32)
    if itemsize == 8 and scores.dtype == jnp.float32:
        bits = lax.bitcast_convert_type(scores, jnp.uint32)
        steps = (bits & jnp.uint32(2**23 - 1)).astype(jnp.float64)
        subnormal = jnp.where(bits >> 31 == 1, -steps, steps) * 2.0**-149
        wide = jnp.where(bits & jnp.uint32(0x7F800000) == 0, subnormal, wide)
    return wide


def kind(dtype: np.dtype) -> np.dtype:
    """The type of the keys of such scores: unsigned, of the same width."""
    return jnp.dtype(f"uint{dtype.itemsize * 8}")


def _layout(dtype: np.dtype) -> tuple[np.dtype, np.unsignedinteger, np.unsignedinteger]:
    """The unsigned type of the same width, its sign bit, and the bits of +infinity."""
    unsigned = kind(dtype)
    info = jnp.finfo(dtype)
    infinity = ((1 << info.nexp) - 1) << info.nmant
    return unsigned, unsigned.type(1 << (unsigned.itemsize * 8 - 1)), unsigned.type(infinity)
