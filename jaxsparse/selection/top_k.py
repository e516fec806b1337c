"""The k largest scores, exactly: of one array, along an axis, or of all leaves of a tree."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse import trees
from jaxsparse.checks import check_array, check_rank, check_size
from jaxsparse.meshes import automatic, on_one_device, varying_like
from jaxsparse.selection import _kernels
from jaxsparse.selection._cut import above_cut, find_cut
from jaxsparse.selection._rank_keys import kind, rank_keys, score_of, widen
from jaxsparse.types import Array, Masks, Scores


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
    return _masks([scores], [where], k)[0]


def grown_mask(mask: Array, scores: Array, k: int | Array) -> Array:
    """A mask and the `k` largest scores off it; see `top_k_mask`."""
    if _kernels.select(scores):
        return _grown(jnp.asarray(k, jnp.int32), scores, mask)
    return mask | top_k_mask(scores, k, where=~mask)


def kth_largest(scores: Array, k: int | Array) -> Array:
    """The k-th largest score, a scalar of the scores' type (0.0 for either zero).

    It is a constant for gradients.

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
    scores = jax.lax.stop_gradient(check_array("scores", scores, jnp.floating))
    if scores.size == 0:
        raise ValueError("kth_largest: `scores` is empty; it needs at least one element.")
    check_rank(k, scores.size, least=1)
    k = varying_like(jnp.clip(jnp.asarray(k, jnp.int32), 1, scores.size), scores)
    find = _kth_key if _kernels.select(scores) else _counted_key
    return score_of(find(k, scores), scores.dtype)


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
    scores = [leaves[i] if same else widen(leaves[i], widest) for i in chosen]
    for i, mask in zip(chosen, _masks(scores, [eligible[i] for i in chosen], k), strict=True):
        leaves[i] = mask
    return treedef.unflatten(leaves)


def _is_mask_of(scores: Array, where: Any) -> bool:
    return trees.is_array(where) and where.dtype == jnp.bool_ and where.shape == scores.shape


@jax.custom_batching.sequential_vmap
def _counted_key(k: Array, scores: Array) -> Array:
    keys = rank_keys(scores, None)
    return find_cut([keys], None, k, jnp.full_like(k, keys.size), whole=True).bound


_kth_key = on_one_device(
    _kernels.kth_key,
    _counted_key,
    lambda k, scores: jax.ShapeDtypeStruct((), kind(scores.dtype)),
)


def _masks(scores: list[Array], where: list[Any], k: int | Array) -> list[Array]:
    """Masks of the `k` largest of all arrays together."""
    if len(scores) == 1 and _kernels.select(scores[0]):
        among = jnp.zeros(0, bool) if where[0] is None else where[0]
        return [_mask(jnp.asarray(k, jnp.int32), scores[0], among)]
    return _counted(list(map(rank_keys, scores, where)), k)


def _mask_of_one(k: Array, scores: Array, where: Array) -> Array:
    return _counted([rank_keys(scores, where if where.shape == scores.shape else None)], k)[0]


def _mask_like(_: Array, scores: Array, where: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(scores.shape, jnp.bool_)


_mask = on_one_device(_kernels.top_k_mask, _mask_of_one, _mask_like)
_grown = on_one_device(
    _kernels.grown_mask,
    lambda k, scores, mask: mask | _mask_of_one(k, scores, ~mask),
    _mask_like,
)


@jax.jit
def _counted(keys: list[Array], k: int | Array) -> list[Array]:
    """Masks of the `k` largest keys over all arrays together."""
    arrays = [x for x in keys if x.size]
    select = automatic(_select, tuple(arrays))
    found = iter(select(jnp.asarray(k, jnp.int32), *arrays) if arrays else ())
    return [next(found) if x.size else jnp.zeros(x.shape, bool) for x in keys]


@jax.custom_batching.sequential_vmap
def _select(k: Array, *keys: Array) -> tuple[Array, ...]:
    """A batch is mapped one selection at a time, because batched histograms are slow."""
    return above_cut(keys, k, None)


@partial(jax.jit, static_argnames="axis")
def _rows_mask(keys: Array, k: int | Array, axis: int) -> Array:
    shape = keys.shape[:axis] + keys.shape[axis + 1 :]
    k = jnp.expand_dims(jnp.broadcast_to(jnp.asarray(k, jnp.int32), shape), axis)
    return automatic(lambda k, x: above_cut([x], k, axis), (keys,))(k, keys)[0]
