"""Steps of an optimizer that sees only living values: `sparsify` for every storage but "masked"."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxsparse import trees
from jaxsparse.mask_update import MaskUpdate, Step, any_replicate, decide, look, where
from jaxsparse.plans import limited_to
from jaxsparse.sparse._flat import Patch, at_places, died, is_place, nowhere
from jaxsparse.sparse._layout import is_compressed
from jaxsparse.sparse._moving import (
    Move,
    at_kernels,
    compressed_leaves,
    entries,
    kernels_of,
    masks_of,
    moments,
    with_kernels,
)
from jaxsparse.sparse._values import expand, values, with_values
from jaxsparse.state_tree import SparseState, as_masks
from jaxsparse.storage import Storage
from jaxsparse.types import Array, Masks, Params, Rule, Schedule


class Moved(NamedTuple):
    """What a mask update moves, and what it reports.

    Attributes:
      held: the kernels and their gradients, or only their places if values are stored elsewhere.
      state: the optimizer state that belongs to them.
      rule_state: what the rule keeps.
      fired: bool, whether the masks are new.
      churn: the fraction of the living weights that the update brought to life.
      born: which values are new; empty unless the step needs to know.
      first: their first values; empty if none are given.
    """

    held: Any
    state: list[Array]
    rule_state: Any
    fired: Array
    churn: Array
    born: list[Array]
    first: list[Array]


class Living(NamedTuple):
    """What a step knows about the living weights.

    Attributes:
      kernels: the parameters, with kernels at free places.
      grads: the gradients of their values, as the optimizer will see them.
      inner_state: the state of the optimizer of values.
    """

    kernels: Params
    grads: Params
    inner_state: Any

    @property
    def moments(self) -> dict[int, int]:
        """Which leaves of the state belong to kernels, and which kernel each belongs to."""
        return moments(self.inner_state, self.kernels, self.grads)


class Method(NamedTuple):
    """What performs a step: a rule, an optimizer of values, and how the values are stored."""

    rule: Rule
    optimizer: optax.GradientTransformation
    storage: Storage

    def asks_born(self) -> bool:
        """Whether a step needs to know which values are new."""
        if self.rule.fires is None or not self.rule.grows:
            return False
        return self.storage.first_value is not None or not self.storage.skip_update


Outcome = tuple[Params, MaskUpdate, Any]
"""The updates, the decision about the masks, and the optimizer's state."""


def step(
    method: Method,
    key: Array,
    grads: Params,
    state: SparseState,
    params: Params,
    dense_grads: Callable[[Params], Params] | None,
    patches: bool,
) -> Outcome:
    """One step, for every way of storing the living values.

    Args:
      method: what performs the step.
      key: the random key of this step.
      grads: the gradients of the values of compressed parameters, or of dense parameters.
      state: the state before the step.
      params: the parameters, with kernels at free places, or dense.
      dense_grads: returns the gradient of dense parameters, if `grads` belongs to values.
      patches: whether the updates of sparse leaves are returned as `Patch`es when parameters are
        dense.
    """
    if method.storage.format is None:
        return _step_of_state(method, key, grads, state, params, patches)
    return _step_of_compressed(method, key, grads, state, params, dense_grads)


def check_compressed(grads: Params, state: SparseState, params: Params) -> None:
    """Raises unless the parameters are compressed and the gradients are those of their values.

    Raises:
      TypeError: the parameters are dense, or their places are fixed.
      ValueError: the gradients do not fit the values.
    """
    if not any(compressed_leaves(params)) or state.masks:
        raise TypeError(
            "params must be compressed with this storage: begin with params, opt_state = "
            "jaxsparse.init(tx, params)."
        )
    if any(kernel.places.fixed for kernel in kernels_of(params)):
        raise TypeError(
            "the places of params are fixed, so they cannot move: use "
            "jaxsparse.sparse.free_places(params)."
        )
    trees.check_same(values(params), grads, "grads", first="sparse.values(params)")


