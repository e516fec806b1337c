"""RigL: drop by magnitude, grow by dense gradient; SRigL, with a constant fan-in."""

import re
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import optax

from jaxsparse import counts, trees
from jaxsparse.algorithms._base import (
    SparseOptions,
    annealed,
    dynamic_rule,
    finite,
    split,
    target_of,
    zeros,
)
from jaxsparse.checks import check_fraction, check_regex
from jaxsparse.patterns import fan_in
from jaxsparse.plans import LeafPlan, Plan
from jaxsparse.regrowth import drop, drop_counts, grow, in_one_row, refill_counts
from jaxsparse.schedules import periodic
from jaxsparse.selection import kth_largest, top_k_mask
from jaxsparse.targets import TargetOptions
from jaxsparse.transform import sparsify
from jaxsparse.types import Array, Key, Masks, Params, Rule, Schedule, Sparsity


def rigl(
    inner: optax.GradientTransformation,
    sparsity: Sparsity | None = None,
    *,
    key: Key,
    every: int = 100,
    start: int | None = None,
    stop: int | None = None,
    drop_fraction: float | Schedule | None = None,
    accumulate: int | None = None,
    min_salient: float | None = None,
    keep_units: str | Sequence[str] | None = None,
    skip_update: bool = True,
    **options: Unpack[SparseOptions],
) -> optax.GradientTransformationExtraArgs:
    """Drops the smallest weights of every layer and grows where the dense gradient is largest.

    Every `every` steps, instead of a weight step, a layer with a living weights drops the
    `floor(f(t) * a)` smallest `|w|` and grows as many weights with the largest `|gradient|` among
    those that are not alive after the drop; grown weights start at zero.

    With `pattern=jaxsparse.fan_in` every output unit grows as many weights as it lost: this is
    SRigL. With `min_salient` it also removes units. The salient weights are those that the drop
    keeps and, as many as it drops, those with the largest `|gradient|` in the whole layer, living
    or dead. A unit with fewer salient weights than `max(1, floor(min_salient * k))`, where k is the
    fan-in that the layer started with, loses all its weights before any other weight is dropped,
    and the remaining units share the layer's weights. If the weights fill m units, at least m + 1
    stay: the threshold falls to the (m + 1)-th largest number of salient weights if that is lower.

    Args:
      inner: any Optax optimizer.
      sparsity: the fraction of zeros in [0, 1), or `{path regex: sparsity}`.
      masks: instead of `sparsity`: the masks to start from, boolean arrays in the structure of the
        parameters; see `docs/methods.md`.
      key: an int, a typed key or raw key data.
      every, start, stop: an update fires at counts start, start + every, ... below `stop`; `start`
        defaults to `every`, and without `stop` updates never end.
      drop_fraction: f, in [0, 1] or a schedule of the count; by default 0.3, annealed to 0 at
        `stop` by a cosine.
      accumulate: the number of steps up to the update over which the gradients to grow by are
        averaged, in [1, every]; None means 1.
      min_salient: SRigL's gamma, in (0, 1], with the pattern `fan_in`; the paper has 0.3 for
        convolutional networks and 0.95 for transformers. None removes no unit.
      keep_units: a path regex, or a sequence of them: layers whose units are never removed, such as
        "head". Name the last layer, because a class whose unit is removed is never predicted again;
        the paper also keeps attention and all linear layers of a ResNet. () removes units of every
        layer; None does so with a warning.
      distribution, prunable, pattern, axes, min_alive: as for `jaxsparse.prune`.
      skip_update, regrown_state, first_value, storage, room, window, mask_storage: as for
        `jaxsparse.sparsify`; here, a mask update replaces the weight step, as published, unless
        `skip_update` is False.

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
      again at once keep their value and state. The first layer is not left dense. SRigL rounds down
      the fan-in of the remaining units and so loses weights; here a layer keeps all of them: if a
      weights do not divide evenly among n units, the `a mod n` with the most salient weights have a
      fan-in of `floor(a / n) + 1` and the others one less. A unit with more kept weights than its
      fan-in loses the smallest; SRigL's code does not say which. A removed unit comes back once the
      gradients make enough of its weights salient, as in that code; its bias and the weights that
      read it are left alone.

    Example:
      >>> import jax.numpy as jnp, optax, jaxsparse
      >>> tx = rigl(optax.adamw(1e-3), sparsity=0.9, key=0, every=100, stop=75_000)
      >>> params, opt_state = jaxsparse.init(tx, {"kernel": jnp.ones((10, 10))})
      >>> int(params["kernel"].sum())
      10
    """
    shared, wrapping = split(rigl, options, TargetOptions)
    rule = rigl_rule(
        sparsity,
        every=every,
        start=start,
        stop=stop,
        drop_fraction=drop_fraction,
        accumulate=accumulate,
        min_salient=min_salient,
        keep_units=keep_units,
        **shared,
    )
    return sparsify(inner, rule, key=key, skip_update=skip_update, **wrapping)


