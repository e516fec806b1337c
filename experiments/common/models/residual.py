"""Residual networks: for small images, for ImageNet's, and wide ones."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.common.models.layers import Convolution, Form, pixel_mean, to_planes
from experiments.common.models.vgg_alexnet import Normalized, batch_norm

Array = jax.Array


class Block(nnx.Module):
    """Two convolutions and a shortcut, which is a 1x1 convolution where shapes change."""

    def __init__(self, features_in: int, features_out: int, *, stride: int, **common: Any):
        self.conv1 = Normalized(features_in, features_out, stride=stride, **common)
        self.conv2 = Normalized(features_out, features_out, **common)
        self.shortcut = _shortcut(features_in, features_out, stride, **common)

    def __call__(self, planes: Array, train: bool) -> Array:
        out = self.conv2(nnx.relu(self.conv1(planes, train)), train)
        return nnx.relu(out + (planes if self.shortcut is None else self.shortcut(planes, train)))


class Bottleneck(nnx.Module):
    """A 3x3 convolution between two of 1x1, a quarter as wide; the stride is in the middle one.

    The shortcut is a 1x1 convolution where shapes change.
    """

    def __init__(self, features_in: int, features_out: int, *, stride: int, **common: Any):
        inside = features_out // 4
        self.conv1 = Normalized(features_in, inside, size=1, **common)
        self.conv2 = Normalized(inside, inside, stride=stride, **common)
        self.conv3 = Normalized(inside, features_out, size=1, **common)
        self.shortcut = _shortcut(features_in, features_out, stride, **common)

    def __call__(self, planes: Array, train: bool) -> Array:
        out = nnx.relu(self.conv1(planes, train))
        out = self.conv3(nnx.relu(self.conv2(out, train)), train)
        return nnx.relu(out + (planes if self.shortcut is None else self.shortcut(planes, train)))


class ResNet(nnx.Module):
    """A residual network: one convolution, stages of blocks, the mean over all pixels, one layer.

    References:
      He et al., "Deep Residual Learning for Image Recognition" (2016): section 4.2 for small
      images, with 1x1 convolutions as shortcuts, as Frankle & Carbin (2018), appendix I; section
      4.1 for ImageNet, with the stride in the 3x3 convolution, as is usual today ("v1.5").
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        blocks: Sequence[int],
        features: Sequence[int],
        imagenet: bool = False,
        form: Form,
        kernel_init: nnx.Initializer,
        rngs: nnx.Rngs,
    ):
        common = {"form": form, "kernel_init": kernel_init, "rngs": rngs}
        self.imagenet = imagenet
        width = 64 if imagenet else features[0]
        first = {"size": 7, "stride": 2} if imagenet else {}
        self.conv = Normalized(input_shape[-1], width, **first, **common)
        self.blocks = sum(blocks)
        block, index = Bottleneck if imagenet else Block, 0
        for stage, (count, wide) in enumerate(zip(blocks, features, strict=True)):
            for number in range(count):
                index += 1
                stride = 2 if stage and not number else 1
                setattr(self, f"block{index}", block(width, wide, stride=stride, **common))
                width = wide
        self.head = nnx.Linear(width, num_classes, kernel_init=kernel_init, rngs=rngs)

    def __call__(
        self, images: Array, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> Array:
        """Logits `(batch, num_classes)` of images `(batch, height, width, channels)`."""
        planes = nnx.relu(self.conv(to_planes(images), train))
        if self.imagenet:
            window, strides = (1, 3, 3, 1), (1, 2, 2, 1)
            planes = jax.lax.reduce_window(planes, -jnp.inf, jax.lax.max, window, strides, "SAME")
        for index in range(1, self.blocks + 1):
            planes = getattr(self, f"block{index}")(planes, train)
        return self.head(pixel_mean(planes))


class WideBlock(nnx.Module):
    """Two convolutions, each after normalization and ReLU, with dropout between them.

    The shortcut is a 1x1 convolution where shapes change; it sees the normalized planes too.
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        *,
        stride: int,
        dropout: float,
        rngs: nnx.Rngs,
        **common: Any,
    ):
        plain = {"padding": "SAME", "use_bias": False, "rngs": rngs} | common
        self.norm1, self.norm2 = batch_norm(features_in, rngs), batch_norm(features_out, rngs)
        self.conv1 = Convolution(features_in, features_out, 3, stride=stride, **plain)
        self.conv2 = Convolution(features_out, features_out, 3, **plain)
        self.dropout = nnx.Dropout(dropout)
        if stride > 1 or features_in != features_out:
            self.shortcut = Convolution(features_in, features_out, 1, stride=stride, **plain)
        else:
            self.shortcut = None

    def __call__(self, planes: Array, train: bool, rngs: nnx.Rngs | None) -> Array:
        ready = nnx.relu(self.norm1(planes, use_running_average=not train))
        out = nnx.relu(self.norm2(self.conv1(ready), use_running_average=not train))
        out = self.conv2(self.dropout(out, deterministic=not train, rngs=rngs))
        return out + (planes if self.shortcut is None else self.shortcut(ready))


class WideResNet(nnx.Module):
    """A wide residual network: one convolution, three stages of blocks, the mean, one layer.

    WRN-d-k has (d - 4) / 6 blocks per stage, with 16k, 32k and 64k features.

    References:
      Zagoruyko & Komodakis, "Wide Residual Networks" (2016).
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        depth: int,
        widen: int,
        dropout: float,
        form: Form,
        kernel_init: nnx.Initializer,
        rngs: nnx.Rngs,
    ):
        common = {"form": form, "kernel_init": kernel_init, "rngs": rngs}
        self.conv = Convolution(input_shape[-1], 16, 3, padding="SAME", use_bias=False, **common)
        count, width, index = (depth - 4) // 6, 16, 0
        for stage in range(3):
            wide = 16 * widen * 2**stage
            for number in range(count):
                index += 1
                stride = 2 if stage and not number else 1
                block = WideBlock(width, wide, stride=stride, dropout=dropout, **common)
                setattr(self, f"block{index}", block)
                width = wide
        self.blocks = index
        self.norm = batch_norm(width, rngs)
        self.head = nnx.Linear(width, num_classes, kernel_init=kernel_init, rngs=rngs)

    def __call__(
        self, images: Array, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> Array:
        """Logits `(batch, num_classes)` of images `(batch, height, width, channels)`."""
        planes = self.conv(to_planes(images))
        for index in range(1, self.blocks + 1):
            planes = getattr(self, f"block{index}")(planes, train, rngs)
        planes = nnx.relu(self.norm(planes, use_running_average=not train))
        return self.head(pixel_mean(planes))


def _shortcut(features_in: int, features_out: int, stride: int, **common: Any) -> Any:
    if stride == 1 and features_in == features_out:
        return None
    return Normalized(features_in, features_out, size=1, stride=stride, **common)
