"""Exact selection of the k largest of n scores by counting, never by sorting.

A score is read as an unsigned integer of the same order (its *rank key*). The k-th largest key is
then found from the counts of its digits: either from histograms of 16-bit digits (fast on a CPU,
two passes for 32-bit floats) or bit by bit with one count each (fast where scatter is slow). Ties
at the cut-off go to the lowest flat index, which the same search finds in the keys `n - 1 - index`.
Nothing is reshaped, so on a sharded array only counts cross devices.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsparse.keys import rank_keys, score_of, widen
from jaxsparse.types import Array, Masks, Scores

_LARGEST = 2**31 - 1


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
    scores = jnp.asarray(scores)
    _check_floating(scores)
    if axis is not None:
        _check_k(k, scores.shape[axis])
        return _rows_mask(rank_keys(scores, where), k, axis % scores.ndim)
    _check_k(k, scores.size)
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
    scores = jnp.asarray(scores)
    _check_floating(scores)
    if scores.size == 0:
        raise ValueError("kth_largest: `scores` is empty; it needs at least one element.")
    _check_k(k, scores.size, least=1)
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
    leaves, treedef = jax.tree.flatten(score_tree)
    eligible = [None] * len(leaves) if where is None else treedef.flatten_up_to(where)
    chosen = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array | np.ndarray)]
    for i in chosen:
        leaves[i] = jnp.asarray(leaves[i])
        _check_floating(leaves[i])
    _check_k(k, sum(leaves[i].size for i in chosen))
    widest = max((leaves[i].dtype.itemsize for i in chosen), default=4)
    same = len({leaves[i].dtype for i in chosen}) == 1
    keys = [rank_keys(leaves[i] if same else widen(leaves[i], widest), eligible[i]) for i in chosen]
    for i, mask in zip(chosen, _masks(keys, k), strict=True):
        leaves[i] = mask
    return treedef.unflatten(leaves)


def _check_floating(scores: Array) -> None:
    if not jnp.issubdtype(scores.dtype, jnp.floating):
        raise TypeError(f"scores must be a floating array, got {scores.dtype}.")


def _check_k(k: int | Array, size: int, least: int = 0) -> None:
    if size > _LARGEST:
        raise ValueError(f"{size} scores are more than one selection can count (2^31 - 1).")
    if isinstance(k, int | np.integer) and not least <= k <= size:
        raise ValueError(f"k must be in [{least}, {size}], got {k}.")


@partial(jax.jit, static_argnames="dtype")
def _kth(keys: Array, k: int | Array, dtype: np.dtype) -> Array:
    k = jnp.clip(jnp.asarray(k, jnp.int32), 1, keys.size)
    return score_of(_kth_key(keys, k), dtype)


@jax.custom_batching.sequential_vmap
def _kth_key(keys: Array, k: Array) -> Array:
    return _cut([keys], k, ties=False).key


class _Cut(NamedTuple):
    """A lower bound on (key, order) of which the leading digits are settled, the others zero.

    Attributes:
      digits: how many digits are settled, first those of the key, then those of the order.
      key: uint of the keys' type.
      order: uint32.
      above: elements above the settled digits.
      at: elements that have exactly the settled digits.
    """

    digits: Array
    key: Array
    order: Array
    above: Array
    at: Array


@jax.jit
def _masks(keys: list[Array], k: int | Array) -> list[Array]:
    """Masks of the `k` largest keys over all arrays together."""
    arrays = [x for x in keys if x.size]
    found = iter(_select(jnp.asarray(k, jnp.int32), *arrays) if arrays else ())
    return [next(found) if x.size else jnp.zeros(x.shape, bool) for x in keys]


@jax.custom_batching.sequential_vmap
def _select(k: Array, *keys: Array) -> tuple[Array, ...]:
    """A batch is mapped, one selection at a time: batched histograms are slow."""
    cut = _cut(keys, k)
    return tuple(_above(x, order, cut) for x, order in zip(keys, _orders(keys), strict=True))


@partial(jax.jit, static_argnames="axis")
def _rows_mask(keys: Array, k: int | Array, axis: int) -> Array:
    shape = keys.shape[:axis] + keys.shape[axis + 1 :]
    k = jnp.expand_dims(jnp.broadcast_to(jnp.asarray(k, jnp.int32), shape), axis)
    return _above(keys, *_orders([keys]), _cut([keys], k, axis))


def _orders(keys: Sequence[Array]) -> list[Array]:
    """The order among equal keys, largest first: n - flat index, counted on from leaf to leaf."""
    left, orders = sum(x.size for x in keys), []
    for x in keys:
        order, stride = jnp.full(x.shape, left, jnp.uint32), 1
        for d in reversed(range(x.ndim)):
            order -= lax.broadcasted_iota(jnp.uint32, x.shape, d) * jnp.uint32(stride)
            stride *= x.shape[d]
        left -= x.size
        orders.append(order)
    return orders


def _width(axis: int | None) -> int:
    """Bits per digit: one, settled by a count, where histograms are slow, and for rows."""
    return 16 if axis is None and jax.default_backend() == "cpu" else 1


def _leading(x: Array, bits: Array) -> Array:
    """`x` with all but its leading bits set to zero."""
    rest = (x.dtype.itemsize * 8 - bits).astype(x.dtype)
    return jnp.where(bits > 0, x >> rest << rest, x.dtype.type(0))


def _above(x: Array, order: Array, cut: _Cut) -> Array:
    """The mask of the elements at or above the cut; key 0 is never marked."""
    tied = (x == cut.key) & (order >= cut.order)
    return ((x > cut.key) | tied) & (x > 0)


def _cut(keys: Sequence[Array], k: Array, axis: int | None = None, ties: bool = True) -> _Cut:
    """Settles digits of the k-th largest (key, order) until exactly k elements are at or above.

    With an axis there is one cut for every row along it. Without `ties` all digits of the key are
    settled, and none of the order.
    """
    unsigned, orders, width = keys[0].dtype, _orders(keys), _width(axis)
    key_bits, order_bits = unsigned.itemsize * 8, 32
    key_digits = key_bits // width

    def unfinished(cut: _Cut) -> Array:
        if not ties:
            return cut.digits < key_digits
        more = cut.digits < key_digits + order_bits // width
        return more & jnp.any(cut.above + cut.at > k)

    def settle(cut: _Cut) -> _Cut:
        in_key = cut.digits < key_digits
        settled = jnp.minimum(cut.digits, key_digits) * width
        beyond = jnp.maximum(cut.digits - key_digits, 0) * width
        key_shift = jnp.maximum(key_bits - settled - width, 0).astype(unsigned)
        order_shift = (order_bits - beyond - width).astype(jnp.uint32)

        def digit(x: Array, order: Array) -> tuple[Array, Array]:
            active = (_leading(x, settled) == cut.key) & (_leading(order, beyond) == cut.order)
            of_key = (x >> key_shift) & unsigned.type(2**width - 1)
            of_order = (order >> order_shift) & jnp.uint32(2**width - 1)
            return active, jnp.where(in_key, of_key.astype(jnp.int32), of_order.astype(jnp.int32))

        found = [digit(x, order) for x, order in zip(keys, orders, strict=True)]
        chosen, above, at = (_by_count if width == 1 else _by_histogram)(found, cut, k, axis)
        key = cut.key | (chosen.astype(unsigned) << key_shift)
        order = cut.order | (chosen.astype(jnp.uint32) << order_shift)
        return _Cut(
            digits=cut.digits + 1,
            key=jnp.where(in_key, key, cut.key),
            order=jnp.where(in_key, cut.order, order),
            above=above,
            at=at,
        )

    zero = jnp.zeros(k.shape, jnp.int32)
    size = sum(x.size for x in keys) if axis is None else keys[0].shape[axis]
    start = _Cut(jnp.int32(0), zero.astype(unsigned), zero.astype(jnp.uint32), zero, zero + size)
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


def _by_histogram(found: _Digits, cut: _Cut, k: Array, axis: None) -> tuple[Array, Array, Array]:
    """The next 16-bit digit of the cut, and the elements above and at it."""
    counts = jnp.zeros(2**16 + 1, jnp.int32)
    for active, digit in found:
        bins = jnp.where(active, digit, 2**16)
        counts = counts.at[bins].add(1, mode="promise_in_bounds")
    rows = counts[:-1].reshape(256, 256)
    row, above = _last_reaching(jnp.sum(rows, 1, dtype=jnp.int32), k - cut.above)
    column, within = _last_reaching(rows[row], k - cut.above - above)
    return row * 256 + column, cut.above + above + within, rows[row, column]


def _last_reaching(counts: Array, k: Array) -> tuple[Array, Array]:
    """The last index with at least k counts from it on, and the counts after it."""
    at_or_after = jnp.cumsum(counts[::-1], dtype=jnp.int32)[::-1]
    last = jnp.maximum(jnp.sum(at_or_after >= k, dtype=jnp.int32) - 1, 0)
    return last, at_or_after[last] - counts[last]
