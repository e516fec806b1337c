"""What the axes of a leaf mean: which are inputs, outputs, stacked layers, or spatial."""

import math
import re
from collections.abc import Mapping
from typing import Any

from jaxsparse import trees
from jaxsparse.checks import check_regexes
from jaxsparse.types import Axes, AxesSpec

_LEADING = {"": (), "_stacked": (0,), "_experts": (0,), "_stacked_experts": (0, 1)}
_ATTENTION = ("qkv", "attention_out", "qkv_stacked", "attention_out_stacked")
_PRESETS = (
    *(order + leading for order in ("flax", "equinox", "torch") for leading in _LEADING),
    *_ATTENTION,
)


def leaf_axes(axes: AxesSpec, path: str, leaf: Any) -> Axes:
    """The axes of one leaf; see `all_axes`.

    Example:
      >>> import jax.numpy as jnp
      >>> leaf_axes(None, "fc1/kernel", jnp.ones((4, 3)))
      Axes(inputs=(0,), outputs=(1,), stacked=())
      >>> leaf_axes("equinox", "w", jnp.ones((4, 3)))
      Axes(inputs=(1,), outputs=(0,), stacked=())
    """
    return all_axes(axes, {path: leaf})[path]


def all_axes(axes: AxesSpec, leaves: Mapping[str, Any]) -> dict[str, Axes]:
    """The axes of every leaf.

    Without `axes`, a `kernel` is read in the layout of Flax and a `weight` (`weight_ih`,
    `in_proj_weight`) in that of Equinox, if the shape is unambiguous: two axes; four axes whose
    window looks like that of a convolution over images; or three or four axes laid out as in the
    kernels `query`, `key`, `value` and `out` of Flax's attention. Anything else is ambiguous: three
    axes can be a 1-D convolution or a stack of layers, four a stack of experts.

    Presets: "flax" `(spatial..., in, out)`; "equinox" and "torch" `(out, in, spatial...)`; each of
    these also with a suffix for leading axes: "_stacked" (layers), "_experts" (experts) or
    "_stacked_experts" (layers, then experts); "qkv" `(in, heads, head size)` and "attention_out"
    `(heads, head size, out)`, both also with "_stacked".

    Args:
      axes: a preset's name, one `Axes`, `{path regex: preset or Axes}`, a function
        `(path, leaf) -> Axes`, or None.
      leaves: arrays, or anything with a shape, keyed by path, such as `"fc1/kernel"`.

    Raises:
      ValueError: leaves are ambiguous (the message has an `axes=` for all of them to paste), an
        axis does not exist or is named twice, or the preset is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> all_axes(None, {"query/kernel": jnp.ones((32, 4, 8))})
      {'query/kernel': Axes(inputs=(0,), outputs=(1, 2), stacked=())}
    """
    check_axes(axes)
    found = {path: _leaf_axes(axes, path, leaf) for path, leaf in leaves.items()}
    known = {path: axes for path, axes in found.items() if axes is not None}
    unknown = {path: tuple(leaf.shape) for path, leaf in leaves.items() if path not in known}
    if unknown:
        raise ValueError(_question(unknown))
    return known


def _leaf_axes(axes: AxesSpec, path: str, leaf: Any) -> Axes | None:
    """The axes of one leaf; None if they are ambiguous."""
    spec, ndim = axes, len(leaf.shape)
    if isinstance(spec, Mapping):
        spec = next((value for regex, value in spec.items() if re.search(regex, path)), None)
    if spec is None:
        spec = _recognized(path, leaf.shape)
        if spec is None and ndim < 2:
            raise ValueError(
                f"axes: {path!r} with shape {leaf.shape} has no axes for both inputs and outputs; "
                "leave it dense with prunable=."
            )
        if spec is None:
            return None
    if isinstance(spec, str):
        spec = _preset(spec, path, ndim)
    elif not isinstance(spec, Axes):
        spec = spec(path, leaf)
        if not isinstance(spec, Axes):
            raise TypeError(f"axes: the function must return Axes for {path!r}, got {spec!r}.")
        check_axes(spec)
    spec = Axes(*(tuple(axis % ndim if -ndim <= axis < ndim else axis for axis in a) for a in spec))
    named = spec.inputs + spec.outputs + spec.stacked
    if any(not 0 <= axis < ndim for axis in named) or len(set(named)) < len(named):
        raise ValueError(f"axes: {spec} does not fit {path!r} with shape {leaf.shape}.")
    if not spec.inputs or not spec.outputs:
        raise ValueError(f"axes: {path!r} needs at least one input and one output axis.")
    return spec


