"""What a ticket is compared with: its masks or its initialization, changed in one respect."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse import trees
from jaxsparse.types import Array, Key, Masks, Prunable


def shuffle_masks(key: Key, masks: Masks, *, prunable: Prunable | None = None) -> Masks:
    """The same number of living weights in every leaf, at random places.

    Args:
      key: an int, a typed key or raw key data; every leaf has its own stream, folded by its path.
      masks: of a ticket.
      prunable: `(path, leaf) -> bool`; the other leaves stay as they are.

    Returns:
      Masks of the same structure.

    Example:
      >>> import jax.numpy as jnp
      >>> masks = {"kernel": jnp.eye(10, dtype=bool)}
      >>> shuffled = shuffle_masks(0, masks)["kernel"]
      >>> int(shuffled.sum()), bool((shuffled == masks["kernel"]).all())
      (10, False)
    """
    key = trees.as_key(key)

    def shuffle(path: str, mask: Array) -> Array:
        return jax.random.permutation(trees.leaf_key(key, path), mask.reshape(-1)).reshape(
            mask.shape
        )

    return _where_prunable(shuffle, masks, prunable)


def _where_prunable(function: Any, tree: Any, prunable: Prunable | None) -> Any:
    # Masks are boolean, so the filter is asked about floats of their shapes.
    prunable = prunable or trees.default_prunable

    def leaf(path: str, value: Array) -> Array:
        like = jax.ShapeDtypeStruct(value.shape, jnp.float32)
        return function(path, value) if prunable(path, like) else value

    return trees.map_arrays(leaf, tree, what="masks")
