"""The moves of dynamic sparse training: drop, grow, and how many, in every layer.

`drop` and `grow` take counts per leaf, so any drop can be combined with any growth and any
redistribution.
"""

from typing import Any

import jax.numpy as jnp

from jaxsparse import counts, trees
from jaxsparse.checks import check_choice, check_fraction
from jaxsparse.masks import check_masks
from jaxsparse.patterns import Pattern, unstructured
from jaxsparse.plans import Counts, LeafPlan, Plan
from jaxsparse.redistribution import redistribute
from jaxsparse.targets import Target
from jaxsparse.types import Array, AxesSpec, Masks, Params, Prunable, Scores


def drop_and_grow(
    masks: Masks,
    drop_scores: Scores,
    grow_scores: Scores,
    fraction: float | Array,
    *,
    importance: Any = None,
    scope: str = "layer",
    prunable: Prunable | None = None,
    pattern: Pattern = unstructured,
    axes: AxesSpec = None,
) -> Masks:
    """Drops the lowest-scored `fraction` of the living weights and grows as many, exactly.

    A leaf with a living weights keeps the `a - floor(fraction * a)` best by `drop_scores`, then
    grows back to a by `grow_scores` from all others, including the dropped ones. With `importance`,
    the weights that all leaves together have dropped are shared among the leaves in proportion to
    the mean importance of their living weights, by the rules of sparse momentum. With scope
    "global", all leaves compete, both in the drop and in the growth.

    Args:
      masks: the masks to change.
      drop_scores: higher = kept, in the structure of the masks; e.g. `magnitude(params)`.
      grow_scores: higher = grown first; e.g. `gradient(grads)` or `random_scores(key, masks)`.
      fraction: in [0, 1]; may be traced.
      importance: floats in the structure of the masks, not negative; or None.
      scope: "layer" or "global"; "global" takes no importance.
      prunable, pattern, axes: as for `jaxsparse.prune`.

    Returns:
      Masks with the counts of `masks`: in every leaf (and every row of the pattern), or, with
      `importance` or scope "global", in total.

    Raises:
      ValueError: a fraction out of range, trees that differ, a pattern that cannot move weights
        between leaves, or scope "global" over more than 2^31 - 1 weights.
      TypeError: masks that are not boolean.

    References:
      Evci et al., "Rigging the Lottery" (2020), section 3; Dettmers & Zettlemoyer, "Sparse Networks
      from Scratch" (2019), algorithm 1.

    Example:
      >>> import jax.numpy as jnp
      >>> masks = {"kernel": jnp.array([[True, True], [False, False]])}
      >>> weights = {"kernel": jnp.array([[3.0, 1.0], [0.0, 0.0]])}
      >>> grads = {"kernel": jnp.array([[0.0, 0.0], [5.0, 7.0]])}
      >>> drop_and_grow(masks, weights, grads, 0.5)["kernel"].tolist()
      [[True, False], [False, True]]
    """
    check_fraction("fraction", fraction)
    trees.check_same(drop_scores, masks, "masks", first="drop_scores")
    trees.check_same(drop_scores, grow_scores, "grow_scores", first="drop_scores")
    check_masks(masks)
    plan = Target(0.5, prunable=prunable, pattern=pattern, axes=axes).checked().plan(drop_scores)
    check_choice("scope", scope, ("layer", "global"))
    if scope == "global":
        if importance is not None:
            raise ValueError('importance: with scope="global" the scores decide; leave it out.')
        check_movable(plan)
        total = counts.floor(_all(plan.count_alive(masks)), counts.share(fraction))
        survivors = drop_globally(plan, masks, drop_scores, total)
        return grow_globally(plan, survivors, grow_scores, lost(plan, masks, survivors))
    if importance is None:
        dropped = drop_counts(plan, masks, fraction)
        survivors = drop(plan, masks, drop_scores, dropped)
        return grow(plan, survivors, grow_scores, refill_counts(plan, masks, survivors))
    trees.check_same(drop_scores, importance, "importance", first="drop_scores")
    check_movable(plan)
    shares = mean_shares(plan, masks, importance)
    dropped = limited_drop_counts(plan, masks, shares, fraction)
    survivors = drop(plan, masks, drop_scores, plan.tree(dropped))
    return grow(plan, survivors, grow_scores, shared_counts(plan, masks, survivors, shares))


