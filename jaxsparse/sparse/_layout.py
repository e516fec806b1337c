"""A kernel of any axes as a matrix `(inputs, outputs)`, and the checks that all formats share."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse import trees
from jaxsparse.axes import all_axes
from jaxsparse.checks import check_size
from jaxsparse.patterns import fan_in
from jaxsparse.types import Array, Axes, AxesSpec


def checked(
    values: Array, mask: Array, axes: AxesSpec, capacity: int | None, path: str
) -> tuple[Array, Array, Axes]:
    """The arrays and the axes of a kernel that is to be compressed.

    Raises:
      ValueError: another shape of the mask, or stacked axes.
      TypeError: a mask that is not boolean, or one that is traced, without a capacity.
    """
    values, mask = jnp.asarray(values), jnp.asarray(mask)
    trees.boolean(path, mask, "mask")
    if mask.shape != values.shape:
        raise ValueError(f"mask at {path!r} must have the shape {values.shape}, got {mask.shape}.")
    if capacity is None and isinstance(mask, jax.core.Tracer):
        raise TypeError(f"capacity must be given where the mask at {path!r} is traced.")
    named = all_axes(axes, {path: values})[path]
    if named.stacked:
        raise ValueError(f"{path!r} has stacked axes; compress its layers one by one, by vmap.")
    return values, mask, named


def room(alive: Array, capacity: int | None) -> int:
    """The capacity: by default as many as live.

    Raises:
      ValueError: less than that.
    """
    if isinstance(alive, jax.core.Tracer):
        check_size("capacity", capacity, 0)
        return int(capacity or 0)
    count = int(jnp.sum(alive))
    if capacity is None:
        return count
    check_size("capacity", capacity, 0)
    if capacity < count:
        raise ValueError(f"capacity must be at least {count}, what lives; got {capacity}.")
    return capacity


def flat(leaf: Array, axes: Axes) -> Array:
    """`(inputs, outputs)` of a kernel, spatial axes among the inputs."""
    found = fan_in.gather(leaf, axes)
    return found.reshape(-1, found.shape[-1]).T


def unflat(matrix: Array, places: Any) -> Array:
    """The kernel of a matrix `(inputs, outputs)`."""
    return fan_in.spread(matrix.T, places.shape, places.axes)


def sizes(shape: tuple[int, ...], axes: Axes) -> tuple[int, int]:
    """Inputs and outputs of a kernel of a shape."""
    outputs = math.prod(shape[a] for a in axes.outputs)
    return math.prod(shape) // max(outputs, 1), outputs


def as_rows(x: Array, inputs: int) -> Array:
    """`(batch, inputs)`.

    Raises:
      ValueError: the last axis is not the inputs.
    """
    if x.ndim < 1 or x.shape[-1] != inputs:
        raise ValueError(f"x must end with the {inputs} inputs of the kernel, got {x.shape}.")
    return x.reshape(-1, inputs)
