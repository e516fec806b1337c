"""Scores -> masks: one-shot and iterative pruning, per layer and globally; random masks."""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Unpack

import jax
import jax.numpy as jnp

from jaxsparse import trees
from jaxsparse.checks import (
    check_flag,
    check_function,
    check_options,
    check_size,
    check_sparsity,
    traced,
)
from jaxsparse.distributions import uniform
from jaxsparse.masks import apply, check_masks, full_mask
from jaxsparse.patterns import Pattern, unstructured
from jaxsparse.plans import Plan
from jaxsparse.scores import magnitude, random_scores
from jaxsparse.targets import ShapeOptions, Target
from jaxsparse.types import Array, AxesSpec, Distribution, Key, Masks, Params, Prunable, Scores


def prune(
    scores: Scores,
    sparsity: float | Mapping[str, float],
    *,
    scope: str = "layer",
    distribution: Distribution | Any = uniform,
    within: Masks | None = None,
    prunable: Prunable | None = None,
    pattern: Pattern = unstructured,
    axes: AxesSpec = None,
    min_alive: int | str = 1,
    signed: bool = False,
) -> Masks:
    """Keeps the weights with the highest scores; `prune_by_magnitude` keeps the largest weights.

    Of the n weights of a leaf, exactly `floor(n * (1 - sparsity) + 0.5)` live, and ties go to the
    lowest flat index; with `scope="global"` this holds for all prunable leaves together. A layer
    may then collapse: if it is left with no more than `min_alive` saves, a warning names it (but
    not under `jit`, where `jaxsparse.analysis.empty_units` counts).

    Args:
      scores: floats in the structure of the parameters, higher = kept; NaN ranks lowest.
      sparsity: the fraction that is zero, in [0, 1), or `{path regex: sparsity}`. It refers to the
        whole leaf, even with `within`.
      scope: "layer", or "global" where all prunable leaves compete.
      distribution: for scope "layer": `uniform`, `erdos_renyi`, `erk`, a function of your own or a
        tree of floats.
      within: masks; weights that are dead there stay dead.
      prunable: `(path, leaf) -> bool`; the other leaves stay dense.
      pattern: `unstructured`, `n_m(n, m)`, `block(r, c)`, `channel` or `fan_in`.
      axes: what the axes of the leaves mean, for patterns and distributions that need it.
      min_alive: the minimum number of weights that every leaf keeps, with a warning if this makes
        it denser; "unit", one weight for every output unit; or "raise", an error if a leaf would be
        empty (with scope "global", only if the scores are not traced).
      signed: whether scores of both signs are intended, as with `grasp`, so that the most negative
        ones are pruned first. Without it they cause a warning (if they are not traced), because
        parameters passed as scores would be ranked that way.

    Returns:
      Masks in the structure of `scores`; dense leaves are all True.

    Raises:
      ValueError: an argument out of range, trees that differ, a filter that matches nothing, a
        pattern that does not fit, an empty layer with `min_alive="raise"`, or scope "global" over
        more than 2^31 - 1 weights.
      TypeError: `within` is not boolean, or an argument of the wrong kind.

    Example:
      >>> import jax.numpy as jnp
      >>> scores = {"a": jnp.array([[1.0, 9.0]] * 2), "b": jnp.array([[3.0, 4.0]] * 2)}
      >>> prune(scores, 0.5)["a"].tolist()
      [[False, True], [False, True]]
      >>> prune(scores, 0.75, scope="global", min_alive=0)["b"].tolist()
      [[False, False], [False, False]]
    """
    check_flag("signed", signed)
    target = Target(sparsity, distribution, scope, prunable, pattern, axes, min_alive).checked()
    plan = target.plan(scores, "scores")
    if within is not None:
        trees.check_same(scores, within, "within")
        check_masks(within, "within")
    if not signed:
        _warn_of_signs(plan, scores)
    masks = plan.select(scores, plan.counts(plan.sparsity), within)
    return _report_collapse(plan, masks) if scope == "global" else masks


def prune_by_magnitude(
    params: Params,
    sparsity: float | Mapping[str, float],
    *,
    scope: str = "layer",
    distribution: Distribution | Any = uniform,
    within: Masks | None = None,
    prunable: Prunable | None = None,
    pattern: Pattern = unstructured,
    axes: AxesSpec = None,
    min_alive: int | str = 1,
) -> Masks:
    """Keeps the largest weights: `prune(magnitude(params), ...)`.

    Args:
      params: the weights.
      sparsity, scope, distribution, within, prunable, pattern, axes, min_alive: as for
        `jaxsparse.prune`.

    Returns:
      Masks in the structure of `params`; dense leaves are all True. The weights themselves stay as
      they are until `jaxsparse.apply(params, masks)`.

    Raises:
      ValueError, TypeError: as for `jaxsparse.prune`.

    Example:
      >>> import jax.numpy as jnp
      >>> prune_by_magnitude({"kernel": jnp.array([[-3.0, 1.0], [2.0, 0.0]])}, 0.5)[
      ...     "kernel"
      ... ].tolist()
      [[True, False], [True, False]]
    """
    return prune(
        magnitude(params),
        sparsity,
        scope=scope,
        distribution=distribution,
        within=within,
        prunable=prunable,
        pattern=pattern,
        axes=axes,
        min_alive=min_alive,
        signed=True,  # these scores have no sign
    )


