"""Blocks: the living blocks of a kernel, multiplied as one batch of small dense products."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse import patterns
from jaxsparse.compiled import portable
from jaxsparse.sparse import _kernels, _layout, _pallas, _windows
from jaxsparse.sparse._block_rows import rows_of
from jaxsparse.sparse._csr import CSR
from jaxsparse.sparse._trilinear import Shapes, Trilinear
from jaxsparse.sparse._windows import Window
from jaxsparse.types import Array, Axes, AxesSpec


@_layout.register_places("inputs", "outputs", "order", "count")
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class BlockPlaces(_layout.Places):
    """Where the living blocks of one kernel are.

    Attributes:
      inputs: int32 `(capacity,)`: the row of each block in the grid of blocks.
      outputs: int32 `(capacity,)`: its column in that grid, ascending.
      order: int32 `(capacity,)`: the blocks sorted by their inputs.
      count: int32: how many blocks live; those after them are empty.
      shape: of the dense kernel.
      axes: what its axes mean.
      size: inputs and outputs of one block.
      fixed: whether they belong to the structure of a tree.
    """

    inputs: Array
    outputs: Array
    order: Array
    count: Array
    shape: tuple[int, ...]
    axes: Axes
    size: tuple[int, ...]
    fixed: bool = False
    wants = "no block may live in part only"

    @classmethod
    def held_of_layer(cls, alive: Array, layer: _layout.Layer) -> Array:
        pattern, chosen = _chosen(alive, layer.size)
        return pattern.spread(chosen, alive.shape, _MATRIX)

    @classmethod
    def room_of_layer(cls, alive: Array, layer: _layout.Layer) -> Array:
        return jnp.sum(_chosen(alive, layer.size)[1], dtype=jnp.int32)[None]

    @classmethod
    def of_layer(cls, alive: Array, room: tuple[int, ...], layer: _layout.Layer) -> "BlockPlaces":
        _, chosen = _chosen(alive, layer.size)
        columns = chosen.shape[1]
        outputs, inputs = jnp.nonzero(chosen.T, size=room[0], fill_value=(columns, 0))
        return cls(
            inputs=inputs.astype(jnp.int32),
            outputs=jnp.minimum(outputs, columns - 1).astype(jnp.int32),
            order=jnp.argsort(inputs, stable=True).astype(jnp.int32),
            count=jnp.sum(chosen, dtype=jnp.int32),
            shape=layer.shape,
            axes=layer.axes,
            size=layer.size,
        )

    def room(self) -> tuple[int, ...]:
        return self.inputs.shape[-1:]

    def gather_layer(self, matrix: Array) -> Array:
        rows, columns = _grid(matrix.shape, self.size)
        blocks = matrix.reshape(rows, self.size[0], columns, self.size[1]).transpose(0, 2, 1, 3)
        living = (jnp.arange(len(self.inputs), dtype=jnp.int32) < self.count)[:, None, None]
        return jnp.where(living, blocks[self.inputs, self.outputs], jnp.zeros((), matrix.dtype))

    def spread_layer(self, values: Array) -> Array:
        sizes = _layout.sizes(self.shape, self.axes)
        rows, columns = _grid(sizes, self.size)
        living = jnp.arange(len(values), dtype=jnp.int32) < self.count
        where = jnp.where(living, self.inputs, rows), self.outputs
        blocks = jnp.zeros((rows, columns, *self.size), values.dtype)
        blocks = blocks.at[where].set(values, mode="drop")
        return blocks.transpose(0, 2, 1, 3).reshape(sizes)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["values", "places"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class Block(_layout.Compressed):
    """One kernel as its living blocks; `x @ kernel` is its product.

    Attributes:
      values: `(capacity, inputs of a block, outputs of a block)`, the trainable part.
      places: where the blocks are.
    """

    values: Array
    places: BlockPlaces

    @property
    def format(self) -> str:
        """The format string, as `compress` takes it."""
        return f"block:{self.places.size[0]}x{self.places.size[1]}"

    @classmethod
    def from_dense(
        cls,
        values: Array,
        mask: Array,
        *,
        size: tuple[int, int],
        axes: AxesSpec = "flax",
        capacity: int | None = None,
        path: str = "kernel",
    ) -> "Block":
        """The blocks of a dense kernel that have living weights.

        Args:
          values: the kernel, of any floating-point type.
          mask: boolean, of its shape; blocks live or die as a whole.
          size: inputs and outputs of a block.
          axes: what the axes of the kernel mean; several inputs (and spatial axes) count as one.
          capacity: how many blocks there is room for, at least as many as live; the places are
            then free, and the mask may be traced. None for exactly as many as live, at fixed
            places.
          path: of the leaf, for error messages and for axes given by path.

        Raises:
          ValueError: the mask has another shape, the capacity is too small, the blocks do not
            divide the kernel, or a block is partly alive.
          TypeError: the mask is not boolean, or it is traced and `capacity` is None.

        Example:
          >>> import jax.numpy as jnp
          >>> mask = jnp.array([[True, True, False, False]] * 2)
          >>> kernel = Block.from_dense(jnp.arange(8.0).reshape(2, 4), mask, size=(2, 2))
          >>> kernel.values.tolist()
          [[[0.0, 1.0], [4.0, 5.0]]]
        """
        values, mask, named = _layout.checked(values, mask, axes, capacity, path)
        inputs, outputs = _layout.sizes(values.shape, named)
        if inputs % size[0] or outputs % size[1]:
            raise ValueError(
                f"size {size} does not divide the {inputs} inputs and {outputs} outputs of "
                f"{path!r}."
            )
        places = BlockPlaces.of(mask, named, capacity, path, size=size)
        return cls(places.gather(values), places)

    @_layout.by_layer
    def product(self, x: Array, *, via: str = "auto") -> Array:
        """`x @ kernel`, without a dense kernel in either direction.

        Args:
          x: `(..., inputs)`; several inputs and spatial axes of a kernel count as one axis.
          via: "compiled" for the C++ kernel of a CPU; "xla" for one batched product of gathered
            tiles; "pallas" for the kernels of `_pallas.py`, which have not been measured yet:
            compiled on a GPU or a TPU, and interpreted elsewhere (slow: for tests); "auto" for the
            first of these that this backend supports for such blocks.

        Returns:
          `(..., outputs)`. The compiled kernel computes types below float32 in float32.

        Raises:
          ValueError: the shapes do not fit, or "pallas" was requested and the device's Pallas
            kernel cannot hold the blocks.
          KernelError: "compiled" was requested, but there is no compiled kernel.

        Example:
          >>> import jax.numpy as jnp
          >>> mask = jnp.array([[True, True, False, False]] * 2)
          >>> kernel = Block.from_dense(jnp.arange(8.0).reshape(2, 4), mask, size=(2, 2))
          >>> kernel.product(jnp.array([1.0, 10.0])).tolist()
          [40.0, 51.0, 0.0, 0.0]
        """
        inputs, outputs = _layout.sizes(self.places.shape, self.places.axes)
        rows = _layout.as_rows(x, inputs)
        found = self._pair(_PRODUCT.product, via, rows, (rows.shape[0], outputs))
        return found.reshape(*x.shape[:-1], outputs)

    def csr(self) -> CSR:
        """The same kernel, for one layer, as a `CSR` with free places; its values are
        differentiable functions of the values of this one."""
        places, source = rows_of(self.places)
        return CSR(self.values.ravel()[source], places)

    def _convolution(self, x: Array, window: Window, shape: tuple[int, ...], via: str) -> Array:
        compiled = self._form(via, jnp.promote_types(x.dtype, self.dtype)) == "compiled"
        slides = math.prod(window.sizes + window.strides) > 1
        if compiled and slides and self.values.size:
            return self.csr()._convolution(x, window, shape, via)
        return self.product(_windows.patches(x, window, shape[1:-1]), via=via)

    def _pair(self, product: Any, via: str, x: Array, shape: tuple[int, int]) -> Array:
        out = jnp.promote_types(x.dtype, self.dtype)
        form = self._form(via, out)
        kind = jnp.float32 if form == "compiled" else out
        living = self.values.astype(kind)
        return product(form, shape, self.places, living, x.astype(kind)).astype(out)

    def _form(self, via: str, kind: Any) -> str:
        if via == "auto" and portable():
            return "xla"
        if via in ("auto", "pallas") and _pallas.choose(via, self.places.size, kind):
            return "pallas"
        compiled = _kernels.choose(via) and _kernels.accumulator(kind) == jnp.float32
        return "compiled" if compiled else "xla"


def _forward(form: str, shapes: Shapes, places: BlockPlaces, values: Array, x: Array) -> Array:
    """`(batch, inputs) -> (batch, outputs)`."""
    if form == "compiled":
        return _compiled(shapes.g, places, values, x, transposed=False)
    tiles = _tiles(x, places.size[0])
    if form == "pallas":
        every = jnp.arange(len(values), dtype=jnp.int32)
        pairs = every, places.inputs, places.outputs, places.count
        to = _sizes(shapes.g.shape, places.size[1])
        return _untiled(_pallas.product(to, pairs, values, tiles, turned=False))
    each = jnp.einsum("nbi,nio->nbo", tiles[places.inputs], values)
    return _sum(each, places.outputs, shapes.g.shape)


def _backward(form: str, shapes: Shapes, places: BlockPlaces, values: Array, g: Array) -> Array:
    """`(batch, outputs) -> (batch, inputs)`."""
    if form == "compiled":
        return _compiled(shapes.x, places, values, g, transposed=True)
    order, tiles = places.order, _tiles(g, places.size[1])
    outputs, rows = places.outputs[order], places.inputs[order]
    if form == "pallas":
        pairs = order, outputs, rows, places.count
        to = _sizes(shapes.x.shape, places.size[0])
        return _untiled(_pallas.product(to, pairs, values, tiles, turned=True))
    each = jnp.einsum("nbo,nio->nbi", tiles[outputs], values[order])
    return _sum(each, rows, shapes.x.shape)


def _of_values(form: str, shapes: Shapes, places: BlockPlaces, x: Array, g: Array) -> Array:
    if form == "compiled":
        operands = places.inputs, places.outputs, places.count, x, g
        return _kernels.call("block_values", shapes.values, *operands, batched=(3, 4))
    inputs, outputs = _tiles(x, places.size[0]), _tiles(g, places.size[1])
    if form == "pallas":
        return _pallas.of_values((places.inputs, places.outputs, places.count), inputs, outputs)
    found = jnp.einsum("nbi,nbo->nio", inputs[places.inputs], outputs[places.outputs])
    living = jnp.arange(len(found), dtype=jnp.int32) < places.count
    return jnp.where(living[:, None, None], found, jnp.zeros((), found.dtype))


_MATRIX = Axes((0,), (1,))


def _chosen(alive: Array, size: tuple[int, ...]) -> tuple[patterns.Pattern, Array]:
    """The blocks that have living weights."""
    pattern = patterns.block(*size)
    return pattern, pattern.gather(alive.astype(jnp.float32), _MATRIX) > 0


def _grid(sizes: tuple[int, ...], size: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of blocks."""
    return sizes[0] // size[0], sizes[1] // size[1]


def _compiled(shape: Any, places: BlockPlaces, values: Array, x: Array, *, transposed: bool) -> Any:
    found = places.inputs, places.outputs, places.order, places.count
    return _kernels.call(
        "block_product", shape, *found, values, x, batched=(5, -1), transposed=transposed
    )


def _tiles(x: Array, size: int) -> Array:
    """`(blocks, batch, size)`."""
    return x.reshape(x.shape[0], -1, size).transpose(1, 0, 2)


def _sum(each: Array, to: Array, shape: tuple[int, int]) -> Array:
    count = shape[1] // each.shape[2]
    return _untiled(jax.ops.segment_sum(each, to, count, indices_are_sorted=True))


def _sizes(shape: tuple[int, int], size: int) -> tuple[int, int, int]:
    """The sizes of the tiles of a matrix `(batch, units)`."""
    return shape[1] // size, shape[0], size


def _untiled(tiles: Array) -> Array:
    """`(batch, units)`."""
    return tiles.transpose(1, 0, 2).reshape(tiles.shape[1], -1)


_PRODUCT = Trilinear("block_product", _forward, _backward, _of_values, folds=(0, 0))
