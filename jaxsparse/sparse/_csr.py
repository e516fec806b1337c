"""Compressed sparse rows: any mask, the living weights of one output unit after the other."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import sparse as jax_sparse

from jaxsparse.sparse import _kernels, _layout
from jaxsparse.sparse._bits import Bits
from jaxsparse.sparse._trilinear import Trilinear
from jaxsparse.types import Array, Axes, AxesSpec


@_layout.register_places("ends", "inputs", "ends_of_inputs", "outputs", "order")
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class CSRPlaces(_layout.Places):
    """Where the living weights of one kernel are.

    Attributes:
      ends: int32 `(outputs + 1,)`: the weights of output o are `ends[o] : ends[o + 1]`.
      inputs: int32 `(capacity,)`: the input of every weight, rising within an output.
      ends_of_inputs: int32 `(inputs + 1,)`, the same seen from the inputs.
      outputs: int32 `(capacity,)`: the outputs, input after input.
      order: int32 `(capacity,)`: which value belongs to each of `outputs`.
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
      places: where they are.
    """

    values: Array
    places: CSRPlaces

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
          values: the kernel, of any floating type.
          mask: boolean, of its shape.
          axes: what its axes mean; several inputs (and spatial axes) count as one.
          capacity: how many values there is room for, at least as many as live; then the places
            are free, and the mask may be traced. None for as many as live, at fixed places.
          path: of the leaf, for messages and for axes by path.

        Raises:
          ValueError: another shape, or a capacity that is too small.
          TypeError: a mask that is not boolean, or one that is traced, without `capacity`.

        Example:
          >>> import jax.numpy as jnp
          >>> mask = jnp.array([[True, False], [False, True], [True, False]])
          >>> kernel = CSR.from_dense(jnp.arange(6.0).reshape(3, 2), mask)
          >>> kernel.values.tolist(), kernel.places.inputs.tolist()
          ([0.0, 4.0, 3.0], [0, 2, 1])
        """
        values, mask, named = _layout.checked(values, mask, axes, capacity, path)
        alive = _layout.flat(mask, named).T
        fixed = capacity is None
        places = _places(alive, values.shape, named, _layout.room(alive, capacity))
        found = cls(values, places).gather(values)
        return cls(found, places.fix() if fixed else places)

    def gather(self, dense: Array) -> Array:
        """The values that a dense kernel has at the places, and zeros where none lives."""
        rows, matrix = _rows_of(self.places), _layout.flat(dense, self.places.axes).T
        found = matrix[jnp.minimum(rows, len(matrix) - 1), self.places.inputs]
        return jnp.where(rows < len(matrix), found, jnp.zeros((), dense.dtype))

    def moved(self, dense: Array, mask: Array) -> "CSR":
        """A dense kernel's living values in the same form and capacity, at free places."""
        return self.from_dense(dense, mask, axes=self.places.axes, capacity=len(self.values))

    def spread(self, values: Array) -> Array:
        """A dense kernel with one value in the place of each living one, and zeros elsewhere."""
        places = self.places
        inputs, outputs = _layout.sizes(places.shape, places.axes)
        matrix = jnp.zeros((inputs, outputs), values.dtype)
        matrix = matrix.at[places.inputs, _rows_of(places)].set(values, mode="drop")
        return _layout.unflat(matrix, places)

    def product(self, x: Array, *, via: str = "auto") -> Array:
        """`x @ kernel`, without a dense kernel in either direction.

        Args:
          x: `(..., inputs)`; of a kernel with several inputs and spatial axes, one axis for all.
          via: "compiled", "xla", or "auto" for the compiled kernel where there is one. That of XLA
            makes one dense gradient of the kernel on the way back, and gathers it.

        Returns:
          `(..., outputs)`. Types below float32 are computed in float32.

        Raises:
          ValueError: shapes that do not fit.
          KernelError: no compiled kernel, and `via` asks for it.

        Example:
          >>> import jax.numpy as jnp
          >>> mask = jnp.array([[True, False], [False, True]])
          >>> kernel = CSR.from_dense(jnp.array([[2.0, 5.0], [5.0, 3.0]]), mask)
          >>> kernel.product(jnp.array([[1.0, 10.0]])).tolist()
          [[2.0, 30.0]]
        """
        rows = _layout.as_rows(x, len(self.places.ends_of_inputs) - 1)
        return self.product_of_columns(rows.T, via=via).T.reshape(*x.shape[:-1], -1)

    def product_of_columns(self, x: Array, *, via: str = "auto") -> Array:
        """`kernel.T @ x`: the same product where the batch is the last axis.

        That is how the compiled kernel reads and writes. A function that keeps its activations so
        from layer to layer saves turning them round at every product.

        Args:
          x: `(inputs, batch)`.
          via: as for `product`.

        Returns:
          `(outputs, batch)`.

        Raises:
          ValueError, KernelError: as for `product`.

        Example:
          >>> import jax.numpy as jnp
          >>> mask = jnp.array([[True, False], [False, True]])
          >>> kernel = CSR.from_dense(jnp.array([[2.0, 5.0], [5.0, 3.0]]), mask)
          >>> kernel.product_of_columns(jnp.array([[1.0], [10.0]])).tolist()
          [[2.0], [30.0]]
        """
        inputs = len(self.places.ends_of_inputs) - 1
        if x.ndim != 2 or x.shape[0] != inputs:
            raise ValueError(f"x must be ({inputs} inputs, batch), got {x.shape}.")
        out = jnp.promote_types(x.dtype, self.dtype)
        kind = jnp.promote_types(out, jnp.float32)
        fast = _kernels.choose(via) and kind == jnp.float32
        shape = (len(self.places.ends) - 1, x.shape[1])
        living = self.values.astype(kind)
        return _PRODUCT.product(fast, shape, self.places, living, x.astype(kind)).astype(out)


