"""A step of compressed parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxsparse import trees
from jaxsparse.compressed._moves import inner_step, move, stay
from jaxsparse.compressed._parts import (
    Living,
    Method,
    Moved,
    Outcome,
    decided,
    fires,
    pairs,
    put,
    wanted_now,
)
from jaxsparse.mask_update import Step, any_replicate, look
from jaxsparse.sparse._moving import compressed_leaves, kernels_of, masks_of, with_kernels
from jaxsparse.sparse._values import expand, values
from jaxsparse.state_tree import SparseState
from jaxsparse.types import Array, Params


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


def step_of_parameters(
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
            spread = [k.spread(g) for k, g in pairs(params, grads)]
            all_grads = with_kernels(params, spread)
        else:
            all_grads = dense_grads(dense)
        known = state._replace(masks=masks_of(params))
        return look(rule, key, all_grads, known, dense, storage.skip_update, "reset")

    def turn(wanted: Array) -> Moved:
        step = seen()
        if rule.observe is None:
            return move(method, living, step, wanted, hold)
        return lax.cond(
            any_replicate(wanted),
            lambda: move(method, living, step, wanted, hold),
            lambda: stay(method, living, step.observed, wanted, hold),
        )

    def hold(kernels: list[Any], grads: list[Array]) -> Any:
        return kernels, grads

    wanted = wanted_now(rule, state)
    if rule.fires is None:
        moved = stay(method, living, state.rule_state, wanted, hold)
    else:
        looks = wanted | _looks(method, state.count)
        moved = lax.cond(
            any_replicate(looks),
            lambda: turn(wanted),
            lambda: stay(method, living, state.rule_state, wanted, hold),
        )
    kernels, found = moved.held
    kernels, grads = with_kernels(params, kernels), put(params, grads, found)
    updates, inner_state = inner_step(method, kernels, grads, living, moved)
    new = [type(k)(k.values + u, k.places) for k, u in pairs(kernels, updates)]
    return put(params, updates, new), decided(state, moved, state.masks, wanted), inner_state


def _looks(method: Method, count: Array) -> Array:
    """Whether the rule observes at this step, because a mask update is near."""
    rule, window = method.rule, method.storage.window
    if rule.observe is None:
        return jnp.asarray(False)
    window = rule.window if window is None else window
    if window is None:
        return jnp.asarray(True)
    return jnp.any(jax.vmap(fires(rule))(count + jnp.arange(window + 1, dtype=jnp.int32)))
