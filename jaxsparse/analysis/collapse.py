"""What pruning has cut off: units without weights, and layers that consist of such units only."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse import trees
from jaxsparse.axes import all_axes
from jaxsparse.masks import check_masks
from jaxsparse.recognition import as_float, sparse_leaves
from jaxsparse.types import Array, AxesSpec, Masks, Prunable


class EmptyUnits(NamedTuple):
    """Units of one layer without living weights, int32 scalars.

    Attributes:
      no_input: output units that no living weight leads to; they output only their bias.
      outputs: output units in total.
      no_output: input units that no living weight leaves; nothing they compute has an effect.
      inputs: input units in total.
    """

    no_input: Array
    outputs: int
    no_output: Array
    inputs: int


def empty_units(
    masks: Masks, *, prunable: Prunable | None = None, axes: AxesSpec = None
) -> dict[str, EmptyUnits]:
    """Counts the units of every layer that the masks cut off; a layer of only such units is empty.

    Args:
      masks: boolean arrays.
      prunable: `(path, leaf) -> bool`, which leaves to look at.
      axes: which axes are inputs, outputs and stacked layers; see `jaxsparse.axes.leaf_axes`. Units
        of stacked layers count together.

    Returns:
      An `EmptyUnits` for every prunable leaf, by its path.

    Raises:
      ValueError: the filter matches nothing, or the axes of a leaf are ambiguous.
      TypeError: the masks are not boolean.

    Example:
      >>> import jax.numpy as jnp
      >>> found = empty_units({"kernel": jnp.array([[True, False, False], [True, False, True]])})
      >>> int(found["kernel"].no_input), found["kernel"].outputs, int(found["kernel"].no_output)
      (1, 3, 0)
    """
    check_masks(masks)
    shapes = jax.tree.map(lambda m: as_float(m) if trees.is_array(m) else m, masks)
    chosen = sparse_leaves(shapes, prunable)
    pairs = zip(jax.tree.leaves_with_path(masks), chosen, strict=True)
    layers = {trees.name(path): mask for (path, mask), use in pairs if use}
    named = all_axes(axes, layers)
    return {path: _count(mask, *named[path]) for path, mask in layers.items()}


def _count(
    mask: Array, inputs: tuple[int, ...], outputs: tuple[int, ...], stacked: tuple[int, ...]
) -> EmptyUnits:
    def empty(units: tuple[int, ...]) -> tuple[Array, int]:
        over = tuple(a for a in range(mask.ndim) if a not in units + stacked)
        count = math.prod(mask.shape[a] for a in units + stacked)
        return jnp.sum(~jnp.any(mask, over), dtype=jnp.int32), count

    return EmptyUnits(*empty(outputs), *empty(inputs))
