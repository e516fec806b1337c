"""How many weights live after each round of pruning, and the masks of a round."""

import warnings
from collections.abc import Mapping
from typing import Any, Unpack

import jax

from jaxsparse import distributions, trees
from jaxsparse.checks import check_options, check_size
from jaxsparse.distributions import target_count
from jaxsparse.masks import check_masks
from jaxsparse.patterns import Pattern, unstructured
from jaxsparse.plans import Plan
from jaxsparse.recognition import sparse_leaves
from jaxsparse.targets import ShapeOptions, Target
from jaxsparse.types import AxesSpec, Masks, Params, Prunable, Scores


def ladder(
    params: Params,
    rounds: int,
    rates: float | Mapping[str, float] = 0.2,
    *,
    scope: str = "layer",
    prunable: Prunable | None = None,
    pattern: Pattern = unstructured,
    axes: AxesSpec = None,
    min_alive: int | str = 1,
) -> list[Any]:
    """How many weights live after 0, 1, ..., `rounds` rounds of pruning.

    A leaf with n living weights keeps `floor(n * (1 - rate) + 0.5)` of them in the next round, in
    Python integers. A leaf that would become empty keeps `min_alive` weights, and a warning names
    it.

    Args:
      params: only paths, shapes and types are looked at.
      rounds: at least 1.
      rates: the fraction of the living weights that each round removes, in (0, 1), for every leaf
        or as `{path regex: rate}`; the first regex that matches counts, and a leaf that none
        matches is not pruned.
      scope: "layer"; or "global": all prunable leaves compete, and `rates` is one number.
      prunable, pattern, axes: as for `jaxsparse.prune`. N:M is reached in one round.
      min_alive: the minimum number of weights that every leaf keeps.

    Returns:
      `rounds + 1` entries: trees of ints in the structure of `params`, or with scope "global" ints,
      the living weights of all prunable leaves together.

    Raises:
      ValueError: no round, a rate outside (0, 1), or a pattern that does not fit.

    References:
      Frankle & Carbin, "The Lottery Ticket Hypothesis" (2018), section 2: 20% a round, 10% in the
      output layer.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"fc/kernel": jnp.ones((10, 10)), "head/kernel": jnp.ones((10, 4))}
      >>> for alive in ladder(params, 2, {"head": 0.1, "": 0.2}):
      ...     print(alive)
      {'fc/kernel': 100, 'head/kernel': 40}
      {'fc/kernel': 80, 'head/kernel': 36}
      {'fc/kernel': 64, 'head/kernel': 32}
    """
    check_size("rounds", rounds)
    plan = _plan(params, scope, prunable, pattern, axes, min_alive)
    if pattern.fixed is not None and rounds > 1:
        raise ValueError(
            f"rounds must be 1 with pattern {pattern.name}, which fixes the density, got {rounds}."
        )
    levels = [plan.whole()]
    if scope == "global":
        rate, least = _checked_rate(rates), sum(leaf.least for leaf in plan.sparse)
        for number in range(1, rounds + 1):
            levels.append(_fewer(levels[-1], rate, least, number, "all leaves together"))
        return [count * plan.granularity for count in levels]
    found = _rates(plan, params, rates, prunable)
    for number in range(1, rounds + 1):
        counts = []
        for leaf, count, rate in plan.zip(levels[-1], found):
            if rate is not None and leaf.pattern.fixed is not None:
                count = leaf.pattern.fixed
            elif rate is not None:
                count = _fewer(count, rate, leaf.least, number, repr(leaf.path))
            counts.append(count)
        levels.append(plan.tree(counts))
    return [plan.weights(counts, params) for counts in levels]


