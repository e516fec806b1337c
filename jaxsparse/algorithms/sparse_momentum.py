"""Sparse momentum (SNFS): layers and weights grow where the momentum says they are needed."""

import math
from typing import Any, Unpack

import jax.numpy as jnp
import optax

from jaxsparse.algorithms._base import (
    SparseOptions,
    annealed,
    dynamic_rule,
    finite,
    split,
    target_of,
    zeros,
)
from jaxsparse.axes import all_axes
from jaxsparse.checks import check_choice, check_decay, traced
from jaxsparse.patterns import fan_in, unstructured
from jaxsparse.plans import LeafPlan, Plan
from jaxsparse.redistribution import redistribute
from jaxsparse.regrowth import (
    check_movable,
    count_shares,
    drop,
    drop_globally,
    drop_signs,
    grow,
    grow_globally,
    limited_drop_counts,
    lost,
    mean_shares,
    refill_counts,
    shared_counts,
)
from jaxsparse.schedules import periodic
from jaxsparse.targets import Target, TargetOptions
from jaxsparse.transform import sparsify
from jaxsparse.types import Array, Key, Masks, Params, Rule, Schedule, Sparsity

_DROPS = ("magnitude", "sign", "global")
_GROWTHS = ("momentum", "random", "momentum_neuron", "global")
_REDISTRIBUTIONS = ("momentum", "magnitude", "nonzero", "none")


def sparse_momentum(
    inner: optax.GradientTransformation,
    sparsity: Sparsity | None = None,
    *,
    key: Key,
    every: int = 100,
    start: int | None = None,
    stop: int | None = None,
    drop_fraction: float | Schedule | None = None,
    momentum: float = 0.9,
    second_moment: float | None = None,
    drop_by: str = "magnitude",
    growth: str = "momentum",
    redistribution: str = "momentum",
    skip_update: bool = False,
    **options: Unpack[SparseOptions],
) -> optax.GradientTransformationExtraArgs:
    """Sparse momentum: drops by magnitude, then grows layers and weights by their momentum.

    The method keeps a dense momentum of its own, `m = momentum * m + g`, whatever the optimizer.
    After a weight step, layer l with a_l living weights drops the `ceil(f(t) * a_l)` smallest
    `|w|`. The number dropped in all layers is shared among them in proportion to the mean `|m|` of
    their living weights; each layer grows its share where `|m|` is largest, and grown weights start
    at zero. A layer that is more than 0.8 dense and has more than an average share drops at most a
    fraction equal to its sparsity; no layer fills more than 0.99 of its free places, and the excess
    is spread evenly over all.

    Args:
      inner: any Optax optimizer, also one without momentum.
      sparsity: the fraction of zeros at the start, in [0, 1), or `{path regex: sparsity}`; the
        total number of living weights stays as it is, exactly.
      masks: instead of `sparsity`: the masks to start from, boolean arrays in the structure of the
        parameters; see `docs/methods.md`.
      key: an int, a typed key or raw key data.
      every, start, stop: an update fires at counts start, start + every, ... below `stop`; `start`
        defaults to `every`. The paper updates once per epoch.
      drop_fraction: f, in [0, 1] or a schedule of the count; by default 0.2, annealed to 0.005 at
        `stop` by a cosine.
      momentum: decay of the method's own momentum, in [0, 1).
      second_moment: decay b of a second moment, in [0, 1), for Adam's normalised momentum: then
        `m = momentum * m + (1 - momentum) * g`, `v = b * v + (1 - b) * g^2`, and `m / (sqrt(v) +
        1e-8)` takes the place of `m`. None leaves it out.
      drop_by: "magnitude"; "sign", as in SET: the fraction f of the smallest positive and of the
        largest negative weights; or "global": the smallest `|w|` of all layers together.
      growth: "momentum"; "random"; "momentum_neuron" (the layer's share is first divided among its
        output units by their mean `|m|`); or "global": the largest `|m|` of all layers together,
        which leaves nothing to redistribute.
      redistribution: a layer's share is set by "momentum", by the mean "magnitude" of its living
        weights or by their number ("nonzero"); or the layer grows what it dropped ("none").
      distribution, prunable, pattern, axes, min_alive: as for `jaxsparse.prune`.
      skip_update, regrown_state, first_value, storage, room, window, mask_storage: as for
        `jaxsparse.sparsify`.

    Returns:
      A `GradientTransformationExtraArgs`; begin with `jaxsparse.init(tx, params)`, so that the
      parameters start sparse.

    Raises:
      ValueError: a value out of range, or a pattern with rows together with redistribution; later,
        "global" over more than 2^31 - 1 weights.
      TypeError: a value of the wrong kind.

    References:
      Dettmers & Zettlemoyer, "Sparse Networks from Scratch: Faster Training without Losing
      Performance" (2019), algorithm 1.

    Differs from the paper:
      Masks start with exact counts, not Bernoulli draws. The total is conserved exactly at every
      update. The momentum does not include weight decay, unless `optax.add_decayed_weights` is
      chained before the method. Grown weights start with a clean optimizer state; in the published
      code they have a dense momentum (`regrown_state="dense"`), which can revive a layer that
      nothing passed through. Dropped weights that are grown again at once keep their value and
      state. "none" keeps the counts of the layers; the published code shares by size. With
      `storage="compressed"` the momentum sees only the gradients of the last `window` steps before
      a mask update, by default as many as leave 1% of its weight to what came before (44 for 0.9);
      a window of at least `start` and `every` sees all of them.

    Example:
      >>> import jax.numpy as jnp, optax, jaxsparse
      >>> tx = sparse_momentum(optax.adam(1e-3), sparsity=0.9, key=0, every=600, stop=60_000)
      >>> params, opt_state = jaxsparse.init(tx, {"kernel": jnp.ones((10, 10))})
      >>> int(params["kernel"].sum())
      10
    """
    shared, wrapping = split(sparse_momentum, options, TargetOptions)
    rule = sparse_momentum_rule(
        sparsity,
        every=every,
        start=start,
        stop=stop,
        drop_fraction=drop_fraction,
        momentum=momentum,
        second_moment=second_moment,
        drop_by=drop_by,
        growth=growth,
        redistribution=redistribution,
        **shared,
    )
    return sparsify(inner, rule, key=key, skip_update=skip_update, **wrapping)


