"""Masks as trees: applying, measuring, comparing and packing them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse import counts, trees
from jaxsparse.meshes import on_one_device
from jaxsparse.packed import PackedMask
from jaxsparse.recognition import as_float, filter_of
from jaxsparse.selection import kernels
from jaxsparse.state_tree import Declared, find, lost_shapes, masks_by_path
from jaxsparse.types import Array, Masks, Params, Prunable


def full_mask(leaf: Any) -> Any:
    """The mask of a dense leaf: all True; what is not an array is returned as it is."""
    if isinstance(leaf, jax.Array):
        return jnp.ones_like(leaf, dtype=bool)  # sharded like the leaf
    return jnp.ones(leaf.shape, bool) if trees.is_array(leaf) else leaf


def full_masks(params: Params) -> Masks:
    """Masks in which every weight lives."""
    return jax.tree.map(full_mask, params)


def check_masks(masks: Masks, what: str = "masks") -> None:
    """Raises unless a tree holds boolean arrays, and no other arrays.

    Raises:
      TypeError: not a tree, no array in it, or an array of another type, whose path is named.
    """
    trees.check_tree(masks, what)
    leaves = jax.tree.leaves(masks)
    if leaves and not any(map(trees.is_array, leaves)):
        raise TypeError(f"{what} must hold boolean arrays, but its leaves are like {leaves[0]!r}.")
    check_boolean(masks, what)


def check_boolean(masks: Masks, what: str) -> None:
    """Raises unless every array of a tree is boolean.

    Raises:
      TypeError: an array of another type, whose path is named.
    """
    for path, mask in jax.tree.leaves_with_path(masks):
        trees.boolean(trees.name(path), mask, what)


def apply(params: Params, masks: Masks) -> Params:
    """Sets the weights off the masks to exactly zero: `p if mask else 0`.

    Args:
      params: any pytree; leaves that are not arrays pass through, so whole models work.
      masks: boolean arrays in the structure of `params`; None leaves a leaf as it is.

    Returns:
      Parameters of the same structure, types and shapes.

    Raises:
      ValueError: another structure or shape; the first path that differs is named.
      TypeError: masks that are not boolean.

    Example:
      >>> import jax.numpy as jnp
      >>> apply({"w": jnp.array([1.0, jnp.inf])}, {"w": jnp.array([True, False])})["w"].tolist()
      [1.0, 0.0]
    """

    def select(path: str, leaf: Array, mask: Array | None) -> Array:
        return leaf if mask is None else _zero_off(leaf, trees.boolean(path, mask))

    return trees.map_arrays(select, params, masks, what="masks")


def zero_dead(tree: Any, masks: Masks, sparse: list[bool]) -> Any:
    """`apply` without its checks, for any tree that fits the masks, such as gradients.

    Args:
      tree: what to set to zero off the masks.
      masks: boolean arrays.
      sparse: one bool per leaf: may it have dead weights? The other leaves cost nothing.
    """

    def select(mask: Any, leaf: Any, used: bool) -> Any:
        return _zero_off(leaf, mask) if used and trees.is_array(leaf) else leaf

    return jax.tree.map(select, masks, tree, jax.tree.unflatten(jax.tree.structure(masks), sparse))


def _zero_off(leaf: Array, mask: Array) -> Array:
    return jnp.where(mask, leaf, jnp.zeros((), leaf.dtype))


def density(masks: Masks, prunable: Prunable | None = None) -> Array:
    """The fraction of living weights in all prunable leaves together, a float32 scalar in [0, 1].

    Args:
      masks: boolean arrays, or an optimizer state that holds them.
      prunable: `(path, leaf) -> bool`: the leaves that count. By default, those that the algorithm
        of the state was given; without a state, all but biases, scales, norms and embeddings. If it
        matches no leaf, all leaves count.

    Raises:
      TypeError: masks that are not boolean.

    Example:
      >>> import jax.numpy as jnp
      >>> masks = {"kernel": jnp.array([[True, False], [False, False]]), "bias": jnp.array([True])}
      >>> float(density(masks))
      0.25
    """
    arrays = _counted(masks, prunable)
    return counts.ratio(list(living_each(arrays)), sum(mask.size for mask in arrays))


def sparsity(masks: Masks, prunable: Prunable | None = None) -> Array:
    """The fraction of weights in the prunable leaves that are zero, a float32 scalar in [0, 1].

    Arguments and errors as for `density`.

    Example:
      >>> import jax.numpy as jnp
      >>> float(sparsity({"kernel": jnp.array([[True, False], [False, False]])}))
      0.75
    """
    arrays = _counted(masks, prunable)
    dead = [living(~mask) for mask in arrays]
    return counts.ratio(dead, sum(mask.size for mask in arrays))


def living(mask: Array) -> Array:
    """How many elements of a mask are True, an int32 scalar.

    >>> int(living(jnp.array([True, False, True])))
    2
    """
    return living_each([mask])[0]


def living_each(
    masks: Sequence[Array | PackedMask], off: Sequence[Array | PackedMask] = ()
) -> Array:
    """How many elements of each mask are True (and False in its partner in `off`, if given), int32
    of shape (masks,).

    Packed masks must be those of sparse leaves, and both masks of a pair must be packed.
    """
    if not masks:
        return jnp.zeros(0, jnp.int32)
    arrays = [mask.words if isinstance(mask, PackedMask) else mask for mask in (*masks, *off)]
    if kernels.exist():
        return (_born_by_kernel if off else _living_by_kernel)(*arrays)
    return (_born if off else _living)(*arrays)


def _living(*masks: Array) -> Array:
    ones = [mask if mask.dtype == bool else jax.lax.population_count(mask) for mask in masks]
    return jnp.stack([jnp.sum(found, dtype=jnp.int32) for found in ones])


def _born(*masks: Array) -> Array:
    half = len(masks) // 2
    return _living(*(a & ~b for a, b in zip(masks[:half], masks[half:], strict=True)))


def _counts(*masks: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((len(masks),), jnp.int32)


_living_by_kernel = on_one_device(kernels.living, _living, _counts)
_born_by_kernel = on_one_device(
    kernels.born, _born, lambda *masks: _counts(*masks[: len(masks) // 2])
)


def _counted(masks: Masks, prunable: Prunable | None) -> list[Array]:
    return list(prunable_masks(masks, prunable).values())


def prunable_masks(masks: Masks, prunable: Prunable | None = None) -> dict[str, Array]:
    """The masks of the leaves that count in a density, by path.

    A state itself says which these are. If it has lost this, because it was restored from a
    checkpoint without a template, the leaves that have dead weights count, as far as can be seen.

    Args:
      masks: boolean arrays, or an optimizer state that holds them.
      prunable: `(path, leaf) -> bool`; None means the state's own choice, or else the default
        filter.

    Returns:
      The masks that the filter accepts; all masks where it accepts none.

    Raises:
      TypeError: masks that are not boolean.
      ValueError: a state whose masks are in compressed parameters, or packed and without shapes.
    """
    states = find(masks)
    if not states:
        check_masks(masks)
        leaves = jax.tree.leaves_with_path(masks)
        found = {trees.name(path): mask for path, mask in leaves if trees.is_array(mask)}
    else:
        found = masks_by_path(states)
        if not found:
            raise ValueError(
                "the masks are not in the state but in the places of compressed parameters: use "
                "jaxsparse.metrics(opt_state, params=params), or jaxsparse.get_masks."
            )
        if lost_shapes(states):
            raise ValueError(
                "the masks are bits or places that have lost their shapes, as in an nnx.Optimizer "
                "and in a checkpoint restored without a template: use "
                "jaxsparse.get_masks(opt_state, params)."
            )
    if states and prunable is None:
        chosen = {path for state in states for path in state.sparse or _with_dead(state)}
    else:
        chosen = _let_through(found, prunable)
    return {path: mask for path, mask in found.items() if path in chosen} or found


def _with_dead(state: Declared) -> set[str]:
    found = masks_by_path([state])
    if any(isinstance(mask, jax.core.Tracer | jax.ShapeDtypeStruct) for mask in found.values()):
        return _let_through(found, None)
    with jax.ensure_compile_time_eval():  # the caller may be traced when the masks are not
        dead = {path for path, mask in found.items() if not jnp.all(mask)}
    return dead or _let_through(found, None)


def _let_through(masks: dict[str, Array], prunable: Prunable | None) -> set[str]:
    prunable = filter_of(prunable)
    return {path for path, mask in masks.items() if prunable(path, as_float(mask))}


def overlap(masks: Masks, other: Masks) -> Array:
    """The Jaccard overlap of two sets of living weights: |A and B| / |A or B|, in [0, 1].

    Leaves that are fully alive in both trees are left out: they say nothing about the masks.

    Raises:
      ValueError: the trees differ; the first path that differs is named.
      TypeError: masks that are not boolean.

    Example:
      >>> import jax.numpy as jnp
      >>> float(overlap(jnp.array([True, True, False]), jnp.array([True, False, True])))
      0.3333333432674408
    """
    both, either = [], []
    check_masks(masks)
    others = trees.check_same(masks, other, "other", first="masks")
    check_masks(other, "other")
    for a, b in zip(jax.tree.leaves(masks), others, strict=True):
        if trees.is_array(a):
            full = jnp.all(a) & jnp.all(b)
            both.append(jnp.where(full, 0, living(a & b)))
            either.append(jnp.where(full, 0, living(a | b)))
    return counts.ratio(both, either, empty=1.0)


def pack(masks: Masks) -> Any:
    """Packs eight mask bits into a byte along the last axis: `(..., n)` -> `(..., ceil(n / 8))`.

    Raises:
      TypeError: masks that are not boolean.

    Example:
      >>> import jax.numpy as jnp
      >>> pack(jnp.array([True, False, True])).tolist()
      [160]
    """
    check_masks(masks)
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
    found = [
        bits(trees.name(path), leaf, mine) if trees.is_array(leaf) else leaf
        for (path, leaf), mine in zip(paths, bytes_, strict=True)
    ]
    return jax.tree.unflatten(treedef, found)
