"""Exact selection of the k largest of n scores by counting, never by sorting.

A score is read as an unsigned integer of the same order (its *rank key*). The k-th largest key is
found from the counts of its digits: from histograms of 16-bit digits (fast for many scores on a
CPU), or bit by bit with one count each (fast where scatter is slow, or scores are few). Ties at the
cut-off go to the lowest flat index, found by the same search in the keys `n - 1 - index`. Nothing
is reshaped, so on a sharded array only counts cross devices.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType

from jaxsparse import trees
from jaxsparse.checks import check_array, check_rank, check_size
from jaxsparse.keys import rank_keys, score_of, tie_orders, widen
from jaxsparse.types import Array, Masks, Scores

__all__ = ["global_top_k_masks", "kth_largest", "top_k_mask"]

_FEW = 2**13  # scores that are counted faster than a histogram of 2^16 bins is cleared and summed
_SPARE = 64  # bins of elements that do not count


def top_k_mask(
    scores: Array, k: int | Array, *, axis: int | None = None, where: Array | None = None
) -> Array:
    """Marks exactly the `k` largest scores.

    Order: NaN < -inf < ... < -0.0 = 0.0 < ... < inf; among equal scores the lowest flat index wins.

    Args:
      scores: floating array of any shape with fewer than 2^31 elements (bf16, f16, f32 or f64).
      k: how many to mark, in [0, n]; may be traced. A traced `k` is clipped to that range.
      axis: mark the `k` largest along this axis instead; `k` then broadcasts to the shape without
        that axis.
      where: boolean array of the scores' shape; only these elements may be marked. If fewer than
        `k` are eligible, all of them are marked.

    Returns:
      A boolean array of the scores' shape. No gradient flows through it.

    Raises:
      TypeError: the scores are not floating.
      ValueError: a concrete `k` outside [0, n], or n too large.

    Example:
      >>> import jax.numpy as jnp
      >>> top_k_mask(jnp.array([1.0, 3.0, 2.0, 3.0]), 2)
      Array([False,  True, False,  True], dtype=bool)
      >>> top_k_mask(jnp.array([5.0, 5.0, 5.0]), 2)
      Array([ True,  True, False], dtype=bool)
    """
    scores = check_array("scores", scores, jnp.floating)
    if where is not None and not _is_mask_of(scores, where):
        raise TypeError(f"where must be a mask of shape {scores.shape}, got {where!r}.")
    if axis is not None:
        check_size("axis", axis, -scores.ndim, scores.ndim - 1)
        check_rank(k, scores.shape[axis])
        return _rows_mask(rank_keys(scores, where), k, axis % scores.ndim)
    check_rank(k, scores.size)
    return _masks([rank_keys(scores, where)], k)[0]


def kth_largest(scores: Array, k: int | Array) -> Array:
    """The k-th largest score, a scalar of the scores' type (0.0 for either zero).

    Args:
      scores: floating array of any shape, not empty.
      k: rank in [1, n]; may be traced, and is then clipped to that range.

    Raises:
      TypeError: the scores are not floating.
      ValueError: no scores, or a concrete `k` outside [1, n].

    Example:
      >>> import jax.numpy as jnp
      >>> kth_largest(jnp.array([1.0, 3.0, 2.0]), 2)
      Array(2., dtype=float32)
    """
    scores = check_array("scores", scores, jnp.floating)
    if scores.size == 0:
        raise ValueError("kth_largest: `scores` is empty; it needs at least one element.")
    check_rank(k, scores.size, least=1)
    return _kth(rank_keys(scores, None), k, scores.dtype)


def global_top_k_masks(score_tree: Scores, k: int | Array, *, where: Masks | None = None) -> Masks:
    """Marks the `k` largest scores of all leaves together, without joining them.

    Ties go to the earlier leaf, then to the lowest flat index. `None` and leaves that are not
    arrays stay what they are and are not counted.

    Args:
      score_tree: pytree of floating arrays, together fewer than 2^31 elements.
      k: how many to mark in total, in [0, n]; may be traced.
      where: tree of boolean arrays; only these elements may be marked.

    Returns:
      Masks with the structure of `score_tree`.

    Raises:
      TypeError: an array leaf is not floating.
      ValueError: a concrete `k` outside [0, n], or n too large.

    Example:
      >>> import jax.numpy as jnp
      >>> masks = global_top_k_masks({"a": jnp.array([1.0, 4.0]), "b": jnp.array([3.0, 2.0])}, 2)
      >>> masks["a"].tolist(), masks["b"].tolist()
      ([False, True], [True, False])
    """
    trees.check_tree(score_tree, "score_tree")
    leaves, treedef = jax.tree.flatten(score_tree)
    eligible: list[Any] = [None] * len(leaves)
    if where is not None:
        eligible = trees.check_same(score_tree, where, "where", first="score_tree")
        if any(trees.is_array(mask) and mask.dtype != jnp.bool_ for mask in eligible):
            raise TypeError("where must hold boolean arrays: True where a score may be marked.")
    chosen = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array | np.ndarray)]
    for i in chosen:
        leaves[i] = check_array("score_tree: scores", leaves[i], jnp.floating)
    check_rank(k, sum(leaves[i].size for i in chosen))
    widest = max((leaves[i].dtype.itemsize for i in chosen), default=4)
    same = len({leaves[i].dtype for i in chosen}) == 1
    keys = [rank_keys(leaves[i] if same else widen(leaves[i], widest), eligible[i]) for i in chosen]
    for i, mask in zip(chosen, _masks(keys, k), strict=True):
        leaves[i] = mask
    return treedef.unflatten(leaves)


def _is_mask_of(scores: Array, where: Any) -> bool:
    return trees.is_array(where) and where.dtype == jnp.bool_ and where.shape == scores.shape


@partial(jax.jit, static_argnames="dtype")
def _kth(keys: Array, k: int | Array, dtype: np.dtype) -> Array:
    k = jnp.clip(jnp.asarray(k, jnp.int32), 1, keys.size)
    return score_of(_kth_key(keys, k), dtype)


@jax.custom_batching.sequential_vmap
def _kth_key(keys: Array, k: Array) -> Array:
    return _cut([keys], None, k, jnp.full((), keys.size, jnp.int32), whole=True).bound


class _Cut(NamedTuple):
    """A lower bound of which the leading digits are settled, the others zero.

    Attributes:
      digits: how many digits are settled.
      bound: of the type of what is cut.
      above: elements above the settled digits.
      at: elements that have exactly the settled digits.
    """

    digits: Array
    bound: Array
    above: Array
    at: Array


@jax.jit
def _masks(keys: list[Array], k: int | Array) -> list[Array]:
    """Masks of the `k` largest keys over all arrays together."""
    arrays = [x for x in keys if x.size]
    select = _automatic(_select, arrays)
    found = iter(select(jnp.asarray(k, jnp.int32), *arrays) if arrays else ())
    return [next(found) if x.size else jnp.zeros(x.shape, bool) for x in keys]


@jax.custom_batching.sequential_vmap
def _select(k: Array, *keys: Array) -> tuple[Array, ...]:
    """A batch is mapped, one selection at a time: batched histograms are slow."""
    return _above_cut(keys, k, None)


@partial(jax.jit, static_argnames="axis")
def _rows_mask(keys: Array, k: int | Array, axis: int) -> Array:
    shape = keys.shape[:axis] + keys.shape[axis + 1 :]
    k = jnp.expand_dims(jnp.broadcast_to(jnp.asarray(k, jnp.int32), shape), axis)
    return _automatic(lambda k, x: _above_cut([x], k, axis), [keys])(k, keys)[0]


def _automatic(function: Callable[..., Any], outputs: Sequence[Array]) -> Callable[..., Any]:
    """Lets the compiler shard what is between explicitly sharded keys and masks: mere counts."""
    shardings = tuple(jax.typeof(x).sharding for x in outputs)
    if any(AxisType.Explicit in sharding.mesh.axis_types for sharding in shardings):
        return jax.sharding.auto_axes(function, out_sharding=shardings)
    return function


def _above_cut(keys: Sequence[Array], k: Array, axis: int | None) -> tuple[Array, ...]:
    """The masks of the `k` largest (key, order); key 0 is never marked."""
    size = sum(x.size for x in keys) if axis is None else keys[0].shape[axis]
    cut = _cut(keys, None, k, jnp.full(k.shape, size, jnp.int32), axis)

    def among_ties() -> tuple[Array, ...]:
        orders, ties = tie_orders(keys), [x == cut.bound for x in keys]
        among = _cut(orders, ties, k - cut.above, cut.at, axis)
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
    """Bits per digit: one, settled by a count, where histograms are slow, and for rows."""
    return 16 if axis is None and size >= _FEW and jax.default_backend() == "cpu" else 1


def _cut(
    values: Sequence[Array],
    among: Sequence[Array] | None,
    k: Array,
    at: Array,
    axis: int | None = None,
    whole: bool = False,
) -> _Cut:
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

    def unfinished(cut: _Cut) -> Array:
        more = cut.digits < bits // width
        return more if whole else more & jnp.any(cut.above + cut.at > k)

    def settle(cut: _Cut) -> _Cut:
        shift = (bits - (cut.digits + 1) * width).astype(unsigned)
        found = []
        for i, x in enumerate(values):
            # Shifted twice, since all the bits at once is more than a shift may take.
            ahead = x >> shift >> unsigned.type(width - 1) >> unsigned.type(1)
            active = ahead == cut.bound >> shift >> unsigned.type(width - 1) >> unsigned.type(1)
            digit = ((x >> shift) & unsigned.type(2**width - 1)).astype(jnp.int32)
            active &= x > 0 if among is None else among[i]
            found.append((active, digit))
        digit, above, at = (_by_count if width == 1 else _by_histogram)(found, cut, k, axis)
        return _Cut(cut.digits + 1, cut.bound | (digit.astype(unsigned) << shift), above, at)

    start = _Cut(jnp.int32(0), jnp.zeros(k.shape, unsigned), jnp.zeros_like(k), at)
    return lax.while_loop(unfinished, settle, start)


_Digits = list[tuple[Array, Array]]


def _by_count(found: _Digits, cut: _Cut, k: Array, axis: int | None) -> tuple[Array, Array, Array]:
    """The next binary digit of the cut, and the elements above and at it."""
    ones = sum(
        jnp.sum(active & (digit == 1), axis, dtype=jnp.int32, keepdims=axis is not None)
        for active, digit in found
    )
    one = cut.above + ones >= k
    above = jnp.where(one, cut.above, cut.above + ones)
    return one.astype(jnp.int32), above, jnp.where(one, ones, cut.at - ones)


def _by_histogram(found: _Digits, cut: _Cut, k: Array, _: int | None) -> tuple[Array, Array, Array]:
    """The next 16-bit digit of the cut, and the elements above and at it."""
    counts = jnp.zeros(2**16 + _SPARE, jnp.int32)
    for active, digit in (jnp.atleast_1d(*both) for both in found):
        # All others in one bin would have each addition wait for the one before.
        spare = 2**16 + lax.broadcasted_iota(jnp.int32, digit.shape, digit.ndim - 1) % _SPARE
        bins = jnp.where(active, digit, spare)
        counts = counts.at[bins].add(1, mode="promise_in_bounds")
    rows = counts[: 2**16].reshape(256, 256)
    row, above = _last_reaching(jnp.sum(rows, 1, dtype=jnp.int32), k - cut.above)
    column, within = _last_reaching(rows[row], k - cut.above - above)
    return row * 256 + column, cut.above + above + within, rows[row, column]


def _last_reaching(counts: Array, k: Array) -> tuple[Array, Array]:
    """The last index with at least k counts from it on, and the counts after it."""
    at_or_after = jnp.cumsum(counts[::-1], dtype=jnp.int32)[::-1]
    last = jnp.maximum(jnp.sum(at_or_after >= k, dtype=jnp.int32) - 1, 0)
    return last, at_or_after[last] - counts[last]
