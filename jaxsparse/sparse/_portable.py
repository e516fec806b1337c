"""A product of compressed rows in XLA operations, which every backend and file supports."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.types import Array

_FEW = 4  # examples; for more, a dense product is faster


def product(ends: Array, columns: Array, values: Array, x: Array) -> Array:
    """A matrix of compressed rows times a dense `(columns, batch)`.

    For a few examples, each weight gathers what it reads. For more, or a symbolic number of them,
    the matrix is made dense first: by the compiler, once, where values and places are constants,
    as in a file.
    """
    few = isinstance(x.shape[1], int) and x.shape[1] <= _FEW
    if few and isinstance(ends, np.ndarray):
        return _padded(ends, np.asarray(columns), values, x)
    library = np if isinstance(ends, np.ndarray) else jnp
    rows = library.searchsorted(ends[1:], library.arange(len(columns)), side="right")
    if few:
        products = values[:, None] * x[columns]
        return jax.ops.segment_sum(products, rows, len(ends) - 1, indices_are_sorted=True)
    dense = jnp.zeros((len(ends) - 1, x.shape[0]), values.dtype)
    return dense.at[rows, columns].set(values, mode="drop") @ x


def _padded(ends: np.ndarray, columns: np.ndarray, values: Array, x: Array) -> Array:
    """With fixed rows, all padded to the length of the longest.

    Gather and sum are then one loop, which stores no intermediate result; nothing is scattered.
    """
    counts = np.diff(ends)
    if not counts.any():
        return jnp.zeros((len(counts), x.shape[1]), x.dtype)
    entries = np.arange(counts.max())
    there = entries < counts[:, None]
    where = np.where(there, ends[:-1, None] + entries, 0)
    padded = jnp.where(there, values[where], jnp.zeros((), values.dtype))
    return jnp.sum(padded[..., None] * x[columns[where]], 1)
