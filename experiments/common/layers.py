"""Convolution and pooling in forms that stay fast on a CPU inside a loop."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

Array = jax.Array
Padding = Literal["SAME", "VALID"]
Form = Literal["patches", "conv"]

PATCH_BYTES = 2**28


class Convolution(nnx.Module):
    """A convolution whose parameters do not depend on how it is computed.

    Attributes:
      kernel: `(height, width, in, out)`, as Flax keeps it.
      bias: `(out,)`, or None where a normalization follows.
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

    def __call__(self, images: Array) -> Array:
        convolve = convolve_patches if self.form == "patches" else convolve_lax
        features = convolve(images, self.kernel[...], self.padding, self.stride)
        return features if self.bias is None else features + self.bias[...]


def convolve_lax(images: Array, kernel: Array, padding: Padding, stride: int = 1) -> Array:
    """XLA's own convolution of `(batch, height, width, in)` with `(height, width, in, out)`."""
    return jax.lax.conv_general_dilated(
        images, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def convolve_patches(images: Array, kernel: Array, padding: Padding, stride: int = 1) -> Array:
    """The same convolution as static slices, laid side by side, and one matrix product.

    This is what XLA:CPU runs fast inside a loop, where a convolution falls back to a naive one. It
    holds `kernel height * kernel width` copies of the images; beyond `PATCH_BYTES` the batch is
    cut up, and the backward pass cuts it up again instead of keeping the copies.
    """
    height, width, _, features_out = kernel.shape
    if padding == "SAME":
        images = jnp.pad(
            images,
            (
                (0, 0),
                _same(images.shape[1], height, stride),
                _same(images.shape[2], width, stride),
                (0, 0),
            ),
        )
    rows = (images.shape[1] - height) // stride + 1
    columns = (images.shape[2] - width) // stride + 1

    def product(images: Array) -> Array:
        slices = [
            images[..., i : i + stride * rows : stride, j : j + stride * columns : stride, :]
            for i in range(height)
            for j in range(width)
        ]
        return jnp.concatenate(slices, axis=-1) @ kernel.reshape(-1, features_out)

    bytes_each = rows * columns * (kernel.size // features_out) * images.dtype.itemsize
    at_once = max(1, PATCH_BYTES // bytes_each)
    if len(images) <= at_once:
        return product(images)
    return jax.lax.map(jax.checkpoint(product), images, batch_size=at_once)


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    # What "SAME" means to XLA: the odd one goes to the end.
    missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return missing // 2, missing - missing // 2


def max_pool(images: Array) -> Array:
    """Maximum over 2x2 squares, stride 2; an odd last row or column is left out.

    A maximum over two axes of a view and not `lax.reduce_window`, whose gradient (select and
    scatter) is slower. Equal maxima share the gradient.
    """
    batch, height, width, channels = images.shape
    rows, columns = height // 2, width // 2
    squares = images[:, : 2 * rows, : 2 * columns]
    return squares.reshape(batch, rows, 2, columns, 2, channels).max((2, 4))
