"""What a ticket is compared with: its masks or its initialization, changed in one respect.

masks' = shuffle_masks(key, masks)           the same initialization, other places
params' = apply(init(key), masks)            the same masks, new weights
params' = apply(keep_signs(params, init(key)), masks)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse import prng, trees
from jaxsparse.checks import check_choice, check_number
from jaxsparse.lottery._pruning_levels import prune_to
from jaxsparse.masks import check_masks, living
from jaxsparse.recognition import as_float, filter_of, sparse_leaves
from jaxsparse.scores import random_scores
from jaxsparse.types import Array, Key, Masks, Params, Prunable


def shuffle_masks(
    key: Key, masks: Masks, *, scope: str = "layer", prunable: Prunable | None = None
) -> Masks:
    """The same number of living weights, at random places.

    Args:
      key: an int, a typed key or raw key data; every leaf has its own stream, folded by its path.
      masks: of a ticket.
      scope: "layer" keeps the number of every leaf; "global" keeps only that of all prunable leaves
        together, and so spreads them evenly.
      prunable: `(path, leaf) -> bool`; the other leaves stay as they are.

    Returns:
      Masks of the same structure.

    Raises:
      ValueError: an unknown scope.
      TypeError: masks that are not boolean.

    References:
      Frankle & Carbin (2018), figure 1: random sparse networks.

    Example:
      >>> import jax.numpy as jnp
      >>> masks = {"kernel": jnp.eye(10, dtype=bool)}
      >>> shuffled = shuffle_masks(0, masks)["kernel"]
      >>> int(shuffled.sum()), bool((shuffled == masks["kernel"]).all())
      (10, False)
    """
    check_choice("scope", scope, ("layer", "global"))
    check_masks(masks)
    key = prng.as_key(key)
    if scope == "global":
        like = jax.tree.map(lambda m: m.astype(jnp.float32) if trees.is_array(m) else m, masks)
        chosen = sparse_leaves(like, prunable)
        leaves, treedef = jax.tree.flatten(masks)
        total = sum(living(mask) for mask, use in zip(leaves, chosen, strict=True) if use)
        scores = random_scores(key, like)
        shuffled = prune_to(scores, total, scope="global", prunable=prunable, min_alive=0)
        pairs = zip(leaves, jax.tree.leaves(shuffled), chosen, strict=True)
        return treedef.unflatten(new if use else old for old, new, use in pairs)

    def shuffle(path: str, mask: Array) -> Array:
        flat = jax.random.permutation(prng.leaf_key(key, path), mask.reshape(-1))
        return flat.reshape(mask.shape)

    return _where_prunable(shuffle, masks, prunable)


def invert_masks(masks: Masks, *, prunable: Prunable | None = None) -> Masks:
    """Inverts masks: the weights that the ticket has lost live, and those that it kept are dead.

    Args:
      masks: of a ticket.
      prunable: `(path, leaf) -> bool`; the other leaves stay as they are.

    Raises:
      TypeError: masks that are not boolean.

    Example:
      >>> import jax.numpy as jnp
      >>> invert_masks({"kernel": jnp.eye(2, dtype=bool)})["kernel"].tolist()
      [[False, True], [True, False]]
    """
    check_masks(masks)
    return _where_prunable(lambda _, mask: ~mask, masks, prunable)


def add_noise(
    key: Key, params: Params, sigma: float | Array, *, prunable: Prunable | None = None
) -> Params:
    """The initialization with added Gaussian noise.

    Args:
      key: an int, a typed key or raw key data.
      params: the whole initialization, before masks are applied.
      sigma: standard deviation of the noise as a multiple of the leaf's own, at least 0.
      prunable: `(path, leaf) -> bool`; the other leaves stay as they are.

    Returns:
      Parameters of the same structure; apply the ticket's masks to them.

    Raises:
      ValueError: a negative `sigma`.

    References:
      Frankle & Carbin (2018), appendix F: 0.5, 1, 2 and 3.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"kernel": jnp.array([[1.0, -1.0], [2.0, -2.0]])}
      >>> bool((add_noise(0, params, 0.0)["kernel"] == params["kernel"]).all())
      True
    """
    check_number("sigma", sigma)
    key = prng.as_key(key)

    def noisy(path: str, leaf: Array) -> Array:
        wide = leaf.astype(trees.wide(leaf))
        noise = jax.random.normal(prng.leaf_key(key, path), leaf.shape, wide.dtype)
        return (wide + sigma * jnp.std(wide) * noise).astype(leaf.dtype)

    return _where_prunable(noisy, params, prunable)


def keep_signs(
    params: Params, magnitudes: Params | None = None, *, prunable: Prunable | None = None
) -> Params:
    """The signs of the initialization with other magnitudes.

    Args:
      params: the whole initialization, before masks are applied; a weight of 0 stays 0.
      magnitudes: parameters whose sizes are used, such as another initialization; None gives every
        weight of a leaf the same size, the leaf's standard deviation.
      prunable: `(path, leaf) -> bool`; the other leaves stay as they are.

    Returns:
      Parameters of the same structure; apply the ticket's masks to them.

    Raises:
      ValueError: trees that differ.

    References:
      Zhou et al., "Deconstructing Lottery Tickets: Zeros, Signs, and the Supermask" (2019).

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"kernel": jnp.array([[1.0, -1.0], [2.0, -2.0]])}
      >>> keep_signs(params, {"kernel": jnp.array([[-5.0, 6.0], [7.0, 8.0]])})["kernel"].tolist()
      [[5.0, -6.0], [7.0, -8.0]]
    """

    def constant(_: str, leaf: Array) -> Array:
        deviation = jnp.std(leaf.astype(trees.wide(leaf))).astype(leaf.dtype)
        return jnp.sign(leaf) * deviation

    if magnitudes is None:
        return _where_prunable(constant, params, prunable)

    def sized(_: str, leaf: Array, other: Array) -> Array:
        return jnp.sign(leaf) * jnp.abs(other).astype(leaf.dtype)

    return _where_prunable(sized, params, prunable, magnitudes)


def _where_prunable(
    function: Callable[..., Any], tree: Any, prunable: Prunable | None, *rest: Any
) -> Any:
    # The filter accepts only floating leaves, so it is given masks as if they were floats.
    prunable = filter_of(prunable)

    def leaf(path: str, value: Array, *others: Any) -> Array:
        use = prunable(path, as_float(value))
        return function(path, value, *others) if use else value

    return trees.map_arrays(leaf, tree, *rest, what="magnitudes")
