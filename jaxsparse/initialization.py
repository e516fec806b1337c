"""Sparse-aware initialization: every unit is scaled by the weights it really has."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse import trees
from jaxsparse.axes import leaf_axes
from jaxsparse.types import Array, Axes, AxesSpec, Key, Masks, Params, Prunable

Initializer = Callable[..., Array]

_FANS = ("fan_in", "fan_out", "fan_avg", "layer")
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
) -> Params:
    """Draws the living weights anew with variance `scale / max(1, fan)`.

    The fan counts living weights: for "fan_in" the inputs of the weight's target unit, for
    "fan_out" the outputs of its source unit, for "fan_avg" the mean of both; over the spatial axes
    of a kernel the mask is summed. "layer" is the older per-layer variant of Liu et al.: the dense
    fan-in times the density of the layer, one factor for all units.

    Args:
      key: an int, a typed key or raw key data; every leaf has its own stream.
      params: dense leaves are returned as they are.
      masks: boolean arrays in the structure of `params`.
      scale: 2.0 suits ReLU; 1.0 with "fan_avg" and "uniform" is Glorot's.
      fan: "fan_in", "fan_out", "fan_avg" or "layer".
      distribution: "normal"; "uniform" on +-sqrt(3 variance); "truncated_normal", cut off at two
        deviations of the normal it is made from; or "orthogonal", for "fan_in": an orthogonal
        matrix of inputs times outputs under the mask, each unit's living weights scaled to the
        sum of squares `scale`; without dead weights its columns are orthogonal.
      prunable: which leaves are drawn anew; default as for `jaxsparse.prune`.
      axes: which axes are inputs and outputs; see `jaxsparse.axes.leaf_axes`.

    Returns:
      Parameters of the same structure and types, exactly zero off the masks. A unit without
      living weights has nothing to draw.

    Raises:
      ValueError: an argument out of range, trees that differ, or ambiguous axes.

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
    if fan not in _FANS:
        raise ValueError(f"fan must be one of {', '.join(_FANS)}, got {fan!r}.")
    if distribution not in _DISTRIBUTIONS:
        raise ValueError(
            f"distribution must be one of {', '.join(_DISTRIBUTIONS)}, got {distribution!r}."
        )
    if distribution == "orthogonal" and fan != "fan_in":
        raise ValueError(f'distribution="orthogonal" needs fan="fan_in", got {fan!r}.')
    if not isinstance(scale, jax.core.Tracer) and not 0 < scale < math.inf:
        raise ValueError(f"scale must be positive and finite, got {scale}.")
    key = trees.as_key(key)
    chosen = trees.sparse_leaves(params, prunable)

    def draw(path: str, p: Array, mask: Array) -> Array:
        found = leaf_axes(axes, path, p)
        variance = jnp.float32(scale) / jnp.maximum(_fan(mask, found, fan), 1)
        stream, wide = trees.leaf_key(key, path), trees.wide(p)
        if distribution == "orthogonal":
            values = _orthogonal(stream, mask, found, wide) * jnp.sqrt(jnp.asarray(scale, wide))
            return jnp.where(mask, values.astype(p.dtype), jnp.zeros((), p.dtype))
        if distribution == "normal":
            values = jax.random.normal(stream, p.shape, wide)
        elif distribution == "truncated_normal":
            values = jax.random.truncated_normal(stream, -2, 2, p.shape, wide) / _TRUNCATED
        else:
            bound = jnp.sqrt(jnp.asarray(3, wide))
            values = jax.random.uniform(stream, p.shape, wide, -bound, bound)
        values = (values * jnp.sqrt(variance).astype(wide)).astype(p.dtype)
        return jnp.where(mask, values, jnp.zeros((), p.dtype))

    paths, treedef = jax.tree.flatten_with_path(params)
    found = trees.check_same(params, masks, "masks")
    return treedef.unflatten(
        draw(trees.name(path), p, mask) if used and mask is not None else p
        for (path, p), mask, used in zip(paths, found, chosen, strict=True)
    )


def sparse_initializer(
    mask: Array,
    *,
    scale: float = 2.0,
    fan: str = "fan_in",
    distribution: str = "normal",
    axes: AxesSpec = "flax",
) -> Initializer:
    """`sparse_init` of one leaf in the form of `jax.nn.initializers`.

    Args:
      mask: of the leaf.
      scale, fan, distribution: as for `sparse_init`.
      axes: which axes are inputs and outputs; Flax's by default.

    Returns:
      `(key, shape, dtype=float32) -> array`, exactly zero off the mask.

    Raises:
      ValueError: an argument out of range; from the initializer, a shape other than the mask's.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> init = sparse_initializer(jnp.eye(4, dtype=bool))
      >>> int((init(jax.random.key(0), (4, 4)) != 0).sum())
      4
    """

    def init(key: Key, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        if tuple(shape) != mask.shape:
            raise ValueError(f"shape must be the mask's, {mask.shape}, got {tuple(shape)}.")
        options = {"scale": scale, "fan": fan, "distribution": distribution, "axes": axes}
        tree = {"kernel": jnp.zeros(shape, dtype)}
        every = lambda path, leaf: True  # noqa: E731
        return sparse_init(key, tree, {"kernel": mask}, prunable=every, **options)["kernel"]

    return init


def _orthogonal(key: Array, mask: Array, axes: Axes, dtype: Any) -> Array:
    """Columns (outputs) of an orthogonal matrix under the mask, each of length 1."""
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
    living = jnp.where(flat, whole, jnp.zeros((), dtype))
    length = jnp.sqrt(jnp.sum(living**2, 1, keepdims=True))
    unit = living / jnp.where(length > 0, length, jnp.ones((), dtype))
    return jnp.transpose(unit.reshape(moved.shape), np.argsort(order))


def _fan(mask: Array, axes: Axes, fan: str) -> Array:
    """The number of living weights that share a unit with each weight, broadcast to the mask."""
    spatial = tuple(
        a for a in range(mask.ndim) if a not in axes.inputs + axes.outputs + axes.stacked
    )
    alive = mask.astype(jnp.float32)
    if fan == "layer":
        over = axes.inputs + axes.outputs + spatial
        units = math.prod(mask.shape[a] for a in axes.outputs)
        return jnp.sum(alive, over, keepdims=True) / units
    inward = jnp.sum(alive, axes.inputs + spatial, keepdims=True)
    outward = jnp.sum(alive, axes.outputs + spatial, keepdims=True)
    return {"fan_in": inward, "fan_out": outward, "fan_avg": (inward + outward) / 2}[fan]
