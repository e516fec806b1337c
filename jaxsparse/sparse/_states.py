"""What sparse states hold with compressed storage: places, or just after init whole kernels."""

from typing import Any

import jax

from jaxsparse import trees
from jaxsparse.packed import PackedMask
from jaxsparse.sparse._flat import FlatPlaces, is_place
from jaxsparse.sparse._layout import is_compressed
from jaxsparse.state_tree import LOST, field, is_state, replace
from jaxsparse.types import Array, Params


def nodes(opt_state: Any) -> list[Any]:
    """The sparse states in a tree, or in an object that has one as `opt_state`."""
    tree = getattr(opt_state, "opt_state", opt_state)
    return [node for node in jax.tree.leaves(tree, is_leaf=is_state) if is_state(node)]


def holds_kernels(opt_state: Any) -> bool:
    """Whether a state was made from dense parameters, and holds the compressed ones."""
    return any(map(_kernels, nodes(opt_state)))


def keeps_places(opt_state: Any) -> bool:
    """Whether a state has its masks as places only: its own, or those of compressed parameters."""
    return any(masks == () or bool(_places(masks)) for masks in map(_masks, nodes(opt_state)))


def own_places(opt_state: Any) -> bool:
    """Whether a state holds the places itself."""
    return any(_places(_masks(node)) for node in nodes(opt_state))


def with_shape(
    array: Array, shape: tuple[int, ...], dense: bool = False
) -> PackedMask | FlatPlaces:
    """The packed mask, or the places, of which only this array is left; see `LOST`.

    Args:
      array: its type tells which of them.
      shape: of the mask.
      dense: as for `PackedMask`.
    """
    if array.dtype == LOST["words"]:
        return PackedMask(array, shape, dense)
    return FlatPlaces(array, shape)


def take_out(params: Params, opt_state: Any) -> tuple[Params, Any]:
    """The compressed parameters that a state holds, and the state without them."""
    found = {path: kernel for node in nodes(opt_state) for path, kernel in _kernels(node).items()}
    params = jax.tree.map_with_path(lambda path, p: found.get(trees.name(path), p), params)

    def emptied(node: Any) -> Any:
        return replace(node, masks=()) if is_state(node) and _kernels(node) else node

    return params, jax.tree.map(emptied, opt_state, is_leaf=is_state)


def _kernels(node: Any) -> dict[str, Any]:
    leaves = jax.tree.leaves_with_path(_masks(node), is_leaf=is_compressed)
    return {trees.name(path): leaf for path, leaf in leaves if is_compressed(leaf)}


def _places(masks: Any) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(masks, is_leaf=is_place) if is_place(leaf)]


def _masks(node: Any) -> Any:
    return field(node, "masks", "a compressed storage")
