"""The moves of dynamic sparse training: drop, grow, and redistribute between layers.

`drop` and `grow` take counts per leaf, so any drop goes with any growth and any redistribution.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxsparse import trees
from jaxsparse.patterns import Pattern, unstructured
from jaxsparse.plans import LeafPlan, Plan, Spec, map_plan
from jaxsparse.schedules import check_fraction
from jaxsparse.selection import top_k_mask
from jaxsparse.types import Array, AxesSpec, Masks, Prunable, Scores

Counts = list[Array | None]
"""Groups per leaf (or per row of a leaf) as int32, in the order of the plan; None = dense."""


def drop_and_grow(
    masks: Masks,
    drop_scores: Scores,
    grow_scores: Scores,
    fraction: float | Array,
    *,
    prunable: Prunable | None = None,
    pattern: Pattern = unstructured,
    axes: AxesSpec = None,
) -> Masks:
    """Drops the lowest-scored `fraction` of every leaf's living weights and grows as many.

    A leaf with a living weights keeps the `a - floor(fraction * a)` best by `drop_scores`, then
    grows back to a by `grow_scores` from all others, the dropped ones among them.

    Args:
      masks: the masks to change.
      drop_scores: higher = kept, in the structure of the masks; e.g. `magnitude(params)`.
      grow_scores: higher = grown first; e.g. `gradient(grads)` or `random_scores(key, masks)`.
      fraction: in [0, 1]; may be traced.
      prunable, pattern, axes: as for `jaxsparse.prune`.

    Returns:
      Masks with the counts of `masks`, in every leaf (and every row of the pattern).

    Raises:
      ValueError: a fraction out of range, or trees that differ.

    References:
      Evci et al., "Rigging the Lottery" (2020), section 3.

    Example:
      >>> import jax.numpy as jnp
      >>> masks = {"kernel": jnp.array([[True, True], [False, False]])}
      >>> weights = {"kernel": jnp.array([[3.0, 1.0], [0.0, 0.0]])}
      >>> grads = {"kernel": jnp.array([[0.0, 0.0], [5.0, 7.0]])}
      >>> drop_and_grow(masks, weights, grads, 0.5)["kernel"].tolist()
      [[True, False], [False, True]]
    """
    check_fraction("fraction", fraction)
    trees.check_same(drop_scores, masks, "masks")
    trees.check_same(drop_scores, grow_scores, "grow_scores")
    plan = Spec(0.5, prunable=prunable, pattern=pattern, axes=axes).checked().plan(drop_scores)
    dropped = drop_counts(plan, masks, fraction)
    kept = drop(plan, masks, drop_scores, dropped)
    return grow(plan, kept, grow_scores, refill_counts(plan, masks, kept))


def drop_counts(plan: Plan, masks: Masks, fraction: float | Array) -> Counts:
    """`floor(fraction * living groups)` per leaf."""
    fraction = jnp.asarray(fraction, jnp.float32)

    def dropped(entry: LeafPlan, mask: Array) -> Array:
        alive = entry.count(mask).astype(jnp.float32)
        return jnp.floor(fraction * alive).astype(jnp.int32)

    pairs = zip(plan, jax.tree.leaves(masks), strict=True)
    return [entry and dropped(entry, mask) for entry, mask in pairs]


def refill_counts(plan: Plan, before: Masks, after: Masks) -> Counts:
    """The living groups that went missing, per leaf, or per row where a pattern has rows."""

    def missing(entry: LeafPlan, old: Array, new: Array) -> Array:
        rows = entry.pattern.by_rows
        return entry.count(old, rows) - entry.count(new, rows)

    pairs = zip(plan, jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return [entry and missing(entry, old, new) for entry, old, new in pairs]


def drop(plan: Plan, masks: Masks, scores: Scores, counts: Counts) -> Masks:
    """Takes the `counts[i]` lowest-scored living groups out of every leaf, over all its rows."""

    def leaf(entry: LeafPlan, mask: Array, score: Array, count: Array) -> Array:
        flat = entry._replace(pattern=entry.pattern._replace(by_rows=False))
        return flat.select(score, entry.count(mask) - count, mask)

    return map_plan(plan, leaf, lambda mask: mask, masks, jax.tree.leaves(scores), counts)


def grow(plan: Plan, masks: Masks, scores: Scores, counts: Counts) -> Masks:
    """Brings the `counts[i]` highest-scored dead groups of every leaf (or row) to life."""

    def leaf(entry: LeafPlan, mask: Array, score: Array, count: Array) -> Array:
        return mask | entry.select(score, count, ~mask)

    return map_plan(plan, leaf, lambda mask: mask, masks, jax.tree.leaves(scores), counts)


def redistribute(total: Array, shares: Array, room: Array, cap: Array | None = None) -> Array:
    """Splits `total` new weights over layers in proportion to `shares`, exactly, in integers.

    Real quotas `share * total` are cut at `cap`; what exceeds it is spread evenly over all layers,
    again and again until less than one weight exceeds. The quotas are then rounded down, and what
    is left goes, one by one, to the largest remainders that have room.

    Args:
      total: int32 scalar; more than the sum of `room` fills every layer.
      shares: float32 of shape (layers,), not negative; all zero or not finite means even shares.
      room: int32 of shape (layers,): free places, never exceeded.
      cap: float32 of shape (layers,), at most `room`; defaults to it.

    Returns:
      int32 of shape (layers,), with the sum `total`.

    References:
      Dettmers & Zettlemoyer, "Sparse Networks from Scratch" (2019), section 3.

    Differs from the paper:
      The published code conserves the total in expectation only, by correcting later updates.

    Example:
      >>> import jax.numpy as jnp
      >>> room = jnp.array([10, 3, 10])
      >>> redistribute(jnp.int32(12), jnp.array([0.25, 0.5, 0.25]), room).tolist()
      [5, 3, 4]
    """
    layers = shares.shape[0]
    room = room.astype(jnp.int32)
    total = jnp.minimum(jnp.asarray(total, jnp.int32), _total(room))
    cap = room.astype(jnp.float32) if cap is None else cap
    usable = jnp.all(jnp.isfinite(shares)) & (jnp.sum(shares) > 0)
    shares = jnp.where(usable, shares / jnp.sum(shares), jnp.float32(1 / layers))

    def spread(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        quotas, _, turn = carry
        excess = jnp.sum(jnp.maximum(quotas - cap, 0))
        return jnp.minimum(quotas, cap) + excess / layers, excess, turn + 1

    def unfinished(carry: tuple[Array, Array, Array]) -> Array:
        return (carry[1] >= 1) & (carry[2] < 1000)

    start = (shares * total.astype(jnp.float32), jnp.float32(jnp.inf), jnp.int32(0))
    quotas, _, _ = lax.while_loop(unfinished, spread, start)
    counts = jnp.clip(jnp.floor(quotas).astype(jnp.int32), 0, room)
    return _settle(counts, quotas, room, total)


def _total(counts: Array) -> Array:
    return jnp.sum(counts, dtype=jnp.int32)


def _settle(counts: Array, quotas: Array, room: Array, total: Array) -> Array:
    """Adds or takes single weights until the sum is `total`, at the layers furthest off quota."""

    def settle(counts: Array) -> Array:
        left = total - _total(counts)
        able = jnp.where(left > 0, counts < room, counts > 0)
        each = jnp.abs(left) // jnp.maximum(_total(able), 1)
        owed = (quotas - counts.astype(jnp.float32)) * jnp.sign(left).astype(jnp.float32)
        first = top_k_mask(owed, jnp.abs(left), axis=0, where=able).astype(jnp.int32)
        moved = jnp.where(able, jnp.where(each > 0, each, first), 0)
        return jnp.clip(counts + jnp.sign(left) * moved, 0, room)

    return lax.while_loop(lambda counts: _total(counts) != total, settle, counts)
