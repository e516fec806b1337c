"""What a sparse state is, and how it is found in any tree: by what it declares, not by its type."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse import trees
from jaxsparse.meshes import varying_axes
from jaxsparse.types import Array, Masks, Params

FORMAT = 1


class Declared(NamedTuple):
    """What makes a node a sparse state, whatever its type: these fields, perhaps among others.

    A node is a NamedTuple, a dataclass or a mapping. `get_masks`, `set_masks`, `metrics`,
    `density`, `init` and `reset` need no more; `set_masks` with `tx` and `take_over` also need an
    `inner_state`.

    Attributes:
      masks: booleans in the structure of the parameters; dense leaves are all True.
      postponed: int32, steps at which a mask update had to wait for finite scores.
      last_update: int32, the count of the last mask update, -1 before the first.
      churn: float32 in [0, 1], the fraction of living weights that were dead before it.
      sparse: the paths of the leaves that count in a density. If missing or None, they are derived
        from the masks.
    """

    masks: Masks
    postponed: Array
    last_update: Array
    churn: Array
    sparse: tuple[str, ...] | None = None


class SparseState(NamedTuple):
    """The state of `sparsify`: arrays only, so it can be sharded, mapped and checkpointed.

    Attributes:
      version: int32, the format of this state.
      count: int32, updates done so far.
      key: raw data of the random key; the draws of an update use `fold_in(key, count)`.
      masks: booleans in the structure of the parameters; dense leaves are all True. With the
        storage "compressed_state", places instead of masks that have dead weights; with
        "compressed", nothing, because the parameters hold the places.
      inner_state: the state of the inner optimizer.
      rule_state: the state of the rule.
      pending: bool, a mask update is overdue.
      postponed: int32, steps at which a mask update had to wait for finite scores.
      last_update: int32, the count of the last mask update, -1 before the first.
      churn: float32 in [0, 1], the fraction of living weights that were dead before it.
      sparse: the paths of the prunable leaves, those that count in a density. Not an array but part
        of the tree's structure, like the keys of a dict; None if not known.
    """

    version: Array
    count: Array  # type: ignore[assignment]  # a tuple has a method of that name
    key: Array
    masks: Masks
    inner_state: Any
    rule_state: Any
    pending: Array
    postponed: Array
    last_update: Array
    churn: Array
    sparse: tuple[str, ...] | None = None


_STARTING: ContextVar[Masks | None] = ContextVar("starting masks", default=None)


@contextmanager
def starting_from(masks: Masks) -> Iterator[None]:
    """Within this context, the `init` of a sparse algorithm uses these masks instead of its own.

    Masks cannot be passed as an argument, because other transformations may wrap the algorithm.
    """
    token = _STARTING.set(masks)
    try:
        yield
    finally:
        _STARTING.reset(token)


def starting_masks(drawn: Masks) -> Masks:
    """The masks of the context, at the paths of the drawn ones; without one, the drawn ones."""
    masks = _STARTING.get()
    return drawn if masks is None else replaced(drawn, masks)


def replaced(old: Masks, masks: Masks) -> Masks:
    """Other masks in the structure of the old ones, matched by their paths.

    Raises:
      ValueError: a mask is missing or has another shape.
      TypeError: a mask is not a boolean array.
    """
    given = {trees.name(path): mask for path, mask in jax.tree.leaves_with_path(masks)}

    def one(keys: tuple[Any, ...], mask: Any) -> Any:
        path = trees.name(keys)
        new = given.get(path)
        if not trees.is_array(mask):
            return mask
        if new is None:
            raise ValueError(f"masks: the leaf {path!r} has no mask.")
        if not trees.is_array(new):
            raise TypeError(f"masks at {path!r} must be a boolean array, got {new!r}.")
        if trees.boolean(path, new).shape != mask.shape:
            raise ValueError(f"masks at {path!r} has shape {new.shape}, the state {mask.shape}.")
        return new

    return kept_like(old, jax.tree.map_with_path(one, as_masks(old)))


ARRAYS = SparseState._fields[:-1]
_NEEDED = frozenset(Declared._fields) - {"sparse"}
VALUE = "/value"  # how the path of a Flax variable ends in a checkpoint without a template
LOST = {"words": jnp.uint8, "indices": jnp.int32}
"""What is left of a packed mask, or of places, where a framework or a checkpoint without a template
keeps a mapping in their place: one array of this type, without the shape of the mask."""


class _Paths:
    """The paths of the prunable leaves, as tree structure.

    Those of a tree without leaves equal all others, because Optax finds the weight-shaped trees of
    a state by comparing it with the state of such a tree.
    """

    def __init__(self, paths: tuple[str, ...] | None):
        self.paths = paths

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, _Paths):
            return NotImplemented
        return self.paths == other.paths or () in (self.paths, other.paths)

    def __hash__(self) -> int:
        return hash(_Paths)

    def __repr__(self) -> str:
        return f"sparse={self.paths}"


jax.tree_util.register_pytree_with_keys(
    SparseState,
    lambda state: (
        [(jax.tree_util.GetAttrKey(name), getattr(state, name)) for name in ARRAYS],
        _Paths(state.sparse),
    ),
    lambda paths, children: SparseState._make((*children, paths.paths)),
    lambda state: (state[: len(ARRAYS)], _Paths(state.sparse)),
)


def check_copies(params: Params, grads: Params, count: Array) -> None:
    """Raises if parameters or gradients vary over more axes than the state: every device would
    silently choose masks of its own.

    Raises:
      ValueError: a leaf varies over an axis that the state does not vary over.
    """
    known = varying_axes(count)
    for what, tree, hint in (
        (
            "params",
            params,
            "these are shards, and masks are chosen among all weights of a leaf. End the shard_map "
            "before tx.update: under jit, arrays that are sharded over the mesh get the masks that "
            "they would get on one device, and nothing is gathered",
        ),
        ("grads", grads, "average them first: grads = jax.lax.pmean(grads, {axes!r})"),
    ):
        for path, leaf in jax.tree.leaves_with_path(tree):
            if more := varying_axes(leaf) - known:
                axes = tuple(sorted(more))
                raise ValueError(
                    f"{what} at {trees.name(path)!r} vary over {axes} inside shard_map, but the "
                    f"optimizer state does not; {hint.format(axes=axes)}. For independent runs, "
                    "one on each device, let the whole state vary too."
                )


def is_state(node: Any) -> bool:
    """Whether a node is a sparse state: it declares the fields of `Declared`. It is a mapping in an
    `nnx.State`, and in a checkpoint restored without a template."""
    return _NEEDED <= set(_names(node))


def find(tree: Any) -> list[Declared]:
    """What the sparse states declare in any tree, or in an object that has one as `opt_state`."""
    nodes = jax.tree.leaves(getattr(tree, "opt_state", tree), is_leaf=is_state)
    return [
        Declared(**{name: _get(node, name) for name in Declared._fields if name in _names(node)})
        for node in nodes
        if is_state(node)
    ]


def field(node: Any, name: str, asked_by: str) -> Any:
    """A field that a sparse state may have beyond those of `Declared`.

    Raises:
      TypeError: it has no such field.
    """
    if name not in _names(node):
        raise TypeError(
            f"{asked_by} needs a state with the field {name!r}, but {type(node).__name__} has only "
            f"{', '.join(map(str, _names(node)))}."
        )
    return _get(node, name)


def replace(node: Any, **changes: Any) -> Any:
    """A state of the same type with other values in some of its fields."""
    if hasattr(type(node), "_replace"):
        return node._replace(**changes)
    if dataclasses.is_dataclass(type(node)):
        return dataclasses.replace(node, **changes)
    return type(node)({**node, **changes})


def _names(node: Any) -> Collection[Any]:
    if isinstance(node, Mapping):
        return node.keys()
    kind = type(node)
    return getattr(kind, "_fields", getattr(kind, "__dataclass_fields__", ()))


def _get(node: Any, name: str) -> Any:
    return node[name] if isinstance(node, Mapping) else getattr(node, name)


def masks_by_path(states: list[Declared]) -> dict[str, Array]:
    """The masks of all the states; a weight that several of them hold lives if it lives in all.

    Integers instead of booleans are bits or places without a shape: see `lost_shapes`.
    """
    found: dict[str, Array] = {}
    for state in states:
        for path, mask in _own_masks(state).items():
            found[path] = found[path] & mask if path in found else mask
    return found


def lost_shapes(states: list[Declared]) -> bool:
    """Whether masks are bits or places that have lost their shapes."""
    kept = [x for state in states for x in jax.tree.leaves(state.masks, is_leaf=tells_mask)]
    return any(trees.is_array(x) and x.dtype != jnp.bool_ for x in kept)


def has_lost_shape(node: Any) -> bool:
    """Whether a node is what is left of a packed mask, or of places."""
    if not isinstance(node, Mapping) or len(node) != 1:
        return False
    ((name, array),) = node.items()
    return name in LOST and getattr(array, "dtype", None) == LOST[name]


def tells_mask(node: Any) -> bool:
    """Whether a node is not a mask but has one as `.mask`: bits, or places of living weights."""
    return isinstance(getattr(type(node), "mask", None), property)


def as_masks(kept: Any) -> Masks:
    """The boolean masks of a tree, in whatever form a state stores them."""
    return jax.tree.map(lambda x: x.mask if tells_mask(x) else x, kept, is_leaf=tells_mask)


def kept_like(kept: Any, masks: Masks) -> Any:
    """Other masks, in the form in which a state stores its own."""
    return jax.tree.map(
        lambda x, mask: x.like(mask) if tells_mask(x) else mask, kept, masks, is_leaf=tells_mask
    )


def _path(path: str, mask: Array) -> str:
    """The path of the mask that an array belongs to, if that is all that is left of it."""
    lost = next((name for name, kind in LOST.items() if mask.dtype == kind), "")
    return path.removesuffix(f"/{lost}")


def _own_masks(state: Declared) -> dict[str, Array]:
    leaves = jax.tree.leaves_with_path(as_masks(state.masks))
    found = {_path(trees.name(path), mask): mask for path, mask in leaves if trees.is_array(mask)}
    if state.sparse is None and all(path.endswith(VALUE) for path in found):
        return {path.removesuffix(VALUE): mask for path, mask in found.items()}
    return found
