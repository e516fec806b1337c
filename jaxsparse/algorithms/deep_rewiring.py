"""DeepR, deep rewiring: weights that change their sign die, and others come to life at random."""

from typing import Any, Unpack

import jax
import jax.numpy as jnp
import optax

from jaxsparse import prng, trees
from jaxsparse.algorithms._base import SparseOptions, dynamic_rule, split, target_of
from jaxsparse.checks import check_choice, check_number
from jaxsparse.patterns import unstructured
from jaxsparse.plans import LeafPlan, Plan
from jaxsparse.regrowth import dropped_last, grow, refill_counts
from jaxsparse.schedules import periodic
from jaxsparse.scores import random_scores
from jaxsparse.targets import TargetOptions
from jaxsparse.transform import sparsify
from jaxsparse.types import Array, Key, Masks, Params, Rule, Schedule, Sparsity


def deep_rewiring(
    inner: optax.GradientTransformation,
    sparsity: Sparsity | None = None,
    *,
    key: Key,
    l1: float = 1e-5,
    noise: float | Schedule = 1e-3,
    sign: str = "fixed",
    every: int = 1,
    start: int | None = None,
    stop: int | None = None,
    skip_update: bool = False,
    **options: Unpack[SparseOptions],
) -> optax.GradientTransformationExtraArgs:
    """DeepR: noise and an L1 penalty at every step; weights that change their sign are rewired.

    Every weight has a sign s. The inner optimizer sees, on living weights,
    `g + l1 * s + noise(t) * standard normal`. After its step, the living weights whose value has
    the other sign die, and in each layer as many come to life, starting at zero, at random places,
    those just dropped last. A value of exactly zero has neither sign, so it does not die.

    With `sign="fixed"`, every place keeps its s forever, so about half of the grown weights die at
    the next update. With `sign="free"`, s is the sign of the value after the last update: a weight
    that was zero then, as every grown one is, has s = 0, so it pays no penalty and does not die at
    the next update, which gives it the sign of the value that it has then.

    Args:
      inner: any Optax optimizer.
      sparsity: the fraction of zeros in [0, 1), or `{path regex: sparsity}`.
      masks: instead of `sparsity`: the masks to start from, boolean arrays in the structure of the
        parameters; see `docs/methods.md`.
      key: an int, a typed key or raw key data.
      l1: coefficient of the penalty, at least 0.
      noise: standard deviation of the noise on the gradient, at least 0, or a schedule of the
        count. Langevin dynamics at temperature T and learning rate eta correspond to
        `sqrt(2 * T / eta)`.
      sign: "fixed"; or "free", so that a grown weight takes the sign that its first step gives it.
      every, start, stop: an update fires at counts start, start + every, ... below `stop`; `start`
        defaults to `every`. The paper updates at every step.
      distribution, prunable, pattern, axes, min_alive: as for `jaxsparse.prune`; the pattern must
        be unstructured.
      skip_update, regrown_state, first_value, storage, room, window, mask_storage: as for
        `jaxsparse.sparsify`.

    Returns:
      A `GradientTransformationExtraArgs`; begin with `jaxsparse.init(tx, params)`, so that the
      parameters start sparse.

    Raises:
      ValueError: a value out of range, or a pattern other than unstructured.
      TypeError: a value of the wrong kind.

    References:
      Bellec et al., "Deep Rewiring: Training very sparse deep networks" (2018), algorithm 1, has
      fixed signs; Mostafa & Wang, "Parameter Efficient Training of Deep Convolutional Neural
      Networks by Dynamic Sparse Reparameterization" (2019), whose code leaves signs free.

    Differs from the paper:
      Penalty and noise go through the inner optimizer, as in the code of Mostafa & Wang; the paper
      adds them to the weights. Fixed signs are those of the initial values, or random where these
      are zero. Each layer keeps its number of weights. Every step computes the inner step twice. In
      the code of Mostafa & Wang the momentum of dead weights lives on and can give a sign to a
      weight that grows; here a grown weight has none.

    Example:
      >>> import jax.numpy as jnp, optax, jaxsparse
      >>> tx = deep_rewiring(optax.sgd(0.1), sparsity=0.9, key=0, l1=1e-4, noise=1e-3)
      >>> params, opt_state = jaxsparse.init(tx, {"kernel": jnp.ones((10, 10))})
      >>> int(params["kernel"].sum())
      10
    """
    shared, wrapping = split(deep_rewiring, options, TargetOptions)
    rule = deep_rewiring_rule(
        sparsity, l1=l1, noise=noise, sign=sign, every=every, start=start, stop=stop, **shared
    )
    return sparsify(inner, rule, key=key, skip_update=skip_update, **wrapping)


