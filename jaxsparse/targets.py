"""How sparse, where and in which shape, and the plan that this gives for parameters."""

import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypedDict

import jax

from jaxsparse import distributions, trees
from jaxsparse.axes import all_axes, check_axes
from jaxsparse.checks import check_choice, check_function, check_regexes, check_sparsity
from jaxsparse.own_masks import OwnMasks
from jaxsparse.patterns import Pattern, unstructured
from jaxsparse.plans import LeafPlan, Plan
from jaxsparse.recognition import asked_once, sparse_leaves
from jaxsparse.types import (
    Array,
    Axes,
    AxesSpec,
    Distribution,
    Masks,
    Params,
    Prunable,
    Sparsities,
    Sparsity,
)


class ShapeOptions(TypedDict, total=False):
    """Which leaves are sparse, and in which shape: as for `jaxsparse.prune`."""

    prunable: Prunable | None
    pattern: Pattern
    axes: AxesSpec
    min_alive: int | str


class PruneOptions(ShapeOptions, total=False):
    """`ShapeOptions`, and how the sparsity is spread over the leaves."""

    distribution: Distribution | Sparsities


class TargetOptions(PruneOptions, total=False):
    """`PruneOptions`, and the masks that a method may start from instead of a sparsity."""

    masks: Masks | None


class Target(NamedTuple):
    """How sparse, where, and in which shape.

    Attributes:
      sparsity: in [0, 1), or `{path regex: sparsity}`; not used if masks are given.
      distribution: how it is spread over the leaves: a function or a tree of floats; None means
        `jaxsparse.distributions.uniform`.
      scope: "layer"; or "global": leaves compete and only the total is fixed.
      prunable: `(path, leaf) -> bool`; None means `jaxsparse.default_prunable`.
      pattern: which weights live or die together.
      axes: what the axes mean; see `jaxsparse.axes.leaf_axes`.
      min_alive: the minimum number of weights that every sparse leaf keeps; None means 1. "unit":
        one for every output unit. "raise": a leaf that would be empty is an error.
      masks: instead of a sparsity: the masks to start from.
    """

    sparsity: Sparsity
    distribution: Distribution | Sparsities | None = None
    scope: str = "layer"
    prunable: Prunable | None = None
    pattern: Pattern = unstructured
    axes: AxesSpec = None
    min_alive: int | str | None = None
    masks: OwnMasks | None = None

    def checked(self) -> "Target":
        """The same target; raises for what is wrong whatever the parameters are."""
        if self.masks is None:
            values: Iterable[Any] = [self.sparsity]
            if isinstance(self.sparsity, Mapping):
                check_regexes("sparsity", self.sparsity)
                values = self.sparsity.values()
            for value in values:
                check_sparsity(value)
        elif self.distribution not in (None, distributions.uniform):
            raise ValueError(
                "distribution: with masks= the masks say how the sparsity is spread; leave it out."
            )
        check_choice("scope", self.scope, ("layer", "global"))
        check_axes(self.axes)
        if not isinstance(self.pattern, Pattern):
            raise TypeError(
                f"pattern must be unstructured, n_m(n, m), block(r, c), channel or fan_in, got "
                f"{self.pattern!r}."
            )
        if self.prunable is not None:
            check_function("prunable", self.prunable, "(path, leaf) -> bool")
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
                f'scope="global" does not fit pattern {self.pattern.name}: every row keeps '
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

    def plan(self, params: Params, what: str = "params") -> Plan:
        """The plan for these parameters; only their paths, shapes and types are used."""
        trees.check_tree(params, what)
        found, treedef = jax.tree.flatten_with_path(params)
        asked = self._replace(prunable=asked_once(self.prunable))
        chosen = asked.chosen(params)
        targets = asked._targets(params, chosen)
        sparse = {
            trees.name(path): leaf
            for (path, leaf), target in zip(found, targets, strict=True)
            if target != "dense"
        }
        uses = self.pattern.uses_axes or self.min_alive == "unit"
        axes = all_axes(self.axes, sparse) if uses else dict.fromkeys(sparse, Axes((), ()))
        leaves: list[LeafPlan | None] = []
        for (path, leaf), target in zip(found, targets, strict=True):
            name = trees.name(path)
            leaves.append(None if target == "dense" else self._leaf(name, leaf, axes[name]))
        sparsity = self.sparsity
        if self.scope == "layer":
            sparsity = treedef.unflatten(None if each == "dense" else each for each in targets)
        prunable = treedef.unflatten(chosen)
        plan = Plan(treedef, tuple(leaves), self.scope, sparsity, prunable)
        if self.scope == "global":
            sizes = {leaf.groups.size for leaf in plan.sparse}
            if len(sizes) > 1:
                raise ValueError(
                    f'scope="global" does not fit pattern {self.pattern.name} here: groups of '
                    f'{sorted(sizes)} weights cannot share one count. Use scope="layer".'
                )
            plan.check_countable()
        return plan

    def chosen(self, params: Params) -> list[bool]:
        """One bool per leaf: does it count as prunable?

        Raises:
          ValueError: none of them does.
        """
        if self.masks is not None:
            return self.masks.chosen(params, self.prunable)
        return sparse_leaves(params, self.prunable)

    def _targets(self, params: Params, chosen: list[bool]) -> list[Any]:
        if self.masks is not None:
            found = zip(jax.tree.leaves_with_path(params), chosen, strict=True)
            return [
                self.masks.sparsity(trees.name(path), leaf) if use else "dense"
                for (path, leaf), use in found
            ]
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
            check_sparsity(value, f"distribution at {trees.name(path)!r}")
            targets.append(value)
        return targets

    def _leaf(self, path: str, leaf: Array, axes: Axes) -> LeafPlan:
        groups = self.pattern.groups(path, leaf.shape, axes)
        strict, units = self.min_alive == "raise", axes if self.min_alive == "unit" else None
        wanted = 0 if strict else 1
        if units is not None:
            wanted = math.prod(leaf.shape[a] for a in units.outputs + units.stacked)
        elif isinstance(self.min_alive, int):
            wanted = self.min_alive
        least = min(-(-wanted // max(groups.rows * groups.size, 1)), groups.columns)
        return LeafPlan(path, leaf.shape, self.pattern, axes, groups, least, units, strict)
