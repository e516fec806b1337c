"""A product of compressed rows in operations of XLA, which every backend and file can hold."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.types import Array


def product(ends: Array, columns: Array, values: Array, x: Array) -> Array:
    """A matrix of compressed rows times a dense `(columns, batch)`.

    Of fixed rows all are made as long as the longest: gather and sum are then one loop, which keeps
    nothing, and nothing is scattered.
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
