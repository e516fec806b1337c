"""2:4 as values and two-bit indices: half of the values, and two bits for each."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.axes import leaf_axes
from jaxsparse.patterns import fan_in
from jaxsparse.sparse import _layout
from jaxsparse.types import Array, AxesSpec


class SemiStructured(NamedTuple):
    """A kernel of which two of every four consecutive inputs of an output are kept.

    The matrix is `(outputs, inputs)`: a row is an output, and a group is four neighbours in a row.
    This is the logical layout that sparse tensor cores read. Libraries for them (CUTLASS,
    cuSPARSELt) also interleave the indices for a specific instruction; that is left to them.

    Attributes:
      values: `(outputs, inputs / 2)`: the two of every group, in their order.
      indices: uint8 `(outputs, ceil(inputs / 8))`: for each value its place within its group, 0 to
        3, in two bits; four per byte, the first in the lowest bits.
    """

    values: Array
    indices: Array


def to_2_4(values: Any, mask: Any, *, axes: AxesSpec = "flax") -> SemiStructured:
    """A kernel with a mask of the pattern `n_m(2, 4)` as values and two-bit indices.

    A group with fewer than two living weights is padded with zeros at its first dead places.

    Args:
      values: the kernel, of any floating-point type.
      mask: boolean, of its shape.
      axes: what its axes mean; spatial axes and several inputs count as one axis of inputs.

    Raises:
      ValueError: 4 does not divide the number of inputs, or more than two live in a group.
      TypeError: the mask is not boolean, or is traced.

    Example:
      >>> import jax.numpy as jnp
      >>> mask = jnp.array([[False], [True], [False], [True]])
      >>> found = to_2_4(jnp.arange(4.0).reshape(4, 1), mask)
      >>> found.values.tolist(), found.indices.tolist()  # 0b1101: places 1 and 3
      ([[1.0, 3.0]], [[13]])
    """
    values, mask, named = _layout.checked(values, mask, axes, None, "values")
    if isinstance(values, jax.core.Tracer):
        raise TypeError("values must not be traced: they are checked and packed on the host.")
    matrix, alive = (np.asarray(_layout.flat(leaf, named)).T for leaf in (values, mask))
    rows, columns = matrix.shape
    if columns % 4:
        raise ValueError(f"values have {columns} inputs, which 4 does not divide.")
    alive = alive.reshape(rows, -1, 4)
    if (alive.sum(-1) > 2).any():
        raise ValueError(
            "mask: more than two of four consecutive inputs live; masks with "
            "pattern=jaxsparse.n_m(2, 4) have two."
        )
    # A stable sort puts the living first, in their order, then the first dead places.
    chosen = np.sort(np.argsort(~alive, -1, kind="stable")[..., :2], -1)
    living = np.where(alive, matrix.reshape(alive.shape), np.zeros((), matrix.dtype))
    found = np.take_along_axis(living, chosen, -1).reshape(rows, -1)
    places = chosen.reshape(rows, -1).astype(np.uint8)
    fours = np.pad(places, ((0, 0), (0, -places.shape[1] % 4))).reshape(rows, -1, 4)
    packed = (fours << np.array([0, 2, 4, 6], np.uint8)).sum(-1, dtype=np.uint8)
    return SemiStructured(jnp.asarray(found), jnp.asarray(packed))


def from_2_4(
    kernel: SemiStructured, shape: tuple[int, ...], *, axes: AxesSpec = "flax"
) -> tuple[Array, Array]:
    """The dense kernel, and the mask of its two places per group; the inverse of `to_2_4`.

    Args:
      kernel: values and indices.
      shape: of the kernel.
      axes: what the axes of that shape mean.

    Returns:
      The kernel and its mask, of that shape.

    Raises:
      ValueError: the arrays do not fit the shape, or a group names a place twice.

    Example:
      >>> import jax.numpy as jnp
      >>> small = SemiStructured(jnp.array([[1.0, 3.0]]), jnp.array([[13]], jnp.uint8))
      >>> from_2_4(small, (4, 1))[0].tolist()
      [[0.0], [1.0], [0.0], [3.0]]
    """
    named = leaf_axes(axes, "kernel", jax.ShapeDtypeStruct(shape, kernel.values.dtype))
    inputs, outputs = _layout.sizes(shape, named)
    values, indices = np.asarray(kernel.values), np.asarray(kernel.indices)
    wanted = (outputs, inputs // 2), (outputs, -(-inputs // 8))
    if inputs % 4 or (values.shape, indices.shape) != wanted or indices.dtype != np.uint8:
        raise ValueError(
            f"kernel must have values of {wanted[0]} and uint8 indices of {wanted[1]} for the "
            f"shape {shape}, got {values.shape} and {indices.dtype} {indices.shape}."
        )
    places = indices[..., None] >> np.array([0, 2, 4, 6], np.uint8) & 3
    places = places.reshape(outputs, -1)[:, : inputs // 2].reshape(outputs, -1, 2)
    if (places[..., 0] == places[..., 1]).any():
        raise ValueError("kernel: a group of four names the same place twice.")
    dense = np.zeros((outputs, inputs // 4, 4), values.dtype)
    np.put_along_axis(dense, places, values.reshape(places.shape), -1)
    mask = np.zeros(dense.shape, bool)
    np.put_along_axis(mask, places, True, -1)
    both = (jnp.asarray(leaf.reshape(outputs, inputs)) for leaf in (dense, mask))
    found, alive = (fan_in.spread(leaf, tuple(shape), named) for leaf in both)
    return found, alive
