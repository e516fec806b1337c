"""The values of trees with compressed kernels, and such trees made dense again."""

from dataclasses import replace

import jax

from jaxsparse.sparse._layout import is_compressed, map_compressed
from jaxsparse.types import Params


def expand(params: Params) -> Params:
    """The dense parameters again, zero where no weight lives."""
    return map_compressed(lambda kernel: kernel.to_dense(), params)


def values(params: Params) -> Params:
    """The living values in place of compressed leaves, whether places are fixed or free.

    With free places, differentiate and optimize these values: `jax.grad` accepts no integers.

    Example:
      >>> import jax, jax.numpy as jnp, jaxsparse, optax
      >>> from jaxsparse.sparse import compress, free_places
      >>> dense = {"kernel": jnp.arange(16.0).reshape(4, 4)}
      >>> params = free_places(compress(dense, jaxsparse.prune_by_magnitude(dense, 0.75)))
      >>> x, tx = jnp.ones((2, 4)), optax.adam(0.1)
      >>> loss = lambda living: jnp.sum((x @ with_values(params, living)["kernel"]) ** 2)
      >>> living = values(params)
      >>> updates, state = tx.update(jax.grad(loss)(living), tx.init(living), living)
      >>> updates["kernel"].shape
      (4,)
    """
    return map_compressed(lambda kernel: kernel.values, params)


def with_values(params: Params, values: Params) -> Params:
    """Compressed parameters with other living values, at the same places.

    Args:
      params: what `compress` returned; only the places of its compressed leaves are used.
      values: in the structure that `values` returns.
    """
    return jax.tree.map(
        lambda leaf, new: replace(leaf, values=new) if is_compressed(leaf) else new,
        params,
        values,
        is_leaf=is_compressed,
    )
