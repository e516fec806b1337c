"""Channels: a smaller dense kernel, made of the input and output units that remain."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.sparse import _layout
from jaxsparse.types import Array, Axes, AxesSpec


@_layout.register_places("inputs", "outputs")
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ChannelsPlaces(_layout.Places):
    """Which input and output units of one kernel remain.

    Attributes:
      inputs: int32 `(inputs left,)`, ascending; numbers past the last input where there is spare
        room. Spatial positions are not counted.
      outputs: int32 `(outputs left,)`, likewise.
      shape: of the dense kernel.
      axes: what its axes mean.
      fixed: whether they belong to the structure of a tree.
    """

    inputs: Array
    outputs: Array
    shape: tuple[int, ...]
    axes: Axes
    fixed: bool = False
    wants = "input and output units must live or die as a whole"

    @classmethod
    def held_of_layer(cls, alive: Array, layer: _layout.Layer) -> Array:
        taps = _layout.taps(layer.shape, layer.axes)
        inputs, outputs = _left(alive, layer)
        rows = jnp.zeros(len(alive), bool).at[taps].set(inputs)
        return rows[:, None] & outputs

    @classmethod
    def room_of_layer(cls, alive: Array, layer: _layout.Layer) -> Array:
        return jnp.stack([jnp.sum(left, dtype=jnp.int32) for left in _left(alive, layer)])

    @classmethod
    def spare_of_layer(cls, layer: _layout.Layer) -> tuple[int, ...]:
        return _layout.taps(layer.shape, layer.axes).shape[1:]

    @classmethod
    def of_layer(
        cls, alive: Array, room: tuple[int, ...], layer: _layout.Layer
    ) -> "ChannelsPlaces":
        inputs, outputs = map(_units, _left(alive, layer), room)
        return cls(inputs, outputs, layer.shape, layer.axes)

    def room(self) -> tuple[int, ...]:
        return self.inputs.shape[-1], self.outputs.shape[-1]

    def rows(self) -> Array:
        """`(spatial positions, inputs left)`: the rows of the matrix of one layer; out of range
        where there is spare room."""
        taps = _layout.taps(self.shape, self.axes)
        spare = taps.size + np.arange(len(taps) * len(self.inputs)).reshape(len(taps), -1)
        last = taps.shape[1] - 1
        living = jnp.asarray(taps)[:, jnp.minimum(self.inputs, last)]
        return jnp.where(self.inputs <= last, living, spare)

    def gather_layer(self, matrix: Array) -> Array:
        rows, columns = self.rows(), self.outputs
        found = matrix.at[rows[..., None], columns].get(mode="fill", fill_value=0)
        spatial = [
            size
            for axis, size in enumerate(self.shape)
            if axis not in self.axes.inputs + self.axes.outputs
        ]
        return found.reshape(*spatial, *self.room())

    def spread_layer(self, values: Array) -> Array:
        matrix = jnp.zeros(_layout.sizes(self.shape, self.axes), values.dtype)
        rows = self.rows()
        values = values.reshape(len(rows), *self.room())
        return matrix.at[rows[..., None], self.outputs].set(values, mode="drop")


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["values", "places"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class Channels(_layout.Compressed):
    """One kernel as the smaller dense kernel of the units that remain.

    Attributes:
      values: `(spatial axes..., inputs left, outputs left)`, the trainable part.
      places: which units they are.
    """

    values: Array
    places: ChannelsPlaces
    format = "channels"

    @classmethod
    def from_dense(
        cls,
        values: Array,
        mask: Array,
        *,
        axes: AxesSpec = "flax",
        capacity: int | None = None,
        path: str = "kernel",
    ) -> "Channels":
        """The units of a dense kernel that remain.

        Args:
          values: the kernel, of any floating-point type.
          mask: boolean, of its shape; whole output units live or die, as the pattern `channel`
            makes it, and whole input units may be dead as well.
          axes: what its axes mean; several inputs or outputs count as one.
          capacity: how many output units there is room for, at least as many as live; there is then
            room for all input units, the places are free, and the mask may be traced. None for
            exactly what lives, at fixed places.
          path: of the leaf, for error messages and for axes given by path.

        Raises:
          ValueError: the mask has another shape, the capacity is too small, or a unit is partly
            alive.
          TypeError: the mask is not boolean, or it is traced and `capacity` is None.

        Example:
          >>> import jax.numpy as jnp
          >>> mask = jnp.array([[True, False, True], [False] * 3, [True, False, True]])
          >>> kernel = Channels.from_dense(jnp.arange(9.0).reshape(3, 3), mask)
          >>> kernel.values.tolist(), kernel.places.inputs.tolist()
          ([[0.0, 2.0], [6.0, 8.0]], [0, 2])
        """
        values, mask, named = _layout.checked(values, mask, axes, capacity, path)
        places = ChannelsPlaces.of(mask, named, capacity, path)
        return cls(places.gather(values), places)

    @_layout.by_layer
    def product(self, x: Array) -> Array:
        """`x @ kernel`: a dense product of what remains.

        Args:
          x: `(..., inputs)`; several inputs and spatial axes of a kernel count as one axis.

        Returns:
          `(..., outputs)`.

        Raises:
          ValueError: the shapes do not fit.

        Example:
          >>> import jax.numpy as jnp
          >>> mask = jnp.array([[True, False], [True, False]])
          >>> kernel = Channels.from_dense(jnp.array([[2.0, 5.0], [3.0, 5.0]]), mask)
          >>> kernel.product(jnp.array([[1.0, 10.0]])).tolist()
          [[32.0, 0.0]]
        """
        inputs, outputs = _layout.sizes(self.places.shape, self.places.axes)
        kind = jnp.promote_types(x.dtype, self.dtype)
        rows = _layout.as_rows(x.astype(kind), inputs)
        living = _take(rows, self.places.rows().ravel())
        found = living @ self.values.astype(kind).reshape(living.shape[1], self.values.shape[-1])
        return _put(found, self.places.outputs, outputs).reshape(*x.shape[:-1], outputs)

    @_layout.by_layer
    def convolve(
        self,
        x: Array,
        *,
        strides: Sequence[int] | None = None,
        padding: Sequence[tuple[int, int]] | None = None,
        via: str = "auto",
    ) -> Array:
        """The convolution of images with what remains of a kernel with spatial axes.

        Args:
          x: `(batch, spatial axes..., inputs)`.
          strides: pixels from one window to the next, one number per spatial axis; None for 1.
          padding: zeros before and after, one pair per spatial axis; None for no padding.
          via: ignored; the other formats need it. XLA computes what remains, which is dense.

        Returns:
          `(batch, spatial axes..., outputs)`.

        Raises:
          ValueError: the shapes, strides or padding do not fit.

        Example:
          >>> import jax.numpy as jnp
          >>> kernel = jnp.ones((3, 1, 2))
          >>> kernel = Channels.from_dense(kernel, jnp.broadcast_to(jnp.arange(2) > 0, (3, 1, 2)))
          >>> x = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1)
          >>> kernel.convolve(x, padding=[(1, 1)])[0, :, 1].tolist()
          [3.0, 6.0, 9.0, 7.0]
        """
        del via
        inputs = _layout.taps(self.places.shape, self.places.axes).shape[1]
        spatial = self.values.ndim - 2
        if x.ndim != spatial + 2 or x.shape[-1] != inputs:
            raise ValueError(
                f"x must be (batch, {spatial} spatial axes, {inputs} inputs), got {x.shape}."
            )
        strides = (1,) * spatial if strides is None else tuple(strides)
        padding = ((0, 0),) * spatial if padding is None else tuple(padding)
        if len(strides) != spatial or len(padding) != spatial:
            raise ValueError(
                f"strides and padding must have one entry for each of {spatial} spatial axes, got "
                f"{strides} and {padding}."
            )
        kind = jnp.promote_types(x.dtype, self.dtype)
        letters = "0123456789"[:spatial]
        found = jax.lax.conv_general_dilated(
            _take(x.astype(kind), self.places.inputs),
            self.values.astype(kind),
            strides,
            padding,
            dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
        )
        outputs = _layout.sizes(self.places.shape, self.places.axes)[1]
        return _put(found, self.places.outputs, outputs)


def _left(alive: Array, layer: _layout.Layer) -> tuple[Array, Array]:
    """Which input units and which output units have a living weight."""
    taps = _layout.taps(layer.shape, layer.axes)
    return jnp.any(alive[taps], (0, 2)), jnp.any(alive, 0)


def _units(left: Array, size: int) -> Array:
    """The units that remain, then numbers past the last unit: sorted and unique throughout."""
    units = jnp.nonzero(left, size=size, fill_value=len(left))[0]
    return (units + jnp.maximum(jnp.arange(size) - jnp.sum(left), 0)).astype(jnp.int32)


def _take(x: Array, units: Array) -> Array:
    """Units of the last axis, zeros for those out of range."""
    return x.at[..., units].get(mode="fill", fill_value=0, unique_indices=True)


def _put(x: Array, units: Array, size: int) -> Array:
    """The last axis spread to these units of a longer axis, zeros elsewhere."""
    wide = jnp.zeros((*x.shape[:-1], size), x.dtype)
    return wide.at[..., units].set(x, mode="drop", unique_indices=True)
