"""Blocks: the living blocks of a kernel, multiplied as one batch of small dense products."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxsparse import patterns
from jaxsparse.sparse import _layout
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
    size: tuple[int, int]
    fixed: bool = False


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
        flat, alive = _layout.flat(values, named), _layout.flat(mask, named)
        inputs, outputs = flat.shape
        if inputs % size[0] or outputs % size[1]:
            raise ValueError(
                f"size {size} does not divide the {inputs} inputs and {outputs} outputs of "
                f"{path!r}."
            )
        pattern, two = patterns.block(*size), Axes((0,), (1,))
        chosen = pattern.gather(alive.astype(jnp.float32), two) > 0
        if not isinstance(mask, jax.core.Tracer):
            if not bool(jnp.all(pattern.spread(chosen, flat.shape, two) == alive)):
                raise ValueError(f"mask: a block of {size} at {path!r} lives in part only.")
        fixed = capacity is None
        capacity = _layout.room(chosen, capacity)
        where = jnp.nonzero(chosen.T, size=capacity, fill_value=(outputs // size[1], 0))
        last = jnp.minimum(where[0], outputs // size[1] - 1)
        count = jnp.sum(chosen, dtype=jnp.int32)
        places = BlockPlaces(
            inputs=where[1].astype(jnp.int32),
            outputs=last.astype(jnp.int32),
            order=jnp.argsort(where[1], stable=True).astype(jnp.int32),
            count=count,
            shape=values.shape,
            axes=named,
            size=size,
        )
        found = cls(values, places).gather(values)
        return cls(found, places.fix() if fixed else places)

    def gather(self, dense: Array) -> Array:
        """The values that a dense kernel has at the places, and zeros where none lives."""
        places = self.places
        flat = _layout.flat(dense, places.axes)
        (inputs, outputs), (height, width) = flat.shape, places.size
        blocks = flat.reshape(inputs // height, height, outputs // width, width)
        found = blocks.transpose(0, 2, 1, 3)[places.inputs, places.outputs]
        living = jnp.arange(len(found)) < places.count
        return jnp.where(living[:, None, None], found, jnp.zeros((), dense.dtype))

    def moved(self, dense: Array, mask: Array) -> "Block":
        """A dense kernel's living values in the same form and capacity, at free places."""
        return self.from_dense(
            dense, mask, size=self.places.size, axes=self.places.axes, capacity=len(self.values)
        )

    def spread(self, values: Array) -> Array:
        """A dense kernel with one value in the place of each living one, and zeros elsewhere."""
        places = self.places
        inputs, outputs = _layout.sizes(places.shape, places.axes)
        rows, columns = inputs // places.size[0], outputs // places.size[1]
        living = jnp.arange(len(values)) < places.count
        where = jnp.where(living, places.inputs, rows), places.outputs
        blocks = (
            jnp.zeros((rows, columns, *places.size), values.dtype)
            .at[where]
            .set(values, mode="drop")
        )
        return _layout.unflat(blocks.transpose(0, 2, 1, 3).reshape(inputs, outputs), places)

    def product(self, x: Array) -> Array:
        """`x @ kernel`, without a dense kernel in either direction.

        Args:
          x: `(..., inputs)`; of a kernel with several inputs and spatial axes, one axis for all.

        Returns:
          `(..., outputs)`.

        Raises:
          ValueError: shapes that do not fit.

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
        shape = (outputs // self.places.size[1], rows.shape[0], self.places.size[1])
        living = self.values.astype(kind)
        y = _PRODUCT.product(None, shape, self.places, living, tiles.astype(kind))
        return y.transpose(1, 0, 2).reshape(*x.shape[:-1], outputs)


def _forward(_: None, shapes: Shapes, places: BlockPlaces, values: Array, x: Array) -> Array:
    """`(rows of blocks, batch, inputs of one) -> (columns of blocks, batch, outputs of one)`."""
    each = jnp.einsum("nbi,nio->nbo", x[places.inputs], values)
    return jax.ops.segment_sum(each, places.outputs, shapes.g.shape[0], indices_are_sorted=True)


def _backward(_: None, shapes: Shapes, places: BlockPlaces, values: Array, grads: Array) -> Array:
    order = places.order
    each = jnp.einsum("nbo,nio->nbi", grads[places.outputs[order]], values[order])
    rows = places.inputs[order]
    return jax.ops.segment_sum(each, rows, shapes.x.shape[0], indices_are_sorted=True)


def _of_values(_: None, shapes: Shapes, places: BlockPlaces, x: Array, grads: Array) -> Array:
    found = jnp.einsum("nbi,nbo->nio", x[places.inputs], grads[places.outputs])
    living = jnp.arange(len(found)) < places.count
    return jnp.where(living[:, None, None], found, jnp.zeros((), found.dtype))


_PRODUCT = Trilinear("block_product", _forward, _backward, _of_values)