def drop_counts(plan: Plan, masks: Masks, fraction: float | Array) -> Counts:
    """`floor(fraction * living groups)` per leaf."""
    dropped = counts.floor(plan.count_alive(masks), counts.share(fraction))
    return plan.tree(jnp.asarray(dropped))


def refill_counts(plan: Plan, before: Masks, after: Masks) -> Counts:
    """The number of living groups lost, per leaf, or per row if a pattern has rows."""

    if not any(leaf.pattern.by_rows for leaf in plan.sparse):
        return plan.tree(lost(plan, before, after))

    def missing(leaf: LeafPlan, old: Array, new: Array) -> Array:
        return leaf.count_alive(old, by_rows=True) - leaf.count_alive(new, by_rows=True)

    return plan.tree(plan.each(missing, before, after))


def drop(plan: Plan, masks: Masks, scores: Scores, counts: Counts) -> Masks:
    """Removes the lowest-scored living groups of every leaf, over all its rows."""

    def one(leaf: LeafPlan, mask: Array, score: Array, left: Array) -> Array:
        return in_one_row(leaf).select(score, left, mask)

    alive = plan.tree(plan.count_alive(masks))
    left = plan.later(lambda _, alive, count: alive - count, alive, counts)
    return plan.map(one, masks, scores, left, apart=True)


def drop_signs(plan: Plan, masks: Masks, params: Params, fraction: float | Array) -> Masks:
    """SET's own drop: removes the `floor(fraction * count)` smallest of the positive weights of
    every leaf, and the `floor(fraction * count)` closest to zero of the negative ones."""

    def sides(mask: Array, weights: Array) -> tuple[Array, Array]:
        return mask & (weights >= 0), mask & (weights < 0)

    def count(leaf: LeafPlan, mask: Array, weights: Array) -> Array:
        return jnp.stack([leaf.count_alive(side) for side in sides(mask, weights)])

    def one(leaf: LeafPlan, mask: Array, weights: Array, left: Array) -> Array:
        positive, negative = sides(mask, weights)
        sizes = jnp.abs(weights)
        return leaf.select(sizes, left[0], positive) | leaf.select(sizes, left[1], negative)

    if not plan.sparse:
        return masks
    alive = jnp.stack(plan.each(count, masks, params))
    left = alive - counts.floor(alive, counts.share(fraction))
    return plan.map(one, masks, params, plan.tree(left), apart=True)


def grow(plan: Plan, masks: Masks, scores: Scores, counts: Counts) -> Masks:
    """Brings the highest-scored dead groups of every leaf (or row) to life."""
    return plan.map(LeafPlan.grow, masks, scores, counts, apart=True)


def drop_globally(plan: Plan, masks: Masks, scores: Scores, total: int | Array) -> Masks:
    """Removes the `total` lowest-scored living groups of all leaves; each keeps its minimum."""
    left = _all(plan.count_alive(masks)) - total
    survivors = plan.select_globally(scores, left, masks)
    return plan.map(lambda _, mask, new: new & mask, masks, survivors)


def grow_globally(plan: Plan, masks: Masks, scores: Scores, missing: Array) -> Masks:
    """Brings the highest-scored dead groups of all leaves to life, as many as are missing."""
    free = plan.with_leaves(lambda leaf: leaf._replace(least=0, units=None))
    dead = plan.map(lambda _, mask: ~mask, masks)
    grown = free.select_globally(scores, _all(missing), dead)
    return plan.map(lambda _, mask, new: new | mask, masks, grown)


