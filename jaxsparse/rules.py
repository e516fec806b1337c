"""The defaults of a `jaxsparse.Rule`, and how it is checked."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse import recognition, trees
from jaxsparse.checks import check_flag, check_function, check_size
from jaxsparse.types import Array, Key, Masks, Params, Rule

_NUMBERS = ("grows", "gradients", "window", "reads_dead", "reads_packed")


def check_rule(rule: Any) -> None:
    """Raises unless `rule` is a valid rule.

    Raises:
      TypeError: another type, or a field that is not a function.
      ValueError: only one of `update` and `fires` is given.
    """
    if not isinstance(rule, Rule):
        raise TypeError(f"rule must be a jaxsparse.Rule, got {rule!r}.")
    for field, value in rule._asdict().items():
        if field == "init" or (field not in _NUMBERS and value is not None):
            check_function(f"rule.{field}", value, "(see jaxsparse.Rule)")
    check_flag("rule.grows", rule.grows)
    check_flag("rule.gradients", rule.gradients)
    check_flag("rule.reads_dead", rule.reads_dead)
    check_flag("rule.reads_packed", rule.reads_packed)
    if rule.window is not None:
        check_size("rule.window", rule.window, 0)
    if (rule.update is None) != (rule.fires is None):
        given, missing = ("fires", "update") if rule.update is None else ("update", "fires")
        raise ValueError(
            f"rule.{given} needs rule.{missing}: masks that change have both, static ones neither."
        )


def observe(
    rule: Rule, rule_state: Any, grads: Params, masks: Masks, params: Params, count: Array
) -> Any:
    """The state of the rule after this step; by default as it was before."""
    if rule.observe is None:
        return rule_state
    return rule.observe(rule_state, grads, masks, params, count)


def adjust(
    rule: Rule,
    key: Key,
    count: Array,
    masks: Masks,
    params: Params,
    grads: Params,
    rule_state: Any,
) -> Params:
    """The gradients as the inner optimizer sees them; by default as they are."""
    if rule.adjust is None:
        return grads
    return rule.adjust(key, count, masks, params, grads, rule_state)


def sparse_leaves(rule: Rule, params: Params) -> list[bool]:
    """Which leaves may be sparse; by default those that the default filter accepts.

    Raises:
      ValueError: the default filter accepts none of the leaves.
    """
    if rule.sparse is not None:
        return jax.tree.leaves(rule.sparse(params))
    try:
        return recognition.sparse_leaves(params, None)
    except ValueError as error:
        raise ValueError(
            "rule.sparse must be given, (params) -> tree of bools, because the default filter "
            "accepts no leaf."
        ) from error


def prunable_paths(rule: Rule, params: Params) -> tuple[str, ...]:
    """The leaves that count in a density; by default those that may be sparse."""
    if rule.prunable is None:
        chosen = sparse_leaves(rule, params)
    else:
        chosen = jax.tree.leaves(rule.prunable(params))
    found = zip(jax.tree.leaves_with_path(params), chosen, strict=True)
    return tuple(trees.name(path) for (path, _), use in found if use)


def alive(rule: Rule, params: Params, count: int) -> Any:
    """How many weights live after the update at `count`; by default as many as at the start."""
    if rule.alive is not None:
        return rule.alive(params, count)
    masks, _ = rule.init(jax.random.key(0), params)
    return jax.tree.map(lambda mask: int(jnp.sum(mask)) if trees.is_array(mask) else mask, masks)
