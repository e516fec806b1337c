"""Convolution and pooling in forms that stay fast on a CPU inside a loop.

Inside a network, images are planes, `(channels, height, width, batch)`. With the batch last,
patches are copied in long runs and pooling compares whole vectors; an accelerator's compiler
chooses its own layout, whatever the order of the axes.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

Array = jax.Array
Padding = Literal["SAME", "VALID"]
Form = Literal["patches", "conv"]

PATCH_BYTES = 2**19


def form_on(backend: str) -> Form:
    """The fastest form of a convolution inside a loop: "patches" (slices and one matrix product) or
    "conv" (XLA's own).

    On a CPU, patches in a loop take a fraction of the time of XLA's own convolution called step by
    step: a quarter to a sixth for lenet_5, a third for lenet_5_caffe and resnet_18, two thirds for
    conv_2 (`python -m benchmarks.convolution`). A convolution inside a loop is not an option:
    there, XLA:CPU falls back to a naive one. Accelerators have no such fallback, so they get the
    plain convolution.

    Args:
      backend: what `jax.default_backend()` returns: "cpu", "gpu", "tpu", ...
    """
    return "patches" if backend == "cpu" else "conv"


class Convolution(nnx.Module):
    """A convolution of planes whose parameters do not depend on how it is computed.

    Attributes:
      kernel: `(height, width, in, out)`, as in Flax.
      bias: `(out,)`, or None if a normalization follows.
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        size: int,
        *,
        padding: Padding,
        form: Form,
        kernel_init: nnx.Initializer,
        rngs: nnx.Rngs,
        stride: int = 1,
        use_bias: bool = True,
    ):
        shape = (size, size, features_in, features_out)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(features_out, jnp.float32)) if use_bias else None
        self.padding = padding
        self.form = form
        self.stride = stride

    def __call__(self, planes: Array) -> Array:
        convolve = convolve_patches if self.form == "patches" else convolve_lax
        features = convolve(planes, self.kernel[...], self.padding, self.stride)
        return features if self.bias is None else features + self.bias[:, None, None, None]


def to_planes(images: Array) -> Array:
    """Images `(batch, height, width, channels)` as planes."""
    return images.transpose(3, 1, 2, 0)


def flatten(planes: Array) -> Array:
    """Planes as rows `(batch, features)`, in the order of `(height, width, channels)`."""
    return planes.transpose(3, 1, 2, 0).reshape(planes.shape[-1], -1)


def pixel_mean(planes: Array) -> Array:
    """The mean over all pixels, `(batch, channels)`."""
    return planes.mean((1, 2)).T


def convolve_lax(planes: Array, kernel: Array, padding: Padding, stride: int = 1) -> Array:
    """XLA's own convolution of planes with `(height, width, in, out)`."""
    return jax.lax.conv_general_dilated(
        planes, kernel, (stride, stride), padding, dimension_numbers=("CHWN", "HWIO", "CHWN")
    )


def convolve_patches(planes: Array, kernel: Array, padding: Padding, stride: int = 1) -> Array:
    """The same convolution by slices, placed side by side, and matrix products.

    XLA:CPU runs this fast inside a loop, where a convolution falls back to a naive one. It
    processes as many rows at a time as fit into `PATCH_BYTES`, so that patches stay in the cache;
    none are kept for the backward pass. That pass may itself be differentiated, forward (`jax.jvp`)
    or backward.
    """
    if padding == "SAME":
        height, width = (
            _same(length, size, stride)
            for length, size in zip(planes.shape[1:3], kernel.shape[:2], strict=True)
        )
        planes = jnp.pad(planes, ((0, 0), height, width, (0, 0)))
    return _convolve(planes, kernel, stride)


def _products(planes: Array, kernel: Array, stride: int) -> Array:
    blocks = _Blocks(planes, kernel, stride)
    matrix = kernel.reshape(-1, blocks.out).T

    def block(index: Array, features: Array) -> Array:
        return blocks.put(features, matrix @ blocks.patches(planes, index), index)

    return blocks.loop(block, jnp.zeros(blocks.shape, planes.dtype))


