"""Convolutions of compressed kernels: what a window reads, and patches where there is no kernel."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxsparse.types import Array, Axes


class Window(NamedTuple):
    """How a kernel slides over images `(batch, spatial..., inputs)`.

    Attributes:
      sizes: of the window, one per spatial axis.
      strides: pixels from one window to the next.
      pads: pixels of padding before the first.
      units: how far the input number in the kernel's matrix advances along each spatial axis, and
        along the channels.
    """

    sizes: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    units: tuple[int, ...] = (1,)

    def numbers(self) -> np.ndarray:
        """As the compiled kernels take it: size, stride and padding of two axes, then units."""
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
      ValueError: the kernel does not have one input axis, one output axis and one or two spatial
        ones; or the images, strides or padding do not fit.
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
    """What every window sees: `(batch, *pixels, inputs)`, inputs ordered as in the kernel's matrix.

    Args:
      x: `(batch, spatial..., channels)`.
      window: over x.
      pixels: spatial shape of the result.
    """
    seen = jnp.stack(_taps(x, window, pixels), axis=-2)
    seen = seen.reshape(*seen.shape[:-2], *window.sizes, x.shape[-1])
    first, order = len(pixels) + 1, _order(window)
    x = seen.transpose(*range(first), *(first + i for i in order))
    return x.reshape(*x.shape[:first], -1)


def gradient(x: Array, g: Array, window: Window) -> Array:
    """The gradient of a whole kernel as a matrix `(inputs, outputs)`, one tap after another.

    Args:
      x: `(batch, spatial..., channels)`.
      g: gradient of the result, `(batch, spatial..., outputs)`.
      window: over x.
    """
    found = [jnp.einsum("...i,...o->io", tap, g) for tap in _taps(x, window, g.shape[1:-1])]
    kernel = jnp.stack(found).reshape(*window.sizes, x.shape[-1], g.shape[-1])
    return kernel.transpose(*_order(window), kernel.ndim - 1).reshape(-1, g.shape[-1])


def _taps(x: Array, window: Window, pixels: tuple[int, ...]) -> list[Array]:
    """The pixels that each tap of a window sees, `(batch, *pixels, channels)`."""
    pads, cuts = [], []
    for low, n, stride, size, have in zip(
        window.pads, pixels, window.strides, window.sizes, x.shape[1:-1], strict=True
    ):
        reach = (n - 1) * stride + 1
        pads.append((low, max(0, reach + size - 1 - low - have)))
        cuts.append([(k, k + reach, stride) for k in range(size)])
    x = jnp.pad(x, [(0, 0), *pads, (0, 0)])
    return [
        x[(slice(None), *(slice(*cut) for cut in chosen))] for chosen in itertools.product(*cuts)
    ]


def _order(window: Window) -> list[int]:
    """The axes of taps and channels in the order of the kernel's matrix: the largest unit first."""
    return sorted(range(len(window.units)), key=lambda i: -window.units[i])
