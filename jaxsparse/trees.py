"""Walking parameter trees: leaf names, which leaves may be sparse, applying and measuring masks."""

import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.types import Array, Key, Masks, Params, Prunable

_DENSE_NAMES = ("bias", "scale", "embedding")


def name(path: tuple[Any, ...]) -> str:
    """A key path as text, such as `"fc1/kernel"`; the `value` of a Flax variable is left out.

    Example:
      >>> import jax
      >>> [(path, _)] = jax.tree.leaves_with_path({"fc1": {"kernel": 0.0}})
      >>> name(path)
      'fc1/kernel'
    """
    keys = list(path)
    if (
        len(keys) > 1
        and isinstance(keys[-1], jax.tree_util.GetAttrKey)
        and keys[-1].name == "value"
    ):
        keys.pop()
    return jax.tree_util.keystr(tuple(keys), simple=True, separator="/")


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array (also an abstract one): everything else passes through."""
    return isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct)


def is_float(leaf: Any) -> bool:
    """Whether a leaf is a real floating array, the only kind that can be sparse."""
    return is_array(leaf) and bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def wide(leaf: Array) -> jnp.dtype:
    """The type in which to add up values of a leaf: float64 for itself, float32 for the rest."""
    return jnp.dtype(jnp.float64 if leaf.dtype == jnp.float64 else jnp.float32)


def as_float(leaf: Array) -> Any:
    """What a filter is asked about a mask: a float of its shape; other arrays are as they are."""
    return jax.ShapeDtypeStruct(leaf.shape, jnp.float32) if leaf.dtype == jnp.bool_ else leaf


def default_prunable(path: str, leaf: Any) -> bool:
    """The default filter: at least two axes longer than 1, and no bias, scale or embedding.

    Example:
      >>> import jax.numpy as jnp
      >>> default_prunable("fc1/kernel", jnp.ones((4, 3))), default_prunable("bias", jnp.ones((4,)))
      (True, False)
    """
    return why_dense(path, leaf) is None


def why_dense(path: str, leaf: Any) -> str | None:
    """Why the default filter leaves a leaf dense, in a few words; None where it may be sparse."""
    if not is_float(leaf):
        return "not a floating array"
    last = path.rsplit("/", 1)[-1]
    if last in _DENSE_NAMES:
        return f"named {last}"
    if sum(size > 1 for size in leaf.shape) < 2:
        return "fewer than two axes"
    return None


def floats(params: Params) -> tuple[list[Array], Callable[[list[Array]], Params]]:
    """The floating leaves, for derivatives, and a function that puts others in their places."""
    leaves, treedef = jax.tree.flatten(params)
    places = [i for i, leaf in enumerate(leaves) if is_float(leaf)]

    def whole(others: list[Array]) -> Params:
        full = dict(enumerate(leaves)) | dict(zip(places, others, strict=True))
        return treedef.unflatten(full.values())

    return [leaves[i] for i in places], whole


def sparse_leaves(params: Params, prunable: Prunable | None) -> list[bool]:
    """One bool per leaf: floating and let through by the filter.

    Raises:
      ValueError: there are array leaves, and the filter lets none of them through.
    """
    prunable = prunable or default_prunable
    found = jax.tree.leaves_with_path(params)
    chosen = [is_float(leaf) and bool(prunable(name(path), leaf)) for path, leaf in found]
    arrays = [name(path) for path, leaf in found if is_array(leaf)]
    if arrays and not any(chosen):
        raise ValueError(
            f"prunable: the filter matches none of the {len(arrays)} array leaves "
            f"({', '.join(arrays[:5])}{', ...' if len(arrays) > 5 else ''}). Only floating arrays "
            "count; pass prunable=lambda path, leaf: ... that is True for the leaves to prune."
        )
    return chosen


def check_same(params: Params, other: Any, what: str, shapes: bool = True) -> list[Any]:
    """The leaves of `other` in the order of the leaves of `params`.

    Raises:
      ValueError: the structures or shapes differ; the first path that differs is named.
    """
    paths = jax.tree.leaves_with_path(params)
    try:
        leaves = jax.tree.structure(params).flatten_up_to(other)
    except (ValueError, TypeError, KeyError) as error:
        names = {name(path) for path, _ in paths}
        others = {name(path) for path, _ in jax.tree.leaves_with_path(other)}
        first = next((n for n in sorted(names ^ others)), None)
        where = f"the first path that differs is {first!r}" if first else str(error)
        raise ValueError(f"{what} must have the structure of the parameters: {where}.") from None
    for (path, leaf), mine in zip(paths, leaves, strict=True):
        if shapes and is_array(leaf) and is_array(mine) and leaf.shape != mine.shape:
            raise ValueError(
                f"{what} at {name(path)!r} has shape {mine.shape}, the parameter {leaf.shape}."
            )
        if shapes and is_array(leaf) and mine is not None and not is_array(mine):
            raise ValueError(f"{what} at {name(path)!r} must be an array, got {mine!r}.")
    return leaves


def map_arrays(function: Callable[..., Any], params: Params, *rest: Any, what: str = "tree") -> Any:
    """Maps over the array leaves, with their `name` first; other leaves pass through."""
    paths, treedef = jax.tree.flatten_with_path(params)
    others = [check_same(params, tree, what) for tree in rest]
    leaves = [
        function(name(path), leaf, *(other[i] for other in others)) if is_array(leaf) else leaf
        for i, (path, leaf) in enumerate(paths)
    ]
    return treedef.unflatten(leaves)


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

    return map_arrays(select, params, masks, what="masks")


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
    size = sum(mask.size for mask in arrays)
    alive = sum(jnp.sum(mask, dtype=jnp.int32).astype(jnp.float32) for mask in arrays)
    return alive / jnp.float32(size)


def sparsity(masks: Masks, prunable: Prunable | None = None) -> Array:
    """The fraction of weights in the prunable leaves that are zero, a float32 scalar in [0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> float(sparsity({"kernel": jnp.array([[True, False], [False, False]])}))
      0.75
    """
    arrays = _counted(masks, prunable)
    size = sum(mask.size for mask in arrays)
    dead = sum(jnp.sum(~mask, dtype=jnp.int32).astype(jnp.float32) for mask in arrays)
    return dead / jnp.float32(size)


def _counted(masks: Masks, prunable: Prunable | None) -> list[Array]:
    prunable = prunable or default_prunable
    found = [
        (name(path), mask) for path, mask in jax.tree.leaves_with_path(masks) if is_array(mask)
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
    both, either = jnp.float32(0), jnp.float32(0)
    for a, b in zip(jax.tree.leaves(masks), check_same(masks, other, "other"), strict=True):
        if is_array(a):
            full = jnp.all(a) & jnp.all(b)
            both += jnp.where(full, 0, jnp.sum(a & b, dtype=jnp.int32)).astype(jnp.float32)
            either += jnp.where(full, 0, jnp.sum(a | b, dtype=jnp.int32)).astype(jnp.float32)
    return jnp.where(either == 0, jnp.float32(1), both / jnp.maximum(either, 1))


def pack(masks: Masks) -> Any:
    """Packs eight masks bits into a byte along the last axis: `(..., n)` -> `(..., ceil(n / 8))`.

    Example:
      >>> import jax.numpy as jnp
      >>> pack(jnp.array([True, False, True])).tolist()
      [160]
    """
    return map_arrays(lambda _, mask: jnp.packbits(jnp.atleast_1d(mask), axis=-1), masks)


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
    bytes_ = check_same(params, packed, "packed", shapes=False)
    return treedef.unflatten(
        bits(name(path), leaf, mine) if is_array(leaf) else leaf
        for (path, leaf), mine in zip(paths, bytes_, strict=True)
    )


def as_key(key: Key) -> Array:
    """A typed random key from a Python int, a typed key or raw key data; traced ones too.

    Raises:
      TypeError: `key` is none of these.
    """
    if isinstance(key, bool) or not isinstance(key, int | np.integer | np.ndarray | jax.Array):
        raise TypeError(
            f"key must be an int, a jax.random.key or raw key data, got {key!r}. "
            "There is no global default key."
        )
    if isinstance(key, int | np.integer):
        return jax.random.key(int(key))
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 0:
        return key
    if key.ndim == 0 and jnp.issubdtype(key.dtype, jnp.integer):
        return jax.random.key(key)
    if key.ndim == 1 and key.dtype == jnp.uint32:
        return jax.random.wrap_key_data(key)
    raise TypeError(f"key must be a single random key, got an array {key.dtype}{key.shape}.")


def leaf_key(key: Array, path: str) -> Array:
    """The random stream of one leaf, folded by its path, whatever its neighbours."""
    return jax.random.fold_in(key, zlib.crc32(path.encode()))
