"""Walking parameter trees: names of leaves, kinds of leaves, and trees of one structure."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.types import Array, Params


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


def parts(path: str) -> list[str]:
    """The modules of a leaf and, last, its own name; flat dicts separate them with dots.

    Example:
      >>> parts("encoder.layer.0/attention/kernel")
      ['encoder', 'layer', '0', 'attention', 'kernel']
    """
    return re.split(r"[/.]", path)


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array (also an abstract one): everything else passes through."""
    return isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct)


def is_float(leaf: Any) -> bool:
    """Whether a leaf is a real floating array of 16 bits or more, the only kind that can be sparse.

    With fewer bits, a number is in a storage format, which means nothing without its scale.
    """
    floating = is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)
    return bool(floating) and jnp.finfo(leaf.dtype).bits >= 16


def wide(leaf: Array) -> jnp.dtype:
    """The type in which to add up values of a leaf: float64 for itself, float32 for the rest."""
    return jnp.dtype(jnp.float64 if leaf.dtype == jnp.float64 else jnp.float32)


def check_tree(tree: Any, what: str = "params") -> None:
    """Raises for what is not a tree of arrays at all, such as None, a number or a string."""
    leaf = tree is None or jax.tree.structure(tree) == jax.tree.structure(0)
    if leaf and not is_array(tree):
        raise TypeError(f"{what} must be an array or a pytree of arrays, got {tree!r}.")


def floats(params: Params) -> tuple[list[Array], Callable[[list[Array]], Params]]:
    """The floating leaves, for derivatives, and a function that puts others in their places."""
    check_tree(params)
    leaves, treedef = jax.tree.flatten(params)
    places = [i for i, leaf in enumerate(leaves) if is_float(leaf)]

    def whole(others: list[Array]) -> Params:
        full = dict(enumerate(leaves)) | dict(zip(places, others, strict=True))
        return treedef.unflatten(full.values())

    return [leaves[i] for i in places], whole


def boolean(path: str, mask: Any, what: str = "masks") -> Any:
    """The mask as it is; what is not an array passes (None is a leaf without a mask).

    Raises:
      TypeError: a type other than bool.
    """
    if is_array(mask) and mask.dtype != jnp.bool_:
        hint = "True where a weight is alive"
        if mask.dtype == jnp.uint8:
            hint = "unpack packed masks first: jaxsparse.unpack(packed, params)"
        elif jnp.issubdtype(mask.dtype, jnp.inexact):
            hint = "parameters and scores are not masks; jaxsparse.prune turns scores into masks"
        raise TypeError(f"{what} at {path!r} must be boolean, got {mask.dtype}; {hint}.")
    return mask


def check_same(
    params: Params, other: Any, what: str, shapes: bool = True, first: str = "params"
) -> list[Any]:
    """The leaves of `other` in the order of the leaves of `params`, which messages call `first`.

    Raises:
      ValueError: the structures or shapes differ; the first path that differs is named.
    """
    check_tree(params, first)
    if not (shapes is False and is_array(params)):
        check_tree(other, what)
    paths = jax.tree.leaves_with_path(params)
    try:
        leaves = jax.tree.structure(params).flatten_up_to(other)
    except (ValueError, TypeError, KeyError) as error:
        names = {name(path) for path, _ in paths}
        others = {name(path) for path, _ in jax.tree.leaves_with_path(other)}
        other = next((n for n in sorted(names ^ others)), None)
        where = f"the first path that differs is {other!r}" if other else str(error)
        raise ValueError(f"{what} must have the structure of {first}: {where}.") from None
    for (path, leaf), mine in zip(paths, leaves, strict=True):
        if shapes and is_array(leaf) and is_array(mine) and leaf.shape != mine.shape:
            raise ValueError(
                f"{what} at {name(path)!r} has shape {mine.shape}, {first} has {leaf.shape}."
            )
        if shapes and is_array(leaf) and mine is not None and not is_array(mine):
            raise ValueError(f"{what} at {name(path)!r} must be an array, got {mine!r}.")
    return leaves


def cut(tree: Any, like: Any) -> Any:
    """The tree without the parts for which `like` has a hole: a None, an `optax.MaskedNode` or any
    other node without leaves. A tree of another structure is returned as it is.

    Example:
      >>> cut({"w": 1.0, "act": "relu"}, {"w": True, "act": None})
      {'act': None, 'w': 1.0}
    """
    treedef = jax.tree.structure(like)
    if treedef == jax.tree.structure(tree):
        return tree

    def hole(node: Any) -> bool:
        return not jax.tree.leaves(node)

    try:
        parts = jax.tree.structure(like, is_leaf=hole).flatten_up_to(tree)
    except (ValueError, TypeError, KeyError):
        return tree
    nodes = jax.tree.leaves(like, is_leaf=hole)
    kept = [part for node, part in zip(nodes, parts, strict=True) if not hole(node)]
    return treedef.unflatten(kept)


def map_arrays(
    function: Callable[..., Any],
    params: Params,
    *rest: Any,
    what: str = "tree",
    first: str = "params",
) -> Any:
    """Maps over the array leaves, passing their `name` first; other leaves pass through."""
    check_tree(params, first)
    paths, treedef = jax.tree.flatten_with_path(params)
    others = [check_same(params, tree, what, first=first) for tree in rest]
    leaves = [
        function(name(path), leaf, *(other[i] for other in others)) if is_array(leaf) else leaf
        for i, (path, leaf) in enumerate(paths)
    ]
    return treedef.unflatten(leaves)