def _step_of_compressed(
    method: Method,
    key: Array,
    grads: Params,
    state: SparseState,
    params: Params,
    dense_grads: Callable[[Params], Params] | None,
) -> Outcome:
    """One step of compressed parameters, from the gradients of their values.

    Dense arrays exist only in mask updates, and when the rule observes.
    """
    rule, storage = method.rule, method.storage
    if dense_grads is None and (rule.gradients or rule.observe) and rule.fires:
        raise ValueError(
            "dense_grads must be given: this method looks at the gradients of dead weights. Call "
            "tx.update(grads, opt_state, params, dense_grads=...), a function of the dense "
            "parameters, or use jaxsparse.sparse.train_step(loss, tx)."
        )
    living = Living(params, grads, state.inner_state)

    def seen() -> Step:
        dense = expand(params)
        if dense_grads is None:
            spread = [k.spread(g) for k, g in _pairs(params, grads)]
            all_grads = with_kernels(params, spread)
        else:
            all_grads = dense_grads(dense)
        known = state._replace(masks=masks_of(params))
        return look(rule, key, all_grads, known, dense, storage.skip_update, "reset")

    def turn(wanted: Array) -> Moved:
        step = seen()
        if rule.observe is None:
            return _move(method, living, step, wanted, hold)
        return lax.cond(
            any_replicate(wanted),
            lambda: _move(method, living, step, wanted, hold),
            lambda: _stay(method, living, step.observed, wanted, hold),
        )

    def hold(kernels: list[Any], grads: list[Array]) -> Any:
        return kernels, grads

    wanted = _wanted(rule, state)
    if rule.fires is None:
        moved = _stay(method, living, state.rule_state, wanted, hold)
    else:
        looks = wanted | _looks(method, state.count)
        moved = lax.cond(
            any_replicate(looks),
            lambda: turn(wanted),
            lambda: _stay(method, living, state.rule_state, wanted, hold),
        )
    kernels, found = moved.held
    kernels, grads = with_kernels(params, kernels), _put(params, grads, found)
    updates, inner_state = _inner_step(method, kernels, grads, living, moved)
    new = [type(k)(k.values + u, k.places) for k, u in _pairs(kernels, updates)]
    return _put(params, updates, new), _decided(state, moved, state.masks, wanted), inner_state


def _step_of_state(
    method: Method, key: Array, grads: Params, state: SparseState, params: Params, patches: bool
) -> Outcome:
    """One step of dense parameters, of which the optimizer sees only the living values."""
    rule = method.rule

    def seen() -> Step:
        known = state._replace(masks=as_masks(state.masks))
        return look(rule, key, grads, known, params, method.storage.skip_update, "reset")

    # Masks are built only when they change, unless the rule looks at every step.
    always = seen() if rule.observe or rule.adjust else None
    adjusted = always.adjusted if always else grads
    observed = always.observed if always else state.rule_state

    def at(places: Masks) -> tuple[Params, Params]:
        kernels = at_places(places, params)
        dense = at_kernels(kernels, adjusted)
        found = [k.gather(g) for k, g in zip(kernels_of(kernels), dense, strict=True)]
        return kernels, _put(kernels, adjusted, found)

    def stay(kernels: list[Any], _: list[Array]) -> Any:
        return [(kernel.places, nowhere(kernel.places)) for kernel in kernels]

    def move(kernels: list[Any], _: list[Array]) -> Any:
        before = kernels_of(living.kernels)
        return [
            (new.places, died(k.places, new.places)) for k, new in zip(before, kernels, strict=True)
        ]

    living = Living(*at(state.masks), state.inner_state)
    wanted = _wanted(rule, state)
    moved = _stay(method, living, observed, wanted, stay)
    if rule.fires is not None:
        moved = lax.cond(
            any_replicate(wanted),
            lambda: _move(method, living, always or seen(), wanted, move),
            lambda: _stay(method, living, observed, wanted, stay),
        )
    new = iter(places for places, _ in moved.held)
    places = jax.tree.map(lambda m: next(new) if is_place(m) else m, state.masks, is_leaf=is_place)
    kernels, found = at(places)
    updates, inner_state = _inner_step(method, kernels, found, living, moved)
    pairs = _pairs(kernels, updates)
    if patches:
        gone = [gone if rule.fires else None for _, gone in moved.held]
        living_now = [replace(k, values=k.values + u) for k, u in pairs]
        found = list(map(Patch, living_now, gone))
    else:
        dense = at_kernels(kernels, params)
        found = [k.put(-p, u) for (k, u), p in zip(pairs, dense, strict=True)]
    updates = _put(kernels, updates, found)
    return updates, _decided(state, moved, places, wanted), inner_state


def _fires(rule: Rule) -> Schedule:
    return rule.fires or (lambda count: jnp.zeros(count.shape, bool))


def _wanted(rule: Rule, state: SparseState) -> Array:
    return _fires(rule)(state.count) | state.pending


def _looks(method: Method, count: Array) -> Array:
    """Whether the rule observes at this step, because a mask update is near."""
    rule, window = method.rule, method.storage.window
    if rule.observe is None:
        return jnp.asarray(False)
    window = rule.window if window is None else window
    if window is None:
        return jnp.asarray(True)
    return jnp.any(jax.vmap(_fires(rule))(count + jnp.arange(window + 1, dtype=jnp.int32)))


def _stay(
    method: Method, living: Living, rule_state: Any, wanted: Array, hold: Callable[..., Any]
) -> Moved:
    """The outcome if no masks change."""
    kernels, leaves = kernels_of(living.kernels), jax.tree.leaves(living.inner_state)
    asked = kernels if method.asks_born() else []
    first = asked if method.storage.first_value is not None else []
    return Moved(
        held=hold(kernels, at_kernels(living.kernels, living.grads)),
        state=[leaves[i] for i in living.moments],
        rule_state=rule_state,
        fired=jnp.zeros_like(wanted),
        churn=jnp.float32(0),
        born=[jnp.zeros(kernel.values.shape, bool) for kernel in asked],
        first=[jnp.zeros_like(kernel.values) for kernel in first],
    )


