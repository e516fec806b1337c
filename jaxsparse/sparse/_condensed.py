"""Condensed: the same number of living inputs for every output unit that is not dead."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.sparse import _layout
from jaxsparse.sparse._csr import CSR, CSRPlaces
from jaxsparse.sparse._windows import Window
from jaxsparse.types import Array, Axes, AxesSpec


@_layout.register_places("units", "inputs", "ends_of_inputs", "order")
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class CondensedPlaces(_layout.Places):
    """Where the living weights of one kernel are.

    Attributes:
      units: int32 `(units,)`: the output units that remain, ascending; the number of outputs where
        there is spare room.
      inputs: int32 `(units, fan)`: the inputs of each, ascending; the number of inputs where there
        is spare room.
      ends_of_inputs: int32 `(inputs + 1,)`: the weights of input i are
        `order[ends_of_inputs[i] : ends_of_inputs[i + 1]]`.
      order: int32 `(units * fan,)`: the weights, input after input.
      shape: of the dense kernel.
      axes: what its axes mean.
      fixed: whether they belong to the structure of a tree.
    """

    units: Array
    inputs: Array
    ends_of_inputs: Array
    order: Array
    shape: tuple[int, ...]
    axes: Axes
    fixed: bool = False
    wants = "every output unit must have the same number of living inputs, or none"

    @classmethod
    def held_of_layer(cls, alive: Array, layer: _layout.Layer) -> Array:
        fan = jnp.sum(alive, 0)
        return alive & ((fan == jnp.max(fan, initial=0)) | (fan == 0))

    @classmethod
    def room_of_layer(cls, alive: Array, layer: _layout.Layer) -> Array:
        fan = jnp.sum(alive, 0, dtype=jnp.int32)
        return jnp.stack([jnp.sum(fan > 0, dtype=jnp.int32), jnp.max(fan, initial=0)])

    @classmethod
    def spare_of_layer(cls, layer: _layout.Layer) -> tuple[int, ...]:
        return _layout.sizes(layer.shape, layer.axes)[1:]

    @classmethod
    def of_layer(
        cls, alive: Array, room: tuple[int, ...], layer: _layout.Layer
    ) -> "CondensedPlaces":
        (inputs, outputs), (units, fan) = alive.shape, room
        fans = jnp.sum(alive, 0, dtype=jnp.int32)
        left = jnp.nonzero(fans > 0, size=units, fill_value=outputs)[0]
        # Weights are listed unit after unit; each goes to its unit's row, after the earlier ones.
        rows, columns = jnp.nonzero(alive.T, size=units * fan, fill_value=(outputs, 0))
        last = jnp.minimum(rows, outputs - 1)
        behind = jnp.arange(units * fan, dtype=jnp.int32) - (jnp.cumsum(fans) - fans)[last]
        row = jnp.where(rows < outputs, (jnp.cumsum(fans > 0) - 1)[last], units)
        table = jnp.full((units, fan), inputs, jnp.int32)
        table = table.at[row, behind].set(columns.astype(jnp.int32), mode="drop")
        counts = jnp.sum(alive, 1, dtype=jnp.int32)
        return cls(
            units=left.astype(jnp.int32),
            inputs=table,
            ends_of_inputs=jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(counts)]),
            order=jnp.argsort(table.ravel(), stable=True).astype(jnp.int32),
            shape=layer.shape,
            axes=layer.axes,
        )

    def room(self) -> tuple[int, ...]:
        return self.inputs.shape[-2:]

    def living(self) -> Array:
        """Boolean `(units, fan)`, of one layer: where there is a weight."""
        return self.inputs < _layout.sizes(self.shape, self.axes)[0]

    def gather_layer(self, matrix: Array) -> Array:
        inputs, outputs = matrix.shape
        where = jnp.minimum(self.inputs, inputs - 1), jnp.minimum(self.units, outputs - 1)[:, None]
        return jnp.where(self.living(), matrix[where], jnp.zeros((), matrix.dtype))

    def spread_layer(self, values: Array) -> Array:
        matrix = jnp.zeros(_layout.sizes(self.shape, self.axes), values.dtype)
        return matrix.at[self.inputs, self.units[:, None]].set(values, mode="drop")

    def csr(self) -> CSRPlaces:
        """The same places of one layer as compressed rows of equal length."""
        inputs, outputs = _layout.sizes(self.shape, self.axes)
        fan = self.inputs.shape[1]
        before = jnp.searchsorted(self.units, jnp.arange(outputs + 1, dtype=jnp.int32))
        units = jnp.minimum(self.units, outputs - 1)
        return CSRPlaces(
            ends=(fan * before).astype(jnp.int32),
            inputs=jnp.minimum(self.inputs, inputs - 1).ravel(),
            ends_of_inputs=jnp.asarray(self.ends_of_inputs),
            outputs=units[self.order // max(fan, 1)],
            order=jnp.asarray(self.order),
            shape=self.shape,
            axes=self.axes,
        )


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["values", "places"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class Condensed(_layout.Compressed):
    """One kernel with constant fan-in as its living values; `x @ kernel` is its product.

    Its products are those of `CSR`, but here all rows have the same length. This saves one of the
    four integers per weight, and everything that concerns output units without a weight.

    Attributes:
      values: `(units, fan)`, the trainable part; zero where there is spare room.
      places: where the weights are.

    References:
      Lasby et al., "Dynamic sparse training with structured sparsity" (2024), section 4.4.
    """

    values: Array
    places: CondensedPlaces
    format = "condensed"

    @classmethod
    def from_dense(
        cls,
        values: Array,
        mask: Array,
        *,
        axes: AxesSpec = "flax",
        capacity: int | None = None,
        path: str = "kernel",
    ) -> "Condensed":
        """The living weights of a dense kernel, unit by unit.

        Args:
          values: the kernel, of any floating-point type.
          mask: boolean, of its shape; every output unit has the same number of living inputs, as
            the pattern `fan_in` makes it, or none at all.
          axes: what its axes mean; several inputs (and spatial axes) count as one.
          capacity: how many inputs per unit there is room for, at least as many as live; there is
            then room for all output units, the places are free, and the mask may be traced. None
            for exactly what lives, at fixed places.
          path: of the leaf, for error messages and for axes given by path.

        Raises:
          ValueError: the mask has another shape, the capacity is too small, or some units have
            fewer inputs than others.
          TypeError: the mask is not boolean, or it is traced and `capacity` is None.

        Example:
          >>> import jax.numpy as jnp
          >>> mask = jnp.array([[True, False, False], [False, False, True], [True, False, True]])
          >>> kernel = Condensed.from_dense(jnp.arange(9.0).reshape(3, 3), mask)
          >>> kernel.values.tolist(), kernel.places.units.tolist(), kernel.places.inputs.tolist()
          ([[0.0, 6.0], [5.0, 8.0]], [0, 2], [[0, 2], [1, 2]])
        """
        values, mask, named = _layout.checked(values, mask, axes, capacity, path)
        places = CondensedPlaces.of(mask, named, capacity, path)
        return cls(places.gather(values), places)

    @_layout.by_layer
    def product(self, x: Array, *, via: str = "auto") -> Array:
        """`x @ kernel`, without a dense kernel in either direction.

        Args:
          x: `(..., inputs)`; several inputs and spatial axes of a kernel count as one axis.
          via: as for `CSR.product`.

        Returns:
          `(..., outputs)`.

        Raises:
          ValueError, KernelError: as for `CSR.product`.

        Example:
          >>> import jax.numpy as jnp
          >>> mask = jnp.array([[True, False], [False, True]])
          >>> kernel = Condensed.from_dense(jnp.array([[2.0, 5.0], [5.0, 3.0]]), mask)
          >>> kernel.product(jnp.array([[1.0, 10.0]])).tolist()
          [[2.0, 30.0]]
        """
        return self.csr().product(x, via=via)

    def _convolution(self, x: Array, window: Window, shape: tuple[int, ...], via: str) -> Array:
        return self.csr()._convolution(x, window, shape, via)

    def csr(self) -> CSR:
        """The same kernel, for one layer, as a `CSR` with free places; its values are
        differentiable functions of the values of this one."""
        living, values = self.places.living(), self.values
        if not (isinstance(living, np.ndarray) and living.all()):
            values = jnp.where(living, values, jnp.zeros((), values.dtype))
        return CSR(values.ravel(), self.places.csr())
