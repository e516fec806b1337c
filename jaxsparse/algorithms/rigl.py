"""RigL: drop by magnitude, grow by dense gradient; SRigL, with a constant fan-in."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse import counts
from jaxsparse.algorithms._base import algorithm, annealed, dynamic_rule, finite, zeros
from jaxsparse.patterns import fan_in
from jaxsparse.plans import LeafPlan, Plan, map_plan
from jaxsparse.regrowth import drop, drop_counts, grow, in_one_row, refill_counts
from jaxsparse.schedules import check_fraction, periodic
from jaxsparse.scores import gradient, magnitude
from jaxsparse.selection import top_k_mask
from jaxsparse.specs import Spec
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
    min_salient: float | None = None,
) -> Rule:
    """Drops the smallest weights of every layer and grows where the dense gradient is largest.

    Every `every` steps, instead of a weight step, a layer with a living weights drops the
    `floor(f(t) * a)` smallest `|w|` and grows as many weights with the largest `|gradient|` among
    those that are not alive after the drop; grown weights start at zero.

    With `pattern=jaxsparse.fan_in` every output unit grows what it misses: that is SRigL. With
    `min_salient` it removes units as well. The weights that RigL would keep and grow are salient; a
    unit with fewer of them than `min_salient` times the fan-in loses all its weights, before any
    other weight is dropped, and the units that are left share the layer's weights.

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
      min_salient: SRigL's gamma, in (0, 1], with the pattern `fan_in`; 0.3 is published for
        convolutional networks. None removes no unit.
      distribution, prunable, pattern, axes, min_alive: as for `jaxsparse.prune`.
      skip_update, regrown_state: as for `jaxsparse.sparsify`.

    Returns:
      A `GradientTransformationExtraArgs`; begin with `jaxsparse.init(tx, params)`, so that the
      parameters start sparse.

    Raises:
      ValueError: a value out of range.
      TypeError: a value of the wrong kind.

    References:
      Evci et al., "Rigging the Lottery: Making All Tickets Winners" (2020), algorithm 1; Lasby et
      al., "Dynamic Sparse Training with Structured Sparsity" (2023), section 3.

    Differs from the paper:
      The inner optimizer's state still advances at a mask update. Dropped weights that are grown
      again at once keep their value and state. The first layer is not left dense. SRigL rounds the
      fan-in of the units that are left down and loses weights; here a layer keeps all of them: if
      a weights do not divide by n units, the `a mod n` with the most salient weights have a fan-in
      of `floor(a / n) + 1` and the others one less. As many units stay as the weights need to fit.
      A removed unit comes back once the gradients make enough of its weights salient; its bias and
      the weights that read it are left alone.

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
    if min_salient is not None:
        check_fraction("min_salient", min_salient)
        if isinstance(min_salient, int | float) and min_salient == 0:
            raise ValueError("min_salient must be in (0, 1], got 0; None removes no unit.")
        if spec.pattern is not fan_in:
            raise ValueError(
                f"min_salient needs pattern=fan_in, of which units can be removed; it is "
                f"{spec.pattern.name}."
            )
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
        size, dense = magnitude(params), gradient(grads if window == 1 else total)
        dropped = drop_counts(plan, masks, fraction(count))
        if min_salient is not None:
            rest = jax.tree.leaves(size), jax.tree.leaves(dense), dropped
            moved = partial(_with_removal, counts.share(min_salient))
            return map_plan(plan, moved, lambda mask: mask, masks, *rest), total
        kept = drop(plan, masks, size, dropped)
        return grow(plan, kept, dense, refill_counts(plan, masks, kept)), total

    if window == 1:
        return dynamic_rule(spec, fires, update)
    return dynamic_rule(spec, fires, update, state=zeros, observe=observe)


def _with_removal(
    share: counts.Share, entry: LeafPlan, mask: Array, size: Array, dense: Array, dropped: Array
) -> Array:
    """One layer's mask after an update that may remove output units."""
    fans, alive = _unit_sizes(share, entry, mask, size, dense, dropped)
    everywhere = jnp.broadcast_to((fans > 0)[..., None], (*fans.shape, entry.groups.columns))
    left = mask & entry.pattern.spread(everywhere, entry.shape, entry.axes)
    kept = in_one_row(entry).select(size, alive - dropped, left)
    kept = entry.select(size, fans, kept)  # a unit that comes back makes the fan-in smaller
    return kept | entry.select(dense, fans - entry.count(kept, by_rows=True), ~kept)


def _unit_sizes(
    share: counts.Share, entry: LeafPlan, mask: Array, size: Array, dense: Array, dropped: Array
) -> tuple[Array, Array]:
    """How many weights every output unit is to have, zero where it goes; and their sum."""
    alive, fans = entry.count(mask), entry.count(mask, by_rows=True)
    kept = in_one_row(entry).select(size, alive - dropped, mask)
    salient = kept | in_one_row(entry).select(dense, dropped, ~kept)
    salient = entry.count(salient, by_rows=True).astype(jnp.float32)
    fan = alive // jnp.maximum(jnp.sum(fans > 0, dtype=jnp.int32), 1)
    needed = -(-alive // entry.groups.columns)  # units that all the weights fit into
    stays = salient >= counts.ceil(fan, share).astype(jnp.float32)
    stays = (stays & (salient > 0)) | top_k_mask(salient, needed)
    count = jnp.maximum(jnp.sum(stays, dtype=jnp.int32), 1)
    longer = top_k_mask(salient, alive % count, where=stays)
    return jnp.where(stays, alive // count + longer.astype(jnp.int32), 0), alive
