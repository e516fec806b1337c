"""DeepR, deep rewiring: weights that change their sign die, and others come to life at random."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse import prng, trees
from jaxsparse.algorithms._base import algorithm, dynamic_rule
from jaxsparse.patterns import unstructured
from jaxsparse.plans import LeafPlan, Plan, map_plan
from jaxsparse.regrowth import dropped_last, grow, refill_counts
from jaxsparse.schedules import periodic
from jaxsparse.scores import random_scores
from jaxsparse.specs import Spec
from jaxsparse.types import Array, Key, Masks, Params, Rule, Schedule


@algorithm()
def deep_rewiring(
    spec: Spec,
    *,
    l1: float = 1e-5,
    noise: float | Schedule = 1e-3,
    every: int = 1,
    start: int | None = None,
    stop: int | None = None,
) -> Rule:
    """DeepR: at every step noise and an L1 penalty; what changes its sign is rewired.

    Every connection has a sign s of its own for good. The inner optimizer sees, on living weights,
    `g + l1 * s + noise(t) * standard normal`. After its step the living weights whose sign is no
    longer s die, and in each layer as many come to life at random places, the just dropped ones
    excluded, starting at zero.

    Args:
      inner: any Optax optimizer.
      sparsity: the fraction of zeros in [0, 1), or `{path regex: sparsity}`.
      masks: instead of `sparsity`: the masks to start from, boolean arrays in the structure of the
        parameters; see `docs/methods.md`.
      key: an int, a typed key or raw key data.
      l1: coefficient of the penalty, at least 0.
      noise: standard deviation of the noise on the gradient, at least 0, or a schedule of the
        count. Langevin dynamics at temperature T and learning rate eta mean `sqrt(2 * T / eta)`.
      every, start, stop: an update fires at counts start, start + every, ... below `stop`; `start`
        defaults to `every`. Published is every step.
      distribution, prunable, axes, min_alive: as for `jaxsparse.prune`; the pattern must be
        unstructured.
      skip_update, regrown_state: as for `jaxsparse.sparsify`.

    Returns:
      A `GradientTransformationExtraArgs`; begin with `jaxsparse.init(tx, params)`, so that the
      parameters start sparse.

    Raises:
      ValueError: a value out of range, or another pattern.
      TypeError: a value of the wrong kind.

    References:
      Bellec et al., "Deep Rewiring: Training very sparse deep networks" (2018), algorithm 1.

    Differs from the paper:
      Penalty and noise go through the inner optimizer, as in the code of Mostafa & Wang; the paper
      adds them to the weights. Signs are those of the initial weights, and random elsewhere. Each
      layer keeps its number of weights. Every step computes the inner step twice.

    Example:
      >>> import jax.numpy as jnp, optax, jaxsparse
      >>> tx = deep_rewiring(optax.sgd(0.1), sparsity=0.9, key=0, l1=1e-4, noise=1e-3)
      >>> params, opt_state = jaxsparse.init(tx, {"kernel": jnp.ones((10, 10))})
      >>> int(params["kernel"].sum())
      10
    """
    if spec.pattern is not unstructured:
        raise ValueError("pattern must be unstructured: signs belong to single weights.")
    if isinstance(l1, int | float) and not l1 >= 0:
        raise ValueError(f"l1 must be at least 0, got {l1}.")
    if isinstance(noise, int | float) and not noise >= 0:
        raise ValueError(f"noise must be at least 0, got {noise}.")
    deviation = noise if callable(noise) else lambda count: jnp.asarray(noise, jnp.float32)

    def adjust(
        key: Array, count: Array, masks: Masks, params: Params, grads: Params, sign: Any
    ) -> Params:
        def leaf(entry: LeafPlan, g: Array, positive: Array) -> Array:
            wide = trees.wide(g)
            drawn = jax.random.normal(prng.leaf_key(key, entry.path), g.shape, wide)
            pull = jnp.where(positive, jnp.asarray(l1, wide), -jnp.asarray(l1, wide))
            spread = jnp.asarray(deviation(count)).astype(wide)
            return (g.astype(wide) + pull + spread * drawn).astype(g.dtype)

        return map_plan(spec.plan(params), leaf, lambda g: g, grads, jax.tree.leaves(sign))

    def update(
        plan: Plan, key: Array, count: Array, masks: Masks, params: Params, grads: Params, sign: Any
    ) -> tuple[Masks, Any]:
        def steady(_: LeafPlan, mask: Array, p: Array, positive: Array) -> Array:
            return mask & ~jnp.where(positive, p < 0, p > 0)

        rest = jax.tree.leaves(params), jax.tree.leaves(sign)
        alive = map_plan(plan, steady, lambda mask: mask, masks, *rest)
        drawn = dropped_last(plan, random_scores(key, params), masks, alive)
        return grow(plan, alive, drawn, refill_counts(plan, masks, alive)), sign

    rule = dynamic_rule(spec, periodic(every, start, stop), update)

    def init(key: Key, params: Params) -> tuple[Masks, Any]:
        masks, _ = rule.init(key, params)
        drawn = random_scores(jax.random.fold_in(prng.as_key(key), 1), params)

        def positive(_: LeafPlan, p: Array, draw: Array, mask: Array) -> Array:
            return jnp.where(mask & (p != 0), p > 0, draw < 0.5)

        plan = spec.plan(params)
        rest = jax.tree.leaves(drawn), jax.tree.leaves(masks)
        dense = lambda p: jnp.ones_like(p, bool) if trees.is_array(p) else p  # noqa: E731
        return masks, map_plan(plan, positive, dense, params, *rest)

    return rule._replace(init=init, adjust=adjust)
