"""What the paper measures: when a ticket has learned, where its weights are, how far they moved.

The overlap of two tickets is `jaxsparse.overlap`; how stable a ticket is to the order of the
examples, `jaxsparse.analysis.instability`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse import counts, trees
from jaxsparse.checks import check_array, check_count
from jaxsparse.masks import apply, check_masks, living
from jaxsparse.recognition import as_float, filter_of
from jaxsparse.types import Array, Masks, Params, Prunable


def early_stop(losses: Array, every: int) -> Array:
    """The iteration of the lowest validation loss, at which training would best have stopped.

    Args:
      losses: `(..., points)`, the validation loss after `every`, `2 * every`, ... iterations. NaN
        is never the lowest.
      every: iterations from one validation to the next, at least 1.

    Returns:
      int32 `(...)`; among equal losses the first counts.

    Raises:
      ValueError: `every` is below 1, or there is no loss.

    References:
      Frankle & Carbin (2018), section 2 and appendix C.

    Example:
      >>> import jax.numpy as jnp
      >>> int(early_stop(jnp.array([0.9, 0.3, 0.2, 0.4]), every=100))
      300
    """
    check_count("every", every, least=1)
    losses = check_array("losses", losses)
    if losses.ndim == 0 or losses.shape[-1] == 0:
        raise ValueError(f"losses must be (..., points) with at least one, got {losses.shape}.")
    best = jnp.argmin(jnp.where(jnp.isnan(losses), jnp.inf, losses), axis=-1)
    return ((best + 1) * every).astype(jnp.int32)


def layer_densities(masks: Masks, *, prunable: Prunable | None = None) -> dict[str, Array]:
    """The fraction of living weights in every prunable leaf, by its path.

    Args:
      masks: boolean arrays.
      prunable: `(path, leaf) -> bool`.

    Returns:
      float32 scalars in [0, 1].

    Raises:
      TypeError: masks that are not boolean.

    Example:
      >>> import jax.numpy as jnp
      >>> masks = {"kernel": jnp.eye(4, dtype=bool), "bias": jnp.ones(4, bool)}
      >>> {name: float(density) for name, density in layer_densities(masks).items()}
      {'kernel': 0.25}
    """
    check_masks(masks)
    prunable = filter_of(prunable)
    found = {}
    for path, mask in jax.tree.leaves_with_path(masks):
        name = trees.name(path)
        if trees.is_array(mask) and prunable(name, as_float(mask)):
            found[name] = counts.ratio(living(mask), mask.size)
    return found


class Distance(NamedTuple):
    """L2 distances, float scalars.

    Attributes:
      total: of all leaves together.
      leaves: of every floating leaf, by its path.
    """

    total: Array
    leaves: dict[str, Array]


def distance(params: Params, origin: Params, masks: Masks | None = None) -> Distance:
    """How far parameters have travelled: the L2 norm of `params - origin`.

    Args:
      params: the parameters after training.
      origin: the parameters before it.
      masks: count living weights only; None counts all.

    Raises:
      ValueError: trees that differ.

    References:
      Frankle & Carbin (2018), section 5 and appendix F: tickets move further than other weights.

    Example:
      >>> import jax.numpy as jnp
      >>> found = distance({"w": jnp.array([3.0, 0.0])}, {"w": jnp.array([0.0, 4.0])})
      >>> float(found.total)
      5.0
    """
    if masks is not None:
        params, origin = apply(params, masks), apply(origin, masks)
    others = trees.check_same(params, origin, "origin")
    squares = {}
    for (path, leaf), other in zip(jax.tree.leaves_with_path(params), others, strict=True):
        if trees.is_float(leaf):
            wide = trees.wide(leaf)
            squares[trees.name(path)] = jnp.sum((leaf.astype(wide) - other.astype(wide)) ** 2)
    total = sum(squares.values(), jnp.zeros(()))
    return Distance(jnp.sqrt(total), {name: jnp.sqrt(value) for name, value in squares.items()})
