"""Masks as trees: applying, measuring, comparing and packing them."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse import counts, trees
from jaxsparse.recognition import as_float, default_prunable
from jaxsparse.types import Array, Masks, Params, Prunable


def full_mask(leaf: Any) -> Any:
    """The mask of a dense leaf: all True; what is not an array stays what it is."""
    if isinstance(leaf, jax.Array):
        return jnp.ones_like(leaf, dtype=bool)  # sharded as the leaf is
    return jnp.ones(leaf.shape, bool) if trees.is_array(leaf) else leaf


def full_masks(params: Params) -> Masks:
    """Masks in which every weight lives."""
    return jax.tree.map(full_mask, params)


def apply(params: Params, masks: Masks) -> Params:
    """Sets the weights off the masks to exactly zero: `p if mask else 0`.

    Args:
      params: any pytree; leaves that are not arrays pass through, so whole models work.
      masks: boolean arrays in the structure of `params`; None leaves a leaf as it is.

    Returns:
      Parameters of the same structure, types and shapes.

    Raises:
      ValueError: another structure or shape; the first path that differs is named.

    Example:
      >>> import jax.numpy as jnp
      >>> apply({"w": jnp.array([1.0, jnp.inf])}, {"w": jnp.array([True, False])})["w"].tolist()
      [1.0, 0.0]
    """

    def select(_: str, leaf: Array, mask: Array | None) -> Array:
        return leaf if mask is None else jnp.where(mask, leaf, jnp.zeros((), leaf.dtype))

    return trees.map_arrays(select, params, masks, what="masks")


def density(masks: Masks, prunable: Prunable | None = None) -> Array:
    """The fraction of living weights in the prunable leaves together, a float32 scalar in [0, 1].

    Args:
      masks: boolean arrays.
      prunable: `(path, leaf) -> bool`; biases and scales do not count by default. Where it matches
        no leaf, all count.

    Example:
      >>> import jax.numpy as jnp
      >>> masks = {"kernel": jnp.array([[True, False], [False, False]]), "bias": jnp.array([True])}
      >>> float(density(masks))
      0.25
    """
    arrays = _counted(masks, prunable)
    alive = [jnp.sum(mask, dtype=jnp.int32) for mask in arrays]
    return counts.ratio(alive, sum(mask.size for mask in arrays))


def sparsity(masks: Masks, prunable: Prunable | None = None) -> Array:
    """The fraction of weights in the prunable leaves that are zero, a float32 scalar in [0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> float(sparsity({"kernel": jnp.array([[True, False], [False, False]])}))
      0.75
    """
    arrays = _counted(masks, prunable)
    dead = [jnp.sum(~mask, dtype=jnp.int32) for mask in arrays]
    return counts.ratio(dead, sum(mask.size for mask in arrays))


def _counted(masks: Masks, prunable: Prunable | None) -> list[Array]:
    prunable = prunable or default_prunable
    found = [
        (trees.name(path), mask)
        for path, mask in jax.tree.leaves_with_path(masks)
        if trees.is_array(mask)
    ]
    chosen = [mask for path, mask in found if prunable(path, as_float(mask))]
    return chosen or [mask for _, mask in found]


def overlap(masks: Masks, other: Masks) -> Array:
    """The Jaccard overlap of two sets of living weights: |A and B| / |A or B|, in [0, 1].

    Leaves that are alive as a whole in both trees are left out: they say nothing of the masks.

    Raises:
      ValueError: the trees differ; the first path that differs is named.

    Example:
      >>> import jax.numpy as jnp
      >>> float(overlap(jnp.array([True, True, False]), jnp.array([True, False, True])))
      0.3333333432674408
    """
    both, either = [], []
    for a, b in zip(jax.tree.leaves(masks), trees.check_same(masks, other, "other"), strict=True):
        if trees.is_array(a):
            full = jnp.all(a) & jnp.all(b)
            both.append(jnp.where(full, 0, jnp.sum(a & b, dtype=jnp.int32)))
            either.append(jnp.where(full, 0, jnp.sum(a | b, dtype=jnp.int32)))
    return counts.ratio(both, either, empty=1.0)


def pack(masks: Masks) -> Any:
    """Packs eight masks bits into a byte along the last axis: `(..., n)` -> `(..., ceil(n / 8))`.

    Example:
      >>> import jax.numpy as jnp
      >>> pack(jnp.array([True, False, True])).tolist()
      [160]
    """
    return trees.map_arrays(lambda _, mask: jnp.packbits(jnp.atleast_1d(mask), axis=-1), masks)


def unpack(packed: Any, params: Params) -> Masks:
    """Undoes `pack`; `params` gives the shapes.

    Raises:
      ValueError: the packed tree does not fit the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> mask = jnp.array([True, False, True])
      >>> unpack(pack(mask), jnp.ones(3)).tolist()
      [True, False, True]
    """

    def bits(path: str, leaf: Array, bytes_: Array) -> Array:
        shape = leaf.shape or (1,)
        if bytes_.shape != (*shape[:-1], -(-shape[-1] // 8)):
            raise ValueError(f"packed at {path!r} has shape {bytes_.shape}: not masks of {shape}.")
        mask = jnp.unpackbits(bytes_, axis=-1, count=shape[-1]).astype(bool)
        return mask.reshape(leaf.shape)

    paths, treedef = jax.tree.flatten_with_path(params)
    bytes_ = trees.check_same(params, packed, "packed", shapes=False)
    return treedef.unflatten(
        bits(trees.name(path), leaf, mine) if trees.is_array(leaf) else leaf
        for (path, leaf), mine in zip(paths, bytes_, strict=True)
    )
