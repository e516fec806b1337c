"""Compressed sparse rows: for any mask, the living weights of one output unit after another."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import sparse as jax_sparse

from jaxsparse.compiled import portable
from jaxsparse.sparse import _kernels, _layout, _portable, _windows
from jaxsparse.sparse._bits import Bits
from jaxsparse.sparse._trilinear import Shapes, Trilinear
from jaxsparse.sparse._windows import Window
from jaxsparse.types import Array, Axes, AxesSpec


@_layout.register_places("ends", "inputs", "ends_of_inputs", "outputs", "order")
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class CSRPlaces(_layout.Places):
    """Where the living weights of one kernel are.

    Attributes:
      ends: int32 `(outputs + 1,)`: the weights of output o are `ends[o] : ends[o + 1]`.
      inputs: int32 `(capacity,)`: the input of each weight, ascending within an output.
      ends_of_inputs: int32 `(inputs + 1,)`, the same for the inputs.
      outputs: int32 `(capacity,)`: the outputs, input after input.
      order: int32 `(capacity,)`: which value belongs to each entry of `outputs`.
      shape: of the dense kernel.
      axes: what its axes mean.
      fixed: whether they belong to the structure of a tree.
    """

    ends: Array
    inputs: Array
    ends_of_inputs: Array
    outputs: Array
    order: Array
    shape: tuple[int, ...]
    axes: Axes
    fixed: bool = False

    @classmethod
    def room_of_layer(cls, alive: Array, layer: _layout.Layer) -> Array:
        return jnp.sum(alive, dtype=jnp.int32)[None]

    @classmethod
    def of_layer(cls, alive: Array, room: tuple[int, ...], layer: _layout.Layer) -> "CSRPlaces":
        inputs, units = alive.shape
        by_output, by_input = Bits.of(alive.T), Bits.of(alive)
        entries = jnp.arange(room[0], dtype=jnp.int32)
        living = entries < by_input.alive
        turned = by_input.places(room[0])
        outputs, across = turned % max(units, 1), turned // max(units, 1)
        return cls(
            ends=_ends(by_output, units, inputs),
            inputs=jnp.where(living, by_output.places(room[0]) % max(inputs, 1), 0),
            ends_of_inputs=_ends(by_input, inputs, units),
            outputs=jnp.where(living, outputs, max(units - 1, 0)),
            order=jnp.where(living, by_output.rank(outputs * inputs + across), entries),
            shape=layer.shape,
            axes=layer.axes,
        )

    def room(self) -> tuple[int, ...]:
        return self.inputs.shape[-1:]

    def gather_layer(self, matrix: Array) -> Array:
        rows = _portable.rows(self.ends, len(self.inputs))
        units = matrix.shape[1]
        found = matrix[self.inputs, jnp.minimum(rows, units - 1)]
        return jnp.where(rows < units, found, jnp.zeros((), found.dtype))

    def spread_layer(self, values: Array) -> Array:
        matrix = jnp.zeros(_layout.sizes(self.shape, self.axes), values.dtype)
        return matrix.at[self.inputs, _portable.rows(self.ends, len(self.inputs))].set(
            values, mode="drop"
        )


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["values", "places"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class CSR(_layout.Compressed):
    """One kernel as its living values and their places; `x @ kernel` is its product.

    Attributes:
      values: `(capacity,)`, the trainable part.
      places: where the weights are.
    """

    values: Array
    places: CSRPlaces
    format = "csr"

    @classmethod
    def from_dense(
        cls,
        values: Array,
        mask: Array,
        *,
        axes: AxesSpec = "flax",
        capacity: int | None = None,
        path: str = "kernel",
    ) -> "CSR":
        """The living weights of a dense kernel.

        Args:
          values: the kernel, of any floating-point type.
          mask: boolean, of its shape.
          axes: what its axes mean; several inputs (and spatial axes) count as one.
          capacity: how many values there is room for, at least as many as live; the places are then
            free, and the mask may be traced. None for exactly as many as live, at fixed places.
          path: of the leaf, for error messages and for axes given by path.

        Raises:
          ValueError: the mask has another shape, or the capacity is too small.
          TypeError: the mask is not boolean, or it is traced and `capacity` is None.

        Example:
          >>> import jax.numpy as jnp
          >>> mask = jnp.array([[True, False], [False, True], [True, False]])
          >>> kernel = CSR.from_dense(jnp.arange(6.0).reshape(3, 2), mask)
          >>> kernel.values.tolist(), kernel.places.inputs.tolist()
          ([0.0, 4.0, 3.0], [0, 2, 1])
        """
        values, mask, named = _layout.checked(values, mask, axes, capacity, path)
        places = CSRPlaces.of(mask, named, capacity, path)
        return cls(places.gather(values), places)

    @_layout.by_layer
    def product(self, x: Array, *, via: str = "auto") -> Array:
        """`x @ kernel`, without a dense kernel in either direction.

        The compiled kernel needs the batch as the fastest axis in memory. XLA keeps that order
        from product to product through elementwise functions, and transposes any other input.

        Args:
          x: `(..., inputs)`; several inputs and spatial axes of a kernel count as one axis.
          via: "compiled", "xla", or "auto" for the compiled kernel where there is one. "xla" makes
            one dense gradient of the kernel in the backward pass, and gathers from it.

        Returns:
          `(..., outputs)`. Types below float32 are computed in float32.

        Raises:
          ValueError: the shapes do not fit.
          KernelError: "compiled" was requested, but there is no compiled kernel.

        Example:
          >>> import jax.numpy as jnp
          >>> mask = jnp.array([[True, False], [False, True]])
          >>> kernel = CSR.from_dense(jnp.array([[2.0, 5.0], [5.0, 3.0]]), mask)
          >>> kernel.product(jnp.array([[1.0, 10.0]])).tolist()
          [[2.0, 30.0]]
        """
        inputs, outputs = _layout.sizes(self.places.shape, self.places.axes)
        rows = _layout.as_rows(x, inputs)
        found = self._pair(_PRODUCT.product, via, Window(), rows, (rows.shape[0], outputs))
        return found.reshape(*x.shape[:-1], outputs)

    def _convolution(self, x: Array, window: Window, shape: tuple[int, ...], via: str) -> Array:
        kind = _kernels.accumulator(jnp.promote_types(x.dtype, self.dtype))
        if not _kernels.choose(via) or kind != jnp.float32:
            return self.product(_windows.patches(x, window, shape[1:-1]), via="xla")
        return self._pair(_PRODUCT.product, via, window, x, shape)

    def _pair(self, form: Any, via: str, window: Window, x: Array, shape: tuple[int, ...]) -> Array:
        out = jnp.promote_types(x.dtype, self.dtype)
        kind = _kernels.accumulator(out)
        fast = _kernels.choose(via) and kind == jnp.float32
        living = self.values.astype(kind)
        return form((fast, window), shape, self.places, living, x.astype(kind)).astype(out)


_Static = tuple[bool, Window]


def _forward(static: _Static, shapes: Shapes, places: CSRPlaces, values: Array, x: Array) -> Array:
    """`(batch, inputs) -> (batch, outputs)`, or the same for images."""
    fast, window = static
    rows = places.ends, places.inputs
    if not fast:
        return _xla(*rows, values, x)
    sizes = window.numbers()
    return _kernels.call("csr_forward", shapes.g, *rows, values, x, batched=(3, -1), sizes=sizes)


def _backward(static: _Static, shapes: Shapes, places: CSRPlaces, values: Array, g: Array) -> Array:
    """`(batch, outputs) -> (batch, inputs)`, or the same for images."""
    fast, window = static
    rows = places.ends_of_inputs, places.outputs
    if not fast:
        return _xla(*rows, values[places.order], g)
    operands, sizes = (*rows, places.order, values, g), window.numbers()
    return _kernels.call("csr_transposed", shapes.x, *operands, batched=(4, -1), sizes=sizes)


def _xla(ends: Array, columns: Array, values: Array, x: Array) -> Array:
    """A matrix of compressed rows times rows of examples."""
    if portable():
        return _portable.product(ends, columns, values, x.T).T
    shape = (len(ends) - 1, x.shape[1])
    return (jax_sparse.BCSR((values, columns, ends), shape=shape) @ x.T).T


def _of_values(static: _Static, shapes: Shapes, places: CSRPlaces, x: Array, g: Array) -> Array:
    """The gradient of the values: for each, the inner product of its input and its output."""
    fast, window = static
    if fast:
        operands, sizes = (places.ends, places.inputs, x, g), window.numbers()
        return _kernels.call("csr_values", shapes.values, *operands, batched=(2, 3), sizes=sizes)
    rows = _portable.rows(places.ends, len(places.inputs))
    found = (g.T @ x)[jnp.minimum(rows, g.shape[1] - 1), places.inputs]
    living = jnp.arange(len(places.inputs), dtype=jnp.int32) < places.ends[-1]
    return jnp.where(living, found, jnp.zeros((), found.dtype))


_PRODUCT = Trilinear("csr_product", _forward, _backward, _of_values, folds=(0, 0))


def _ends(bits: Bits, rows: int, columns: int) -> Array:
    """How many weights live before each row, and in total."""
    before = bits.rank(jnp.arange(rows, dtype=jnp.int32) * columns)
    return jnp.append(before, bits.alive)