def kernel_axes(axes: AxesSpec, path: str, leaf: Any) -> Axes:
    """The axes of one kernel; as for `leaf_axes`, but without `axes` an ambiguous leaf has those of
    Flax.

    Example:
      >>> import jax.numpy as jnp
      >>> kernel_axes(None, "query/kernel", jnp.ones((32, 4, 8)))
      Axes(inputs=(0,), outputs=(1, 2), stacked=())
      >>> kernel_axes(None, "conv/kernel", jnp.ones((5, 4, 8)))
      Axes(inputs=(1,), outputs=(2,), stacked=())
    """
    if axes is None:
        axes = _recognized(path, tuple(leaf.shape)) or "flax"
    return leaf_axes(axes, path, leaf)


def check_axes(axes: AxesSpec, argument: str = "axes") -> None:
    """Raises for values that could fit no leaf, before any parameters are seen."""
    if axes is None or (callable(axes) and not isinstance(axes, type)):
        return
    if isinstance(axes, Mapping):
        check_regexes(argument, axes)
        for value in axes.values():
            if isinstance(value, Mapping) or value is None or callable(value):
                raise TypeError(f"{argument}: values must be presets or Axes, got {value!r}.")
            check_axes(value, argument)
    elif isinstance(axes, str):
        if axes not in _PRESETS:
            known = ", ".join(_PRESETS)
            raise ValueError(f"{argument}: unknown preset {axes!r}; known presets: {known}.")
    elif not isinstance(axes, Axes):
        raise TypeError(
            f"{argument} must be a preset, Axes, a mapping or a function, got {axes!r}."
        )
    elif not all(
        isinstance(named, tuple | list)
        and all(isinstance(a, int) and not isinstance(a, bool) for a in named)
        for named in axes
    ):
        raise TypeError(
            f"{argument}: inputs, outputs and stacked must be tuples of ints, got {axes}."
        )


def _preset(preset: str, path: str, ndim: int) -> Axes:
    attention = preset in _ATTENTION
    order = preset.removesuffix("_stacked") if attention else preset.split("_")[0]
    stacked = _LEADING[preset.removeprefix(order)]
    first, least = len(stacked), len(stacked) + (3 if attention else 2)
    if ndim < least or (ndim > least and (attention or preset.endswith("_experts"))):
        raise ValueError(f"axes: preset {preset!r} does not fit {path!r} with {ndim} axes.")
    if order == "qkv":
        return Axes((first,), (first + 1, first + 2), stacked)
    if order == "attention_out":
        return Axes((first, first + 1), (first + 2,), stacked)
    if order == "flax":
        return Axes((ndim - 2,), (ndim - 1,), stacked)
    return Axes((first + 1,), (first,), stacked)


def _recognized(path: str, shape: tuple[int, ...]) -> str | None:
    """The preset that the name and the shape indicate; None if they are ambiguous."""
    order = _order(path)
    if order is None:
        return None
    attention = _attention(path, shape)
    if len(shape) == 4 and _is_convolution(order, shape):
        return None if attention else order
    return attention or (order if len(shape) == 2 else None)


def _order(path: str) -> str | None:
    last = trees.parts(path)[-1]
    if last == "kernel":
        return "flax"
    return "equinox" if re.fullmatch(r"(\w+_)?weight(_\w+)?", last) else None


