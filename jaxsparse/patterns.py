"""Which sets of weights live or die together, and where they compete.

A pattern turns the scores of a leaf into the scores of its *groups*, and a mask of the groups back
into a mask of the weights. Groups compete within *rows*: either all groups of a leaf are one row,
or there is a row for each output unit (constant fan-in) or each run of M inputs (N:M), and all rows
keep the same count.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from jaxsparse.checks import check_size
from jaxsparse.meshes import automatic
from jaxsparse.selection import top_k_mask
from jaxsparse.selection.top_k import grown_mask
from jaxsparse.types import Array, Axes


class Groups(NamedTuple):
    """How one leaf is grouped.

    Attributes:
      rows: independent competitions, each keeping equally many groups.
      columns: groups per row.
      size: weights per group.
    """

    rows: int
    columns: int
    size: int


class Pattern(NamedTuple):
    """A sparsity pattern as data; made by the functions of this module.

    Attributes:
      name: the name, as the user wrote it.
      groups: `(path, shape, axes) -> Groups`; raises if the pattern does not fit.
      gather: `(values, axes) -> values per group`: means over a group. If there are several rows,
        they come first, on all axes but the last.
      spread: `(group mask, shape, axes) -> mask`.
      fixed: groups kept per row if the pattern itself sets this (the N of N:M), else None.
      by_rows: whether there are several rows.
      uses_axes: whether the pattern needs to know which axes are inputs and outputs.
    """

    name: str
    groups: Callable[[str, tuple[int, ...], Axes], Groups]
    gather: Callable[[Array, Axes], Array]
    spread: Callable[[Array, tuple[int, ...], Axes], Array]
    fixed: int | None = None
    by_rows: bool = False
    uses_axes: bool = True


unstructured = Pattern(
    "unstructured",
    groups=lambda path, shape, axes: Groups(1, math.prod(shape), 1),
    gather=lambda values, axes: values,
    spread=lambda mask, shape, axes: mask,
    uses_axes=False,
)
"""Every weight is on its own; all weights of a leaf compete."""


def _channel_groups(path: str, shape: tuple[int, ...], axes: Axes) -> Groups:
    count = math.prod(shape[a] for a in axes.outputs + axes.stacked)
    return Groups(1, count, math.prod(shape) // max(count, 1))


def _channel_gather(values: Array, axes: Axes) -> Array:
    others = tuple(a for a in range(values.ndim) if a not in axes.outputs + axes.stacked)
    return jnp.mean(values, others, keepdims=True)


channel = Pattern(
    "channel",
    groups=_channel_groups,
    gather=_channel_gather,
    spread=lambda mask, shape, axes: jnp.broadcast_to(mask, shape),
)
"""All weights into one output unit live or die together."""


def _fan_in_groups(path: str, shape: tuple[int, ...], axes: Axes) -> Groups:
    rows = math.prod(shape[a] for a in axes.outputs + axes.stacked)
    return Groups(rows, math.prod(shape) // max(rows, 1), 1)


def _fan_in_order(ndim: int, axes: Axes) -> list[int]:
    first = sorted(axes.stacked + axes.outputs)
    return first + [a for a in range(ndim) if a not in first]


def _fan_in_gather(values: Array, axes: Axes) -> Array:
    moved = jnp.transpose(values, _fan_in_order(values.ndim, axes))
    units = len(axes.stacked + axes.outputs)
    return moved.reshape(*moved.shape[:units], -1)


def _fan_in_spread(mask: Array, shape: tuple[int, ...], axes: Axes) -> Array:
    order = _fan_in_order(len(shape), axes)
    moved = mask.reshape([shape[a] for a in order])
    return jnp.transpose(moved, [order.index(a) for a in range(len(shape))])


fan_in = Pattern(
    "fan_in",
    groups=_fan_in_groups,
    gather=_fan_in_gather,
    spread=_fan_in_spread,
    by_rows=True,
)
"""Every output unit keeps the same number of inputs (constant fan-in)."""


def n_m(n: int, m: int) -> Pattern:
    """N:M sparsity: exactly `n` of every `m` consecutive inputs of an output unit are alive.

    The sparsity of a leaf is then `1 - n / m` and must be requested as such.

    Args:
      n: living weights per run, at least 1.
      m: length of a run, larger than `n`; must divide the number of inputs.

    Raises:
      ValueError: not `1 <= n < m`; later, a leaf whose number of inputs `m` does not divide.

    References:
      Zhou et al., "Learning N:M fine-grained structured sparse neural networks from scratch"
      (2021).

    Example:
      >>> n_m(2, 4).name
      '2:4'
    """
    check_size("n", n)
    check_size("m", m)
    if n >= m:
        raise ValueError(f"n must be smaller than m, got {n}:{m}.")

    def runs(axes: Axes, ndim: int) -> list[int]:
        return [a for a in range(ndim) if a not in axes.inputs] + sorted(axes.inputs)

    def groups(path: str, shape: tuple[int, ...], axes: Axes) -> Groups:
        inputs = math.prod(shape[a] for a in axes.inputs)
        if inputs % m:
            raise ValueError(
                f"pattern {n}:{m}: {path!r} with shape {shape} has {inputs} inputs, which {m} does "
                "not divide; leave it dense with prunable=, or choose another pattern."
            )
        return Groups(math.prod(shape) // m, m, 1)

    def gather(values: Array, axes: Axes) -> Array:
        moved = jnp.transpose(values, runs(axes, values.ndim))
        return moved.reshape(*moved.shape[: values.ndim - len(axes.inputs)], -1, m)

    def spread(mask: Array, shape: tuple[int, ...], axes: Axes) -> Array:
        order = runs(axes, len(shape))
        moved = mask.reshape([shape[a] for a in order])
        return jnp.transpose(moved, [order.index(a) for a in range(len(shape))])

    return Pattern(f"{n}:{m}", groups, gather, spread, fixed=n, by_rows=True)


def block(rows: int, columns: int) -> Pattern:
    """Blocks of `rows` inputs times `columns` outputs live or die together.

    Spatial and stacked axes are not joined: a convolution has its own blocks at every kernel
    position.

    Args:
      rows: block size along the (last) input axis, at least 1.
      columns: block size along the (last) output axis, at least 1.

    Raises:
      ValueError: a size below 1; later, a leaf that the blocks do not divide.

    Example:
      >>> block(4, 4).name
      'block:4x4'
    """
    check_size("rows", rows)
    check_size("columns", columns)

    def split(shape: tuple[int, ...], axes: Axes) -> list[int]:
        """The shape with each blocked axis as (blocks, block size)."""
        sizes = {axes.inputs[-1]: rows, axes.outputs[-1]: columns}
        return [n for a, s in enumerate(shape) for n in (s // sizes.get(a, 1), sizes.get(a, 1))]

    def groups(path: str, shape: tuple[int, ...], axes: Axes) -> Groups:
        n_in, n_out = shape[axes.inputs[-1]], shape[axes.outputs[-1]]
        if n_in % rows or n_out % columns:
            raise ValueError(
                f"pattern block:{rows}x{columns}: {path!r} with shape {shape} has {n_in} inputs "
                f"and {n_out} outputs, which the block does not divide; leave it dense with "
                "prunable=, or choose another block."
            )
        return Groups(1, math.prod(shape) // (rows * columns), rows * columns)

    def gather(values: Array, axes: Axes) -> Array:
        inner = tuple(range(1, 2 * values.ndim, 2))
        return jnp.mean(values.reshape(split(values.shape, axes)), inner)

    def spread(mask: Array, shape: tuple[int, ...], axes: Axes) -> Array:
        inner = tuple(range(1, 2 * len(shape), 2))
        return jnp.broadcast_to(jnp.expand_dims(mask, inner), split(shape, axes)).reshape(shape)

    return Pattern(f"block:{rows}x{columns}", groups, gather, spread)


def select(
    pattern: Pattern,
    axes: Axes,
    scores: Array,
    k: int | Array,
    where: Array | None = None,
) -> Array:
    """The mask of the `k` best groups of every row of one leaf.

    Args:
      pattern: which weights live or die together.
      axes: the leaf's axes, for patterns that use them.
      scores: one floating score per weight; a group scores the mean of its weights.
      k: groups to keep per row, one number or one per row; may be traced.
      where: mask of the eligible weights, whole groups at a time.

    Returns:
      A mask of the scores' shape.
    """

    def choose(scores: Array, k: int | Array, where: Array | None) -> Array:
        groups = pattern.gather(scores, axes)
        eligible = None if where is None else group_mask(pattern, axes, where)
        chosen = top_k_mask(groups, k, axis=-1 if pattern.by_rows else None, where=eligible)
        return pattern.spread(chosen, scores.shape, axes)

    return automatic(choose, scores)(scores, k, where)


def grow(pattern: Pattern, axes: Axes, mask: Array, scores: Array, k: int | Array) -> Array:
    """A mask and the `k` best groups off it of every row; arguments as for `select`."""
    if pattern.gather is not unstructured.gather:  # a pattern may be a copy, its functions are not
        return mask | select(pattern, axes, scores, k, ~mask)
    return automatic(grown_mask, mask)(mask, scores, k)


def group_mask(pattern: Pattern, axes: Axes, mask: Array) -> Array:
    """The mask of the groups that are fully alive."""
    if pattern.gather is unstructured.gather:
        return mask
    # A mean of zeros is exactly zero; a mean of ones need not be exactly one.
    return pattern.gather((~mask).astype(jnp.float32), axes) == 0
