"""A mask update: what goes to the new places, and the optimizer's step after it."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxsparse import trees
from jaxsparse.compressed._parts import Living, Method, Moved
from jaxsparse.mask_update import Step, decide, where
from jaxsparse.plans import limited_to
from jaxsparse.sparse._layout import is_compressed
from jaxsparse.sparse._moving import Move, at_kernels, entries, kernels_of, with_kernels
from jaxsparse.sparse._values import expand, values, with_values
from jaxsparse.types import Array, Params


def stay(
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


def move(
    method: Method, living: Living, step: Step, wanted: Array, hold: Callable[..., Any]
) -> Moved:
    """The mask update: what the rule decides, and everything that moves to the new places."""
    old, dense = kernels_of(living.kernels), expand(living.kernels)
    with limited_to([kernel.values.size for kernel in old]):
        scored = _scored(method, living, step)
        decided = decide(step, method.rule, scored, wanted)
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


def inner_step(
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
