"""Deep convolutional networks with batch normalization, for small images."""

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from experiments.common.layers import Convolution, Form, max_pool

Array = jax.Array


class Normalized(nnx.Module):
    """A 3x3 (or 1x1) convolution without bias, then batch normalization."""

    def __init__(
        self, features_in: int, features_out: int, *, size: int = 3, rngs: nnx.Rngs, **common: Any
    ):
        self.conv = Convolution(
            features_in, features_out, size, padding="SAME", use_bias=False, rngs=rngs, **common
        )
        self.norm = nnx.BatchNorm(features_out, momentum=0.9, epsilon=1e-5, rngs=rngs)

    def __call__(self, images: Array, train: bool) -> Array:
        return self.norm(self.conv(images), use_running_average=not train)


class VGG(nnx.Module):
    """Stages of convolutions, 2x2 max pooling between them, the mean over all pixels, one layer.

    References:
      The CIFAR variant of Liu et al., "Rethinking the Value of Network Pruning" (2019).
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        stages: Sequence[Sequence[int]],
        form: Form,
        kernel_init: nnx.Initializer,
        rngs: nnx.Rngs,
    ):
        common = {"form": form, "kernel_init": kernel_init, "rngs": rngs}
        self.stages = tuple(len(stage) for stage in stages)
        index = 0
        for stage in stages:
            for features in stage:
                index += 1
                setattr(self, f"conv{index}", Normalized(channels, features, **common))
                channels = features
        self.head = nnx.Linear(channels, num_classes, kernel_init=kernel_init, rngs=rngs)

    def __call__(
        self, images: Array, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> Array:
        """Logits `(batch, num_classes)` of images `(batch, height, width, channels)`."""
        index = 0
        for stage, convolutions in enumerate(self.stages):
            images = max_pool(images) if stage else images
            for _ in range(convolutions):
                index += 1
                images = nnx.relu(getattr(self, f"conv{index}")(images, train))
        return self.head(images.mean((1, 2)))


class Block(nnx.Module):
    """Two convolutions and a shortcut, which is a 1x1 convolution where shapes change."""

    def __init__(self, features_in: int, features_out: int, *, stride: int, **common: Any):
        self.conv1 = Normalized(features_in, features_out, stride=stride, **common)
        self.conv2 = Normalized(features_out, features_out, **common)
        if stride > 1 or features_in != features_out:
            self.shortcut = Normalized(features_in, features_out, size=1, stride=stride, **common)
        else:
            self.shortcut = None

    def __call__(self, images: Array, train: bool) -> Array:
        out = self.conv2(nnx.relu(self.conv1(images, train)), train)
        return nnx.relu(out + (images if self.shortcut is None else self.shortcut(images, train)))


class ResNet(nnx.Module):
    """A residual network for small images: one convolution, stages of blocks, mean, one layer.

    References:
      He et al., "Deep Residual Learning for Image Recognition" (2016), section 4.2; with 1x1
      convolutions as shortcuts, as Frankle & Carbin (2018), appendix I.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        blocks: Sequence[int],
        features: Sequence[int],
        form: Form,
        kernel_init: nnx.Initializer,
        rngs: nnx.Rngs,
    ):
        common = {"form": form, "kernel_init": kernel_init, "rngs": rngs}
        width = features[0]
        self.conv = Normalized(channels, width, **common)
        self.blocks = sum(blocks)
        index = 0
        for stage, (count, wide) in enumerate(zip(blocks, features, strict=True)):
            for number in range(count):
                index += 1
                stride = 2 if stage and not number else 1
                setattr(self, f"block{index}", Block(width, wide, stride=stride, **common))
                width = wide
        self.head = nnx.Linear(width, num_classes, kernel_init=kernel_init, rngs=rngs)

    def __call__(
        self, images: Array, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> Array:
        """Logits `(batch, num_classes)` of images `(batch, height, width, channels)`."""
        images = nnx.relu(self.conv(images, train))
        for index in range(1, self.blocks + 1):
            images = getattr(self, f"block{index}")(images, train)
        return self.head(images.mean((1, 2)))
