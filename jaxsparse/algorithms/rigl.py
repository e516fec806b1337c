"""RigL: drop by magnitude, grow by dense gradient."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse.algorithms._base import algorithm, annealed, dynamic_rule, finite, zeros
from jaxsparse.plans import LeafPlan, Plan, Spec, map_plan
from jaxsparse.regrowth import drop, drop_counts, grow, refill_counts
from jaxsparse.schedules import periodic
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
    accumulate: int | None = None,
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
        [1, every]; None means 1.
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
    window = 1 if accumulate is None else accumulate
    if isinstance(window, bool) or not isinstance(window, int):
        raise TypeError(
            f"accumulate must be an int, got {window!r}; under optax.inject_hyperparams name it in "
            "static_args."
        )
    if window < 1 or (isinstance(every, int) and window > every):
        raise ValueError(f"accumulate must be in [1, every = {every}], got {window}.")
    first = every if start is None else start

    def observe(plan: Plan, total: Any, grads: Params, count: Array) -> Any:
        ahead = (first - count) % every
        inside, opens = ahead < window, ahead == window - 1

        def add(_: LeafPlan, so_far: Array, g: Array) -> Array:
            before = jnp.where(opens, jnp.zeros((), so_far.dtype), so_far)
            return jnp.where(inside, before + finite(g).astype(before.dtype), so_far)

        return map_plan(plan, add, lambda so_far: so_far, total, jax.tree.leaves(grads))

    def update(
        plan: Plan,
        key: Array,
        count: Array,
        masks: Masks,
        params: Params,
        grads: Params,
        total: Any,
    ) -> tuple[Masks, Any]:
        kept = drop(plan, masks, magnitude(params), drop_counts(plan, masks, fraction(count)))
        dense = gradient(grads if window == 1 else total)
        return grow(plan, kept, dense, refill_counts(plan, masks, kept)), total

    if window == 1:
        return dynamic_rule(spec, fires, update)
    return dynamic_rule(spec, fires, update, state=zeros, observe=observe)
