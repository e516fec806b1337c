"""What the axes of a leaf mean: which are inputs, outputs, stacked layers, or spatial."""

import re
from collections.abc import Mapping
from typing import Any

from jaxsparse.types import Axes, AxesSpec

_PRESETS = ("flax", "equinox", "torch", "flax_stacked", "equinox_stacked", "qkv", "attention_out")


def leaf_axes(axes: AxesSpec, path: str, leaf: Any) -> Axes:
    """The axes of one leaf.

    Without `axes`, a `kernel` is read as Flax writes it, a `weight` as Equinox does, where the
    number of axes leaves no doubt (2, or 4 for a convolution over images). Anything else is
    ambiguous: three axes can be a 1-D convolution, an attention head or a stack of layers.

    Presets: "flax" `(spatial..., in, out)`; "equinox" and "torch" `(out, in, spatial...)`;
    "flax_stacked" and "equinox_stacked" with a leading axis of layers; "qkv"
    `(in, heads, head size)` and "attention_out" `(heads, head size, out)`.

    Args:
      axes: a preset's name, one `Axes`, `{path regex: preset or Axes}`, a function
        `(path, leaf) -> Axes`, or None.
      path: the leaf's path, such as `"fc1/kernel"`.
      leaf: the array, or anything with `ndim`.

    Raises:
      ValueError: the leaf is ambiguous, an axis does not exist or is named twice, or the preset is
        unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> leaf_axes(None, "fc1/kernel", jnp.ones((4, 3)))
      Axes(inputs=(0,), outputs=(1,), stacked=())
      >>> leaf_axes("equinox", "w", jnp.ones((4, 3)))
      Axes(inputs=(1,), outputs=(0,), stacked=())
    """
    spec, ndim = axes, len(leaf.shape)
    if isinstance(spec, Mapping):
        spec = next((value for regex, value in spec.items() if re.search(regex, path)), None)
    if spec is None:
        spec = {"kernel": "flax", "weight": "equinox"}.get(path.rsplit("/", 1)[-1])
        if spec is None or ndim not in (2, 4):
            raise ValueError(
                f"axes: cannot tell inputs from outputs of {path!r} with shape {leaf.shape}; pass "
                f"axes= one of {', '.join(_PRESETS)}, or {{path regex: Axes(inputs, outputs)}}."
            )
    if isinstance(spec, str):
        spec = _preset(spec, path, ndim)
    elif not isinstance(spec, Axes):
        if not callable(spec):
            raise TypeError(f"axes must be a preset, Axes, a mapping or a function, got {spec!r}.")
        spec = spec(path, leaf)
    if not all(isinstance(named, tuple | list) for named in spec):
        raise TypeError(f"axes: inputs, outputs and stacked must be tuples of ints, got {spec}.")
    spec = Axes(*(tuple(axis % ndim if -ndim <= axis < ndim else axis for axis in a) for a in spec))
    named = spec.inputs + spec.outputs + spec.stacked
    if any(not 0 <= axis < ndim for axis in named) or len(set(named)) < len(named):
        raise ValueError(f"axes: {spec} does not fit {path!r} with shape {leaf.shape}.")
    if not spec.inputs or not spec.outputs:
        raise ValueError(f"axes: {path!r} needs at least one input and one output axis.")
    return spec


def _preset(preset: str, path: str, ndim: int) -> Axes:
    if preset not in _PRESETS:
        raise ValueError(f"axes: unknown preset {preset!r}; known are {', '.join(_PRESETS)}.")
    stacked = preset.endswith("_stacked")
    least = {"qkv": 3, "attention_out": 3}.get(preset, 3 if stacked else 2)
    if ndim < least or (least == 3 and not stacked and ndim > 3):
        raise ValueError(f"axes: preset {preset!r} does not fit {path!r} with {ndim} axes.")
    if preset == "qkv":
        return Axes((0,), (1, 2))
    if preset == "attention_out":
        return Axes((0, 1), (2,))
    layers = (0,) if stacked else ()
    if preset.startswith("flax"):
        return Axes((ndim - 2,), (ndim - 1,), layers)
    return Axes((1 + stacked,), (0 + stacked,), layers)
