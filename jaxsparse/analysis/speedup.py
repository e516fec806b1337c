"""The speed-up that the sparse momentum paper estimates from densities; nothing here is timed."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsparse import trees
from jaxsparse.axes import all_axes
from jaxsparse.checks import check_number
from jaxsparse.masks import check_masks
from jaxsparse.types import Array, Axes, AxesSpec, Masks


class LayerShares(NamedTuple):
    """The remaining share of one layer's dense cost, in [0, 1].

    Attributes:
      weights: density of the weights times density of the inputs.
      channels: fraction of input channels that some living weight reads, times fraction of the
        channels of an example's input that are not all zero.
    """

    weights: float
    channels: float


class SpeedupEstimate(NamedTuple):
    """Dense cost over estimated sparse cost, by the paper's two ways of counting.

    Attributes:
      weights: if every zero of weights and inputs were skipped.
      channels: if empty input channels were skipped, as dense products over fewer channels can.
      layers: a `LayerShares` for each layer, by path.
    """

    weights: float
    channels: float
    layers: dict[str, LayerShares]


def estimated_speedup(
    dense: Mapping[str, float],
    masks: Masks,
    inputs: Mapping[str, Array] | None = None,
    *,
    axes: AxesSpec = None,
) -> SpeedupEstimate:
    """Sparse momentum's estimate of what skipping zeros would gain in a forward pass.

    `sum_l t_l / sum_l (t_l * a_l * b_l)`, with t_l the cost of dense layer l. For `weights`, a_l
    and b_l are the densities of its weights and its inputs; for `channels`, the fractions of its
    input channels that are not empty, in the weights and in the inputs. This is the paper's
    estimate, not a measurement: it assumes that the time of a layer shrinks as its zeros grow,
    without overhead. Masked arrays take the dense time in any case; only a clock tells what
    another representation gains.

    Args:
      dense: the cost of a forward pass for each dense layer to count, above 0, by the path of its
        weights: published times, times measured by a clock, or FLOPs, such as
        `{path: leaf.dense for path, leaf in flops(...).leaves.items()}`.
      masks: boolean arrays, including those of the layers named in `dense`.
      inputs: what the layers read, by the same paths: arrays of shape (examples, ..., channels).
        A layer without inputs counts as if no input were zero.
      axes: which axes of the weights are inputs; see `jaxsparse.axes.leaf_axes`.

    Returns:
      A `SpeedupEstimate`; infinite if nothing is left to compute.

    Raises:
      ValueError: a path has no mask, a cost is not above 0, inputs are given for a layer that is
        not in `dense` or have another number of channels, or axes are ambiguous.
      TypeError: the masks are not boolean.

    References:
      Dettmers & Zettlemoyer, "Sparse Networks from Scratch" (2019), section 5, and its code.

    Differs from the paper:
      The paper counts convolutions only, timed and averaged over the whole training; here any layer
      counts, with the given cost, at one moment.

    Example:
      >>> import jax.numpy as jnp
      >>> mask = jnp.array([[True, True], [True, False], [False, False], [False, False]])
      >>> x = jnp.array([[1.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]])
      >>> found = estimated_speedup({"kernel": 2.0}, {"kernel": mask}, {"kernel": x})
      >>> found.layers["kernel"]
      LayerShares(weights=0.234375, channels=0.3125)
      >>> round(found.weights, 2), found.channels
      (4.27, 3.2)
    """
    check_masks(masks)
    inputs = {} if inputs is None else inputs
    for argument, given in (("dense", dense), ("inputs", inputs)):
        if not isinstance(given, Mapping):
            raise TypeError(f"{argument} must be a mapping by path, got {given!r}.")
    if not dense:
        raise ValueError("dense must hold the cost of at least one layer, got none.")
    known = {
        trees.name(path): mask
        for path, mask in jax.tree.leaves_with_path(masks)
        if trees.is_array(mask)
    }
    for path in inputs:
        if path not in dense:
            raise ValueError(f"inputs: {path!r} is not in dense, which has {', '.join(dense)}.")
    for path, cost in dense.items():
        if path not in known:
            raise ValueError(f"dense: {path!r} has no mask; masks has {', '.join(known)}.")
        check_number(f"dense: the cost of {path!r}", cost, above=True)
    named = all_axes(axes, {path: known[path] for path in dense})
    layers = {
        path: _shares(path, np.asarray(known[path]), inputs.get(path), named[path])
        for path in dense
    }
    return SpeedupEstimate(
        _ratio(dense, {path: share.weights for path, share in layers.items()}),
        _ratio(dense, {path: share.channels for path, share in layers.items()}),
        layers,
    )


def _shares(path: str, mask: np.ndarray, x: Any, named: Axes) -> LayerShares:
    others = tuple(a for a in range(mask.ndim) if a not in named.inputs + named.stacked)
    weights, read = mask.mean(), mask.any(others).mean()
    if x is None:
        return LayerShares(float(weights), float(read))
    x, channels = np.asarray(x) != 0, math.prod(mask.shape[a] for a in named.inputs)
    if x.ndim < 2 or x.shape[-1] != channels:
        raise ValueError(
            f"inputs: {path!r} reads {channels} channels, so its inputs must have shape "
            f"(examples, ..., {channels}), got {x.shape}."
        )
    filled = x.any(tuple(range(1, x.ndim - 1)))
    return LayerShares(float(weights * x.mean()), float(read * filled.mean()))


def _ratio(dense: Mapping[str, float], shares: Mapping[str, float]) -> float:
    left = sum(cost * shares[path] for path, cost in dense.items())
    return sum(dense.values()) / left if left else math.inf
