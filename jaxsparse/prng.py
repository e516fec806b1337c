"""Random keys: every kind that users have, and one stream per leaf."""

import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.types import Array, Key


def as_key(key: Key) -> Array:
    """A typed random key from a Python int, a typed key or raw key data, traced or not.

    Raises:
      TypeError: `key` is none of these.
      ValueError: an int of more than 64 bits.
    """
    if isinstance(key, bool) or not isinstance(key, int | np.integer | np.ndarray | jax.Array):
        raise TypeError(
            f"key must be an int, a jax.random.key or raw key data, got {key!r}. "
            "There is no global default key."
        )
    if isinstance(key, int | np.integer):
        if not -(2**63) <= key < 2**63:
            raise ValueError(f"key must be an int of 64 bits, got {key}.")
        return jax.random.key(int(key))
    scalar = key.ndim == 0
    if isinstance(key, jax.Array) and scalar and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    if scalar and jnp.issubdtype(key.dtype, jnp.integer):
        return jax.random.key(key)
    if key.ndim == 1 and key.dtype == jnp.uint32:
        return jax.random.wrap_key_data(jnp.asarray(key))
    raise TypeError(f"key must be a single random key, got an array {key.dtype}{key.shape}.")


def leaf_key(key: Array, path: str) -> Array:
    """The random stream of one leaf, folded by its path and so independent of the other leaves."""
    return jax.random.fold_in(key, _number(path))


def leaf_keys(key: Array, paths: Sequence[str]) -> Array:
    """The random streams of several leaves, as one array of keys."""
    return jax.vmap(jax.random.fold_in, (None, 0))(
        key, np.array([_number(path) for path in paths], np.uint32)
    )


def _number(path: str) -> int:
    return zlib.crc32(path.encode())