def mean_shares(plan: Plan, masks: Masks, values: Params) -> Array:
    """Each sparse leaf's share by the mean value of its living weights; float32, summing to 1."""

    def mean(leaf: LeafPlan, mask: Array, value: Array) -> Array:
        alive = leaf.count_alive(mask).astype(jnp.float32) * leaf.groups.size
        total = jnp.sum(jnp.where(mask, value, 0).astype(jnp.float32))
        return total / jnp.maximum(alive, 1)

    return _normalised(jnp.stack(plan.each(mean, masks, values, apart=True)))


def count_shares(plan: Plan, masks: Masks) -> Array:
    """Each sparse leaf's share by its number of living weights; float32, summing to 1."""
    found = plan.each(lambda leaf, mask: leaf.count_alive(mask) * leaf.groups.size, masks)
    return _normalised(jnp.stack(found).astype(jnp.float32))


def limited_drop_counts(plan: Plan, masks: Masks, shares: Array, fraction: float | Array) -> Array:
    """`ceil(fraction * living groups)` of every sparse leaf, int32 of shape (leaves,); a leaf more
    than 0.8 dense with more than an average share drops at most a fraction equal to its
    sparsity."""
    alive, size = plan.count_alive(masks), jnp.array(plan.groups(), jnp.int32)
    least = jnp.array([leaf.least * leaf.groups.rows for leaf in plan.sparse], jnp.int32)
    wanted = counts.ceil(alive, counts.share(fraction))
    limited = counts.ceil(alive, counts.Share(size - alive, jnp.maximum(size, 1)))
    nearly_full = (size - alive < -(-size // 5)) & (shares > 1 / len(plan.sparse))
    wanted = jnp.where(nearly_full, jnp.minimum(wanted, limited), wanted)
    return jnp.clip(wanted, 0, jnp.maximum(alive - least, 0))


def shared_counts(
    plan: Plan, before: Masks, after: Masks, shares: Array, caps: Array | None = None
) -> Counts:
    """How many groups each leaf grows by its share; in total, as many as were dropped.

    No leaf grows beyond its cap (by default 0.99 of its free places) while another has room, and
    none grows beyond its free places.
    """
    room = free_places(plan, after)
    caps = 0.99 * room.astype(jnp.float32) if caps is None else caps
    return plan.tree(redistribute(lost(plan, before, after), shares, room, caps))


def free_places(plan: Plan, masks: Masks) -> Array:
    """Groups that may still come to life in every sparse leaf, int32 of shape (leaves,)."""
    return jnp.array(plan.places(), jnp.int32) - plan.count_alive(masks)


def lost(plan: Plan, before: Masks, after: Masks) -> Array:
    """How many living groups every sparse leaf has lost, int32 of shape (leaves,)."""
    return plan.count_alive(before) - plan.count_alive(after)


def dropped_last(plan: Plan, scores: Scores, before: Masks, after: Masks) -> Scores:
    """Scores in [0, 1), lowered for what was just dropped, so that it grows only as a last
    resort."""

    def one(_: LeafPlan, score: Array, old: Array, new: Array) -> Array:
        return jnp.where(old & ~new, score - 1, score)

    return plan.later(one, scores, before, after)


def in_one_row(leaf: LeafPlan) -> LeafPlan:
    """The same leaf with all its groups in one competition."""
    return leaf._replace(pattern=leaf.pattern._replace(by_rows=False))


def check_movable(plan: Plan) -> None:
    """Raises if groups of weights cannot move between leaves."""
    for leaf in plan.sparse:
        if leaf.pattern.by_rows:
            raise ValueError(
                f"pattern {leaf.pattern.name} fixes the count of every row, so weights cannot "
                "move between layers."
            )
    if len({leaf.groups.size for leaf in plan.sparse}) > 1:
        raise ValueError(
            "groups of weights cannot move between layers, because here they differ in size; use "
            "the unstructured pattern, or keep the counts of the layers."
        )


def _all(groups: Array) -> Array:
    """The number of groups of all leaves together, small enough for one selection to count."""
    return jnp.sum(groups, dtype=jnp.int32)


def _normalised(shares: Array) -> Array:
    total = jnp.sum(shares)
    return jnp.where(total > 0, shares / total, jnp.float32(1 / shares.size))
