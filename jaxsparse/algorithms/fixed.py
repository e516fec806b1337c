"""Static sparse training: the masks stay as they are."""

from collections.abc import Mapping
from typing import Any

import jax
import optax

from jaxsparse import trees
from jaxsparse.algorithms._base import check_start, dynamic_rule
from jaxsparse.checks import check_options
from jaxsparse.distributions import uniform
from jaxsparse.patterns import Pattern, unstructured
from jaxsparse.specs import Spec
from jaxsparse.transform import sparsify
from jaxsparse.types import AxesSpec, Distribution, Key, Masks, Prunable, Rule


def fixed(
    inner: optax.GradientTransformation,
    sparsity: float | Mapping[str, float] | None = None,
    *,
    masks: Masks | None = None,
    key: Key = None,
    distribution: Distribution | Any = uniform,
    prunable: Prunable | None = None,
    pattern: Pattern = unstructured,
    axes: AxesSpec = None,
    min_alive: int | str = 1,
) -> optax.GradientTransformationExtraArgs:
    """Trains with masks that never change: random ones, or masks of your own.

    Args:
      inner: any Optax optimizer.
      sparsity: the fraction of zeros in [0, 1), or `{path regex: sparsity}`; needs `key`.
      masks: instead of `sparsity`: boolean arrays in the structure of the parameters, such as a
        lottery ticket or the outcome of `jaxsparse.prune`. Without `prunable`, the leaves that
        have dead weights are those that count in a density.
      key: an int, a typed key or raw key data, for the random masks.
      distribution, prunable, pattern, axes, min_alive: as for `jaxsparse.prune`.

    Returns:
      A `GradientTransformationExtraArgs`; begin with `jaxsparse.init(tx, params)`, so that the
      parameters start sparse.

    Raises:
      ValueError: both or none of `sparsity` and `masks`, or a value out of range.
      TypeError: masks that are not boolean, or no key for random ones.

    Example:
      >>> import jax.numpy as jnp, optax, jaxsparse
      >>> params = {"kernel": jnp.ones((4, 4))}
      >>> masks = jaxsparse.prune_by_magnitude(params, 0.75)
      >>> params, opt_state = jaxsparse.init(fixed(optax.adam(1e-3), masks=masks), params)
      >>> int(params["kernel"].sum())
      4
    """
    target = {
        "distribution": distribution,
        "prunable": prunable,
        "pattern": pattern,
        "axes": axes,
        "min_alive": min_alive,
    }
    rule = fixed_rule(sparsity, masks=masks, **target)
    return sparsify(inner, rule, key=0 if masks is not None and key is None else key)


def fixed_rule(sparsity: Any = None, *, masks: Masks | None = None, **target: Any) -> Rule:
    """The rule of `fixed`, also as `fixed.rule`; arguments as there."""
    check_options("fixed.rule", target, Spec._fields)
    check_start("fixed", sparsity, masks)
    spec = Spec(sparsity, masks=masks, **target).checked()
    rule = dynamic_rule(spec)
    if masks is None:
        return rule
    # Every floating leaf may be sparse: another ticket may be set later, without a new trace.
    return rule._replace(
        init=lambda key, params: (spec.masks.given(params), ()),
        sparse=lambda params: jax.tree.map(trees.is_float, params),
    )


fixed.rule = fixed_rule