def _attention(path: str, shape: tuple[int, ...]) -> str | None:
    """The preset of a Flax attention kernel: heads times head size is at most the feature count."""
    module = trees.parts(path)[-2:-1]
    if _order(path) != "flax" or len(shape) not in (3, 4):
        return None
    layers, (first, middle, last) = ("_stacked" if len(shape) == 4 else ""), shape[-3:]
    if module in (["query"], ["key"], ["value"]) and 1 < middle and middle * last <= first:
        return f"qkv{layers}"
    if module == ["out"] and 1 < first and first * middle <= last:
        return f"attention_out{layers}"
    return None


def _is_convolution(order: str, shape: tuple[int, ...]) -> bool:
    """A square or odd-sized window that is small or on few channels (images, depthwise).

    A stack has numbers of layers and experts in these axes; they are rarely equal and rarely odd.
    """
    window, channels = (shape[:2], shape[2:]) if order == "flax" else (shape[2:], shape[:2])
    even = window[0] != window[1] and not (window[0] % 2 and window[1] % 2)
    small = max(window) <= 11 and math.prod(window) <= 49
    return not even and (small or min(channels) <= 4)


def _question(unknown: Mapping[str, tuple[int, ...]]) -> str:
    """One message for all ambiguous leaves, with a guess of `axes=` for them."""
    guesses: dict[str, dict[str, str | Axes]] = {}  # paths alike but for numbers share a regex
    for path, shape in unknown.items():
        regex = re.sub(r"\d+", lambda _: r"\d+", re.escape(path))
        guesses.setdefault(regex, {})[path] = _guess(path, shape)
    lines = []
    for regex, paths in guesses.items():
        alike = len(set(paths.values())) == 1
        for path in list(paths)[: 1 if alike else None]:
            guess, shape = paths[path], unknown[path]
            value = f'"{guess}"' if isinstance(guess, str) else f"jaxsparse.{guess}"
            key = f"^{regex if alike else re.escape(path)}$"
            lines.append(f'    r"{key}": {value},  # {shape}: {_reading(guess, path, shape)}')
    told = [f"{path!r} with shape {shape}" for path, shape in unknown.items()]
    more = f" and {len(told) - 5} more" if len(told) > 5 else ""
    return (
        f"axes: cannot tell inputs from outputs of {', '.join(told[:5])}{more}. Pass axes=; this "
        "is a guess, so check it before you paste it:\naxes={\n" + "\n".join(lines) + "\n}\n"
        f"Known presets: {', '.join(_PRESETS)}; or jaxsparse.Axes(inputs, outputs, stacked)."
    )


def _guess(path: str, shape: tuple[int, ...]) -> str | Axes:
    order, ndim, module = _order(path) or "flax", len(shape), trees.parts(path)[-2:-1]
    flax = order == "flax"
    if ndim > 5:
        ends = (ndim - 2,), (ndim - 1,)
        return Axes(*(ends if flax else ends[::-1]), tuple(range(ndim - 2)))
    part = re.fullmatch(r"(q|k|v|query|key|value)(_proj)?|(o|out)(_proj)?", "".join(module))
    if flax and ndim in (3, 4) and part:
        return ("qkv" if part[1] else "attention_out") + ("_stacked" if ndim == 4 else "")
    window = shape[: ndim - 2] if flax else shape[2:]
    if ndim == 2 or (ndim != 4 and all(size % 2 and size <= 11 for size in window)):
        return order
    experts = re.search("expert|moe", path.lower())
    return order + ("_stacked_experts" if ndim == 4 else "_experts" if experts else "_stacked")


def _reading(guess: str | Axes, path: str, shape: tuple[int, ...]) -> str:
    """How a guess reads a shape, in words."""
    found = guess if isinstance(guess, Axes) else _preset(guess, path, len(shape))
    named = {*found.inputs, *found.outputs, *found.stacked}
    rest = [axis for axis in range(len(shape)) if axis not in named]
    kinds = {
        "stacked": found.stacked,
        "spatial": rest,
        "inputs": found.inputs,
        "outputs": found.outputs,
    }
    return ", ".join(
        f"{' x '.join(str(shape[axis]) for axis in axes)} {kind}"
        for kind, axes in kinds.items()
        if axes
    )
