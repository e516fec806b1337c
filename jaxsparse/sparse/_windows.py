"""Convolutions of compressed kernels: what a window reads, and its patches where no kernel does."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.types import Array, Axes


class Window(NamedTuple):
    """How a kernel slides over images `(batch, spatial..., inputs)`.

    Attributes:
      sizes: of the window, one a spatial axis.
      strides: pixels from one window to the next.
      pads: pixels before the first.
      units: how far the number of an input of the kernel's matrix moves with each spatial axis, and
        with a channel.
    """

    sizes: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    units: tuple[int, ...] = (1,)

    def numbers(self) -> np.ndarray:
        """As the compiled kernels take it: of two axes size, stride and padding, then units."""
        axes = list(zip(self.sizes, self.strides, self.pads, strict=True))
        missing = 2 - len(axes)
        units = (0,) * missing + self.units
        first = [n for axis in [(1, 1, 0)] * missing + axes for n in axis]
        return np.array([*first, *units], np.int64)


def window(
    shape: tuple[int, ...],
    axes: Axes,
    image: tuple[int, ...],
    strides: Sequence[int] | None,
    padding: Sequence[tuple[int, int]] | None,
) -> tuple[Window, tuple[int, ...]]:
    """The window of a kernel over images of a shape, and the shape of the result.

    Raises:
      ValueError: a kernel without one input axis, one output axis and one or two spatial ones;
        images, strides or a padding that do not fit.
    """
    spatial = [a for a in range(len(shape)) if a not in (*axes.inputs, *axes.outputs)]
    count = len(spatial)
    if len(axes.inputs) != 1 or len(axes.outputs) != 1 or count not in (1, 2):
        raise ValueError(
            "convolve needs a kernel of one input axis, one output axis and one or two spatial "
            f"axes, got the shape {shape} with {axes}."
        )
    channels = shape[axes.inputs[0]]
    if len(image) != count + 2 or image[-1] != channels:
        raise ValueError(
            f"x must be (batch, {count} spatial axes, {channels} inputs of the kernel), got the "
            f"shape {image}."
        )
    strides = (1,) * count if strides is None else tuple(strides)
    padding = ((0, 0),) * count if padding is None else tuple((*pair,) for pair in padding)
    if len(strides) != count or any(s < 1 for s in strides):
        raise ValueError(f"strides must be {count} numbers of at least 1, got {strides}.")
    if len(padding) != count or any(len(p) != 2 or min(p) < 0 for p in padding):
        raise ValueError(
            f"padding must be {count} pairs (before, after) of at least 0, got {padding}."
        )
    sizes = tuple(shape[a] for a in spatial)
    pixels = tuple(
        (n + low + high - size) // stride + 1
        for n, (low, high), size, stride in zip(image[1:-1], padding, sizes, strides, strict=True)
    )
    if min(pixels) < 1:
        raise ValueError(f"x: the window {sizes} does not fit into images of {image[1:-1]}.")
    order = [a for a in range(len(shape)) if a not in axes.outputs]
    units = {a: math.prod(shape[b] for b in order[i + 1 :]) for i, a in enumerate(order)}
    found = Window(
        sizes,
        strides,
        tuple(low for low, _ in padding),
        tuple(units[a] for a in (*spatial, axes.inputs[0])),
    )
    return found, (image[0], *pixels, shape[axes.outputs[0]])


def patches(x: Array, window: Window, pixels: tuple[int, ...]) -> Array:
    """What every window sees: `(batch, *pixels, inputs)`, inputs as the kernel's matrix has them.

    Args:
      x: `(batch, spatial..., channels)`.
      window: over it.
      pixels: of the result.
    """
    reach = [
        (n - 1) * stride + size
        for n, stride, size in zip(pixels, window.strides, window.sizes, strict=True)
    ]
    pads = [
        (low, max(0, n - low - size))
        for low, n, size in zip(window.pads, reach, x.shape[1:], strict=False)
    ]
    x = jnp.pad(x, [(0, 0), *pads, (0, 0)])

    def seen(x: Any, axis: int) -> Any:
        """Adds one axis of taps behind the channels, for the spatial axis."""
        n, stride = pixels[axis], window.strides[axis]
        shifted = [
            jax.lax.slice_in_dim(x, k, k + (n - 1) * stride + 1, stride, axis + 1)
            for k in range(window.sizes[axis])
        ]
        return jnp.stack(shifted, axis=-1)

    for axis in range(len(pixels)):
        x = seen(x, axis)
    # (batch, pixels..., channels, taps of each axis); the larger the unit, the earlier the axis.
    behind = [len(pixels) + 2 + a for a in range(len(pixels))] + [len(pixels) + 1]
    order = sorted(range(len(behind)), key=lambda i: -window.units[i])
    x = x.transpose(*range(len(pixels) + 1), *(behind[i] for i in order))
    return x.reshape(*x.shape[: len(pixels) + 1], -1)