def deep_rewiring_rule(
    sparsity: Sparsity | None = None,
    *,
    l1: float = 1e-5,
    noise: float | Schedule = 1e-3,
    sign: str = "fixed",
    every: int = 1,
    start: int | None = None,
    stop: int | None = None,
    **options: Unpack[TargetOptions],
) -> Rule:
    """The rule of `deep_rewiring`, for `sparsify` and for methods of your own."""
    target = target_of(deep_rewiring_rule, sparsity, options)
    if target.pattern is not unstructured:
        raise ValueError("pattern must be unstructured: signs belong to single weights.")
    check_number("l1", l1)
    if not callable(noise):
        check_number("noise", noise)
    check_choice("sign", sign, ("fixed", "free"))
    deviation = noise if callable(noise) else lambda count: jnp.asarray(noise, jnp.float32)

    def adjust(
        plan: Plan,
        key: Array,
        count: Array,
        masks: Masks,
        params: Params,
        grads: Params,
        signs: Any,
    ) -> Params:
        def one(leaf: LeafPlan, g: Array, s: Array) -> Array:
            wide = trees.wide(g)
            drawn = jax.random.normal(prng.leaf_key(key, leaf.path), g.shape, wide)
            pull = jnp.asarray(l1, wide) * s.astype(wide)
            spread = jnp.asarray(deviation(count)).astype(wide)
            return (g.astype(wide) + pull + spread * drawn).astype(g.dtype)

        return plan.map(one, grads, signs)

    def update(
        plan: Plan,
        key: Array,
        count: Array,
        masks: Masks,
        params: Params,
        grads: Params,
        signs: Any,
    ) -> tuple[Masks, Any]:
        def steady(_: LeafPlan, mask: Array, p: Array, s: Array) -> Array:
            return mask & (s * _sign(p) >= 0)

        survivors = plan.map(steady, masks, params, signs)
        drawn = dropped_last(plan, plan.draws(key, params), masks, survivors)
        grown = grow(plan, survivors, drawn, refill_counts(plan, masks, survivors))
        if sign == "free":
            signs = plan.map(_left, signs, params, survivors)
        return grown, signs

    def state(plan: Plan, key: Key, params: Params) -> Any:
        drawn = random_scores(jax.random.fold_in(prng.as_key(key), 1), params)

        def first(_: LeafPlan, p: Array, draw: Array) -> Array:
            if sign == "free":
                return _sign(p)
            coin = jnp.where(draw < 0.5, jnp.int8(1), jnp.int8(-1))
            return jnp.where(p != 0, _sign(p), coin)

        dense = lambda p: jnp.zeros_like(p, jnp.int8) if trees.is_array(p) else p  # noqa: E731
        return plan.map(first, params, drawn, dense=dense)

    return dynamic_rule(target, periodic(every, start, stop), update, state=state, adjust=adjust)


def _sign(values: Array) -> Array:
    """-1, 0 or 1, as int8."""
    return jnp.sign(values).astype(jnp.int8)


def _left(_: LeafPlan, s: Array, p: Array, alive: Array) -> Array:
    """The free signs after an update: 0 where a weight is dead, or has just come to life."""
    return jnp.where(alive, _sign(p), jnp.zeros((), s.dtype))