def prune_to(
    scores: Scores,
    alive: Any,
    *,
    within: Masks | None = None,
    scope: str = "layer",
    prunable: Prunable | None = None,
    pattern: Pattern = unstructured,
    axes: AxesSpec = None,
    min_alive: int | str = 1,
) -> Masks:
    """The masks of one step of `ladder`: iterative pruning with `within`, one-shot without.

    Args:
      scores: floats in the structure of the parameters, higher = kept.
      alive: an entry of `ladder`; its counts may be traced, so that one compiled function serves
        every round.
      within: masks of the round before; weights that are dead there stay dead.
      scope, prunable, pattern, axes, min_alive: as given to `ladder`.

    Returns:
      Masks in the structure of `scores`; leaves that are not prunable are all True.

    Raises:
      ValueError: trees that differ, or a pattern that does not fit.
      TypeError: `within` is not boolean.

    Example:
      >>> import jax.numpy as jnp
      >>> scores = {"kernel": jnp.array([[1.0, 4.0], [3.0, 2.0]])}
      >>> prune_to(scores, {"kernel": 2})["kernel"].tolist()
      [[False, True], [True, False]]
    """
    trees.check_tree(scores, "scores")
    plan = _plan(scores, scope, prunable, pattern, axes, min_alive)
    if within is not None:
        trees.check_same(scores, within, "within")
        check_masks(within, "within")
    if scope == "global":
        return plan.select(scores, alive // plan.granularity, within)
    found = trees.check_same(scores, alive, "alive", shapes=False, first="scores")
    if any(getattr(count, "shape", ()) for count in found):
        raise TypeError("alive must hold a count for every leaf, as ladder gives them, not arrays.")
    counts = plan.map(lambda leaf, count: count // leaf.granularity, alive)
    return plan.select(scores, counts, within)


class LadderOptions(ShapeOptions, total=False):
    """The options of `ladder`, besides the rates."""

    scope: str


def densities(
    params: Params,
    rounds: int,
    rates: float | Mapping[str, float] = 0.2,
    **target: Unpack[LadderOptions],
) -> list[float]:
    """The fraction of the weights that live after 0, 1, ..., `rounds` rounds of pruning.

    Args:
      params, rounds, rates, **target: as for `ladder`.

    Returns:
      `rounds + 1` floats in (0, 1], of the prunable leaves together.

    Raises:
      ValueError: as for `ladder`.

    Example:
      >>> import jax.numpy as jnp
      >>> densities({"kernel": jnp.ones((10, 10))}, 3)
      [1.0, 0.8, 0.64, 0.51]
    """
    check_options(densities, target)
    counts = ladder(params, rounds, rates, **target)
    if target.get("scope", "layer") == "layer":
        chosen = sparse_leaves(params, target.get("prunable"))
        counts = [
            sum(n for n, use in zip(jax.tree.leaves(alive), chosen, strict=True) if use)
            for alive in counts
        ]
    return [count / counts[0] for count in counts]


def _plan(
    params: Params,
    scope: str,
    prunable: Prunable | None,
    pattern: Pattern,
    axes: AxesSpec,
    min_alive: int | str,
) -> Plan:
    # The sparsity is not used here: counts come from the ladder.
    return Target(0.5, None, scope, prunable, pattern, axes, min_alive).checked().plan(params)


def _fewer(count: int, rate: float, least: int, number: int, what: str) -> int:
    left = int(target_count(count, rate))
    if left < max(least, 1):
        warnings.warn(
            f"round {number} of pruning would leave {what} empty; min_alive keeps {least}.",
            stacklevel=3,
        )
    return max(left, least)


def _rates(plan: Plan, params: Params, rates: Any, prunable: Prunable | None) -> Any:
    """A tree of the rate of every leaf, None if it is not pruned."""
    if not isinstance(rates, Mapping):
        return plan.tree([_checked_rate(rates)] * len(plan.sparse))
    checked = {regex: _checked_rate(rate) for regex, rate in rates.items()}
    found = distributions.first_match(params, checked, "rates", prunable)
    return plan.treedef.unflatten(found)


def _checked_rate(rate: Any) -> float:
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        raise TypeError(f"rates must be a number in (0, 1) or a mapping of them, got {rate!r}.")
    if not 0 < rate < 1:
        raise ValueError(
            f"rates must be in (0, 1), the fraction that a round removes, got {rate!r}."
        )
    return float(rate)
