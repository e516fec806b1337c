"""Sparse momentum (SNFS): layers and weights grow where the momentum says they are needed."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse.algorithms._base import algorithm, annealed, dynamic_rule, finite, zeros
from jaxsparse.axes import leaf_axes
from jaxsparse.patterns import fan_in, unstructured
from jaxsparse.plans import LeafPlan, Plan, Spec, map_plan
from jaxsparse.regrowth import Counts, drop, grow, redistribute, refill_counts
from jaxsparse.schedules import check_fraction, periodic
from jaxsparse.scores import magnitude, random_scores
from jaxsparse.types import Array, Masks, Params, Rule, Schedule

_GROWTHS = ("momentum", "random", "momentum_neuron")
_REDISTRIBUTIONS = ("momentum", "magnitude", "nonzero", "none")


@algorithm()
def sparse_momentum(
    spec: Spec,
    *,
    every: int = 100,
    start: int | None = None,
    stop: int | None = None,
    drop_fraction: float | Schedule | None = None,
    momentum: float = 0.9,
    growth: str = "momentum",
    redistribution: str = "momentum",
) -> Rule:
    """Sparse momentum: drops by magnitude, then grows layers and weights by their momentum.

    The method keeps a dense momentum of its own, `m = momentum * m + g`, whatever the optimizer.
    After a weight step, layer l with a_l living weights drops the `ceil(f(t) * a_l)` smallest
    `|w|`. All that was dropped is shared among the layers in proportion to the mean `|m|` of their
    living weights, and grows in each layer where `|m|` is largest; grown weights start at zero. A
    layer that is more than 0.8 dense and has more than an average share drops at most its sparsity;
    no layer fills more than 0.99 of its free places, the excess is spread evenly over all.

    Args:
      inner: any Optax optimizer, also one without momentum.
      sparsity: the fraction of zeros at the start, in [0, 1), or `{path regex: sparsity}`; the
        total number of living weights stays as it is, exactly.
      key: an int, a typed key or raw key data.
      every, start, stop: an update fires at counts start, start + every, ... below `stop`; `start`
        defaults to `every`. The paper updates once an epoch.
      drop_fraction: f, in [0, 1] or a schedule of the count; by default 0.2, annealed to 0.005 at
        `stop` by a cosine.
      momentum: decay of the method's own momentum, in [0, 1).
      growth: "momentum", "random", or "momentum_neuron" (the layer's share is divided among its
        output units by their mean `|m|` first).
      redistribution: a layer's share goes by "momentum", by the mean "magnitude" of its living
        weights, by their number ("nonzero"), or it grows what it dropped ("none").
      distribution, prunable, pattern, axes, min_alive: as for `jaxsparse.prune`.
      skip_update, regrown_state, first_value: as for `jaxsparse.sparsify`.

    Returns:
      A `GradientTransformationExtraArgs`; begin with `jaxsparse.init(tx, params)`, so that the
      parameters start sparse.

    Raises:
      ValueError: a value out of range, or a pattern with rows together with redistribution.
      TypeError: a value of the wrong kind.

    References:
      Dettmers & Zettlemoyer, "Sparse Networks from Scratch: Faster Training without Losing
      Performance" (2019), algorithm 1.

    Differs from the paper:
      Masks start with exact counts, not Bernoulli draws. The total is conserved exactly at every
      update. The momentum has no weight decay in it. Dropped weights that are grown again at once
      keep their value and state. "none" keeps the counts of the layers; the code shares by size.

    Example:
      >>> import jax.numpy as jnp, optax, jaxsparse
      >>> tx = sparse_momentum(optax.adam(1e-3), sparsity=0.9, key=0, every=600, stop=60_000)
      >>> params, opt_state = jaxsparse.init(tx, {"kernel": jnp.ones((10, 10))})
      >>> int(params["kernel"].sum())
      10
    """
    fires, rate = periodic(every, start, stop), annealed(drop_fraction, 0.2, stop, 0.005)
    check_fraction("momentum", momentum)
    if isinstance(momentum, int | float) and momentum >= 1:
        raise ValueError(f"momentum must be in [0, 1), got {momentum}.")
    for argument, value, known in (
        ("growth", growth, _GROWTHS),
        ("redistribution", redistribution, _REDISTRIBUTIONS),
    ):
        if value not in known:
            raise ValueError(f"{argument} must be one of {', '.join(known)}, got {value!r}.")
    if spec.pattern.by_rows and redistribution != "none":
        raise ValueError(
            f"pattern {spec.pattern.name} fixes the count of every row, so weights cannot move "
            'between layers; use redistribution="none".'
        )
    if spec.pattern is not unstructured and growth == "momentum_neuron":
        raise ValueError('growth="momentum_neuron" needs the unstructured pattern.')

    def observe(plan: Plan, kept: Any, grads: Params, count: Array) -> Any:
        def step(_: LeafPlan, m: Array, g: Array) -> Array:
            return jnp.asarray(momentum, m.dtype) * m + finite(g).astype(m.dtype)

        return map_plan(plan, step, lambda m: m, kept, jax.tree.leaves(grads))

    def update(
        plan: Plan, key: Array, count: Array, masks: Masks, params: Params, grads: Params, kept: Any
    ) -> tuple[Masks, Any]:
        size = magnitude(kept)
        shares = _shares(plan, masks, params, size, redistribution)
        dropped = _removals(plan, masks, shares, rate(count))
        alive = drop(plan, masks, magnitude(params), dropped)
        if redistribution == "none":
            grown = refill_counts(plan, masks, alive)
        else:
            grown = _quotas(plan, masks, alive, dropped, shares)
        if growth == "random":
            return grow(plan, alive, random_scores(key, params), grown), kept
        if growth == "momentum":
            return grow(plan, alive, size, grown), kept
        rows = [entry and _by_neuron(entry, spec, leaf) for entry, leaf in _pairs(plan, params)]
        quotas = [
            entry and _neuron_quotas(entry, mask, m, total)
            for entry, mask, m, total in zip(
                rows, jax.tree.leaves(alive), jax.tree.leaves(size), grown, strict=True
            )
        ]
        return grow(rows, alive, size, quotas), kept

    conserves = "layer" if redistribution == "none" else "total"
    return dynamic_rule(spec, fires, update, state=zeros, observe=observe, conserves=conserves)


def _pairs(plan: Plan, tree: Any) -> Any:
    return zip(plan, jax.tree.leaves(tree), strict=True)


def _shares(plan: Plan, masks: Masks, params: Params, size: Any, by: str) -> Array:
    """Each sparse layer's share of the growth, float32 of shape (layers,), with sum 1."""
    tree = params if by == "magnitude" else size
    shares = []
    for entry, mask, leaf in zip(plan, jax.tree.leaves(masks), jax.tree.leaves(tree), strict=True):
        if entry is None:
            continue
        alive = entry.count(mask).astype(jnp.float32) * entry.groups.size
        if by in ("momentum", "magnitude"):
            values = jnp.where(mask, jnp.abs(leaf), 0).astype(jnp.float32)
            shares.append(jnp.sum(values) / jnp.maximum(alive, 1))
        else:
            shares.append(alive)
    shares = jnp.stack(shares)
    total = jnp.sum(shares)
    return jnp.where(total > 0, shares / total, jnp.float32(1 / shares.size))


