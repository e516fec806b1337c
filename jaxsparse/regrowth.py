"""The moves of dynamic sparse training: drop, grow, and how many, in every layer.

`drop` and `grow` take counts per leaf, so any drop goes with any growth and any redistribution.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse import counts, trees
from jaxsparse.checks import check_choice, check_fraction
from jaxsparse.masks import check_masks
from jaxsparse.patterns import Pattern, unstructured
from jaxsparse.plans import LeafPlan, Plan, map_plan, select_globally
from jaxsparse.redistribution import redistribute
from jaxsparse.targets import Target
from jaxsparse.types import Array, AxesSpec, Masks, Prunable, Scores

Counts = list[Array | None]
"""Groups per leaf (or per row of a leaf) as int32, in the order of the plan; None = dense."""


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
    grows back to a by `grow_scores` from all others, the dropped ones among them. With
    `importance`, what all leaves together have dropped is shared among them in proportion to the
    mean importance of their living weights, by the rules of sparse momentum. With scope "global"
    all leaves compete, to stay and to grow.

    Args:
      masks: the masks to change.
      drop_scores: higher = kept, in the structure of the masks; e.g. `magnitude(params)`.
      grow_scores: higher = grown first; e.g. `gradient(grads)` or `random_scores(key, masks)`.
      fraction: in [0, 1]; may be traced.
      importance: floats in the structure of the masks, not negative; or None.
      scope: "layer" or "global"; "global" needs no importance.
      prunable, pattern, axes: as for `jaxsparse.prune`.

    Returns:
      Masks with the counts of `masks`, in every leaf (and every row of the pattern), or with
      `importance` or scope "global" in total.

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
        total = counts.floor(_all(living(plan, masks)), counts.share(fraction))
        kept = drop_globally(plan, masks, drop_scores, total)
        return grow_globally(plan, kept, grow_scores, lost(plan, masks, kept))
    if importance is None:
        dropped = drop_counts(plan, masks, fraction)
        kept = drop(plan, masks, drop_scores, dropped)
        return grow(plan, kept, grow_scores, refill_counts(plan, masks, kept))
    trees.check_same(drop_scores, importance, "importance", first="drop_scores")
    check_movable(plan)
    shares = mean_shares(plan, masks, importance)
    kept = drop(plan, masks, drop_scores, limited_drop_counts(plan, masks, shares, fraction))
    return grow(plan, kept, grow_scores, shared_counts(plan, masks, kept, shares))


def drop_counts(plan: Plan, masks: Masks, fraction: float | Array) -> Counts:
    """`floor(fraction * living groups)` per leaf."""
    return _by_leaf(plan, counts.floor(living(plan, masks), counts.share(fraction)))


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
        return in_one_row(entry).select(score, entry.count(mask) - count, mask)

    return map_plan(plan, leaf, lambda mask: mask, masks, jax.tree.leaves(scores), counts)


def drop_signs(plan: Plan, masks: Masks, params: Any, fraction: float | Array) -> Masks:
    """SET's own drop: of the positive weights of every leaf the `floor(fraction * count)` smallest,
    and of the negative ones the `floor(fraction * count)` closest to zero."""

    def sides(mask: Array, weights: Array) -> tuple[Array, Array]:
        return mask & (weights >= 0), mask & (weights < 0)

    def leaf(entry: LeafPlan, mask: Array, weights: Array, count: Array) -> Array:
        kept = [
            entry.select(jnp.abs(weights), count[i], side)
            for i, side in enumerate(sides(mask, weights))
        ]
        return kept[0] | kept[1]

    pairs = list(zip(sparse_pairs(plan, masks), sparse_pairs(plan, params), strict=True))
    if not pairs:
        return masks
    alive = jnp.stack(
        [jnp.stack([entry.count(s) for s in sides(mask, w)]) for (entry, mask), (_, w) in pairs]
    )
    left = _by_leaf(plan, alive - counts.floor(alive, counts.share(fraction)))
    return map_plan(plan, leaf, lambda mask: mask, masks, jax.tree.leaves(params), left)


def grow(plan: Plan, masks: Masks, scores: Scores, counts: Counts) -> Masks:
    """Brings the `counts[i]` highest-scored dead groups of every leaf (or row) to life."""

    def leaf(entry: LeafPlan, mask: Array, score: Array, count: Array) -> Array:
        return mask | entry._replace(units=None).select(score, count, ~mask)

    return map_plan(plan, leaf, lambda mask: mask, masks, jax.tree.leaves(scores), counts)


def drop_globally(plan: Plan, masks: Masks, scores: Scores, total: Array) -> Masks:
    """Takes the `total` lowest-scored living groups out of all leaves; each keeps its least."""
    eligible = jax.tree.leaves(masks)
    chosen = select_globally(plan, scores, _all(living(plan, masks)) - total, eligible)
    both = lambda _, mask, new: new & mask  # noqa: E731
    return map_plan(plan, both, lambda mask: mask, masks, jax.tree.leaves(chosen))


def grow_globally(plan: Plan, masks: Masks, scores: Scores, missing: Array) -> Masks:
    """Brings the highest-scored dead groups of all leaves to life, as many as are missing."""
    free = [entry and entry._replace(least=0, units=None) for entry in plan]
    dead = [~mask for mask in jax.tree.leaves(masks)]
    chosen = select_globally(free, scores, _all(missing), dead)
    both = lambda _, mask, new: new | mask  # noqa: E731
    return map_plan(plan, both, lambda mask: mask, masks, jax.tree.leaves(chosen))


def mean_shares(plan: Plan, masks: Masks, values: Any) -> Array:
    """Each sparse leaf's share by the mean value of its living weights; float32, with sum 1."""
    means = []
    for (entry, mask), (_, leaf) in zip(
        sparse_pairs(plan, masks), sparse_pairs(plan, values), strict=True
    ):
        alive = entry.count(mask).astype(jnp.float32) * entry.groups.size
        total = jnp.sum(jnp.where(mask, leaf, 0).astype(jnp.float32))
        means.append(total / jnp.maximum(alive, 1))
    return _normalised(jnp.stack(means))


