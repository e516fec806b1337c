"""The plan of a net: for every leaf, whether it is sparse, in which pattern, and how many weights
live. Plans are made from shapes and Python numbers while tracing, so they cost a step nothing.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.distributions import living
from jaxsparse.masks import full_mask
from jaxsparse.patterns import Groups, Pattern, fan_in, group_mask, select
from jaxsparse.selection import global_top_k_masks
from jaxsparse.types import (
    Array,
    Axes,
    Masks,
    Scores,
)


class LeafPlan(NamedTuple):
    """What is decided about one leaf that may be sparse.

    Attributes:
      path: the leaf's name, such as `"fc1/kernel"`.
      shape: its shape.
      sparsity: its target in [0, 1), or None where only the total is fixed.
      pattern: which weights live or die together.
      axes: what its axes mean; empty where neither the pattern nor `units` asks.
      groups: rows, columns and weights per group.
      least: groups that each row keeps at least.
      units: the axes by which every output unit keeps a weight; None where units may be empty.
      strict: whether a leaf that would be empty is an error.
    """

    path: str
    shape: tuple[int, ...]
    sparsity: float | Array | None
    pattern: Pattern
    axes: Axes
    groups: Groups
    least: int
    units: Axes | None = None
    strict: bool = False

    def kept(self, sparsity: float | Array) -> int | Array:
        """Groups per row that live at a sparsity."""
        if self.pattern.fixed is not None:
            return self._fixed(sparsity)
        count = living(self.groups.columns, sparsity)
        if isinstance(count, int):
            if count < 1 and self.strict:
                raise ValueError(
                    f"sparsity {sparsity} leaves no weight of {self.path!r}; lower it, or let "
                    "min_alive keep some."
                )
            if count < self.least:
                warnings.warn(
                    f"sparsity {sparsity} leaves {count} in {self.path!r}; it keeps {self.least} "
                    "by min_alive.",
                    stacklevel=2,
                )
            return min(max(count, self.least), self.groups.columns)
        return jnp.clip(count, self.least, self.groups.columns)

    def alive(self, sparsity: float | Array) -> int | Array:
        """Weights that live at a sparsity."""
        return self.kept(sparsity) * self.groups.rows * self.groups.size

    def select(self, scores: Array, k: int | Array, where: Array | None = None) -> Array:
        """The mask of the `k` best groups of every row; see `jaxsparse.patterns.select`."""
        if self.units is None:
            return select(self.pattern, self.axes, scores, k, where)
        safe = select(fan_in, self.units, scores, 1, where)  # the best of every output unit
        others = ~safe if where is None else where & ~safe
        left = k - jnp.sum(safe, dtype=jnp.int32)
        return safe | select(self.pattern, self.axes, scores, left, others)

    def count(self, mask: Array, by_rows: bool = False) -> Array:
        """Living groups of a mask, an int32 scalar, or one per row."""
        groups = group_mask(self.pattern, self.axes, mask)
        return jnp.sum(groups, -1 if by_rows else None, dtype=jnp.int32)

    def _fixed(self, sparsity: float | Array) -> int:
        n, m = self.pattern.fixed, self.groups.columns
        if not isinstance(sparsity, jax.core.Tracer) and living(m, sparsity) != n:
            raise ValueError(
                f"sparsity {sparsity} at {self.path!r} cannot be reached: pattern "
                f"{self.pattern.name} keeps {n} of {m}; ask for sparsity={1 - n / m}."
            )
        return n


Plan = list[LeafPlan | None]
"""One entry per leaf of the tree, in flattening order; None = the leaf is dense."""


def map_plan(
    plan: Plan,
    function: Callable[..., Any],
    otherwise: Callable[[Any], Any],
    tree: Any,
    *rest: list[Any],
) -> Any:
    """Maps `(leaf plan, leaf, *others)` over the sparse leaves and `otherwise` over the others."""
    leaves, treedef = jax.tree.flatten(tree)
    return treedef.unflatten(
        function(entry, leaf, *(other[i] for other in rest)) if entry else otherwise(leaf)
        for i, (entry, leaf) in enumerate(zip(plan, leaves, strict=True))
    )


def select_by_layer(
    plan: Plan, scores: Scores, kept: list[int | Array | None], eligible: list[Array | None]
) -> Masks:
    """Masks of the `kept[i]` best groups per row of every sparse leaf."""

    def leaf(entry: LeafPlan, score: Array, k: int | Array, where: Array | None) -> Array:
        return entry.select(score, k, where)

    return map_plan(plan, leaf, full_mask, scores, kept, eligible)


def select_globally(
    plan: Plan, scores: Scores, total: int | Array, eligible: list[Array | None]
) -> Masks:
    """Masks of the `total` best groups of all sparse leaves; each keeps its own `least` first."""
    leaves = jax.tree.leaves(scores)
    sparse = [i for i, entry in enumerate(plan) if entry]
    check_countable(plan)
    check_total(plan, total)
    gathered = {i: plan[i].pattern.gather(leaves[i], plan[i].axes) for i in sparse}
    safe, where = [], []
    for i in sparse:
        entry, alive = plan[i], jnp.ones(gathered[i].shape, bool)
        if eligible[i] is not None:
            alive = group_mask(entry.pattern, entry.axes, eligible[i])
        best = entry.select(leaves[i], entry.least, eligible[i])
        best = group_mask(entry.pattern, entry.axes, best)
        safe.append(best)
        where.append(alive & ~best)
    spent = sum(jnp.sum(mask, dtype=jnp.int32) for mask in safe) if safe else 0
    chosen = global_top_k_masks([gathered[i] for i in sparse], total - spent, where=where)
    masks = {
        i: plan[i].pattern.spread(best | more, plan[i].shape, plan[i].axes)
        for i, best, more in zip(sparse, safe, chosen, strict=True)
    }
    return jax.tree.structure(scores).unflatten(
        masks[i] if i in masks else full_mask(leaf) for i, leaf in enumerate(leaves)
    )


def check_countable(plan: Plan) -> None:
    """Raises where the sparse leaves have more groups than one selection can count."""
    groups = sum(entry.groups.rows * entry.groups.columns for entry in plan if entry)
    if groups > 2**31 - 1:
        raise ValueError(
            f"a global choice counts at most {2**31 - 1:,} weights (or groups of a pattern), but "
            f'these leaves have {groups:,}; choose by layer (scope="layer"), group the weights by '
            "a pattern, or leave more of them dense with prunable=."
        )


def check_total(plan: Plan, total: int | Array) -> None:
    """Raises where a total is too small for every leaf to keep what it keeps at least."""
    least = sum(entry.least for entry in plan if entry)
    if isinstance(total, int) and total < least:
        raise ValueError(
            f"sparsity leaves {total} groups of weights in all, but min_alive keeps {least}, some "
            "in every leaf; lower one of them."
        )
