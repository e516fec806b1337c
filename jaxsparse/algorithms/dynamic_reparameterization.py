"""DSR, dynamic sparse reparameterization: drop by one threshold, grow where weights live."""

from typing import Any, Unpack

import jax.numpy as jnp
import optax

from jaxsparse import counts
from jaxsparse.algorithms._base import SparseOptions, dynamic_rule, split, target_of
from jaxsparse.checks import check_fraction, check_number
from jaxsparse.masks import living
from jaxsparse.plans import Counts, LeafPlan, Plan
from jaxsparse.regrowth import (
    check_movable,
    count_shares,
    drop,
    dropped_last,
    free_places,
    grow,
    lost,
    shared_counts,
)
from jaxsparse.schedules import periodic
from jaxsparse.targets import TargetOptions
from jaxsparse.transform import sparsify
from jaxsparse.types import Array, Key, Masks, Params, Rule, Sparsity

TOLERANCE = 0.1


def dynamic_reparameterization(
    inner: optax.GradientTransformation,
    sparsity: Sparsity | None = None,
    *,
    key: Key,
    every: int = 1000,
    start: int | None = None,
    stop: int | None = None,
    threshold: float = 1e-3,
    target: float = 0.1,
    skip_update: bool = False,
    **options: Unpack[SparseOptions],
) -> optax.GradientTransformationExtraArgs:
    """DSR: drops the weights below an adaptive threshold, and grows at random where many live.

    After a weight step, all living weights with `|w| < H` are dropped, in all layers alike. If they
    are fewer than 0.9 of the target, H doubles; if more than 1.1 of it, H halves. As many weights
    grow, starting at zero, at random places that were free before; they are shared among the layers
    in proportion to the weights that each has left.

    Args:
      inner: any Optax optimizer.
      sparsity: the fraction of zeros at the start, in [0, 1), or `{path regex: sparsity}`; the
        total number of living weights stays as it is, exactly.
      masks: instead of `sparsity`: the masks to start from, boolean arrays in the structure of the
        parameters; see `docs/methods.md`.
      key: an int, a typed key or raw key data.
      every, start, stop: an update fires at counts start, start + every, ... below `stop`; `start`
        defaults to `every`.
      threshold: H at the start, above 0.
      target: the weights that an update should move, as a fraction of all living weights, in
        (0, 1].
      distribution, prunable, pattern, axes, min_alive: as for `jaxsparse.prune`.
      skip_update, regrown_state, first_value, storage, room, window, mask_storage: as for
        `jaxsparse.sparsify`.

    Returns:
      A `GradientTransformationExtraArgs`; begin with `jaxsparse.init(tx, params)`, so that the
      parameters start sparse.

    Raises:
      ValueError: a value out of range, or a pattern that cannot move weights between layers.
      TypeError: a value of the wrong kind.

    References:
      Mostafa & Wang, "Parameter Efficient Training of Deep Convolutional Neural Networks by Dynamic
      Sparse Reparameterization" (2019), algorithm 1.

    Differs from the paper:
      The target is a fraction, not a number. The published 20,000 weights are 0.14 of those that
      live in WRN-28-2 at a density of 10%, and 0.03 at 50%; the default is a round number between
      them, though larger ones have done better (0.3 in LeNet-300-100 at 5%). What a full layer
      cannot take is spread over the others, so that the total is conserved exactly; if no other
      place is left, a weight that was just dropped may live on. Every layer keeps `min_alive`
      weights.

    Example:
      >>> import jax.numpy as jnp, optax, jaxsparse
      >>> tx = dynamic_reparameterization(optax.sgd(0.1), sparsity=0.9, key=0, every=100)
      >>> params, opt_state = jaxsparse.init(tx, {"kernel": jnp.ones((10, 10))})
      >>> int(params["kernel"].sum())
      10
    """
    shared, wrapping = split(dynamic_reparameterization, options, TargetOptions)
    rule = dynamic_reparameterization_rule(
        sparsity, every=every, start=start, stop=stop, threshold=threshold, target=target, **shared
    )
    return sparsify(inner, rule, key=key, skip_update=skip_update, **wrapping)


def dynamic_reparameterization_rule(
    sparsity: Sparsity | None = None,
    *,
    every: int = 1000,
    start: int | None = None,
    stop: int | None = None,
    threshold: float = 1e-3,
    target: float = 0.1,
    **options: Unpack[TargetOptions],
) -> Rule:
    """The rule of `dynamic_reparameterization`, for `sparsify` and for methods of your own."""
    check_number("threshold", threshold, above=True)
    check_fraction("target", target)
    if isinstance(target, int | float) and target == 0:
        raise ValueError("target must be in (0, 1], got 0: no weight would ever move.")

    def update(
        plan: Plan,
        key: Array,
        count: Array,
        masks: Masks,
        params: Params,
        grads: Params,
        state: Any,
    ) -> tuple[Masks, Any]:
        check_movable(plan)
        total = lambda groups: counts.as_float(counts.add_up(groups))  # noqa: E731
        limit, size = state["threshold"], plan.sizes(params)
        survivors = drop(plan, masks, size, _below(plan, masks, size, limit))
        wanted = jnp.asarray(target, jnp.float32) * total(plan.count_alive(masks))
        moved = total(lost(plan, masks, survivors))
        factor = jnp.where(moved < (1 - TOLERANCE) * wanted, 2.0, 1.0)
        factor = jnp.where(moved > (1 + TOLERANCE) * wanted, 0.5, factor).astype(jnp.float32)
        drawn = dropped_last(plan, plan.draws(key, params), masks, survivors)
        free = free_places(plan, masks).astype(jnp.float32)
        grown = shared_counts(plan, masks, survivors, count_shares(plan, survivors), free)
        return grow(plan, survivors, drawn, grown), {"threshold": limit * factor}

    return dynamic_rule(
        target_of(dynamic_reparameterization_rule, sparsity, options),
        periodic(every, start, stop),
        update,
        state=lambda *_: {"threshold": jnp.float32(threshold)},
        conserves="total",
    )


def _below(plan: Plan, masks: Masks, size: Any, limit: Array) -> Counts:
    """How many living groups of every leaf are below the threshold; each leaf keeps its minimum."""

    def small(leaf: LeafPlan, mask: Array, size: Array) -> Array:
        scores = leaf.pattern.gather(size, leaf.axes).astype(jnp.float32)
        alive = leaf.pattern.gather(mask.astype(jnp.float32), leaf.axes) > 0
        count = living(alive & (scores < limit))
        return jnp.minimum(count, jnp.maximum(leaf.count_alive(mask) - leaf.least, 0))

    return plan.tree(plan.each(small, masks, size))
