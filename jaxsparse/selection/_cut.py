"""The cut-off between the k largest keys and all others, digit by digit."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsparse.meshes import varying_like
from jaxsparse.selection._rank_keys import tie_orders
from jaxsparse.types import Array

_FEW = 2**13  # below this, counting is faster than clearing and summing a histogram of 2^16 bins
_SPARE = 64  # bins of elements that do not count


class Cut(NamedTuple):
    """A lower bound whose leading digits are settled and whose others are zero.

    Attributes:
      digits: how many digits are settled.
      bound: the bound, of the type of the values.
      above: how many elements are above the settled digits.
      at: how many elements have exactly the settled digits.
    """

    digits: Array
    bound: Array
    above: Array
    at: Array


def above_cut(keys: Sequence[Array], k: Array, axis: int | None) -> tuple[Array, ...]:
    """The masks of the `k` largest (key, order); key 0 is never marked."""
    size = sum(x.size for x in keys) if axis is None else keys[0].shape[axis]
    k = varying_like(k, keys)
    cut = find_cut(keys, None, k, jnp.full_like(k, size), axis)

    def among_ties() -> tuple[Array, ...]:
        orders, ties = tie_orders(keys), [x == cut.bound for x in keys]
        among = find_cut(orders, ties, k - cut.above, cut.at, axis)
        return tuple(
            ((x > cut.bound) | (tied & (order >= among.bound))) & (x > 0)
            for x, tied, order in zip(keys, ties, orders, strict=True)
        )

    # Scores hardly ever tie at the cut, and orders take memory.
    return lax.cond(
        jnp.any(cut.above + cut.at > k),
        among_ties,
        lambda: tuple((x >= cut.bound) & (x > 0) for x in keys),
    )


def _width(size: int, axis: int | None) -> int:
    """Bits per digit: 16, or one, settled by a count, for rows and where histograms are slow."""
    return 16 if axis is None and size >= _FEW and jax.default_backend() == "cpu" else 1


def find_cut(
    values: Sequence[Array],
    among: Sequence[Array] | None,
    k: Array,
    at: Array,
    axis: int | None = None,
    whole: bool = False,
) -> Cut:
    """Settles digits of the k-th largest value until exactly k elements are at or above them.

    Args:
      values: unsigned integers.
      among: masks of the elements that count; None means all.
      k: how many to keep, one number, or one per row along `axis` (which has size 1 then).
      at: how many elements count, in the shape of `k`.
      axis: None for one cut through all values, else a cut for every row along that axis.
      whole: settle all digits whatever the counts.
    """
    unsigned, width = values[0].dtype, _width(sum(x.size for x in values), axis)
    bits = unsigned.itemsize * 8

    def unfinished(cut: Cut) -> Array:
        more = cut.digits < bits // width
        return more if whole else more & jnp.any(cut.above + cut.at > k)

    def settle(cut: Cut) -> Cut:
        shift = (bits - (cut.digits + 1) * width).astype(unsigned)
        found = []
        for i, x in enumerate(values):
            # Shifted twice, because one shift by all the bits is undefined.
            ahead = x >> shift >> unsigned.type(width - 1) >> unsigned.type(1)
            active = ahead == cut.bound >> shift >> unsigned.type(width - 1) >> unsigned.type(1)
            digit = ((x >> shift) & unsigned.type(2**width - 1)).astype(jnp.int32)
            active &= x > 0 if among is None else among[i]
            found.append((active, digit))
        if width == 1:
            digit, above, at = _by_count(found, cut, k, axis)
        else:
            digit, above, at = _by_histogram(found, cut, k)
        return Cut(cut.digits + 1, cut.bound | (digit.astype(unsigned) << shift), above, at)

    start = Cut(jnp.int32(0), jnp.zeros_like(k, unsigned), jnp.zeros_like(k), at)
    return lax.while_loop(unfinished, settle, start)


_Digits = list[tuple[Array, Array]]


def _by_count(found: _Digits, cut: Cut, k: Array, axis: int | None) -> tuple[Array, Array, Array]:
    """The next binary digit of the cut, and the elements above and at it."""
    ones = sum(
        jnp.sum(active & (digit == 1), axis, dtype=jnp.int32, keepdims=axis is not None)
        for active, digit in found
    )
    one = cut.above + ones >= k
    above = jnp.where(one, cut.above, cut.above + ones)
    return one.astype(jnp.int32), above, jnp.where(one, ones, cut.at - ones)


def _by_histogram(found: _Digits, cut: Cut, k: Array) -> tuple[Array, Array, Array]:
    """The next 16-bit digit of the cut, and the elements above and at it."""
    counts = jnp.zeros(2**16 + _SPARE, jnp.int32)
    for active, digit in (jnp.atleast_1d(*both) for both in found):
        # With all others in one bin, each addition would wait for the one before.
        spare = 2**16 + lax.broadcasted_iota(jnp.int32, digit.shape, digit.ndim - 1) % _SPARE
        bins = jnp.where(active, digit, spare)
        counts = counts.at[bins].add(1, mode="promise_in_bounds")
    rows = counts[: 2**16].reshape(256, 256)
    row, above = _last_reaching(jnp.sum(rows, 1, dtype=jnp.int32), k - cut.above)
    column, within = _last_reaching(rows[row], k - cut.above - above)
    return row * 256 + column, cut.above + above + within, rows[row, column]


def _last_reaching(counts: Array, k: Array) -> tuple[Array, Array]:
    """The last index from which on there are at least k counts, and the counts after it."""
    at_or_after = jnp.cumsum(counts[::-1], dtype=jnp.int32)[::-1]
    last = jnp.maximum(jnp.sum(at_or_after >= k, dtype=jnp.int32) - 1, 0)
    return last, at_or_after[last] - counts[last]
