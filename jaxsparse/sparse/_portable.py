"""A product of compressed rows in XLA operations, which every backend and file supports."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.types import Array


def product(ends: Array, columns: Array, values: Array, x: Array) -> Array:
    """A matrix of compressed rows times a dense `(columns, batch)`.

    If the rows are fixed, all are padded to the length of the longest. Gather and sum are then one
    loop, which stores no intermediate result, and nothing is scattered.
    """
    if not isinstance(ends, np.ndarray):
        rows = jnp.searchsorted(ends[1:], jnp.arange(len(columns)), side="right")
        return jax.ops.segment_sum(
            values[:, None] * x[columns], rows, len(ends) - 1, indices_are_sorted=True
        )
    counts = np.diff(ends)
    if not counts.any():
        return jnp.zeros((len(counts), x.shape[1]), x.dtype)
    entries = np.arange(counts.max())
    there = entries < counts[:, None]
    where = np.where(there, ends[:-1, None] + entries, 0)
    padded = jnp.where(there, values[where], jnp.zeros((), values.dtype))
    return jnp.sum(padded[..., None] * x[np.asarray(columns)[where]], 1)
