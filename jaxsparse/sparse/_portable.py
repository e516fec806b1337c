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
    of = rows(ends, len(columns))
    if few:
        products = values[:, None] * x[columns]
        return jax.ops.segment_sum(products, of, len(ends) - 1, indices_are_sorted=True)
    dense = jnp.zeros((len(ends) - 1, x.shape[0]), values.dtype)
    return dense.at[of, columns].set(values, mode="drop") @ x


def rows(ends: Array, capacity: int) -> Array:
    """The row of each weight; the number of rows where there is no weight.

    Fixed rows are counted here: XLA would fold the constants at compile time, one by one.
    """
    units = len(ends) - 1
    if isinstance(ends, np.ndarray):
        return np.searchsorted(ends[1:], np.arange(capacity), side="right").astype(np.int32)
    begins = jnp.where(ends[:-1] < ends[1:], ends[:-1], capacity)
    numbers = jnp.arange(units, dtype=jnp.int32)
    firsts = jnp.zeros(capacity, jnp.int32).at[begins].set(numbers, mode="drop")
    living = jnp.arange(capacity, dtype=jnp.int32) < ends[-1]
    return jnp.where(living, jax.lax.cummax(firsts), units)


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