def _removals(plan: Plan, masks: Masks, shares: Array, rate: Array) -> Counts:
    """How many groups each layer drops."""
    counts: Counts = [None] * len(plan)
    sparse = [i for i, entry in enumerate(plan) if entry]
    for layer, i in enumerate(sparse):
        alive = plan[i].count(jax.tree.leaves(masks)[i])
        total = plan[i].groups.rows * plan[i].groups.columns
        empty = 1 - alive.astype(jnp.float32) / total
        nearly_full = (empty < 0.2) & (shares[layer] > 1 / len(sparse))
        limited = jnp.where(nearly_full, jnp.minimum(empty, rate), rate)
        wanted = jnp.ceil(limited * alive.astype(jnp.float32)).astype(jnp.int32)
        least = plan[i].least * plan[i].groups.rows
        counts[i] = jnp.clip(wanted, 0, jnp.maximum(alive - least, 0))
    return counts


def _quotas(plan: Plan, masks: Masks, alive: Masks, dropped: Counts, shares: Array) -> Counts:
    """How many groups each layer grows; in total, what was dropped."""
    if len({entry.groups.size for entry in plan if entry}) > 1:
        raise ValueError(
            "redistribution moves groups of weights between layers, and here they differ in size; "
            'use redistribution="none" or the unstructured pattern.'
        )
    sparse = [i for i, entry in enumerate(plan) if entry]
    leaves = jax.tree.leaves(alive)
    sizes = [plan[i].groups.rows * plan[i].groups.columns for i in sparse]
    room = jnp.stack([n - plan[i].count(leaves[i]) for i, n in zip(sparse, sizes, strict=True)])
    total = sum(dropped[i] for i in sparse)
    quotas = redistribute(total, shares, room, 0.99 * room.astype(jnp.float32))
    counts: Counts = [None] * len(plan)
    for layer, i in enumerate(sparse):
        counts[i] = quotas[layer]
    return counts


def _by_neuron(entry: LeafPlan, spec: Spec, leaf: Array) -> LeafPlan:
    """The same leaf with its output units as rows."""
    axes = leaf_axes(spec.axes, entry.path, leaf)
    groups = fan_in.groups(entry.path, entry.shape, axes)
    return entry._replace(pattern=fan_in, axes=axes, groups=groups)


def _neuron_quotas(entry: LeafPlan, mask: Array, size: Array, total: Array) -> Array:
    importance = jnp.mean(fan_in.gather(size, entry.axes), -1).astype(jnp.float32)
    room = entry.groups.columns - entry.count(mask, by_rows=True)
    quotas = redistribute(total, importance.ravel(), room.ravel())
    return quotas.reshape(room.shape)