def _forward(planes: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return _products(planes, kernel, stride), (planes, kernel)


def _backward(stride: int, kept: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    planes, kernel = kept
    blocks = _Blocks(planes, kernel, stride)
    matrix = kernel.reshape(-1, blocks.out)

    def by_planes(index: Array, total: Array) -> Array:
        return blocks.add(total, matrix @ blocks.get(cotangent, index), index)

    def by_kernel(index: Array, total: Array) -> Array:
        return total + blocks.patches(planes, index) @ blocks.get(cotangent, index).T

    # Two loops: one that is not needed, as for the first layer's images, does not run.
    images = blocks.loop(by_planes, jnp.zeros_like(planes))
    return images, blocks.loop(by_kernel, jnp.zeros_like(matrix)).reshape(kernel.shape)


_convolve = jax.custom_vjp(_products, nondiff_argnums=(2,))
_convolve.defvjp(_forward, _backward)


class _Blocks:
    """Rows of a convolution's result, computed together, and the patches that they come from."""

    def __init__(self, planes: Array, kernel: Array, stride: int):
        self.height, self.width, channels, self.out = kernel.shape
        self.stride = stride
        rows = (planes.shape[1] - self.height) // stride + 1
        columns = (planes.shape[2] - self.width) // stride + 1
        batch = planes.shape[3]
        row_bytes = kernel.size // self.out * columns * batch * planes.dtype.itemsize
        fitting = (n for n in range(1, rows + 1) if not rows % n and n * row_bytes <= PATCH_BYTES)
        self.rows = max(fitting, default=1)
        self.count = rows // self.rows
        self.shape = self.out, rows, columns, batch
        self.features = self.out, self.rows, columns, batch
        self.windows = self.height, self.width, channels, self.rows, columns, batch

    def loop(self, body: Callable[[Array, Array], Array], start: Array) -> Array:
        """`body(index, carry)` for each block."""
        return jax.lax.fori_loop(0, self.count, body, start)

    def get(self, features: Array, index: Array) -> Array:
        """One block of the result, as a matrix."""
        block = jax.lax.dynamic_slice_in_dim(features, index * self.rows, self.rows, 1)
        return block.reshape(self.out, -1)

    def put(self, features: Array, matrix: Array, index: Array) -> Array:
        """The result with one block of it written."""
        block = matrix.reshape(self.features)
        return jax.lax.dynamic_update_slice_in_dim(features, block, index * self.rows, 1)

    def patches(self, planes: Array, index: Array) -> Array:
        """What the kernel reads for one block: `(height * width * channels, positions)`."""
        start, length = self._reach(index)
        slab = jax.lax.dynamic_slice_in_dim(planes, start, length, 1)
        windows = [slab[:, i : i + h : self.stride, j : j + w : self.stride]
                   for i, j, h, w in self._offsets()]  # fmt: skip
        return jnp.stack(windows).reshape(len(windows) * len(planes), -1)

    def add(self, planes: Array, patches: Array, index: Array) -> Array:
        """The transpose of `patches`: adds every patch where it was taken from."""
        start, length = self._reach(index)
        slab = jax.lax.dynamic_slice_in_dim(planes, start, length, 1)
        apart = (0, 0, self.stride - 1)
        config = ((0, 0, 0), apart, apart, (0, 0, 0))
        patches = patches.reshape(self.windows)
        for i, j, h, w in self._offsets():
            window = jax.lax.pad(patches[i, j], jnp.zeros((), patches.dtype), config)
            slab = slab.at[:, i : i + h, j : j + w].add(window)
        return jax.lax.dynamic_update_slice_in_dim(planes, slab, start, 1)

    def _reach(self, index: Array) -> tuple[Array, int]:
        # The rows of the planes under one block: the first one, and how many.
        return index * self.rows * self.stride, (self.rows - 1) * self.stride + self.height

    def _offsets(self) -> list[tuple[int, int, int, int]]:
        # For each weight of the kernel: the first row and column it reads, and how far it reaches.
        h, w = ((n - 1) * self.stride + 1 for n in self.features[1:3])
        return [(i, j, h, w) for i in range(self.height) for j in range(self.width)]


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    # The "SAME" padding of XLA: an odd pixel goes to the end.
    missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return missing // 2, missing - missing // 2


def max_pool(planes: Array) -> Array:
    """Maximum over 2x2 squares, stride 2; an odd last row or column is dropped.

    Not `lax.reduce_window`, whose gradient (select and scatter) is slower. Equal maxima share the
    gradient.
    """
    channels, height, width, batch = planes.shape
    rows, columns = height // 2, width // 2
    squares = planes[:, : 2 * rows, : 2 * columns].reshape(channels, rows, 2, columns, 2, batch)
    halves = jnp.maximum(squares[:, :, :, :, 0], squares[:, :, :, :, 1])
    return jnp.maximum(halves[:, :, 0], halves[:, :, 1])
