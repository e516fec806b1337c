"""Compressed kernels as sparse matrices of JAX and of SciPy, and back.

All of them are `(outputs, inputs)`, the order in which csr stores its weights: `matrix @ x` for an
x of `(inputs, batch)` is `(x.T @ kernel).T`. Spatial axes of a convolution are among the inputs.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import sparse as jax_sparse

from jaxsparse.axes import leaf_axes
from jaxsparse.patterns import fan_in
from jaxsparse.sparse import _layout
from jaxsparse.sparse._csr import CSR
from jaxsparse.types import Axes, AxesSpec


def to_bcoo(kernel: Any) -> jax_sparse.BCOO:
    """A compressed kernel as coordinates, `jax.experimental.sparse.BCOO`.

    Args:
      kernel: of any format.

    Returns:
      `(outputs, inputs)`, sorted by rows, without duplicate coordinates.

    Raises:
      TypeError: `kernel` is not a compressed kernel, or it is traced.

    Example:
      >>> import jax.numpy as jnp
      >>> kernel = CSR.from_dense(jnp.arange(4.0).reshape(2, 2), jnp.eye(2, dtype=bool))
      >>> matrix = to_bcoo(kernel)
      >>> matrix.data.tolist(), matrix.indices.tolist()
      ([0.0, 3.0], [[0, 0], [1, 1]])
    """
    values, rows, columns, shape = _parts(kernel)
    indices = jnp.asarray(np.stack([rows, columns], -1), jnp.int32)
    return jax_sparse.BCOO(
        (jnp.asarray(values), indices), shape=shape, indices_sorted=True, unique_indices=True
    )


def to_bcsr(kernel: Any) -> jax_sparse.BCSR:
    """A compressed kernel as compressed rows, `jax.experimental.sparse.BCSR`; see `to_bcoo`.

    Example:
      >>> import jax.numpy as jnp
      >>> kernel = CSR.from_dense(jnp.arange(4.0).reshape(2, 2), jnp.eye(2, dtype=bool))
      >>> to_bcsr(kernel).indptr.tolist()
      [0, 1, 2]
    """
    values, rows, columns, shape = _parts(kernel)
    parts = jnp.asarray(values), jnp.asarray(columns, jnp.int32), jnp.asarray(_ends(rows, shape))
    return jax_sparse.BCSR(parts, shape=shape, indices_sorted=True, unique_indices=True)


def to_scipy(kernel: Any) -> Any:
    """A compressed kernel as `scipy.sparse.csr_array`; see `to_bcoo`. It needs SciPy.

    SciPy has no 16-bit floats: a kernel with such values becomes float32.

    Example:
      >>> import jax.numpy as jnp
      >>> kernel = CSR.from_dense(jnp.arange(4.0).reshape(2, 2), jnp.eye(2, dtype=bool))
      >>> to_scipy(kernel).toarray().tolist()
      [[0.0, 0.0], [0.0, 3.0]]
    """
    import scipy.sparse

    values, rows, columns, shape = _parts(kernel)
    values = values if values.dtype.itemsize > 2 else values.astype(np.float32)
    return scipy.sparse.csr_array((values, columns, _ends(rows, shape)), shape=shape)


def from_matrix(
    matrix: Any, *, shape: tuple[int, ...] | None = None, axes: AxesSpec = "flax"
) -> CSR:
    """The kernel of a sparse matrix; all explicitly stored entries live, zeros too.

    Args:
      matrix: `(outputs, inputs)`: BCOO or BCSR without batch or dense axes, or any sparse matrix or
        array of SciPy.
      shape: of the kernel; None for `(inputs, outputs)`.
      axes: what the axes of that shape mean.

    Returns:
      A `CSR` at fixed places.

    Raises:
      TypeError: `matrix` is not such a matrix.
      ValueError: a coordinate occurs twice or is out of range, or the shape does not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> kernel = CSR.from_dense(jnp.arange(6.0).reshape(3, 2), jnp.ones((3, 2), bool))
      >>> from_matrix(to_bcsr(kernel)).to_dense().tolist()
      [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    """
    values, rows, columns = _coordinates(matrix)
    outputs, inputs = matrix.shape
    shape = (inputs, outputs) if shape is None else tuple(shape)
    named = leaf_axes(axes, "kernel", jax.ShapeDtypeStruct(shape, values.dtype))
    if _layout.sizes(shape, named) != (inputs, outputs):
        raise ValueError(f"shape {shape} does not hold {inputs} inputs and {outputs} outputs.")
    for what, found, size in (("row", rows, outputs), ("column", columns, inputs)):
        if found.size and not 0 <= found.min() <= found.max() < size:
            raise ValueError(f"matrix: a {what} is outside the {size} {what}s.")
    flat = rows.astype(np.int64) * inputs + columns
    if len(np.unique(flat)) < len(flat):
        raise ValueError("matrix: a coordinate occurs twice; sum the duplicates first.")
    dense, mask = np.zeros((outputs, inputs), values.dtype), np.zeros((outputs, inputs), bool)
    dense[rows, columns], mask[rows, columns] = values, True
    return CSR.from_dense(*(_unflat(m, shape, named) for m in (dense, mask)), axes=named)


def _parts(kernel: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, int]]:
    """Living values, their rows and columns, sorted, and the shape of the matrix."""
    dense, mask = matrix_of(kernel)
    rows, columns = np.nonzero(mask)
    return dense[rows, columns], rows, columns, dense.shape


def matrix_of(kernel: Any) -> tuple[np.ndarray, np.ndarray]:
    """A compressed kernel as a dense matrix `(outputs, inputs)`, and where its weights live.

    Raises:
      TypeError: `kernel` is not a compressed kernel, or it is traced.
    """
    if not _layout.is_compressed(kernel):
        raise TypeError(
            f"kernel must be compressed, got {type(kernel).__name__}; jaxsparse.sparse.compress "
            "makes compressed kernels of parameters and masks."
        )
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(kernel)):
        raise TypeError("kernel must not be traced: the number of living weights sets the shapes.")
    named = kernel.places.axes
    dense, mask = (_layout.flat(leaf, named).T for leaf in (kernel.to_dense(), kernel.mask))
    return np.asarray(dense), np.asarray(mask)


def _unflat(matrix: np.ndarray, shape: tuple[int, ...], axes: Axes) -> Any:
    return fan_in.spread(jnp.asarray(matrix), shape, axes)


def _ends(rows: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    counts = np.bincount(rows, minlength=shape[0])
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)


def _coordinates(matrix: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, rows and columns."""
    if isinstance(matrix, jax_sparse.BCOO | jax_sparse.BCSR):
        if matrix.n_batch or matrix.n_dense or len(matrix.shape) != 2:
            raise TypeError(f"matrix must have two sparse axes, got {matrix!r}.")
        if isinstance(matrix, jax_sparse.BCOO):
            rows, columns = np.asarray(matrix.indices).T
            # JAX pads with coordinates past the last.
            real = ~((rows == matrix.shape[0]) & (columns == matrix.shape[1]))
            return np.asarray(matrix.data)[real], rows[real], columns[real]
        ends = np.asarray(matrix.indptr)
        rows = np.repeat(np.arange(len(ends) - 1), np.diff(ends))
        return np.asarray(matrix.data)[: ends[-1]], rows, np.asarray(matrix.indices)[: ends[-1]]
    if not hasattr(matrix, "tocoo"):
        raise TypeError(f"matrix must be BCOO, BCSR or of scipy.sparse, got {type(matrix)}.")
    found = matrix.tocoo()
    if len(found.shape) != 2:
        raise TypeError(f"matrix must have two axes, got the shape {found.shape}.")
    return found.data, found.row, found.col
