"""How the living values are stored in sparse training, and what that training starts from."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse import rules, trees
from jaxsparse.checks import check_number, check_size, traced
from jaxsparse.sparse._flat import Flat
from jaxsparse.sparse._layout import is_compressed
from jaxsparse.sparse._moving import compressed_leaves
from jaxsparse.sparse._states import with_shape
from jaxsparse.sparse._values import values
from jaxsparse.sparse.compression import movable
from jaxsparse.state_tree import has_lost_shape
from jaxsparse.types import Array, AxesSpec, Masks, Params, Rule

COMPRESSED, STATE = "compressed", "compressed_state"


class Storage(NamedTuple):
    """How the living values are stored.

    Attributes:
      format: the format of compressed parameters; None if parameters stay dense and only the state
        of the optimizer is compressed.
      room: the ratio of capacity to what lives at the start, if the counts of the leaves change.
      window: how many steps before a mask update the rule observes; None means as the rule says.
      axes: what the axes of the kernels mean.
      first_value: as for `sparsify`.
      skip_update: likewise.
    """

    format: str | None
    room: float
    window: int | None
    axes: AxesSpec
    first_value: Callable[[Array, Params], Params] | None
    skip_update: bool


def storage_of(
    name: str,
    rule: Rule,
    *,
    room: float,
    window: int | None,
    axes: AxesSpec,
    regrown_state: str,
    first_value: Callable[[Array, Params], Params] | None,
    skip_update: bool,
) -> Storage | None:
    """The storage of a name; None for "masked".

    Raises:
      ValueError: an unknown name, or options that the storage does not support.
    """
    check_number("room", room)
    if room < 1:
        raise ValueError(f"room must be at least 1, the capacity per living weight, got {room}.")
    if window is not None:
        check_size("window", window, 0)
    if name == "masked":
        return None
    kind, _, format = name.partition(":") if isinstance(name, str) else (name, "", "")
    if kind not in (COMPRESSED, STATE) or (kind == STATE and format):
        raise ValueError(
            'storage must be "masked", "compressed" (csr), "compressed:FORMAT" such as '
            f'"compressed:block:32x32", or "compressed_state", got {name!r}.'
        )
    if kind == COMPRESSED:
        format = format or "csr"
        movable(format)
    if regrown_state != "reset":
        raise ValueError(
            f'regrown_state must be "reset" with storage={name!r}, got {regrown_state!r}: the '
            'optimizer keeps no state of dead weights; storage="masked" does.'
        )
    if kind == COMPRESSED and rule.adjust is not None:
        raise ValueError(
            f"storage={name!r} does not support methods that adjust the gradients at every step "
            '(rule.adjust), such as DeepR; use storage="compressed_state" or "masked".'
        )
    return Storage(
        format if kind == COMPRESSED else None, room, window, axes, first_value, skip_update
    )


def start(storage: Storage, rule: Rule, params: Params, masks: Masks) -> tuple[Params, Any]:
    """The living values, and what a state stores instead of masks.

    If parameters stay dense, that is the places of the values, and the masks of dense leaves.
    Compressed parameters hold the places themselves, so the state stores none. If the given
    parameters are still dense, the state holds the compressed ones, for `jaxsparse.init` to take
    out.
    """
    if any(compressed_leaves(params)):
        return values(params), ()
    kernels = _kernels(storage, rule, params, masks)
    if storage.format is not None:
        return values(kernels), kernels
    places = jax.tree.map(
        lambda k, m: k.places if is_compressed(k) else m, kernels, masks, is_leaf=is_compressed
    )
    return values(kernels), places


def regained(rule: Rule, masks: Any, params: Params) -> Any:
    """What a state keeps as masks, with the packed masks and places that `nnx.Optimizer` has turned
    into mappings."""
    if not any(map(has_lost_shape, jax.tree.leaves(masks, is_leaf=has_lost_shape))):
        return masks
    leaves, treedef = jax.tree.flatten(params)

    def leaf(kept: Any, p: Any, used: bool) -> Any:
        if not has_lost_shape(kept):
            return kept
        (array,) = kept.values()
        return with_shape(array, p.shape, dense=not used)

    used = rules.sparse_leaves(rule, params)
    return treedef.unflatten(map(leaf, treedef.flatten_up_to(masks), leaves, used))


def _kernels(storage: Storage, rule: Rule, params: Params, masks: Masks) -> Params:
    """The parameters with a kernel, at free places, for every leaf that may be sparse."""
    used = rules.sparse_leaves(rule, params)
    leaves, treedef = jax.tree.flatten(params)
    found = zip(jax.tree.leaves_with_path(params), jax.tree.leaves(masks), used, strict=True)
    sizes = _capacities(storage, rule, params, masks)
    for i, ((path, leaf), mask, use) in enumerate(found):
        if not use or (rule.fires is None and sizes[i] == leaf.size):
            continue
        if storage.format is None:
            leaves[i] = Flat.from_dense(leaf, mask, capacity=sizes[i])
        else:
            make = movable(storage.format)
            leaves[i] = make(leaf, mask, axes=storage.axes, path=trees.name(path), weights=sizes[i])
    return treedef.unflatten(leaves)


def _capacities(storage: Storage, rule: Rule, params: Params, masks: Masks) -> list[int]:
    """How many weights each leaf has room for."""
    leaves = jax.tree.leaves(params)
    alive = None if rule.alive is None else rule.alive(params, 0)
    drifts = rule.grows and rule.fires is not None and isinstance(alive, int)
    found = jax.tree.leaves(masks)
    if not any(map(traced, found)):
        counts = [int(jnp.sum(mask)) if trees.is_array(mask) else 0 for mask in found]
    elif not rule.grows:
        counts = [leaf.size if trees.is_array(leaf) else 0 for leaf in leaves]
    elif alive is None or drifts or any(map(traced, jax.tree.leaves(alive))):
        raise TypeError(
            "tx.init must not be traced with this storage: how many weights live in every leaf "
            "decides the shapes of the state. Call jaxsparse.init(tx, params) outside of jit."
        )
    else:
        counts = [int(count) for count in jax.tree.leaves(alive)]
    if not drifts:
        return counts
    return [
        min(leaf.size, math.ceil(storage.room * count)) if trees.is_array(leaf) else 0
        for count, leaf in zip(counts, leaves, strict=True)
    ]
