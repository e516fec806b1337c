"""Exact counts without 64-bit integers: fractions of a count, and totals of many leaves.

A fraction f of a count n is `round(f * n)`, and floats get it wrong: 0.3 in float32 is a little
more than 3/10, so `ceil(0.3 * 50)` is 16, and beyond 2^24 float32 skips integers. Here `share`
first reads a fraction as a ratio of integers, and the rest is integer arithmetic. That takes dozens
of small operations, which are a single compiled program even outside of `jit`.

A leaf has fewer than 2^31 weights, but all leaves of a net together may have more, so totals are
kept in two words of 32 bits.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsparse.types import Array

PARTS = 12_000_000  # 2^8 * 3 * 5^6
_LARGEST = 2**31 - 1


class Share(NamedTuple):
    """A fraction in [0, 1] as a ratio of integers.

    Attributes:
      numerator: at most the denominator; an int, or an int32 array.
      denominator: in [1, 2^31); an int, or an int32 array.
    """

    numerator: int | Array
    denominator: int | Array = PARTS

    def rest(self) -> "Share":
        """One minus this fraction."""
        return Share(self.denominator - self.numerator, self.denominator)


def share(fraction: float | Array) -> Share:
    """Reads a fraction: its float32 value, rounded to the nearest multiple of 1 / 12,000,000.

    Those multiples are further apart than a float32 is from the number that was meant. So every
    decimal of up to six digits, every multiple of 1/3 and every multiple of 1/256 is read as
    intended, and a Python float, a NumPy scalar and a traced value of any floating type agree if
    they round to the same float32. A value outside [0, 1] is clipped.

    Example:
      >>> share(0.3).numerator, share(1 / 3).numerator
      (3600000, 4000000)
    """
    # In units of 2^-30, which is exact from 2^-6 on and, below that, far finer than the multiples.
    if not isinstance(fraction, jax.Array):
        known = int(min(max(float(np.float32(fraction)), 0.0), 1.0) * 2**30)
        return Share((known * PARTS + 2**29) >> 30)
    value = jnp.clip(fraction.astype(jnp.float32), 0, 1)
    bits = jnp.where(value > 0, value * 2**30, 0).astype(jnp.int32)  # NaN is not a fraction: 0
    return Share(nearest(PARTS, Share(bits, 2**30)))


def floor(count: int | Array, part: Share) -> int | Array:
    """`floor(part * count)`, exactly.

    Args:
      count: an int of any size, or int32 of any shape, not negative.
      part: the fraction of it; see `share`.

    Returns:
      An int if all arguments are ints, else int32 of the broadcast shape.

    Example:
      >>> floor(50, share(0.3)), ceil(50, share(0.3)), nearest(5, share(0.9))
      (15, 15, 5)
    """
    return _rounded(count, part, lambda left, whole: left * 0)


def ceil(count: int | Array, part: Share) -> int | Array:
    """`ceil(part * count)`, exactly; arguments as for `floor`."""
    return _rounded(count, part, lambda left, whole: left > 0)


def nearest(count: int | Array, part: Share) -> int | Array:
    """`floor(part * count + 1/2)`, exactly; arguments as for `floor`."""
    return _rounded(count, part, lambda left, whole: left + left >= whole)


def _rounded(count: int | Array, part: Share, up: Callable[..., Any]) -> int | Array:
    if all(isinstance(x, int | np.integer) for x in (count, *part)):
        known, rest = divmod(int(count) * int(part.numerator), int(part.denominator))
        return known + int(up(rest, part.denominator))
    if isinstance(count, int) and count > _LARGEST:
        raise ValueError(
            f"a traced fraction works for up to {_LARGEST:,} weights, got {count:,}; pass "
            "the fraction as a Python float."
        )
    words = [_word(x) for x in (count, *part)]
    whole, left = _divide(*words)
    return (whole + up(left, words[2]).astype(jnp.uint32)).astype(jnp.int32)


@jax.jit
def _divide(count: Array, numerator: Array, denominator: Array) -> tuple[Array, Array]:
    """Quotient and remainder of `count * numerator / denominator`, where the quotient is at most
    `count`: estimated in floats, twice, and then corrected in integers."""
    product = _product(count, numerator)
    wide = [x.astype(jnp.float32) for x in (count, numerator, denominator)]
    quotient = jnp.floor(wide[0] * (wide[1] / wide[2])).astype(jnp.uint32)
    left = subtract(product, _product(quotient, denominator))  # of either sign, and still large
    step = jnp.floor(as_float(left) / wide[2]).astype(jnp.int32)
    quotient += step.astype(jnp.uint32)
    # Now off by at most one.
    quotient -= negative(subtract(product, _product(quotient, denominator))).astype(jnp.uint32)
    fits = ~negative(subtract(product, _product(quotient + 1, denominator)))
    quotient += fits.astype(jnp.uint32)
    return quotient, product.low - quotient * denominator


class Total(NamedTuple):
    """A signed integer of 64 bits, in two's complement.

    Attributes:
      high: the upper 32 bits, uint32.
      low: the lower 32 bits, uint32.
    """

    high: Array
    low: Array


def add_up(counts: int | Array | Sequence[Array]) -> Total:
    """The total of non-negative counts: one int, an array, or a list of scalars."""
    if isinstance(counts, np.ndarray):
        counts = int(counts.sum(dtype=np.int64))
    if isinstance(counts, int | np.integer):
        return Total(*(jnp.uint32(word & 0xFFFFFFFF) for word in (int(counts) >> 32, int(counts))))
    return _add_up(counts) if isinstance(counts, jax.Array) or counts else add_up(0)


@jax.jit
def _add_up(counts: Array | Sequence[Array]) -> Total:
    if not isinstance(counts, jax.Array):
        counts = jnp.stack(counts)
    words = Total(jnp.zeros(counts.shape, jnp.uint32), counts.astype(jnp.uint32))
    if counts.dtype.itemsize == 8:
        words = words._replace(high=(counts >> 32).astype(jnp.uint32))
    zero = Total(jnp.uint32(0), jnp.uint32(0))
    return lax.reduce(words, zero, _add, range(counts.ndim))


def subtract(a: Total, b: Total) -> Total:
    """`a - b`."""
    borrow = (a.low < b.low).astype(jnp.uint32)
    return Total(a.high - b.high - borrow, a.low - b.low)


def smaller(a: Total, b: Total) -> Total:
    """The smaller of two totals."""
    return _where(negative(subtract(a, b)), a, b)


def negative(a: Total) -> Array:
    """Whether a total is below 0."""
    return (a.high >> 31) > 0


def clipped(a: Total) -> Array:
    """The total as an int32, clipped to [0, 2^31)."""
    small = (a.high == 0) & (a.low <= _LARGEST)
    found = jnp.where(small, a.low, jnp.uint32(_LARGEST)).astype(jnp.int32)
    return jnp.where(negative(a), 0, found)


def as_float(a: Total) -> Array:
    """The total as a float32; a larger total never gives a smaller float."""
    below = negative(a)
    size = _where(below, subtract(Total(jnp.uint32(0), jnp.uint32(0)), a), a)
    found = size.high.astype(jnp.float32) * 2.0**32 + size.low.astype(jnp.float32)
    return jnp.where(below, -found, found)


def ratio(
    part: int | Array | Sequence[Array], whole: int | Array | Sequence[Array], empty: float = 0.0
) -> Array:
    """`sum(part) / sum(whole)`, a float32 in [0, 1], rounded once; `empty` where the whole is 0.

    Args:
      part: counts as for `add_up`, in total at most the whole.
      whole: counts as for `add_up`.
      empty: the ratio if the whole is 0.

    Example:
      >>> float(ratio([jnp.int32(2**30)] * 3, 2**32))
      0.75
    """
    return _ratio(add_up(part), add_up(whole), empty)


@jax.jit
def _ratio(some: Total, every: Total, empty: float) -> Array:
    part, whole = as_float(some), as_float(every)
    # A compiler multiplies by the reciprocal of a constant, so 41 / 41 would be a little below 1.
    found = part / lax.optimization_barrier(jnp.maximum(whole, 1))
    found = jnp.where(part < whole, jnp.minimum(found, 1), 1)
    return jnp.where(whole > 0, found, jnp.float32(empty))


def _add(a: Total, b: Total) -> Total:
    low = a.low + b.low
    return Total(a.high + b.high + (low < a.low).astype(jnp.uint32), low)


def _product(a: Array, b: Array) -> Total:
    """The product of two words, from the products of their halves."""
    half = jnp.uint32(0xFFFF)
    one = (a >> 16) * (b & half) + ((a & half) * (b & half) >> 16)
    two = (a & half) * (b >> 16) + (one & half)
    return Total((a >> 16) * (b >> 16) + (one >> 16) + (two >> 16), a * b)


def _where(flag: Array, a: Total, b: Total) -> Total:
    return Total(jnp.where(flag, a.high, b.high), jnp.where(flag, a.low, b.low))


def _word(x: int | Array) -> Array:
    return jnp.asarray(x).astype(jnp.uint32)