def _move(
    method: Method, living: Living, step: Step, wanted: Array, hold: Callable[..., Any]
) -> Moved:
    """The mask update: what the rule decides, and everything that moves to the new places."""
    old, dense = kernels_of(living.kernels), expand(living.kernels)
    with limited_to([kernel.values.size for kernel in old]):
        decided = decide(step, method.rule, _scored(method, living, step), wanted)
    masks = at_kernels(living.kernels, decided.masks)
    fits = [entries(k, mask) <= len(k.values) for k, mask in zip(old, masks, strict=True)]
    fired = functools.reduce(jnp.logical_and, fits, decided.fired)
    before = at_kernels(living.kernels, step.state.masks)
    masks = [jnp.where(fired, new, was) for new, was in zip(masks, before, strict=True)]
    here = at_kernels(living.kernels, dense)
    new = [k.moved(p, mask) for k, p, mask in zip(old, here, masks, strict=True)]
    move = Move(old, new)
    new = [
        type(k)(move.carry(i, was.values, jnp.zeros((), k.dtype)), k.places)
        for i, (was, k) in enumerate(zip(old, new, strict=True))
    ]
    grads = [
        k.gather(g) for k, g in zip(new, at_kernels(living.kernels, step.adjusted), strict=True)
    ]
    kernels = with_kernels(living.kernels, new)
    fresh = jax.tree.leaves(method.optimizer.init(values(kernels)))
    leaves = jax.tree.leaves(living.inner_state)
    first: list[Array] = []
    if method.asks_born() and method.storage.first_value is not None:
        drawn = method.storage.first_value(jax.random.fold_in(step.key, 1), dense)
        drawn = at_kernels(living.kernels, drawn)
        first = [k.gather(p.astype(k.dtype)) for k, p in zip(new, drawn, strict=True)]
    return Moved(
        held=hold(new, grads),
        state=[move.carry(w, leaves[i], fresh[i]) for i, w in living.moments.items()],
        rule_state=where(fired, decided.rule_state, step.observed),
        fired=fired,
        churn=decided.churn,
        born=move.born if method.asks_born() else [],
        first=first,
    )


def _scored(method: Method, living: Living, step: Step) -> Params:
    """The parameters that new masks are scored on: as they are, or as the step leaves them."""
    kernels = living.kernels
    if not step.skips:
        now = values(kernels)
        moves, _ = method.optimizer.update(living.grads, living.inner_state, now)
        kernels = with_values(kernels, optax.apply_updates(now, moves))
    return expand(kernels)


def _inner_step(
    method: Method, kernels: Params, grads: Params, living: Living, moved: Moved
) -> tuple[Params, Any]:
    """The optimizer's updates of the living values, corrected for a mask update."""
    leaves, treedef = jax.tree.flatten(living.inner_state)
    for i, leaf in zip(living.moments, moved.state, strict=True):
        leaves[i] = leaf
    now = values(kernels)
    updates, inner_state = method.optimizer.update(grads, treedef.unflatten(leaves), now)
    skips, number = method.storage.skip_update and method.rule.fires is not None, -1
    found, treedef = jax.tree.flatten(updates)
    pairs = zip(jax.tree.leaves(kernels, is_leaf=is_compressed), jax.tree.leaves(now), strict=True)
    for i, (kernel, v) in enumerate(pairs):
        u, number = found[i], number + is_compressed(kernel)
        if not trees.is_array(u) or not jnp.issubdtype(u.dtype, jnp.inexact):
            continue
        u = u.astype(v.dtype)
        if skips:
            u = jnp.where(moved.fired, jnp.zeros((), v.dtype), u)
        if is_compressed(kernel) and moved.born:
            first = moved.first[number] if moved.first else jnp.zeros_like(v)
            u = jnp.where(moved.fired & moved.born[number], first - v, u)
        found[i] = u
    return treedef.unflatten(found), inner_state


def _decided(state: SparseState, moved: Moved, masks: Masks, wanted: Array) -> MaskUpdate:
    return MaskUpdate(
        masks=masks,
        before=(),
        rule_state=moved.rule_state,
        fired=moved.fired,
        pending=wanted & ~moved.fired,
        churn=jnp.where(moved.fired, moved.churn, state.churn),
    )


def _pairs(params: Params, tree: Any) -> list[tuple[Any, Array]]:
    """Every kernel with its leaf of a tree of values."""
    return list(zip(kernels_of(params), at_kernels(params, tree), strict=True))


def _put(params: Params, tree: Any, found: list[Any]) -> Any:
    """A tree of values with the leaves of kernels replaced."""
    others = iter(found)
    leaves, treedef = jax.tree.flatten(tree)
    flags = compressed_leaves(params)
    return treedef.unflatten(
        next(others) if mine else leaf for mine, leaf in zip(flags, leaves, strict=True)
    )
