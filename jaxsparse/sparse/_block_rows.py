"""Blocks as compressed rows: for products that have a kernel for rows alone."""

import contextlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.sparse import _layout
from jaxsparse.sparse._csr import CSRPlaces
from jaxsparse.types import Array


def rows_of(places: Any) -> tuple[CSRPlaces, Array]:
    """The places of the blocks of one layer as compressed rows.

    Args:
      places: of the blocks, `BlockPlaces`.

    Returns:
      `(rows, source)`: free places, and int32 `(capacity,)`, the number of the value that each of
      them holds. Both are constants if the blocks are fixed.
    """
    fixed = isinstance(places.inputs, np.ndarray)
    with jax.ensure_compile_time_eval() if fixed else contextlib.nullcontext():
        return _rows(places)


def _rows(places: Any) -> tuple[CSRPlaces, Array]:
    inputs, outputs = _layout.sizes(places.shape, places.axes)
    deep, wide = places.size
    across, along = jnp.asarray(places.outputs), jnp.asarray(places.inputs)
    living = jnp.arange(len(along), dtype=jnp.int32) < places.count
    order = jnp.argsort(jnp.where(living, along, inputs), stable=True)
    by_output = _Lines.of(across, places.count, outputs // wide, wide, deep)
    by_input = _Lines.of(along[order], places.count, inputs // deep, deep, wide)
    block, column, row = by_output.entries()
    turned, row_turned, column_turned = by_input.entries()
    turned = order[turned]
    rows = CSRPlaces(
        ends=by_output.ends(),
        inputs=along[block] * deep + row,
        ends_of_inputs=by_input.ends(),
        outputs=across[turned] * wide + column_turned,
        order=by_output.entry(turned, column_turned, row_turned),
        shape=places.shape,
        axes=places.axes,
    )
    return rows, (block * deep + row) * wide + column


class _Lines(NamedTuple):
    """Blocks in groups: a line of the first block of a group goes on in the next one.

    Attributes:
      groups: int32 `(blocks,)`: the group of each, ascending.
      starts: int32 `(groups,)`: the first block of each group.
      blocks: int32 `(groups,)`: how many there are.
      lines: of a block.
      length: entries of a line within a block.
    """

    groups: Array
    starts: Array
    blocks: Array
    lines: int
    length: int

    @classmethod
    def of(cls, groups: Array, count: Array, total: int, lines: int, length: int) -> "_Lines":
        """Of the first `count` blocks; the entries of the others come last and mean nothing."""
        living = jnp.arange(len(groups), dtype=jnp.int32) < count
        blocks = jnp.zeros(total, jnp.int32).at[groups].add(living.astype(jnp.int32))
        return cls(groups, jnp.cumsum(blocks) - blocks, blocks, lines, length)

    def ends(self) -> Array:
        """How many entries there are before each line, and in total."""
        lines = jnp.arange(self.lines, dtype=jnp.int32)
        before = self.starts[:, None] * self.lines + self.blocks[:, None] * lines
        return jnp.append(before.ravel(), jnp.sum(self.blocks) * self.lines) * self.length

    def entry(self, block: Array, line: Array, place: Array) -> Array:
        """The number of an entry if all lines are listed one after the other."""
        group = self.groups[block]
        start = self.starts[group]
        before = start * self.lines + self.blocks[group] * line + block - start
        return before * self.length + place

    def entries(self) -> tuple[Array, Array, Array]:
        """The inverse of `entry`, for all numbers."""
        size = self.lines * self.length
        at = jnp.arange(len(self.groups) * size, dtype=jnp.int32)
        group = self.groups[at // size]
        rest = at - self.starts[group] * size
        whole = jnp.maximum(self.blocks[group], 1) * self.length
        line, rest = rest // whole, rest % whole
        return self.starts[group] + rest // self.length, line, rest % self.length
