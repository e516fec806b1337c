"""What the algorithms share: their options, the target of the masks, and most of a rule."""

from collections.abc import Callable, Mapping
from typing import Any, TypedDict, TypeVar, cast

import jax
import jax.numpy as jnp

from jaxsparse import trees
from jaxsparse.checks import check_options
from jaxsparse.own_masks import own_masks
from jaxsparse.plans import Plan, remembered
from jaxsparse.schedules import as_schedule, cosine
from jaxsparse.targets import PruneOptions, Target, TargetOptions
from jaxsparse.types import Array, Key, Masks, Params, Rule, Schedule, Sparsity

Options = TypeVar("Options", bound=PruneOptions)


class WrapOptions(TypedDict, total=False):
    """How the wrapper stores weights and treats those that grow: as for `jaxsparse.sparsify`."""

    regrown_state: str
    first_value: Callable[[Array, Params], Params] | None
    storage: str
    room: float
    window: int | None
    mask_storage: str


class SparseOptions(TargetOptions, WrapOptions):
    """The options of methods that start sparse, from random masks or from given ones."""


def split(
    method: Callable[..., Any], options: Mapping[str, Any], kind: type[Options]
) -> tuple[Options, WrapOptions]:
    """Checks and splits the `**options` of a method: those of a kind, for its rule, and the
    wrapper's.

    `optax.inject_hyperparams` binds them, so it passes all of them as one keyword `options`.
    """
    given = dict(options)
    if isinstance(given.get("options"), Mapping):
        given |= given.pop("options")
    check_options(method, given)
    ours = {name: given.pop(name) for name in kind.__annotations__ if name in given}
    if given.get("storage", "masked") != "masked" and "axes" in ours:
        given["axes"] = ours["axes"]
    return cast(Options, ours), cast(WrapOptions, given)


def target_of(
    rule: Callable[..., Rule], sparsity: Sparsity | None, options: Mapping[str, Any]
) -> Target:
    """The target of a rule, from the sparsity and the options that the rule is called with.

    Raises:
      TypeError, ValueError: neither a sparsity nor masks are given, or both, or one of them is
        invalid.
    """
    check_options(rule, options)
    name, masks = rule.__name__.removesuffix("_rule"), options.get("masks")
    if any(trees.is_array(leaf) and leaf.shape for leaf in jax.tree.leaves(sparsity)):
        raise TypeError(
            f"sparsity of {name} must be a number or {{path regex: number}}, got a tree of arrays; "
            "if these are masks, pass masks=."
        )
    if (sparsity is None) == (masks is None):
        got = "neither" if masks is None else "both"
        raise ValueError(f"{name} needs either sparsity= or masks=, one of the two; got {got}.")
    own = None if masks is None else own_masks(masks)
    return Target(0.0 if sparsity is None else sparsity, **{**options, "masks": own}).checked()


def dynamic_rule(
    target: Target,
    fires: Schedule | None = None,
    update: Callable[..., tuple[Masks, Any]] | None = None,
    *,
    state: Callable[[Plan, Key, Params], Any] = lambda plan, key, params: (),
    observe: Callable[..., Any] | None = None,
    adjust: Callable[..., Any] | None = None,
    conserves: str = "layer",
    gradients: bool = False,
    window: int | None = None,
) -> Rule:
    """A rule that starts from random masks with the counts of a target, or from the target's own
    masks, and conserves their counts.

    Args:
      target: how sparse, where and in which shape.
      fires: when the masks change; None if they never do.
      update: as in `Rule`, with the plan as a first argument; None if nothing fires.
      state: `(plan, key, params) -> rule_state` at the start.
      observe: `(plan, rule_state, grads, count) -> rule_state`; None leaves the state alone.
      adjust: as in `Rule`, with the plan as a first argument.
      conserves: "layer", or "total" if weights move between layers.
      gradients, window: as in `Rule`.
    """
    planned = remembered(target.plan)

    def init(key: Key, params: Params) -> tuple[Masks, Any]:
        plan = planned(params)
        if target.masks is not None:
            masks = target.masks.given(params, plan)
        else:
            masks = plan.select(plan.draws(key, params), plan.counts(plan.sparsity))
        return masks, state(plan, key, params)

    def move(
        key: Key, count: Array, masks: Masks, params: Params, grads: Params, rule_state: Any
    ) -> tuple[Masks, Any]:
        plan = planned(params)
        if update is None or not plan.sparse:
            return masks, rule_state  # with a sparsity of 0 there is nothing to move
        return update(plan, key, count, masks, params, grads, rule_state)

    def adapted(adjust: Callable[..., Any]) -> Callable[..., Any]:
        def adapt(
            key: Key, count: Array, masks: Masks, params: Params, grads: Params, rule_state: Any
        ) -> Params:
            return adjust(planned(params), key, count, masks, params, grads, rule_state)

        return adapt

    def alive(params: Params, count: int) -> Any:
        own = target.masks
        if own is None:
            plan = planned(params)
            weights = plan.weights(plan.counts(plan.sparsity), params)
        else:
            given = lambda path, leaf: own.alive_at(trees.name(path), leaf)  # noqa: E731
            weights = jax.tree.map_with_path(given, params)
        return weights if conserves == "layer" else sum(jax.tree.leaves(weights))

    look = observe and (
        lambda state, grads, _, params, count: observe(planned(params), state, grads, count)
    )
    return Rule(
        init=init,
        update=update and move,
        fires=fires,
        observe=look,
        alive=alive,
        adjust=None if adjust is None else adapted(adjust),
        sparse=lambda params: sparse_tree(planned(params)),
        prunable=lambda params: planned(params).prunable,
        gradients=gradients,
        window=window,
        reads_dead=False,
        reads_packed=True,
    )


def sparse_tree(plan: Plan) -> Any:
    """The bools of `Rule.sparse`."""
    return plan.treedef.unflatten(leaf is not None for leaf in plan.leaves)


def zeros(params: Params) -> Params:
    """A state of zeros for every weight, in float32 at least; that of dense leaves is never used,
    but keeps the structure that tools for mapping and sharding states look for."""
    return jax.tree.map(
        lambda p: jnp.zeros_like(p, dtype=trees.wide(p) if trees.is_float(p) else None), params
    )


def finite(grads: Array) -> Array:
    """Gradients with non-finite values set to zero, so that one bad step cannot spoil an
    average."""
    return jnp.where(jnp.isfinite(grads), grads, jnp.zeros((), grads.dtype))


def annealed(
    drop_fraction: float | Array | Schedule | None,
    default: float,
    stop: int | None,
    final: float = 0.0,
) -> Schedule:
    """A drop fraction as a schedule; None means `default`, cosine-annealed if `stop` is given."""
    if drop_fraction is not None:
        return as_schedule(drop_fraction)
    return as_schedule(default) if stop is None else cosine(default, stop, final)
