"""What the algorithms share: their keywords, the target of the masks, and the wrapping."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxsparse import trees
from jaxsparse.checks import check_options
from jaxsparse.plans import Plan, remembered
from jaxsparse.schedules import as_schedule, cosine
from jaxsparse.scores import random_scores
from jaxsparse.specs import Spec
from jaxsparse.transform import sparsify
from jaxsparse.types import Array, Key, Masks, Params, Rule, Schedule

Algorithm = Callable[..., optax.GradientTransformationExtraArgs]


def algorithm(
    *, skip_update: bool = False, scopes: bool = False, random: bool = True, masks: bool = True
) -> Callable[[Callable[..., Rule]], Algorithm]:
    """Makes `name(inner, sparsity, *, key, ...)` of a function `(spec, *, ...) -> Rule`.

    The shared keywords come from `Spec` and `sparsify`; `name.rule(...)` gives the bare rule.

    Args:
      skip_update: the method's default for `sparsify`.
      scopes: whether it takes `scope="global"`.
      random: whether it draws random numbers, and so needs a key.
      masks: whether it can start from `masks=` instead of a sparsity.
    """

    def decorate(make: Callable[..., Rule]) -> Algorithm:
        wrapping = _keywords(sparsify, {"skip_update", "regrown_state", "first_value"})
        wrapping["skip_update"] = wrapping["skip_update"].replace(default=skip_update)
        left_out = {"sparsity", *([] if scopes else ["scope"]), *([] if masks else ["masks"])}
        shared = {k: v for k, v in _keywords(Spec).items() if k not in left_out}

        def rule(sparsity: Any = None, **options: Any) -> Rule:
            check_options(f"{make.__name__}.rule", options, {*shared, *own})
            target = {name: options.pop(name) for name in shared if name in options}
            if masks:
                check_start(make.__name__, sparsity, target.get("masks"))
            return make(Spec(sparsity, **target).checked(), **options)

        def factory(
            inner: optax.GradientTransformation, sparsity: Any = None, **options: Any
        ) -> Any:
            check_options(make.__name__, options, set(signature.parameters) - {"inner"})
            bound = signature.bind(inner, sparsity, **options)
            key = bound.kwargs.get("key", 0)
            how = {"skip_update": skip_update}
            how |= {name: options.pop(name) for name in wrapping if name in options}
            options.pop("key", None)
            return sparsify(inner, rule(sparsity, **options), key=key, **how)

        empty = inspect.Parameter.empty
        own = dict(list(inspect.signature(make).parameters.items())[1:])
        signature = inspect.Signature(
            [
                inspect.Parameter("inner", inspect.Parameter.POSITIONAL_OR_KEYWORD),
                inspect.Parameter(
                    "sparsity",
                    inspect.Parameter.POSITIONAL_OR_KEYWORD,
                    default=None if masks else empty,
                ),
                inspect.Parameter(
                    "key", inspect.Parameter.KEYWORD_ONLY, default=empty if random else 0
                ),
                *own.values(),
                *shared.values(),
                *wrapping.values(),
            ]
        )
        for function, name in ((factory, make.__name__), (rule, f"{make.__name__}.rule")):
            function.__name__ = function.__qualname__ = name
            function.__module__, function.__doc__ = make.__module__, make.__doc__
        factory.__signature__ = signature
        factory.rule = rule
        return factory

    return decorate


def _keywords(function: Callable[..., Any], names: set[str] | None = None) -> dict[str, Any]:
    found = inspect.signature(function).parameters
    return {
        name: p.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, p in found.items()
        if names is None or name in names
    }


def check_start(name: str, sparsity: Any, masks: Any) -> None:
    """Raises unless a method is told either how sparse it is or which masks it starts from."""
    if any(trees.is_array(leaf) and leaf.shape for leaf in jax.tree.leaves(sparsity)):
        raise TypeError(
            f"sparsity of {name} must be a number or {{path regex: number}}, got a tree of arrays; "
            "if these are masks, pass masks=."
        )
    if (sparsity is None) == (masks is None):
        got = "neither" if masks is None else "both"
        raise ValueError(f"{name} needs either sparsity= or masks=, one of the two; got {got}.")


def dynamic_rule(
    spec: Spec,
    fires: Schedule,
    update: Callable[..., Any],
    *,
    state: Callable[[Plan, Key, Params], Any] = lambda plan, key, params: (),
    observe: Callable[..., Any] | None = None,
    adjust: Callable[..., Any] | None = None,
    conserves: str = "layer",
) -> Rule:
    """A rule that starts from random masks with the counts of `spec`, or from the masks of `spec`,
    and conserves their counts.

    Args:
      spec: the shared keywords.
      fires: when the masks change.
      update: as in `Rule`, with the plan as a first argument.
      state: `(plan, key, params) -> rule_state` at the start.
      observe: `(plan, rule_state, grads, count) -> rule_state`; None keeps no state.
      adjust: as in `Rule`, with the plan as a first argument.
      conserves: "layer", or "total" where weights move between layers.
    """
    planned = remembered(spec.plan)

    def init(key: Key, params: Params) -> tuple[Masks, Any]:
        plan = planned(params)
        if spec.masks is not None:
            masks = spec.masks.given(params, plan)
        else:
            masks = plan.select(random_scores(key, params), plan.counts(plan.sparsity))
        return masks, state(plan, key, params)

    def look(rule_state: Any, grads: Params, masks: Masks, params: Params, count: Array) -> Any:
        if observe is None:
            return rule_state
        return observe(planned(params), rule_state, grads, count)

    def move(
        key: Key, count: Array, masks: Masks, params: Params, grads: Params, rule_state: Any
    ) -> tuple[Masks, Any]:
        plan = planned(params)
        if not plan.sparse:
            return masks, rule_state  # with a sparsity of 0 there is nothing to move
        return update(plan, key, count, masks, params, grads, rule_state)

    def adapted(adjust: Callable[..., Any]) -> Callable[..., Any]:
        def adapt(
            key: Key, count: Array, masks: Masks, params: Params, grads: Params, rule_state: Any
        ) -> Params:
            return adjust(planned(params), key, count, masks, params, grads, rule_state)

        return adapt

    def alive(params: Params, count: int) -> Any:
        if spec.masks is None:
            plan = planned(params)
            weights = plan.weights(plan.counts(plan.sparsity), params)
        else:
            given = lambda path, leaf: spec.masks.count(trees.name(path), leaf)  # noqa: E731
            weights = jax.tree.map_with_path(given, params)
        return weights if conserves == "layer" else sum(jax.tree.leaves(weights))

    return Rule(
        init=init,
        observe=look,
        update=move,
        fires=fires,
        alive=alive,
        adjust=None if adjust is None else adapted(adjust),
        sparse=lambda params: sparse_tree(planned(params)),
        prunable=lambda params: planned(params).prunable,
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
    """Gradients with what is not finite left out, so that one bad step cannot spoil an average."""
    return jnp.where(jnp.isfinite(grads), grads, jnp.zeros((), grads.dtype))


def annealed(
    drop_fraction: float | Array | Schedule | None,
    default: float,
    stop: int | None,
    final: float = 0.0,
) -> Schedule:
    """A drop fraction as a schedule; None means `default`, annealed by a cosine where it ends."""
    if drop_fraction is not None:
        return as_schedule(drop_fraction)
    return as_schedule(default) if stop is None else cosine(default, stop, final)