def _forward(fast: bool, _: Any, places: CSRPlaces, values: Array, x: Array) -> Array:
    """`(inputs, batch) -> (outputs, batch)`."""
    return _times(fast, (places.ends, places.inputs, jnp.zeros(0, jnp.int32)), values, x)


def _backward(fast: bool, _: Any, places: CSRPlaces, values: Array, grads: Array) -> Array:
    """`(outputs, batch) -> (inputs, batch)`."""
    return _times(fast, (places.ends_of_inputs, places.outputs, places.order), values, grads)


def _times(fast: bool, rows: tuple[Array, Array, Array], values: Array, x: Array) -> Array:
    """A matrix of compressed rows `(ends, columns, order of the values)` times a dense one."""
    ends, columns, order = rows
    shape = jax.ShapeDtypeStruct((len(ends) - 1, x.shape[1]), x.dtype)
    if fast:
        call = jax.ffi.ffi_call("jaxsparse_csr_product", shape, vmap_method="sequential")
        return call(ends, columns, order, values, x)
    if order.size:
        values = values[order]
    matrix = jax_sparse.BCSR((values, columns, ends), shape=(shape.shape[0], x.shape[0]))
    return matrix @ x


def _of_values(fast: bool, _: Any, places: CSRPlaces, x: Array, grads: Array) -> Array:
    """The gradient of the values: of each the inner product of its input and its output."""
    if fast:
        shape = jax.ShapeDtypeStruct(places.inputs.shape, x.dtype)
        call = jax.ffi.ffi_call("jaxsparse_csr_gradient", shape, vmap_method="sequential")
        found = call(places.ends, places.inputs, x, grads)
    else:
        rows = _rows_of(places)
        found = (grads @ x.T)[jnp.minimum(rows, grads.shape[0] - 1), places.inputs]
    living = jnp.arange(len(places.inputs)) < places.ends[-1]
    return jnp.where(living, found, jnp.zeros((), found.dtype))


_PRODUCT = Trilinear("csr_product", _forward, _backward, _of_values, folds=(1, 1))


def _places(alive: Array, shape: tuple[int, ...], axes: Axes, capacity: int) -> CSRPlaces:
    units, inputs = alive.shape
    # Turned round once: a reduction over a mask that is read across its rows is ten times slower.
    alive, across = jax.lax.optimization_barrier((alive, alive.T))
    bits, bits_across = Bits.of(alive), Bits.of(across)
    entries = jnp.arange(capacity, dtype=jnp.int32)
    living = entries < bits.alive
    columns = jnp.where(living, bits.places(capacity) % max(inputs, 1), 0)
    turned = bits_across.places(capacity)
    outputs, given = turned % max(units, 1), turned // max(units, 1)
    return CSRPlaces(
        ends=_ends(bits, units, inputs),
        inputs=columns,
        ends_of_inputs=_ends(bits_across, inputs, units),
        outputs=jnp.where(living, outputs, max(units - 1, 0)),
        order=jnp.where(living, bits.rank(outputs * inputs + given), entries),
        shape=shape,
        axes=axes,
    )


def _ends(bits: Bits, rows: int, columns: int) -> Array:
    """How many live before each row, and in all."""
    before = bits.rank(jnp.arange(rows, dtype=jnp.int32) * columns)
    return jnp.append(before, bits.alive)


def _rows_of(places: CSRPlaces) -> Array:
    """The output of every weight; the number of outputs where there is none."""
    units, capacity = len(places.ends) - 1, len(places.inputs)
    begins = jnp.where(places.ends[:-1] < places.ends[1:], places.ends[:-1], capacity)
    numbers = jnp.arange(units, dtype=jnp.int32)
    firsts = jnp.zeros(capacity, jnp.int32).at[begins].set(numbers, mode="drop")
    living = jnp.arange(capacity, dtype=jnp.int32) < places.ends[-1]
    return jnp.where(living, jax.lax.cummax(firsts), units)
