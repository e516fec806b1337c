"""Sparse-aware initialization: every unit is scaled by the weights that it really has."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse import prng, trees
from jaxsparse.axes import all_axes, leaf_axes
from jaxsparse.checks import check_choice, check_number, check_regexes, check_size
from jaxsparse.masks import check_masks
from jaxsparse.recognition import sparse_leaves
from jaxsparse.types import Array, Axes, AxesSpec, Key, Masks, Params, Prunable

Initializer = Callable[..., Array]

_FANS = ("fan_in", "fan_out", "fan_avg", "layer", "dense")
_DISTRIBUTIONS = ("normal", "uniform", "truncated_normal", "orthogonal")
_TRUNCATED = 0.87962566103423978  # deviation of a standard normal cut off at +-2


def sparse_init(
    key: Key,
    params: Params,
    masks: Masks,
    *,
    scale: float = 2.0,
    fan: str = "fan_in",
    distribution: str = "normal",
    prunable: Prunable | None = None,
    axes: AxesSpec = None,
    groups: int | Mapping[str, int] = 1,
) -> Params:
    """Redraws the living weights with variance `scale / max(1, fan)`.

    The fan counts living weights: for "fan_in" the inputs of the weight's target unit, for
    "fan_out" the outputs of its source unit, for "fan_avg" the mean of both; the mask is summed
    over the spatial axes of a kernel. Two baselines use the same factor for all units of a layer:
    "layer" (Liu et al.), the dense fan-in times the density of the layer; and "dense", the dense
    fan-in, as if there were no mask.

    A unit without living inputs has nothing to draw: it outputs its bias for every input. A leaf
    without any living weight is an error.

    Args:
      key: an int, a typed key or raw key data; every leaf has its own stream.
      params: the parameters; dense leaves are returned as they are.
      masks: boolean arrays in the structure of `params`.
      scale: 2.0 suits ReLU; 1.0 with "fan_avg" and "uniform" is Glorot's.
      fan: "fan_in", "fan_out", "fan_avg", "layer" or "dense".
      distribution: "normal"; "uniform" on +-sqrt(3 variance); "truncated_normal", cut off at two
        standard deviations of the underlying normal; or "orthogonal", for "fan_in": a random matrix
        of inputs times outputs with orthogonal columns (orthogonal rows, if there are more outputs
        than inputs), masked, with each unit's living weights then scaled to the sum of squares
        `scale`. Masking costs exact orthogonality, but not the scale.
      prunable: which leaves are redrawn; default as for `jaxsparse.prune`.
      axes: which axes are inputs and outputs; see `jaxsparse.axes.leaf_axes`.
      groups: the number of groups of grouped convolutions (`feature_group_count`): an int for all
        leaves, or `{path regex: int}`, 1 elsewhere. The outputs of the first group come first, and
        a unit feeds only the outputs of its own group.

    Returns:
      Parameters of the same structure and types, exactly zero off the masks.

    Raises:
      ValueError: an argument out of range, trees that differ, ambiguous axes, groups that do not
        divide the outputs, or a leaf without a living weight (if masks are not traced).
      TypeError: masks that are not boolean.

    References:
      Evci et al., "Gradient Flow in Sparse Neural Networks and How Lottery Tickets Win" (2020),
      section 3; Liu et al., "Rethinking the Value of Network Pruning" (2018) for "layer".

    Example:
      >>> import jax.numpy as jnp, jaxsparse
      >>> params = {"kernel": jnp.ones((400, 300))}
      >>> masks = jaxsparse.random_masks(0, params, 0.9)
      >>> kernel = sparse_init(1, params, masks)["kernel"]
      >>> round(float(jnp.sqrt((kernel**2).sum(0).mean() / 2)), 1)
      1.0
    """
    _check(scale, fan, distribution)
    key = prng.as_key(key)
    chosen = sparse_leaves(params, prunable)
    paths, treedef = jax.tree.flatten_with_path(params)
    names = [trees.name(path) for path, _ in paths]
    grouped = _groups(groups, [name for name, use in zip(names, chosen, strict=True) if use])

    def draw(path: str, p: Array, mask: Array) -> Array:
        found = named[path]
        _check_alive(path, mask)
        by_group, mine = mask, found
        if grouped[path] != 1 and fan != "layer":
            shape, mine = _split(path, p.shape, found, grouped[path])
            by_group = mask.reshape(shape)
        stream, wide = prng.leaf_key(key, path), trees.wide(p)
        if distribution == "orthogonal":
            unit = _orthogonal(stream, by_group, mine, wide).reshape(p.shape)
            values = (unit * jnp.sqrt(jnp.asarray(scale, wide))).astype(p.dtype)
            return jnp.where(mask, values, jnp.zeros((), p.dtype))
        if distribution == "normal":
            values = jax.random.normal(stream, p.shape, wide)
        elif distribution == "truncated_normal":
            values = jax.random.truncated_normal(stream, -2, 2, p.shape, wide) / _TRUNCATED
        else:
            bound = jnp.sqrt(jnp.asarray(3, wide))
            values = jax.random.uniform(stream, p.shape, wide, -bound, bound)
        count = jnp.broadcast_to(_fan(by_group, mine, fan), by_group.shape).reshape(p.shape)
        deviation = jnp.sqrt(jnp.float32(scale) / jnp.maximum(count, 1))
        values = (values * deviation.astype(wide)).astype(p.dtype)
        return jnp.where(mask, values, jnp.zeros((), p.dtype))

    found = trees.check_same(params, masks, "masks")
    check_masks(masks)
    drawn = [used and mask is not None for used, mask in zip(chosen, found, strict=True)]
    leaves = list(zip(names, [p for _, p in paths], found, drawn, strict=True))
    named = all_axes(axes, {name: p for name, p, _, used in leaves if used})
    return treedef.unflatten(draw(*leaf) if used else leaf[1] for *leaf, used in leaves)


def sparse_initializer(
    mask: Array,
    *,
    scale: float = 2.0,
    fan: str = "fan_in",
    distribution: str = "normal",
    axes: AxesSpec = "flax",
    groups: int = 1,
) -> Initializer:
    """`sparse_init` for one leaf, in the form of `jax.nn.initializers`.

    Use it wherever a framework takes an initializer, such as `kernel_init=` of a Flax layer.

    Args:
      mask: the mask of the leaf.
      scale, fan, distribution, groups: as for `sparse_init`.
      axes: which axes are inputs and outputs; Flax's by default.

    Returns:
      `(key, shape, dtype=float32) -> array`, exactly zero off the mask. The shape is the mask's or,
      as Flax requests for attention kernels, that of the matrix of inputs times outputs that it
      flattens to.

    Raises:
      ValueError: an argument out of range, or axes that do not exist; from the initializer, a shape
        that does not fit.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> init = sparse_initializer(jnp.eye(4, dtype=bool))
      >>> int((init(jax.random.key(0), (4, 4)) != 0).sum())
      4
    """
    _check(scale, fan, distribution)
    check_size("groups", groups)
    if not trees.is_array(mask):
        raise TypeError(f"mask must be a boolean array, got {mask!r}.")
    trees.boolean("kernel", mask, "mask")
    found = leaf_axes(axes, "kernel", mask)
    ordered = found.inputs + found.outputs == tuple(range(mask.ndim))
    matrix = tuple(math.prod(mask.shape[a] for a in part) for part in found[:2])

    def init(key: Key, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        if tuple(shape) != mask.shape and not (ordered and tuple(shape) == matrix):
            raise ValueError(f"shape must be the mask's, {mask.shape}, got {tuple(shape)}.")
        drawn = sparse_init(
            key,
            {"kernel": jnp.zeros(mask.shape, dtype)},
            {"kernel": mask},
            scale=scale,
            fan=fan,
            distribution=distribution,
            prunable=lambda path, leaf: True,
            axes=found,
            groups=groups,
        )
        return drawn["kernel"].reshape(shape)

    return init


def _check(scale: float, fan: str, distribution: str) -> None:
    check_choice("fan", fan, _FANS)
    check_choice("distribution", distribution, _DISTRIBUTIONS)
    if distribution == "orthogonal" and fan != "fan_in":
        raise ValueError(f'distribution="orthogonal" needs fan="fan_in", got {fan!r}.')
    check_number("scale", scale, above=True)


def _check_alive(path: str, mask: Array) -> None:
    if isinstance(mask, jax.core.Tracer) or not mask.size:
        return
    with jax.ensure_compile_time_eval():  # the caller may be traced when the mask is not
        alive = bool(jnp.any(mask))
    if not alive:
        raise ValueError(
            f"masks leave no weight of {path!r}, so no signal gets through. Lower its sparsity, or "
            "leave it out with prunable=."
        )


def _groups(groups: int | Mapping[str, int], paths: list[str]) -> dict[str, int]:
    """The number of groups of every leaf that is redrawn."""
    spec = groups if isinstance(groups, Mapping) else {"": groups}
    check_regexes("groups", spec)
    for regex, count in spec.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"groups must be ints of at least 1, got {groups!r}.")
        if paths and not any(re.search(regex, path) for path in paths):
            raise ValueError(f"groups: {regex!r} matches none of {', '.join(paths)}.")
    return {path: next((n for r, n in spec.items() if re.search(r, path)), 1) for path in paths}


def _split(
    path: str, shape: tuple[int, ...], axes: Axes, groups: int
) -> tuple[tuple[int, ...], Axes]:
    """A grouped kernel as a stack of kernels: the first output axis becomes (groups, outputs)."""
    split = axes.outputs[0]
    if shape[split] % groups:
        raise ValueError(
            f"groups: {groups} does not divide the {shape[split]} outputs of {path!r}."
        )

    def moved(axes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(axis + (axis >= split) for axis in axes)

    inputs, outputs, stacked = map(moved, axes)
    shape = (*shape[:split], groups, shape[split] // groups, *shape[split + 1 :])
    return shape, Axes(inputs, outputs, (*stacked, split))


def _orthogonal(key: Array, mask: Array, axes: Axes, dtype: Any) -> Array:
    """Columns (outputs) of an orthogonal matrix, masked and scaled to length 1."""
    order = [*axes.stacked, *[a for a in range(mask.ndim) if a not in axes.outputs + axes.stacked]]
    order += axes.outputs
    stacked = [mask.shape[a] for a in axes.stacked]
    rows = math.prod(
        mask.shape[a] for a in range(mask.ndim) if a not in axes.outputs + axes.stacked
    )
    moved = jnp.transpose(mask, order)
    flat = moved.reshape(math.prod(stacked), rows, -1)
    keys = jax.random.split(key, len(flat))
    draw = jax.nn.initializers.orthogonal()
    whole = jax.vmap(lambda one: draw(one, flat.shape[1:], dtype))(keys)
    alive = jnp.where(flat, whole, jnp.zeros((), dtype))
    length = jnp.sqrt(jnp.sum(alive**2, 1, keepdims=True))
    unit = alive / jnp.where(length > 0, length, jnp.ones((), dtype))
    return jnp.transpose(unit.reshape(moved.shape), np.argsort(order).tolist())


def _fan(mask: Array, axes: Axes, fan: str) -> Array:
    """The number of weights that share a unit with each weight; it broadcasts with the mask."""
    spatial = tuple(
        a for a in range(mask.ndim) if a not in axes.inputs + axes.outputs + axes.stacked
    )
    if fan == "dense":
        return jnp.float32(math.prod(mask.shape[a] for a in axes.inputs + spatial))
    alive = mask.astype(jnp.float32)
    if fan == "layer":
        over = axes.inputs + axes.outputs + spatial
        units = math.prod(mask.shape[a] for a in axes.outputs)
        return jnp.sum(alive, over, keepdims=True) / units
    inward = jnp.sum(alive, axes.inputs + spatial, keepdims=True)
    outward = jnp.sum(alive, axes.outputs + spatial, keepdims=True)
    return {"fan_in": inward, "fan_out": outward, "fan_avg": (inward + outward) / 2}[fan]
