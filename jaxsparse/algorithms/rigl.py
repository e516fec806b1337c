"""RigL: drop by magnitude, grow by dense gradient."""

from typing import Any

import jax.numpy as jnp

from jaxsparse import trees
from jaxsparse.algorithms._base import algorithm, annealed, dynamic_rule
from jaxsparse.plans import Plan, Spec, map_plan
from jaxsparse.regrowth import drop, drop_counts, grow, refill_counts
from jaxsparse.schedules import check_count, periodic
from jaxsparse.scores import gradient, magnitude
from jaxsparse.types import Array, Masks, Params, Rule, Schedule


@algorithm(skip_update=True)
def rigl(
    spec: Spec,
    *,
    every: int = 100,
    start: int | None = None,
    stop: int | None = None,
    drop_fraction: float | Schedule | None = None,
    accumulate: int = 1,
) -> Rule:
    """Drops the smallest weights of every layer and grows where the dense gradient is largest.

    Every `every` steps, instead of a weight step, a layer with a living weights drops the
    `floor(f(t) * a)` smallest `|w|` and grows as many weights with the largest `|gradient|` among
    those that are not alive after the drop; grown weights start at zero.

    Args:
      inner: any Optax optimizer.
      sparsity: the fraction of zeros in [0, 1), or `{path regex: sparsity}`.
      key: an int, a typed key or raw key data.
      every, start, stop: an update fires at counts start, start + every, ... below `stop`; `start`
        defaults to `every`, and without `stop` updates go on for ever.
      drop_fraction: f, in [0, 1] or a schedule of the count; by default 0.3, annealed to 0 at
        `stop` by a cosine.
      accumulate: grow by the gradients averaged over that many steps up to the update, in
        [1, every].
      distribution, prunable, pattern, axes, min_alive: as for `jaxsparse.prune`.
      skip_update, regrown_state: as for `jaxsparse.sparsify`.

    Returns:
      A `GradientTransformationExtraArgs`; begin with `jaxsparse.init(tx, params)`, so that the
      parameters start sparse.

    Raises:
      ValueError: a value out of range.
      TypeError: a value of the wrong kind.

    References:
      Evci et al., "Rigging the Lottery: Making All Tickets Winners" (2020), algorithm 1.

    Differs from the paper:
      The inner optimizer's state still advances at a mask update. Dropped weights that are grown
      again at once keep their value and state. The first layer is not left dense.

    Example:
      >>> import jax.numpy as jnp, optax, jaxsparse
      >>> tx = rigl(optax.adamw(1e-3), sparsity=0.9, key=0, every=100, stop=75_000)
      >>> params, opt_state = jaxsparse.init(tx, {"kernel": jnp.ones((10, 10))})
      >>> int(params["kernel"].sum())
      10
    """
    fires = periodic(every, start, stop)
    fraction = annealed(drop_fraction, 0.3, stop)
    check_count("accumulate", accumulate, least=1)
    if isinstance(every, int) and accumulate > every:
        raise ValueError(f"accumulate must be in [1, every = {every}], got {accumulate}.")
    first = every if start is None else start

    def state(plan: Plan, params: Params) -> Any:
        return map_plan(plan, lambda _, p: jnp.zeros_like(p), lambda p: None, params)

    def observe(plan: Plan, total: Any, grads: Params, count: Array) -> Any:
        ahead = (first - count) % every
        inside, opens = ahead < accumulate, ahead == accumulate - 1

        def add(_: Any, g: Array, so_far: Array) -> Array:
            before = jnp.where(opens, jnp.zeros((), g.dtype), so_far)
            return jnp.where(inside, before + g, so_far)

        return map_plan(plan, add, lambda g: None, grads, _like(grads, total))

    def update(
        plan: Plan,
        key: Array,
        count: Array,
        masks: Masks,
        params: Params,
        grads: Params,
        total: Any,
    ) -> tuple[Masks, Any]:
        dense = grads
        if accumulate > 1:
            dense = map_plan(plan, lambda _, g, t: t, lambda g: g, grads, _like(grads, total))
        kept = drop(plan, masks, magnitude(params), drop_counts(plan, masks, fraction(count)))
        return grow(plan, kept, gradient(dense), refill_counts(plan, masks, kept)), total

    if accumulate == 1:
        return dynamic_rule(spec, fires, update)
    return dynamic_rule(spec, fires, update, state=state, observe=observe)


def _like(grads: Params, total: Any) -> list[Any]:
    return trees.check_same(grads, total, "the accumulated gradients")
