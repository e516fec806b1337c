"""SET, sparse evolutionary training: drop by magnitude, grow at random."""

from typing import Any, Unpack

import optax

from jaxsparse.algorithms._base import SparseOptions, dynamic_rule, split, target_of
from jaxsparse.checks import check_choice
from jaxsparse.patterns import unstructured
from jaxsparse.plans import Plan
from jaxsparse.regrowth import drop, drop_counts, drop_signs, grow, refill_counts
from jaxsparse.schedules import as_schedule, periodic
from jaxsparse.targets import TargetOptions
from jaxsparse.transform import sparsify
from jaxsparse.types import Array, Key, Masks, Params, Rule, Schedule, Sparsity


def sparse_evolution(
    inner: optax.GradientTransformation,
    sparsity: Sparsity | None = None,
    *,
    key: Key,
    every: int = 100,
    start: int | None = None,
    stop: int | None = None,
    drop_fraction: float | Schedule = 0.3,
    drop_by: str = "magnitude",
    skip_update: bool = False,
    **options: Unpack[SparseOptions],
) -> optax.GradientTransformationExtraArgs:
    """SET: after a weight step, drops the smallest weights of every layer and grows at random.

    A layer with a living weights drops the `floor(f(t) * a)` smallest `|w|` and grows as many at
    positions drawn uniformly from those that are not alive after the drop; they start at zero.

    Args:
      inner: any Optax optimizer.
      sparsity: the fraction of zeros in [0, 1), or `{path regex: sparsity}`.
      masks: instead of `sparsity`: the masks to start from, boolean arrays in the structure of the
        parameters; see `docs/methods.md`.
      key: an int, a typed key or raw key data.
      every, start, stop: an update fires at counts start, start + every, ... below `stop`; `start`
        defaults to `every`.
      drop_fraction: f, in [0, 1] or a schedule of the count.
      drop_by: "magnitude", as in later work; or "sign", as published: the fraction f of the
        smallest positive and of the largest negative weights.
      distribution, prunable, pattern, axes, min_alive: as for `jaxsparse.prune`.
      skip_update, regrown_state, first_value, storage, room, window, mask_storage: as for
        `jaxsparse.sparsify`.

    Returns:
      A `GradientTransformationExtraArgs`; begin with `jaxsparse.init(tx, params)`, so that the
      parameters start sparse.

    Raises:
      ValueError: a value out of range.
      TypeError: a value of the wrong kind.

    References:
      Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse
      connectivity inspired by network science" (2018), algorithm 1.

    Differs from the paper:
      By default the smallest weights are dropped by magnitude, not by sign; updates come every
      `every` steps, not after each epoch; the published masks are `erdos_renyi`. Grown weights
      start at zero and not at a random value; `first_value` draws one. Dropped weights that are
      drawn again at once keep their value and state.

    Example:
      >>> import jax.numpy as jnp, optax, jaxsparse
      >>> tx = sparse_evolution(optax.sgd(0.1), sparsity=0.9, key=0, every=100)
      >>> params, opt_state = jaxsparse.init(tx, {"kernel": jnp.ones((10, 10))})
      >>> int(params["kernel"].sum())
      10
    """
    shared, wrapping = split(sparse_evolution, options, TargetOptions)
    rule = sparse_evolution_rule(
        sparsity,
        every=every,
        start=start,
        stop=stop,
        drop_fraction=drop_fraction,
        drop_by=drop_by,
        **shared,
    )
    return sparsify(inner, rule, key=key, skip_update=skip_update, **wrapping)


def sparse_evolution_rule(
    sparsity: Sparsity | None = None,
    *,
    every: int = 100,
    start: int | None = None,
    stop: int | None = None,
    drop_fraction: float | Schedule = 0.3,
    drop_by: str = "magnitude",
    **options: Unpack[TargetOptions],
) -> Rule:
    """The rule of `sparse_evolution`, for `sparsify` and for methods of your own."""
    target = target_of(sparse_evolution_rule, sparsity, options)
    fraction = as_schedule(drop_fraction)
    check_choice("drop_by", drop_by, ("magnitude", "sign"))
    if drop_by == "sign" and target.pattern is not unstructured:
        raise ValueError('drop_by="sign" needs the unstructured pattern.')

    def update(
        plan: Plan,
        key: Array,
        count: Array,
        masks: Masks,
        params: Params,
        grads: Params,
        state: Any,
    ) -> tuple[Masks, Any]:
        share = fraction(count)
        if drop_by == "sign":
            survivors = drop_signs(plan, masks, params, share)
        else:
            survivors = drop(plan, masks, plan.sizes(params), drop_counts(plan, masks, share))
        drawn = plan.draws(key, params)
        return grow(plan, survivors, drawn, refill_counts(plan, masks, survivors)), state

    return dynamic_rule(target, periodic(every, start, stop), update)
