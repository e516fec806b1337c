"""Deep convolutional networks: VGG and AlexNet, with and without batch normalization."""

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from experiments.common.models.layers import (
    Convolution,
    Form,
    flatten,
    max_pool,
    pixel_mean,
    to_planes,
)

Array = jax.Array
Layer = int | tuple[int, int, int]


def batch_norm(features: int, rngs: nnx.Rngs, axis: int = 0) -> nnx.BatchNorm:
    """Batch normalization as in the papers of these networks; for planes if `axis` is 0."""
    return nnx.BatchNorm(features, axis=axis, momentum=0.9, epsilon=1e-5, rngs=rngs)


class Normalized(nnx.Module):
    """A convolution, 3x3 by default; then batch normalization, or a bias instead."""

    def __init__(
        self,
        features_in: int,
        features_out: int,
        *,
        size: int = 3,
        normalized: bool = True,
        rngs: nnx.Rngs,
        **common: Any,
    ):
        self.conv = Convolution(
            features_in, features_out, size,
            padding="SAME", use_bias=not normalized, rngs=rngs, **common,
        )  # fmt: skip
        self.norm = batch_norm(features_out, rngs) if normalized else None

    def __call__(self, planes: Array, train: bool) -> Array:
        return _normalized(self.norm, self.conv(planes), train)


class NormalizedDense(nnx.Module):
    """A dense layer; then batch normalization, or a bias instead."""

    def __init__(
        self,
        features_in: int,
        features_out: int,
        *,
        normalized: bool = True,
        kernel_init: nnx.Initializer,
        rngs: nnx.Rngs,
    ):
        self.linear = nnx.Linear(
            features_in, features_out, use_bias=not normalized, kernel_init=kernel_init, rngs=rngs
        )
        self.norm = batch_norm(features_out, rngs, axis=-1) if normalized else None

    def __call__(self, features: Array, train: bool) -> Array:
        return _normalized(self.norm, self.linear(features), train)


def _normalized(norm: nnx.BatchNorm | None, features: Array, train: bool) -> Array:
    return features if norm is None else norm(features, use_running_average=not train)


class Stack(nnx.Module):
    """Stages of convolutions, with 2x2 max pooling between them, then dense layers.

    Every layer but the last is followed by ReLU, after batch normalization unless `normalized` is
    False. Without hidden dense layers the head sees the mean over all pixels. The layers are
    `conv1`, ..., `fc1`, ... and `head`.

    References:
      VGG-19: the CIFAR variant of Liu et al., "Rethinking the Value of Network Pruning" (2019).
      AlexNet-s and -b, VGG-16-C, -D and -like: Lee et al., "SNIP" (2019), with batch normalization
      in place of dropout as in Dettmers & Zettlemoyer, "Sparse Networks from Scratch" (2019).

    Differs from the published code:
      Every convolution keeps the size of the image. In the published code, the 11x11 convolution of
      AlexNet is padded by only 2 pixels and the 1x1 of VGG-16-C by 1, which makes the first dense
      layer of the latter four times larger. Biases before a normalization are left out, and VGG's
      dense layers are also normalized before their ReLU.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        stages: Sequence[Sequence[Layer]],
        dense: Sequence[int] = (),
        normalized: bool = True,
        form: Form,
        kernel_init: nnx.Initializer,
        rngs: nnx.Rngs,
    ):
        height, width, channels = input_shape
        common = {"kernel_init": kernel_init, "rngs": rngs}
        hidden = common | {"normalized": normalized}
        self.stages, self.dense = tuple(len(stage) for stage in stages), len(dense)
        index = 0
        for stage, layers in enumerate(stages):
            height, width = (height // 2, width // 2) if stage else (height, width)
            for layer in layers:
                index += 1
                features, size, stride = layer if isinstance(layer, tuple) else (layer, 3, 1)
                made = Normalized(channels, features, size=size, stride=stride, form=form, **hidden)
                setattr(self, f"conv{index}", made)
                height, width, channels = -(-height // stride), -(-width // stride), features
        features = channels * height * width if dense else channels
        for index, features_out in enumerate(dense, start=1):
            setattr(self, f"fc{index}", NormalizedDense(features, features_out, **hidden))
            features = features_out
        self.head = nnx.Linear(features, num_classes, **common)

    def __call__(
        self, images: Array, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> Array:
        """Logits `(batch, num_classes)` of images `(batch, height, width, channels)`."""
        index, planes = 0, to_planes(images)
        for stage, convolutions in enumerate(self.stages):
            planes = max_pool(planes) if stage else planes
            for _ in range(convolutions):
                index += 1
                planes = nnx.relu(getattr(self, f"conv{index}")(planes, train))
        features = flatten(planes) if self.dense else pixel_mean(planes)
        for index in range(1, self.dense + 1):
            features = nnx.relu(getattr(self, f"fc{index}")(features, train))
        return self.head(features)
