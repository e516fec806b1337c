"""Gradual magnitude pruning: from dense to sparse along a cubic schedule."""

from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsparse.algorithms._base import WrapOptions, sparse_tree, split
from jaxsparse.checks import check_count, check_options, traced
from jaxsparse.masks import full_masks
from jaxsparse.plans import Counts, Plan, remembered
from jaxsparse.schedules import cubic, periodic
from jaxsparse.targets import PruneOptions, Target
from jaxsparse.transform import sparsify
from jaxsparse.types import Array, Key, Masks, Params, Rule, Sparsity


class GradualOptions(PruneOptions, WrapOptions):
    """The options of the other methods, without the masks to start from."""


def gradual(
    inner: optax.GradientTransformation,
    sparsity: Sparsity,
    *,
    key: Key = 0,
    start: int,
    stop: int,
    every: int = 100,
    scope: str = "layer",
    skip_update: bool = False,
    **options: Unpack[GradualOptions],
) -> optax.GradientTransformationExtraArgs:
    """Prunes by magnitude while training: `s(t) = s * (1 - (1 - (t - start) / (stop - start))^3)`.

    After the weight steps at counts start, start + every, ... and `stop`, the living weights with
    the largest `|w|` stay; pruned weights do not come back.

    Args:
      inner: any Optax optimizer.
      sparsity: the final fraction of zeros in [0, 1), or `{path regex: sparsity}`.
      start: the count at which the sparsity begins to rise.
      stop: the count at which the final sparsity is reached; larger than `start`.
      every: steps between mask updates, at least 1.
      scope: "layer"; or "global": the layers compete and only the total is fixed.
      distribution, prunable, pattern, axes, min_alive: as for `jaxsparse.prune`.
      key: unused, because nothing is drawn.
      skip_update, regrown_state, first_value, storage, room, window, mask_storage: as for
        `jaxsparse.sparsify`; here, no weights come to life. A compressed storage begins with full
        leaves, so it pays off once `jaxsparse.sparse.fit` has taken out the weights that died.

    Returns:
      A `GradientTransformationExtraArgs`.

    Raises:
      ValueError: a value out of range, or a pattern (N:M) without intermediate sparsities; later,
        scope "global" over more than 2^31 - 1 weights.
      TypeError: a value of the wrong kind.

    References:
      Zhu & Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model
      compression" (2017), equation 1.

    Example:
      >>> import jax.numpy as jnp, optax, jaxsparse
      >>> tx = gradual(optax.sgd(0.1), sparsity=0.75, start=0, stop=2, every=1)
      >>> params = {"kernel": jnp.arange(16.0).reshape(4, 4)}
      >>> params, state = jaxsparse.init(tx, params)
      >>> for _ in range(3):
      ...     updates, state = tx.update({"kernel": jnp.zeros((4, 4))}, state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(int(jaxsparse.get_masks(state, params)["kernel"].sum()))
      16
      6
      4
    """
    shared, wrapping = split(gradual, options, PruneOptions)
    rule = gradual_rule(sparsity, start=start, stop=stop, every=every, scope=scope, **shared)
    return sparsify(inner, rule, key=key, skip_update=skip_update, **wrapping)


def gradual_rule(
    sparsity: Sparsity,
    *,
    start: int,
    stop: int,
    every: int = 100,
    scope: str = "layer",
    **options: Unpack[PruneOptions],
) -> Rule:
    """The rule of `gradual`, for `sparsify` and for methods of your own."""
    check_options(gradual_rule, options)
    target = Target(sparsity, scope=scope, **options).checked()
    for argument, value, least in (("start", start, 0), ("stop", stop, 1), ("every", every, 1)):
        check_count(argument, value, least)
        if not isinstance(value, int):
            raise TypeError(
                f"{argument} must be a Python int, because the counts of living weights are made "
                f"from it; under optax.inject_hyperparams name it in static_args. Got {value!r}."
            )
    if target.pattern.fixed is not None:
        raise ValueError(
            f"gradual does not work with pattern {target.pattern.name}, which supports no "
            "intermediate sparsity; prune once with jaxsparse.prune and train with jaxsparse.fixed."
        )
    ramp = cubic(1.0, start, stop)
    moments = [*range(start, stop, every), stop]
    inside = periodic(every, start, stop)
    planned = remembered(target.plan)

    def counts(plan: Plan, progress: float | Array) -> Counts:
        """The counts of what lives when the ramp is at `progress`."""

        def at(final: Any) -> Any:
            """Multiplied in float32, so that a traced sparsity gives the same counts."""
            return (final.astype(jnp.float32) if traced(final) else np.float32(final)) * ramped

        ramped = np.float32(progress)
        return plan.counts(jax.tree.map(at, plan.sparsity))

    def update(
        key: Array, count: Array, masks: Masks, params: Params, grads: Params, state: Any
    ) -> tuple[Masks, Any]:
        plan = planned(params)
        table = plan.tabulated([counts(plan, ramp(t)) for t in moments])
        moment = jnp.where(count >= stop, len(moments) - 1, (count - start) // every)
        return plan.select(plan.sizes(params), plan.counts_in(table[moment]), masks), state

    def alive(params: Params, count: int) -> Any:
        plan, done = planned(params), [t for t in moments if t <= count]
        return plan.weights(counts(plan, ramp(done[-1]) if done else 0.0), params)

    return Rule(
        init=lambda key, params: (full_masks(params), ()),
        update=update,
        fires=lambda count: inside(count) | (count == stop),
        alive=alive,
        sparse=lambda params: sparse_tree(planned(params)),
        grows=False,
        prunable=lambda params: planned(params).prunable,
        gradients=False,
        reads_dead=False,
        reads_packed=True,
    )