def random_masks(
    key: Key,
    params: Params,
    sparsity: float | Mapping[str, float],
    *,
    distribution: Distribution | Any = uniform,
    prunable: Prunable | None = None,
    pattern: Pattern = unstructured,
    axes: AxesSpec = None,
    min_alive: int | str = 1,
) -> Masks:
    """Random masks with exact counts: the masks of uniform random scores.

    Args:
      key: an int, a typed key or raw key data; every leaf has its own stream, folded by its path.
      params: any pytree; only its paths, shapes, types and shardings are used.
      sparsity, distribution, prunable, pattern, axes, min_alive: as for `jaxsparse.prune`.

    Returns:
      Masks in the structure of `params`.

    Raises:
      ValueError: as for `jaxsparse.prune`.
      TypeError: `key` is not a key.

    Example:
      >>> import jax.numpy as jnp
      >>> int(random_masks(0, {"kernel": jnp.ones((10, 10))}, 0.95)["kernel"].sum())
      5
    """
    return prune(
        random_scores(key, params),
        sparsity,
        distribution=distribution,
        prunable=prunable,
        pattern=pattern,
        axes=axes,
        min_alive=min_alive,
        signed=True,  # these scores have no sign
    )


def prune_iteratively(
    score: Callable[[Params], Scores],
    params: Params,
    sparsity: float,
    *,
    rounds: int = 100,
    scope: str = "global",
    **options: Unpack[ShapeOptions],
) -> Masks:
    """Prunes in rounds, scoring the survivors again each time; after round r the density is
    `(1 - sparsity)^(r / rounds)`.

    Args:
      score: `params -> scores`, called with the dead weights set to zero, e.g.
        `lambda p: jaxsparse.synflow(forward, p, inputs)`.
      params: the weights.
      sparsity: after the last round, in [0, 1).
      rounds: at least 1.
      scope: "global" as published, or "layer".
      **options: `prunable`, `pattern`, `axes`, `min_alive` of `jaxsparse.prune`.

    Returns:
      Masks in the structure of `params`; a weight that died in one round stays dead. A warning
      names the layers that collapse, as for `prune`.

    Raises:
      ValueError: an argument out of range.

    References:
      Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic
      flow" (2020), algorithm 1.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"kernel": jnp.arange(16.0).reshape(4, 4)}
      >>> masks = prune_iteratively(lambda p: p, params, 0.75, rounds=3)
      >>> masks["kernel"][3].tolist()
      [True, True, True, True]
    """
    check_sparsity(sparsity)
    check_size("rounds", rounds)
    check_function("score", score, "(params) -> scores")
    check_options(prune_iteratively, options)
    target = Target(sparsity, scope=scope, **options).checked()
    plan = target.plan(params)
    steps = [1 - (1 - sparsity) ** (r / rounds) for r in range(1, rounds)] + [sparsity]
    table = plan.tabulated([plan.counts(s) for s in steps])

    def whole(survivors: Masks) -> Masks:
        return plan.map(lambda _, leaf, mask: mask, params, survivors, dense=full_mask)

    def one_round(survivors: Masks, row: Array) -> tuple[Masks, None]:
        counts = plan.counts_in(row)
        masks = plan.select(score(apply(params, whole(survivors))), counts, survivors)
        return plan.tree(mask for _, mask in plan.zip(masks)), None

    everything = plan.tree(full_mask(leaf) for _, leaf in plan.zip(params))
    survivors, _ = jax.lax.scan(one_round, everything, table)
    masks = whole(survivors)
    return _report_collapse(plan, masks) if scope == "global" else masks


def _warn_of_signs(plan: Plan, scores: Scores) -> None:
    """Warns if the scores of sparse leaves have both signs, as parameters do."""
    found = [score for _, score in plan.zip(scores)]
    if any(isinstance(score, jax.core.Tracer | jax.ShapeDtypeStruct) for score in found):
        return
    with jax.ensure_compile_time_eval():  # the caller may be traced when the scores are not
        both = any(bool(jnp.any(s < 0)) for s in found) and any(bool(jnp.any(s > 0)) for s in found)
    if both:
        warnings.warn(
            "scores have both signs, and the most negative weights go first. To prune weights by "
            "their size, call jaxsparse.prune_by_magnitude(params, ...); if such scores "
            "are intended, as those of grasp are, pass signed=True.",
            stacklevel=3,
        )


def _report_collapse(plan: Plan, masks: Masks) -> Masks:
    """Reports the layers in which a global choice leaves no more than `min_alive` saves."""
    for leaf, mask in plan.zip(masks):
        if traced(mask):
            continue
        alive, size = int(leaf.count_alive(mask)) * leaf.groups.size, math.prod(leaf.shape)
        found = f"layer collapse: {alive} of {size} weights of {leaf.path!r} are left"
        if leaf.strict and not alive:
            raise ValueError(f"{found}; lower the sparsity, or let min_alive keep some.")
        if alive <= leaf.least * leaf.groups.size and alive < size:
            warnings.warn(f"{found}.", stacklevel=3)
    return masks