def sparse_momentum_rule(
    sparsity: Sparsity | None = None,
    *,
    every: int = 100,
    start: int | None = None,
    stop: int | None = None,
    drop_fraction: float | Schedule | None = None,
    momentum: float = 0.9,
    second_moment: float | None = None,
    drop_by: str = "magnitude",
    growth: str = "momentum",
    redistribution: str = "momentum",
    **options: Unpack[TargetOptions],
) -> Rule:
    """The rule of `sparse_momentum`, for `sparsify` and for methods of your own."""
    target = target_of(sparse_momentum_rule, sparsity, options)
    fires, rate = periodic(every, start, stop), annealed(drop_fraction, 0.2, stop, 0.005)
    check_decay("momentum", momentum)
    if second_moment is not None:
        check_decay("second_moment", second_moment)
    for argument, value, known in (
        ("drop_by", drop_by, _DROPS),
        ("growth", growth, _GROWTHS),
        ("redistribution", redistribution, _REDISTRIBUTIONS),
    ):
        check_choice(argument, value, known)
    if target.pattern.by_rows and redistribution != "none":
        raise ValueError(
            f"pattern {target.pattern.name} fixes the count of every row, so weights cannot move "
            'between layers; use redistribution="none".'
        )
    if target.pattern is not unstructured and growth == "momentum_neuron":
        raise ValueError('growth="momentum_neuron" needs the unstructured pattern.')

    if target.pattern is not unstructured and drop_by == "sign":
        raise ValueError('drop_by="sign" needs the unstructured pattern.')
    moves = redistribution != "none" or "global" in (growth, drop_by)
    if target.pattern.by_rows and moves:
        raise ValueError('drop_by and growth must not be "global" with a pattern that has rows.')

    def state(plan: Plan, key: Key, params: Params) -> Any:
        return zeros(params) if second_moment is None else (zeros(params), zeros(params))

    def observe(plan: Plan, averages: Any, grads: Params, count: Array) -> Any:
        def follow(average: Params, decay: float, new: float, power: int) -> Params:
            def step(_: LeafPlan, m: Array, g: Array) -> Array:
                g = finite(g).astype(m.dtype)
                return jnp.asarray(decay, m.dtype) * m + jnp.asarray(new, m.dtype) * g**power

            return plan.map(step, average, grads)

        if second_moment is None:
            return follow(averages, momentum, 1, 1)
        first, second = averages
        return (
            follow(first, momentum, 1 - momentum, 1),
            follow(second, second_moment, 1 - second_moment, 2),
        )

    def sizes(plan: Plan, averages: Any) -> Any:
        if second_moment is None:
            return plan.sizes(averages)

        def normalised(_: LeafPlan, m: Array, v: Array) -> Array:
            return jnp.abs(m) / (jnp.sqrt(v) + jnp.asarray(1e-8, v.dtype))

        return plan.later(normalised, *averages)

    def update(
        plan: Plan,
        key: Array,
        count: Array,
        masks: Masks,
        params: Params,
        grads: Params,
        averages: Any,
    ) -> tuple[Masks, Any]:
        size, fraction = sizes(plan, averages), rate(count)
        if moves:
            check_movable(plan)
        by = plan.sizes(params) if redistribution == "magnitude" else size
        shares = count_shares(plan, masks) if by_count else mean_shares(plan, masks, by)
        dropped = limited_drop_counts(plan, masks, shares, fraction)
        if drop_by == "magnitude":
            survivors = drop(plan, masks, plan.sizes(params), plan.tree(dropped))
        elif drop_by == "sign":
            survivors = drop_signs(plan, masks, params, fraction)
        else:
            survivors = drop_globally(plan, masks, plan.sizes(params), jnp.sum(dropped))
        if growth == "global":
            missing = lost(plan, masks, survivors)
            return grow_globally(plan, survivors, size, missing), averages
        if redistribution == "none":
            grown = refill_counts(plan, masks, survivors)
        else:
            grown = shared_counts(plan, masks, survivors, shares)
        if growth == "random":
            return grow(plan, survivors, plan.draws(key, params), grown), averages
        if growth == "momentum":
            return grow(plan, survivors, size, grown), averages
        rows = _by_neuron(plan, target, params)
        quotas = rows.tree(rows.each(_neuron_quotas, survivors, size, grown))
        return grow(rows, survivors, size, quotas), averages

    by_count = redistribution == "nonzero"
    conserves = "total" if moves else "layer"
    return dynamic_rule(
        target,
        fires,
        update,
        state=state,
        observe=observe,
        conserves=conserves,
        window=_window(momentum, second_moment),
    )


def _window(*decays: float | None) -> int | None:
    """Steps after which an average has forgotten 99% of what came before; None if not known."""
    known = [decay for decay in decays if decay is not None]
    if any(map(traced, known)):
        return None
    return max(math.ceil(math.log(0.01) / math.log(d)) if d > 0 else 0 for d in known)


def _by_neuron(plan: Plan, target: Target, params: Params) -> Plan:
    """The same plan with the output units of every leaf as its rows."""
    axes = all_axes(target.axes, {leaf.path: p for leaf, p in plan.zip(params)})

    def rows(leaf: LeafPlan) -> LeafPlan:
        groups = fan_in.groups(leaf.path, leaf.shape, axes[leaf.path])
        return leaf._replace(pattern=fan_in, axes=axes[leaf.path], groups=groups)

    return plan.with_leaves(rows)


def _neuron_quotas(leaf: LeafPlan, mask: Array, size: Array, total: Array) -> Array:
    importance = jnp.mean(fan_in.gather(size, leaf.axes), -1).astype(jnp.float32)
    room = leaf.groups.columns - leaf.count_alive(mask, by_rows=True)
    quotas = redistribute(total, importance.ravel(), room.ravel())
    return quotas.reshape(room.shape)
