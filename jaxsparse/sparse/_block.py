"""Blocks: the living blocks of a kernel, multiplied as one batch of small dense products."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse import patterns
from jaxsparse.sparse import _kernels, _layout
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
        blocks = flat.reshape(inputs // size[0], size[0], outputs // size[1], size[1])
        blocks = blocks.transpose(0, 2, 1, 3)
        last = jnp.minimum(where[0], outputs // size[1] - 1)
        count = jnp.sum(chosen, dtype=jnp.int32)
        living = (jnp.arange(capacity) < count)[:, None, None]
        found = jnp.where(living, blocks[where[1], last], jnp.zeros((), values.dtype))
        places = BlockPlaces(
            inputs=where[1].astype(jnp.int32),
            outputs=last.astype(jnp.int32),
            order=jnp.argsort(where[1], stable=True).astype(jnp.int32),
            count=count,
            shape=values.shape,
            axes=named,
            size=size,
        )
        return cls(found, places.fix() if fixed else places)

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

    def product(self, x: Array, *, via: str = "auto") -> Array:
        """`x @ kernel`, without a dense kernel in either direction.

        Args:
          x: `(..., inputs)`; of a kernel with several inputs and spatial axes, one axis for all.
          via: "compiled", "xla", or "auto" for the compiled kernel where there is one.

        Returns:
          `(..., outputs)`. The compiled kernel computes types below float32 in float32.

        Raises:
          ValueError: shapes that do not fit.
          KernelError: no compiled kernel, and `via` asks for it.

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

    def product_transposed(self, g: Array, *, via: str = "auto") -> Array:
        """`g @ kernel.T`: `(..., outputs) -> (..., inputs)`; else as `product`."""
        inputs, outputs = _layout.sizes(self.places.shape, self.places.axes)
        rows = _layout.as_rows(g, outputs, "g", "outputs")
        found = self._pair(_PRODUCT.transposed, via, rows, (rows.shape[0], inputs))
        return found.reshape(*g.shape[:-1], inputs)

    def _pair(self, form: Any, via: str, x: Array, shape: tuple[int, int]) -> Array:
        out = jnp.promote_types(x.dtype, self.dtype)
        fast = _kernels.choose(via) and _kernels.accumulator(out) == jnp.float32
        kind = jnp.float32 if fast else out
        living = self.values.astype(kind)
        return form(fast, shape, self.places, living, x.astype(kind)).astype(out)


def _forward(fast: bool, shapes: Shapes, places: BlockPlaces, values: Array, x: Array) -> Array:
    """`(batch, inputs) -> (batch, outputs)`."""
    if fast:
        return _compiled(shapes.g, places, values, x, transposed=False)
    tiles = _tiles(x, places.size[0])
    each = jnp.einsum("nbi,nio->nbo", tiles[places.inputs], values)
    return _sum(each, places.outputs, shapes.g.shape)


def _backward(fast: bool, shapes: Shapes, places: BlockPlaces, values: Array, g: Array) -> Array:
    """`(batch, outputs) -> (batch, inputs)`."""
    if fast:
        return _compiled(shapes.x, places, values, g, transposed=True)
    order, tiles = places.order, _tiles(g, places.size[1])
    each = jnp.einsum("nbo,nio->nbi", tiles[places.outputs[order]], values[order])
    return _sum(each, places.inputs[order], shapes.x.shape)


def _of_values(fast: bool, shapes: Shapes, places: BlockPlaces, x: Array, g: Array) -> Array:
    if fast:
        operands = places.inputs, places.outputs, places.count, x, g
        return _kernels.call("block_values", shapes.values, *operands, batched=(3, 4))
    inputs, outputs = _tiles(x, places.size[0]), _tiles(g, places.size[1])
    found = jnp.einsum("nbi,nbo->nio", inputs[places.inputs], outputs[places.outputs])
    living = jnp.arange(len(found)) < places.count
    return jnp.where(living[:, None, None], found, jnp.zeros((), found.dtype))


def _compiled(shape: Any, places: BlockPlaces, values: Array, x: Array, *, transposed: bool) -> Any:
    found = places.inputs, places.outputs, places.order, places.count
    return _kernels.call(
        "block_product", shape, *found, values, x, batched=(5, -1), transposed=transposed
    )


def _tiles(x: Array, size: int) -> Array:
    """`(blocks, batch, size)`."""
    return x.reshape(x.shape[0], -1, size).transpose(1, 0, 2)


def _sum(each: Array, to: Array, shape: tuple[int, int]) -> Array:
    found = jax.ops.segment_sum(each, to, shape[1] // each.shape[2], indices_are_sorted=True)
    return found.transpose(1, 0, 2).reshape(shape)


_PRODUCT = Trilinear("block_product", _forward, _backward, _of_values, folds=(0, 0))
