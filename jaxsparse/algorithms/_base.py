"""What the algorithms share: their keywords, the target of the masks, and the wrapping."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxsparse import trees
from jaxsparse.checks import check_options
from jaxsparse.plans import Plan, select_by_layer
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
    fires: Schedule | None = None,
    update: Callable[..., tuple[Masks, Any]] | None = None,
    *,
    state: Callable[[Plan, Params], Any] = lambda plan, params: (),
    observe: Callable[..., Any] | None = None,
    conserves: str = "layer",
) -> Rule:
    """A rule that starts from random masks with the counts of `spec`, or from the masks of `spec`,
    and conserves their counts.

    Args:
      spec: the shared keywords.
      fires: when the masks change; None where they never do.
      update: as in `Rule`, with the plan as a first argument; None where nothing fires.
      state: `(plan, params) -> rule_state` at the start.
      observe: `(plan, rule_state, grads, count) -> rule_state`; None leaves the state alone.
      conserves: "layer", or "total" where weights move between layers.
    """

    def init(key: Key, params: Params) -> tuple[Masks, Any]:
        plan = spec.plan(params)
        if spec.masks is not None:
            return spec.masks.given(params, plan), state(plan, params)
        kept = [entry and entry.kept(entry.sparsity) for entry in plan]
        masks = select_by_layer(plan, random_scores(key, params), kept, [None] * len(plan))
        return masks, state(plan, params)

    def move(
        key: Key, count: Array, masks: Masks, params: Params, grads: Params, rule_state: Any
    ) -> tuple[Masks, Any]:
        plan = spec.plan(params)
        if update is None or not any(plan):
            return masks, rule_state  # with a sparsity of 0 there is nothing to move
        return update(plan, key, count, masks, params, grads, rule_state)

    def alive(params: Params, count: int) -> Any:
        leaves, treedef = jax.tree.flatten(params)
        if spec.masks is None:
            counts = [
                entry.alive(entry.sparsity) if entry else jnp.size(leaf)
                for entry, leaf in zip(spec.plan(params), leaves, strict=True)
            ]
        else:
            named = jax.tree.leaves_with_path(params)
            counts = [spec.masks.count(trees.name(path), leaf) for path, leaf in named]
        return treedef.unflatten(counts) if conserves == "layer" else sum(counts)

    look = observe and (
        lambda state, grads, _, params, count: observe(spec.plan(params), state, grads, count)
    )
    return Rule(
        init=init,
        update=update and move,
        fires=fires,
        observe=look,
        alive=alive,
        sparse=lambda params: sparse_tree(spec.plan(params), params),
        prunable=lambda params: prunable_tree(spec, params),
    )


def sparse_tree(plan: Plan, params: Params) -> Any:
    """The bools of `Rule.sparse`."""
    return jax.tree.structure(params).unflatten(entry is not None for entry in plan)


def prunable_tree(spec: Spec, params: Params) -> Any:
    """The bools of `Rule.prunable`."""
    return jax.tree.structure(params).unflatten(spec.chosen(params))


def zeros(plan: Plan, params: Params) -> Params:
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