def count_shares(plan: Plan, masks: Masks) -> Array:
    """Each sparse leaf's share by its number of living weights; float32, with sum 1."""
    found = [entry.count(mask) * entry.groups.size for entry, mask in sparse_pairs(plan, masks)]
    return _normalised(jnp.stack(found).astype(jnp.float32))


def limited_drop_counts(plan: Plan, masks: Masks, shares: Array, fraction: float | Array) -> Counts:
    """`ceil(fraction * living groups)` per leaf; a leaf more than 0.8 dense with more than an
    average share drops at most its sparsity."""
    sparse = [entry for entry in plan if entry]
    alive, size = living(plan, masks), _sizes(plan)
    least = jnp.array([entry.least * entry.groups.rows for entry in sparse], jnp.int32)
    wanted = counts.ceil(alive, counts.share(fraction))
    limited = counts.ceil(alive, counts.Share(size - alive, jnp.maximum(size, 1)))
    nearly_full = (size - alive < -(-size // 5)) & (shares > 1 / len(sparse))
    wanted = jnp.where(nearly_full, jnp.minimum(wanted, limited), wanted)
    return _by_leaf(plan, jnp.clip(wanted, 0, jnp.maximum(alive - least, 0)))


def shared_counts(
    plan: Plan, before: Masks, after: Masks, shares: Array, caps: Array | None = None
) -> Counts:
    """How many groups each leaf grows by its share; in total, what was dropped.

    No leaf grows beyond its cap while another has room; by default 0.99 of its free places.
    """
    room = free_places(plan, after)
    caps = 0.99 * room.astype(jnp.float32) if caps is None else caps
    return _by_leaf(plan, redistribute(lost(plan, before, after), shares, room, caps))


def free_places(plan: Plan, masks: Masks) -> Array:
    """Dead groups of every sparse leaf, int32 of shape (leaves,)."""
    return _sizes(plan) - living(plan, masks)


def in_one_row(entry: LeafPlan) -> LeafPlan:
    """The same leaf with all its groups in one competition."""
    return entry._replace(pattern=entry.pattern._replace(by_rows=False))


def check_movable(plan: Plan) -> None:
    """Raises where groups of weights cannot move between leaves."""
    for entry in plan:
        if entry and entry.pattern.by_rows:
            raise ValueError(
                f"pattern {entry.pattern.name} fixes the count of every row, so weights cannot "
                "move between layers."
            )
    if len({entry.groups.size for entry in plan if entry}) > 1:
        raise ValueError(
            "groups of weights cannot move between layers, because here they differ in size; use "
            "the unstructured pattern, or keep the counts of the layers."
        )


def sparse_pairs(plan: Plan, tree: Any) -> list[tuple[LeafPlan, Any]]:
    """`(leaf plan, leaf)` of every sparse leaf."""
    return [(e, leaf) for e, leaf in zip(plan, jax.tree.leaves(tree), strict=True) if e]


def living(plan: Plan, masks: Masks) -> Array:
    """Living groups of every sparse leaf, int32 of shape (leaves,); their sum may pass 2^31."""
    found = [entry.count(mask) for entry, mask in sparse_pairs(plan, masks)]
    return jnp.stack(found) if found else jnp.zeros(0, jnp.int32)


def lost(plan: Plan, before: Masks, after: Masks) -> Array:
    """How many living groups went missing in every sparse leaf, int32 of shape (leaves,)."""
    return living(plan, before) - living(plan, after)


def _sizes(plan: Plan) -> Array:
    """Groups of every sparse leaf, alive or dead, int32 of shape (leaves,)."""
    sizes = [entry.groups.rows * entry.groups.columns for entry in plan if entry]
    return jnp.array(sizes, jnp.int32)


def _by_leaf(plan: Plan, groups: Array) -> Counts:
    """An entry for every leaf of the tree, from one for every sparse leaf."""
    found = iter(groups)
    return [entry and next(found) for entry in plan]


def _all(groups: Array) -> Array:
    """The groups of all leaves together, which a selection over all of them can count."""
    return jnp.sum(groups, dtype=jnp.int32)


def dropped_last(plan: Plan, scores: Scores, before: Masks, after: Masks) -> Scores:
    """Scores in [0, 1) by which what was just dropped grows only where no other place is left."""

    def leaf(_: LeafPlan, score: Array, old: Array, new: Array) -> Array:
        return jnp.where(old & ~new, score - 1, score)

    masks = jax.tree.leaves(before), jax.tree.leaves(after)
    return map_plan(plan, leaf, lambda score: score, scores, *masks)


def _normalised(shares: Array) -> Array:
    total = jnp.sum(shares)
    return jnp.where(total > 0, shares / total, jnp.float32(1 / shares.size))