def rigl_rule(
    sparsity: Sparsity | None = None,
    *,
    every: int = 100,
    start: int | None = None,
    stop: int | None = None,
    drop_fraction: float | Schedule | None = None,
    accumulate: int | None = None,
    min_salient: float | None = None,
    keep_units: str | Sequence[str] | None = None,
    **options: Unpack[TargetOptions],
) -> Rule:
    """The rule of `rigl`, for `sparsify` and for methods of your own."""
    target = target_of(rigl_rule, sparsity, options)
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
        if target.pattern is not fan_in:
            raise ValueError(
                f"min_salient needs pattern=fan_in, because only there can units be removed; got "
                f"{target.pattern.name}."
            )
    keeping = _regexes(keep_units, min_salient)
    first = every if start is None else start

    def observe(plan: Plan, total: Any, grads: Params, count: Array) -> Any:
        ahead = (first - count) % every
        inside, opens = ahead < window, ahead == window - 1

        def add(_: LeafPlan, so_far: Array, g: Array) -> Array:
            before = jnp.where(opens, jnp.zeros((), so_far.dtype), so_far)
            return jnp.where(inside, before + finite(g).astype(before.dtype), so_far)

        return plan.map(add, total, grads)

    def update(
        plan: Plan,
        key: Array,
        count: Array,
        masks: Masks,
        params: Params,
        grads: Params,
        total: Any,
    ) -> tuple[Masks, Any]:
        size, dense = plan.sizes(params), plan.sizes(grads if window == 1 else total)
        dropped = drop_counts(plan, masks, fraction(count))
        if min_salient is not None:
            moved = partial(_with_removal, counts.share(min_salient))
            stays = _staying(plan, keeping)
            return plan.map(
                moved, masks, size, dense, dropped, stays, plan.sparsity, apart=True
            ), total
        survivors = drop(plan, masks, size, dropped)
        return grow(plan, survivors, dense, refill_counts(plan, masks, survivors)), total

    def state(plan: Plan, key: Key, params: Params) -> Any:
        _staying(plan, keeping)  # a regex without a layer is reported before the first step
        return () if window == 1 else zeros(params)

    return dynamic_rule(
        target,
        fires,
        update,
        state=state,
        observe=None if window == 1 else observe,
        gradients=window == 1,
        window=window - 1,
    )


def _regexes(keep_units: str | Sequence[str] | None, min_salient: float | None) -> tuple[str, ...]:
    """The regexes of the layers whose units stay."""
    if min_salient is None:
        if keep_units is not None:
            raise ValueError(
                "keep_units needs min_salient, because nothing else removes units; got "
                f"{keep_units!r}."
            )
        return ()
    if keep_units is None:
        warnings.warn(
            "min_salient may remove units of every layer, the last one included, where a class "
            'would lose its inputs. Name the layers whose units stay, such as keep_units="head", '
            "or pass keep_units=().",
            stacklevel=4,
        )
        return ()
    regexes = (keep_units,) if isinstance(keep_units, str) else keep_units
    if not isinstance(regexes, Sequence) or not all(isinstance(r, str) for r in regexes):
        raise TypeError(f"keep_units must be a path regex or a sequence of them, got {regexes!r}.")
    for regex in regexes:
        check_regex("keep_units", regex)
    return tuple(regexes)


def _staying(plan: Plan, regexes: tuple[str, ...]) -> Any:
    """Whether each sparse leaf keeps all its units, as a tree."""
    # A distribution such as erk may have left the named layer dense.
    prunable = [trees.name(path) for path, may in jax.tree.leaves_with_path(plan.prunable) if may]
    for regex in regexes:
        if plan.leaves and not any(re.search(regex, path) for path in prunable):
            raise ValueError(
                f"keep_units: {regex!r} matches no prunable leaf; they are {', '.join(prunable)}."
            )
    return plan.tree(any(re.search(regex, leaf.path) for regex in regexes) for leaf in plan.sparse)


def _with_removal(
    share: counts.Share,
    leaf: LeafPlan,
    mask: Array,
    size: Array,
    dense: Array,
    dropped: Array,
    stays: bool,
    sparsity: float | Array,
) -> Array:
    """One layer's mask after an update that may remove output units, unless all of them stay."""
    if stays:
        fans = leaf.count_alive(mask, by_rows=True)
    else:
        least = _threshold(share, leaf.target_count(sparsity))
        fans = _unit_sizes(least, leaf, mask, size, dense, dropped)
    everywhere = jnp.broadcast_to((fans > 0)[..., None], (*fans.shape, leaf.groups.columns))
    left = mask & leaf.pattern.spread(everywhere, leaf.shape, leaf.axes)
    survivors = in_one_row(leaf).select(size, leaf.count_alive(mask) - dropped, left)
    # A unit that comes back makes the fan-in smaller.
    survivors = leaf.select(size, fans, survivors)
    grown = leaf.select(dense, fans - leaf.count_alive(survivors, by_rows=True), ~survivors)
    return survivors | grown


def _unit_sizes(
    least: Array, leaf: LeafPlan, mask: Array, size: Array, dense: Array, dropped: Array
) -> Array:
    """How many weights every output unit should have; zero if it is removed."""
    alive = leaf.count_alive(mask)
    survivors = in_one_row(leaf).select(size, alive - dropped, mask)
    salient = survivors | in_one_row(leaf).select(dense, dropped)
    salient = leaf.count_alive(salient, by_rows=True).astype(jnp.float32)
    needed = -(-alive // leaf.groups.columns)  # units that can hold all the weights
    stays = salient >= jnp.minimum(least, kth_largest(salient, needed + 1))
    count = jnp.sum(stays, dtype=jnp.int32)
    longer = top_k_mask(salient, alive % count, where=stays)
    return jnp.where(stays, alive // count + longer.astype(jnp.int32), 0)


def _threshold(share: counts.Share, fan: int | Array) -> Array:
    """How many salient weights an output unit must have, by the fan-in before any removal."""
    return jnp.maximum(jnp.asarray(counts.floor(fan, share)).astype(jnp.float32), 1)
