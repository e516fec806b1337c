"""What all formats share: a kernel as a matrix, its checks, and what it says of itself."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse import trees
from jaxsparse.axes import all_axes
from jaxsparse.checks import check_size
from jaxsparse.patterns import fan_in
from jaxsparse.types import Array, Axes, AxesSpec


class Compressed:
    """One kernel as its living values and their places: what every format says of itself."""

    values: Array
    places: Any

    def spread(self, values: Array) -> Array:
        """A dense kernel with one value in the place of each living one, and zeros elsewhere."""
        raise NotImplementedError

    def product(self, x: Array) -> Array:
        """`x @ kernel`."""
        raise NotImplementedError

    def to_dense(self) -> Array:
        """The dense kernel, zero where no weight lives."""
        return self.spread(self.values)

    @property
    def mask(self) -> Array:
        """Boolean, of the dense kernel's shape: where weights live."""
        return self.spread(jnp.ones(self.values.shape, bool))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the dense kernel."""
        return self.places.shape

    @property
    def dtype(self) -> Any:
        """Of the values."""
        return self.values.dtype

    @property
    def nbytes(self) -> int:
        """Bytes that are kept: values and places."""
        return nbytes(self)

    def __rmatmul__(self, x: Array) -> Array:
        return self.product(x)


def nbytes(params: Any) -> int:
    """Bytes of all arrays, values and places."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def no_gradient(places: Any) -> Any:
    """The gradient of integers, as `jax.custom_vjp` wants it."""
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, jax.dtypes.float0), places)


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
