"""Blocks: the living blocks of a kernel, multiplied as one batch of small dense products."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxsparse import patterns
from jaxsparse.sparse import _layout, _pallas
from jaxsparse.sparse._trilinear import Shapes, Trilinear
from jaxsparse.types import Array, Axes, AxesSpec


@_layout.register_places("inputs", "outputs", "order", "count")
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class BlockPlaces(_layout.Places):
    """Where the living blocks of one kernel are.

    Attributes:
      inputs: int32 `(capacity,)`: the row of blocks of every block.
      outputs: int32 `(capacity,)`: its column of blocks, rising.
      order: int32 `(capacity,)`: the blocks in the order of their inputs.
      count: int32: how many live; those behind them are empty.
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
        rows, columns = _tiles(matrix.shape, self.size)
        blocks = matrix.reshape(rows, self.size[0], columns, self.size[1]).transpose(0, 2, 1, 3)
        living = (jnp.arange(len(self.inputs), dtype=jnp.int32) < self.count)[:, None, None]
        return jnp.where(living, blocks[self.inputs, self.outputs], jnp.zeros((), matrix.dtype))

    def spread_layer(self, values: Array) -> Array:
        sizes = _layout.sizes(self.shape, self.axes)
        rows, columns = _tiles(sizes, self.size)
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
      places: where they are.
    """

    values: Array
    places: BlockPlaces

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
        """The blocks of a dense kernel in which a weight lives.

        Args:
          values: the kernel, of any floating type.
          mask: boolean, of its shape; blocks live or die as a whole.
          size: inputs and outputs of a block.
          axes: what the axes of the kernel mean; several inputs (and spatial axes) count as one.
          capacity: how many blocks there is room for, at least as many as live; then the places
            are free, and the mask may be traced. None for as many as live, at fixed places.
          path: of the leaf, for messages and for axes by path.

        Raises:
          ValueError: another shape, a capacity that is too small, blocks that do not divide the
            kernel, or one that lives in part.
          TypeError: a mask that is not boolean, or one that is traced, without `capacity`.

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
          x: `(..., inputs)`; of a kernel with several inputs and spatial axes, one axis for all.
          via: "xla" for one batched product of gathered tiles; "pallas" for the kernels of
            `_pallas.py`, which nobody has measured yet, compiled on a GPU or a TPU and interpreted
            (slowly: for tests) elsewhere; "auto" for these on a GPU or a TPU where they hold such
            blocks, else for "xla".

        Returns:
          `(..., outputs)`.

        Raises:
          ValueError: shapes that do not fit, or blocks that the Pallas kernel of the device
            cannot hold, asked for by name.

        Example:
          >>> import jax.numpy as jnp
          >>> mask = jnp.array([[True, True, False, False]] * 2)
          >>> kernel = Block.from_dense(jnp.arange(8.0).reshape(2, 4), mask, size=(2, 2))
          >>> kernel.product(jnp.array([1.0, 10.0])).tolist()
          [40.0, 51.0, 0.0, 0.0]
        """
        inputs, outputs = _layout.sizes(self.places.shape, self.places.axes)
        rows = _layout.as_rows(x, inputs)
        tiles = rows.reshape(rows.shape[0], -1, self.places.size[0]).transpose(1, 0, 2)
        kind = jnp.promote_types(x.dtype, self.dtype)
        living = self.values.astype(kind)
        pallas = _pallas.choose(via, self.places.size, kind)
        shape = (outputs // self.places.size[1], rows.shape[0], self.places.size[1])
        y = _PRODUCT.product(pallas, shape, self.places, living, tiles.astype(kind))
        return y.transpose(1, 0, 2).reshape(*x.shape[:-1], outputs)


def _forward(pallas: bool, shapes: Shapes, places: BlockPlaces, values: Array, x: Array) -> Array:
    """`(rows of blocks, batch, inputs of one) -> (columns of blocks, batch, outputs of one)`."""
    if pallas:
        every = jnp.arange(len(values), dtype=jnp.int32)
        pairs = every, places.inputs, places.outputs, places.count
        return _pallas.product(shapes.g.shape, pairs, values, x, turned=False)
    each = jnp.einsum("nbi,nio->nbo", x[places.inputs], values)
    return jax.ops.segment_sum(each, places.outputs, shapes.g.shape[0], indices_are_sorted=True)


def _backward(
    pallas: bool, shapes: Shapes, places: BlockPlaces, values: Array, grads: Array
) -> Array:
    order = places.order
    outputs, rows = places.outputs[order], places.inputs[order]
    if pallas:
        pairs = order, outputs, rows, places.count
        return _pallas.product(shapes.x.shape, pairs, values, grads, turned=True)
    each = jnp.einsum("nbo,nio->nbi", grads[outputs], values[order])
    return jax.ops.segment_sum(each, rows, shapes.x.shape[0], indices_are_sorted=True)


def _of_values(pallas: bool, shapes: Shapes, places: BlockPlaces, x: Array, grads: Array) -> Array:
    if pallas:
        return _pallas.of_values((places.inputs, places.outputs, places.count), x, grads)
    found = jnp.einsum("nbi,nbo->nio", x[places.inputs], grads[places.outputs])
    living = jnp.arange(len(found), dtype=jnp.int32) < places.count
    return jnp.where(living[:, None, None], found, jnp.zeros((), found.dtype))


_PRODUCT = Trilinear("block_product", _forward, _backward, _of_values, folds=(1, 1))
_MATRIX = Axes((0,), (1,))


def _chosen(alive: Array, size: tuple[int, ...]) -> tuple[patterns.Pattern, Array]:
    """The blocks in which a weight lives."""
    pattern = patterns.block(*size)
    return pattern, pattern.gather(alive.astype(jnp.float32), _MATRIX) > 0


def _tiles(sizes: tuple[int, ...], size: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of blocks."""
    return sizes[0] // size[0], sizes[1] // size[1]
