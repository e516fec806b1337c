"""A step of dense parameters, of which the optimizer sees and stores the living values."""

from dataclasses import replace
from typing import Any

import jax
from jax import lax

from jaxsparse.compressed._moves import inner_step, move, stay
from jaxsparse.compressed._parts import Living, Method, Outcome, decided, pairs, put, wanted_now
from jaxsparse.mask_update import Step, any_replicate, look
from jaxsparse.sparse._flat import Patch, at_places, died, is_place, nowhere
from jaxsparse.sparse._moving import at_kernels, kernels_of
from jaxsparse.state_tree import SparseState, as_masks
from jaxsparse.types import Array, Masks, Params


def step_of_state(
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
        return kernels, put(kernels, adjusted, found)

    def same_places(kernels: list[Any], _: list[Array]) -> Any:
        return [(kernel.places, nowhere(kernel.places)) for kernel in kernels]

    def new_places(kernels: list[Any], _: list[Array]) -> Any:
        before = kernels_of(living.kernels)
        return [
            (new.places, died(k.places, new.places)) for k, new in zip(before, kernels, strict=True)
        ]

    living = Living(*at(state.masks), state.inner_state)
    wanted = wanted_now(rule, state)
    moved = stay(method, living, observed, wanted, same_places)
    if rule.fires is not None:
        moved = lax.cond(
            any_replicate(wanted),
            lambda: move(method, living, always or seen(), wanted, new_places),
            lambda: stay(method, living, observed, wanted, same_places),
        )
    new = iter(places for places, _ in moved.held)
    places = jax.tree.map(lambda m: next(new) if is_place(m) else m, state.masks, is_leaf=is_place)
    kernels, found = at(places)
    updates, inner_state = inner_step(method, kernels, found, living, moved)
    updated = pairs(kernels, updates)
    if patches:
        gone = [gone if rule.fires else None for _, gone in moved.held]
        living_now = [replace(k, values=k.values + u) for k, u in updated]
        found = list(map(Patch, living_now, gone))
    else:
        dense = at_kernels(kernels, params)
        found = [k.put(-p, u) for (k, u), p in zip(updated, dense, strict=True)]
    updates = put(kernels, updates, found)
    return updates, decided(state, moved, places, wanted), inner_state
