"""Static sparse training: the masks stay as they are."""

from typing import Unpack

import jax
import optax

from jaxsparse import trees
from jaxsparse.algorithms._base import dynamic_rule, split, target_of
from jaxsparse.targets import TargetOptions
from jaxsparse.transform import sparsify
from jaxsparse.types import Key, Rule, Sparsity


def fixed(
    inner: optax.GradientTransformation,
    sparsity: Sparsity | None = None,
    *,
    key: Key = None,
    storage: str = "masked",
    mask_storage: str = "bool",
    **options: Unpack[TargetOptions],
) -> optax.GradientTransformationExtraArgs:
    """Trains with masks that never change: random ones, or masks of your own.

    Args:
      inner: any Optax optimizer.
      sparsity: the fraction of zeros in [0, 1), or `{path regex: sparsity}`; needs `key`.
      masks: instead of `sparsity`: boolean arrays in the structure of the parameters, such as a
        lottery ticket or the result of `jaxsparse.prune`. Without `prunable`, the leaves that have
        dead weights are those that count in a density.
      key: an int, a typed key or raw key data, for the random masks.
      distribution, prunable, pattern, axes, min_alive: as for `jaxsparse.prune`.
      storage, mask_storage: as for `jaxsparse.sparsify`.

    Returns:
      A `GradientTransformationExtraArgs`; begin with `jaxsparse.init(tx, params)`, so that the
      parameters start sparse.

    Raises:
      ValueError: both or neither of `sparsity` and `masks`, or a value out of range.
      TypeError: masks that are not boolean, or no key for random ones.

    Example:
      >>> import jax.numpy as jnp, optax, jaxsparse
      >>> params = {"kernel": jnp.ones((4, 4))}
      >>> masks = jaxsparse.prune_by_magnitude(params, 0.75)
      >>> params, opt_state = jaxsparse.init(fixed(optax.adam(1e-3), masks=masks), params)
      >>> int(params["kernel"].sum())
      4
    """
    shared, _ = split(fixed, options, TargetOptions)
    rule = fixed_rule(sparsity, **shared)
    key = 0 if key is None and sparsity is None else key
    return sparsify(
        inner,
        rule,
        key=key,
        storage=storage,
        axes=shared.get("axes"),
        mask_storage=mask_storage,
    )


def fixed_rule(sparsity: Sparsity | None = None, **options: Unpack[TargetOptions]) -> Rule:
    """The rule of `fixed`, for `sparsify` and for methods of your own."""
    target = target_of(fixed_rule, sparsity, options)
    rule = dynamic_rule(target)
    own = target.masks
    if own is None:
        return rule
    # Every floating leaf may be sparse, so another ticket can be set later without retracing.
    return rule._replace(
        init=lambda key, params: (own.given(params), ()),
        sparse=lambda params: jax.tree.map(trees.is_float, params),
    )
