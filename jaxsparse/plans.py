"""The plan of a net: for every leaf, whether it is sparse, in which pattern, and how many weights
live. Plans are made from shapes and Python numbers while tracing, so they cost a step nothing.
"""

import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse import distributions, trees
from jaxsparse.axes import leaf_axes
from jaxsparse.distributions import living
from jaxsparse.patterns import Groups, Pattern, fan_in, group_mask, select, unstructured
from jaxsparse.selection import global_top_k_masks
from jaxsparse.types import (
    Array,
    Axes,
    AxesSpec,
    Distribution,
    Masks,
    Params,
    Prunable,
    Scores,
)


class LeafPlan(NamedTuple):
    """What is decided about one leaf that may be sparse.

    Attributes:
      path: the leaf's name, such as `"fc1/kernel"`.
      shape: its shape.
      sparsity: its target in [0, 1), or None where only the total is fixed.
      pattern: which weights live or die together.
      axes: its axes, where the pattern uses them.
      groups: rows, columns and weights per group.
      least: groups that each row keeps at least.
      units: the axes by which every output unit keeps a weight; None where units may be empty.
      strict: whether a leaf that would be empty is an error.
    """

    path: str
    shape: tuple[int, ...]
    sparsity: float | Array | None
    pattern: Pattern
    axes: Axes | None
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


class Spec(NamedTuple):
    """The shared keywords of every method: how sparse, where, and in which shape.

    Attributes:
      sparsity: in [0, 1), or `{path regex: sparsity}`.
      distribution: how it is spread over the leaves: a function or a tree of floats; None means
        `jaxsparse.uniform`.
      scope: "layer", or "global" where leaves compete and only the total is fixed.
      prunable: `(path, leaf) -> bool`; None means `jaxsparse.default_prunable`.
      pattern: which weights live or die together.
      axes: what the axes mean; see `jaxsparse.axes.leaf_axes`.
      min_alive: weights that every sparse leaf keeps at least; None means 1. "unit": one for every
        output unit. "raise": a leaf that would be empty is an error.
    """

    sparsity: Any
    distribution: Distribution | Any = None
    scope: str = "layer"
    prunable: Prunable | None = None
    pattern: Pattern = unstructured
    axes: AxesSpec = None
    min_alive: int | str | None = None

    def checked(self) -> "Spec":
        """Raises for whatever can be told to be wrong without parameters."""
        values = self.sparsity.values() if isinstance(self.sparsity, Mapping) else [self.sparsity]
        for value in values:
            distributions.check_sparsity(value)
        if self.scope not in ("layer", "global"):
            raise ValueError(f'scope must be "layer" or "global", got {self.scope!r}.')
        if not isinstance(self.pattern, Pattern):
            raise TypeError(
                f"pattern must be unstructured, n_m(n, m), block(r, c), channel or fan_in, got "
                f"{self.pattern!r}."
            )
        if self.prunable is not None and not callable(self.prunable):
            raise TypeError(f"prunable must be a function (path, leaf), got {self.prunable!r}.")
        least = 1 if self.min_alive is None else self.min_alive
        if isinstance(least, str):
            if least not in ("unit", "raise"):
                raise ValueError(f'min_alive must be an int, "unit" or "raise", got {least!r}.')
            if least == "unit" and self.pattern is not unstructured:
                raise ValueError('min_alive="unit" needs the unstructured pattern.')
            least = 1
        if isinstance(least, bool) or not isinstance(least, int):
            raise TypeError(f"min_alive must be an int, got {least!r}.")
        if least < 0:
            raise ValueError(f"min_alive must be at least 0, got {least}.")
        if self.scope == "global" and self.pattern.by_rows:
            raise ValueError(
                f'scope="global" does not go with pattern {self.pattern.name}: every row keeps '
                'its own count. Use scope="layer".'
            )
        if self.scope == "global" and isinstance(self.sparsity, Mapping):
            raise ValueError('scope="global" needs one sparsity, not one per path.')
        if self.scope == "global" and self.distribution not in (None, distributions.uniform):
            raise ValueError(
                'distribution: with scope="global" the scores decide how the sparsity is spread; '
                "leave it out."
            )
        return self

    def plan(self, params: Params) -> Plan:
        """The plan for these parameters; only their paths, shapes and types are looked at."""
        found = jax.tree.leaves_with_path(params)
        targets = self._targets(params)
        plan: Plan = []
        for (path, leaf), target in zip(found, targets, strict=True):
            plan.append(None if target == "dense" else self._leaf(trees.name(path), leaf, target))
        sizes = {entry.groups.size for entry in plan if entry}
        if self.scope == "global" and len(sizes) > 1:
            raise ValueError(
                f'scope="global" does not go with pattern {self.pattern.name} here: groups of '
                f'{sorted(sizes)} weights cannot share one count. Use scope="layer".'
            )
        return plan

    def _targets(self, params: Params) -> list[Any]:
        chosen = trees.sparse_leaves(params, self.prunable)
        if self.scope == "global":
            return [None if use else "dense" for use in chosen]
        if isinstance(self.sparsity, Mapping):
            tree = distributions.by_path(params, self.sparsity, prunable=self.prunable)
        elif self.distribution is None:
            tree = distributions.uniform(params, self.sparsity, prunable=self.prunable)
        elif callable(self.distribution):
            given = {"prunable": self.prunable, "axes": self.axes}
            taken = inspect.signature(self.distribution).parameters
            options = {key: value for key, value in given.items() if key in taken}
            tree = self.distribution(params, self.sparsity, **options)
        else:
            tree = self.distribution
        leaves = trees.check_same(params, tree, "distribution", shapes=False)
        targets: list[Any] = []
        for (path, _), use, value in zip(
            jax.tree.leaves_with_path(params), chosen, leaves, strict=True
        ):
            if not use or (isinstance(value, int | float) and value == 0):
                targets.append("dense")
                continue
            distributions.check_sparsity(value, f"distribution at {trees.name(path)!r}")
            targets.append(value)
        return targets

    def _leaf(self, path: str, leaf: Array, target: float | None) -> LeafPlan:
        uses = self.pattern.uses_axes
        axes = leaf_axes(self.axes, path, leaf) if uses else None
        groups = self.pattern.groups(path, leaf.shape, axes)
        wanted, units = 1 if self.min_alive is None else self.min_alive, None
        strict = wanted == "raise"
        if wanted == "unit":
            units = leaf_axes(self.axes, path, leaf)
            wanted = math.prod(leaf.shape[a] for a in units.outputs + units.stacked)
        wanted = 0 if strict else wanted
        least = min(-(-wanted // max(groups.rows * groups.size, 1)), groups.columns)
        return LeafPlan(path, leaf.shape, target, self.pattern, axes, groups, least, units, strict)


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


def full_mask(leaf: Any) -> Any:
    """The mask of a dense leaf: all True; what is not an array stays what it is."""
    if isinstance(leaf, jax.Array):
        return jnp.ones_like(leaf, dtype=bool)  # sharded as the leaf is
    return jnp.ones(leaf.shape, bool) if trees.is_array(leaf) else leaf


def full_masks(params: Params) -> Masks:
    """Masks in which every weight lives."""
    return jax.tree.map(full_mask, params)


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


def check_total(plan: Plan, total: int | Array) -> None:
    """Raises where a total is too small for every leaf to keep what it keeps at least."""
    least = sum(entry.least for entry in plan if entry)
    if isinstance(total, int) and total < least:
        raise ValueError(
            f"sparsity leaves {total} groups of weights in all, but min_alive keeps {least}, some "
            "in every leaf; lower one of them."
        )
