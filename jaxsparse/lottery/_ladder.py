"""How many weights live after each round of pruning, and the masks of a round."""

import warnings
from collections.abc import Mapping
from typing import Any, Unpack

import jax

from jaxsparse import distributions, trees
from jaxsparse.checks import check_options, check_size
from jaxsparse.distributions import living
from jaxsparse.masks import check_masks
from jaxsparse.patterns import Pattern, unstructured
from jaxsparse.plans import LeafPlan, Plan, select_by_layer, select_globally
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
        or as `{path regex: rate}`, the first regex that matches counting; a leaf that none matches
        is not pruned.
      scope: "layer", or "global" where all prunable leaves compete; then `rates` is one number.
      prunable, pattern, axes: as for `jaxsparse.prune`. N:M is reached in one round.
      min_alive: weights that every leaf keeps at least.

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
    if scope == "global":
        rate = _checked_rate(rates)
        size = sum(entry.groups.columns for entry in plan if entry)
        least = sum(entry.least for entry in plan if entry)
        counts = [size]
        for number in range(1, rounds + 1):
            counts.append(_next(counts[-1], rate, least, number, "all leaves together"))
        weights = next(entry.groups.size for entry in plan if entry)
        return [count * weights for count in counts]
    found = _rates(params, rates, prunable)
    leaves, treedef = jax.tree.flatten(params)
    steps = [[leaf.size if trees.is_array(leaf) else 0 for leaf in leaves]]
    for number in range(1, rounds + 1):
        alive = list(steps[-1])
        for i, (entry, rate) in enumerate(zip(plan, found, strict=True)):
            if entry is not None and rate is not None:
                alive[i] = _next_alive(entry, alive[i], rate, number)
        steps.append(alive)
    return [treedef.unflatten(alive) for alive in steps]


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
    eligible: list[Any] = [None] * len(plan)
    if within is not None:
        eligible = trees.check_same(scores, within, "within")
        check_masks(within, "within")
    if scope == "global":
        weights = next(entry.groups.size for entry in plan if entry)
        return select_globally(plan, scores, alive // weights, eligible)
    counts = trees.check_same(scores, alive, "alive", shapes=False, first="scores")
    if any(getattr(count, "shape", ()) for count in counts):
        raise TypeError("alive must hold a count for every leaf, as ladder gives them, not arrays.")
    kept = [
        entry and count // (entry.groups.rows * entry.groups.size)
        for entry, count in zip(plan, counts, strict=True)
    ]
    return select_by_layer(plan, scores, kept, eligible)


class LadderOptions(ShapeOptions, total=False):
    """What says how `ladder` counts, besides the rates."""

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
    # The sparsity is not asked for here: counts come from the ladder.
    return Target(0.5, None, scope, prunable, pattern, axes, min_alive).checked().plan(params)


def _next_alive(entry: LeafPlan, alive: int, rate: float, number: int) -> int:
    unit = entry.groups.rows * entry.groups.size
    if entry.pattern.fixed is not None:
        return entry.pattern.fixed * unit
    return _next(alive // unit, rate, entry.least, number, repr(entry.path)) * unit


def _next(count: int, rate: float, least: int, number: int, what: str) -> int:
    kept = living(count, rate)
    if kept < max(least, 1):
        warnings.warn(
            f"round {number} of pruning would leave {what} empty; it keeps {least} by min_alive.",
            stacklevel=4,
        )
    return max(kept, least)


def _rates(params: Params, rates: Any, prunable: Prunable | None) -> list[float | None]:
    if not isinstance(rates, Mapping):
        return [_checked_rate(rates)] * len(jax.tree.leaves(params))
    checked = {regex: _checked_rate(rate) for regex, rate in rates.items()}
    return distributions.first_match(params, checked, "rates", prunable)


def _checked_rate(rate: Any) -> float:
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        raise TypeError(f"rates must be a number in (0, 1) or a mapping of them, got {rate!r}.")
    if not 0 < rate < 1:
        raise ValueError(
            f"rates must be in (0, 1), the fraction that a round removes, got {rate!r}."
        )
    return float(rate)
