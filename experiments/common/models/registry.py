"""The networks of the papers in Flax NNX, by name, at any image size that fits.

    model = build("lenet_300_100", key_or_seed=0, input_shape=(8, 8, 1), num_classes=10)
    graphdef, params = nnx.split(model, nnx.Param)
    logits = nnx.merge(graphdef, params)(images)

Images are passed as floats (`network.normalize`), tokens as integers. The output layer is `head`.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
from flax import nnx

from experiments.common.models.layers import (
    Convolution,
    Form,
    Padding,
    flatten,
    form_on,
    max_pool,
    to_planes,
)
from experiments.common.models.residual import ResNet, WideResNet
from experiments.common.models.transformer import CharacterTransformer
from experiments.common.models.vgg_alexnet import Stack

Array = jax.Array


class Classifier(nnx.Module):
    """Stages of convolutions with ReLU, each followed by 2x2 max pooling; then dense layers.

    Its layers are `conv1`, `conv2`, ..., `fc1`, `fc2`, ... and `head`; without stages it is a
    multilayer perceptron.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        stages: Sequence[Sequence[int]],
        dense: Sequence[int],
        size: int,
        padding: Padding,
        form: Form,
        kernel_init: nnx.Initializer,
        rngs: nnx.Rngs,
        dropout: float = 0.0,
    ):
        height, width, features = input_shape
        self.stages = tuple(len(stage) for stage in stages)
        self.dense = len(dense)
        shrink = size - 1 if padding == "VALID" else 0
        index = 0
        for stage in stages:
            for features_out in stage:
                index += 1
                layer = Convolution(
                    features,
                    features_out,
                    size,
                    padding=padding,
                    form=form,
                    kernel_init=kernel_init,
                    rngs=rngs,
                )
                setattr(self, f"conv{index}", layer)
                features = features_out
                height, width = height - shrink, width - shrink
            height, width = height // 2, width // 2
        features *= height * width
        for index, features_out in enumerate(dense, start=1):
            layer = nnx.Linear(features, features_out, kernel_init=kernel_init, rngs=rngs)
            setattr(self, f"fc{index}", layer)
            features = features_out
        self.head = nnx.Linear(features, num_classes, kernel_init=kernel_init, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)

    def __call__(
        self, images: Array, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> Array:
        """Logits `(batch, num_classes)` of images `(batch, height, width, channels)`."""
        index, planes = 0, to_planes(images)
        for convolutions in self.stages:
            for _ in range(convolutions):
                index += 1
                planes = nnx.relu(getattr(self, f"conv{index}")(planes))
            planes = max_pool(planes)
        features = flatten(planes)
        for index in range(1, self.dense + 1):
            features = self.dropout(features, deterministic=not train, rngs=rngs)
            features = nnx.relu(getattr(self, f"fc{index}")(features))
        features = self.dropout(features, deterministic=not train, rngs=rngs)
        return self.head(features)


def _classifier(
    name: str,
    input_shape: Sequence[int],
    num_classes: int,
    *,
    stages: Sequence[Sequence[int]] = (),
    dense: Sequence[int],
    size: int = 1,
    padding: Padding = "SAME",
    **common: Any,
) -> Classifier:
    if len(input_shape) != 3:
        raise ValueError(
            f"input_shape is {tuple(input_shape)}; {name} takes images, (height, width, channels)"
        )
    shrink = size - 1 if padding == "VALID" else 0
    smallest = 1
    for stage in reversed(stages):
        smallest = 2 * smallest + shrink * len(stage)
    if min(input_shape[:2]) < smallest:
        raise ValueError(
            f"input_shape is {tuple(input_shape)}; {name} needs images of at least "
            f"{smallest}x{smallest} pixels: choose another model or data set"
        )
    return Classifier(
        input_shape,
        num_classes,
        stages=stages,
        dense=dense,
        size=size,
        padding=padding,
        **common,
    )


def _deep(
    network: Callable[..., nnx.Module],
    name: str,
    input_shape: Sequence[int],
    num_classes: int,
    *,
    smallest: int = 16,
    dropout: float = 0.0,
    **common: Any,
) -> nnx.Module:
    if len(input_shape) != 3 or min(input_shape[:2]) < smallest:
        raise ValueError(
            f"input_shape is {tuple(input_shape)}; {name} takes images of at least "
            f"{smallest}x{smallest} pixels, (height, width, channels)"
        )
    if network is WideResNet:
        common["dropout"] = dropout
    else:
        _no_dropout(name, dropout)
    return network(input_shape, num_classes, **common)


def _no_dropout(name: str, dropout: float) -> None:
    if dropout:
        raise ValueError(f"dropout is {dropout}; {name} has no layers for it")


def _transformer(
    name: str,
    input_shape: Sequence[int],
    num_classes: int,
    *,
    form: Form,
    dropout: float = 0.0,
    **common: Any,
) -> CharacterTransformer:
    _no_dropout(name, dropout)
    if len(input_shape) != 1:
        raise ValueError(f"input_shape is {tuple(input_shape)}; {name} takes tokens, (context,)")
    return CharacterTransformer(*input_shape, num_classes, **common)


_lenet_5 = partial(_classifier, size=5, padding="VALID")
_VGG_19 = ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4)
# The empty stage provides the pooling before it.
_VGG_16 = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3, ())
_VGG_16_C = tuple((*stage[:2], (stage[2], 1, 1)) if stage[2:] else stage for stage in _VGG_16)
_ALEXNET = ((96, 11, 2), (256, 5, 2), (384, 3, 2), (384, 3, 2), (256, 3, 2))


def _narrow(stages: Sequence[Sequence[int]], factor: float) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(round(factor * width) for width in stage) for stage in stages)


_alexnet = partial(_deep, Stack, stages=(_ALEXNET,))
_vgg_16 = partial(_deep, Stack, smallest=32)
_vgg_16_thin = partial(_vgg_16, stages=_narrow(_VGG_16, 0.125), dense=(64,))
_vgg_16_thin_small = partial(_vgg_16, stages=_narrow(_VGG_16, 0.055), dense=(28,))
_wrn = partial(_deep, WideResNet)
_conv = partial(_classifier, size=3, padding="SAME", dense=(256, 256))


class Model(NamedTuple):
    """What is known about a network by its name.

    Attributes:
      make: `(name, input_shape, num_classes, form, kernel_init, rngs, dropout) -> module`.
      small: whether one replicate leaves most of an accelerator idle.
    """

    make: Callable[..., nnx.Module]
    small: bool = False


MODELS: dict[str, Model] = {
    "lenet_300_100": Model(partial(_classifier, dense=(300, 100)), small=True),
    "mlp_4096_1024": Model(partial(_classifier, dense=(4096, 1024)), small=True),
    "lenet_5": Model(partial(_lenet_5, stages=((6,), (16,)), dense=(120, 84)), small=True),
    "lenet_5_small": Model(partial(_lenet_5, stages=((3,), (3,)), dense=(27, 20)), small=True),
    "mlp_8_8": Model(partial(_classifier, dense=(8, 8)), small=True),
    "lenet_5_caffe": Model(partial(_lenet_5, stages=((20,), (50,)), dense=(500,)), small=True),
    "conv_2": Model(partial(_conv, stages=((64, 64),))),
    "conv_4": Model(partial(_conv, stages=((64, 64), (128, 128)))),
    "conv_6": Model(partial(_conv, stages=((64, 64), (128, 128), (256, 256)))),
    "resnet_18": Model(partial(_deep, ResNet, blocks=(3, 3, 3), features=(16, 32, 64))),
    "resnet_50": Model(
        partial(_deep, ResNet, blocks=(3, 4, 6, 3), features=(256, 512, 1024, 2048), imagenet=True)
    ),
    "resnet_50_small": Model(
        partial(_deep, ResNet, blocks=(3, 4, 6, 3), features=(112, 224, 448, 896), imagenet=True)
    ),
    "vgg_19": Model(partial(_deep, Stack, stages=_VGG_19)),
    "alexnet_s": Model(partial(_alexnet, dense=(1024, 1024))),
    "alexnet_b": Model(partial(_alexnet, dense=(2048, 2048))),
    "vgg_16_c": Model(partial(_vgg_16, stages=_VGG_16_C, dense=(512, 512))),
    "vgg_16_d": Model(partial(_vgg_16, stages=_VGG_16, dense=(512, 512))),
    "vgg_16_like": Model(partial(_vgg_16, stages=_VGG_16, dense=(512,))),
    "vgg_16_thin": Model(_vgg_16_thin),
    "vgg_16_thin_plain": Model(partial(_vgg_16_thin, normalized=False)),
    "vgg_16_thin_small": Model(_vgg_16_thin_small),
    "vgg_16_thin_plain_small": Model(partial(_vgg_16_thin_small, normalized=False)),
    "vgg_16": Model(partial(_vgg_16, stages=_VGG_16, dense=(4096, 4096), normalized=False)),
    "vgg_16_small": Model(
        partial(_vgg_16, stages=_narrow(_VGG_16, 0.44), dense=(1800, 1800), normalized=False)
    ),
    "wrn_16_8": Model(partial(_wrn, depth=16, widen=8)),
    "wrn_16_10": Model(partial(_wrn, depth=16, widen=10)),
    "wrn_22_8": Model(partial(_wrn, depth=22, widen=8)),
    "wrn_28_2": Model(partial(_wrn, depth=28, widen=2)),
    "character_transformer": Model(_transformer),
}


def build(
    name: str,
    *,
    key_or_seed: Array | int,
    input_shape: Sequence[int],
    num_classes: int,
    kernel_init: nnx.Initializer | None = None,
    convolution: Form | Literal["auto"] = "auto",
    dropout: float = 0.0,
) -> nnx.Module:
    """A network with fresh parameters; works under `jit` and `vmap` over keys.

    Args:
      name: a key of `MODELS`.
      key_or_seed: random key, typed or raw, or an int.
      input_shape: of one example: (height, width, channels), or (context,) for characters.
      num_classes: outputs, at least 1; for characters the size of the vocabulary.
      kernel_init: initializer of all kernels; default Gaussian Glorot. Biases start at zero.
      convolution: how convolutions are computed; "auto" is what `form_on` returns for the backend.
        The parameters do not depend on it.
      dropout: fraction of the features dropped while training, in [0, 1): before each dense layer
        of networks with hidden ones, inside the blocks of wide residual networks.

    Raises:
      ValueError: the name is unknown, the shape is of the wrong kind or too small for the network,
        or another argument is out of range.
    """
    if name not in MODELS:
        raise ValueError(f"name is {name!r}; it must be one of {', '.join(MODELS)}")
    if num_classes < 1 or math.prod(input_shape) < 1:
        raise ValueError(
            f"input_shape is {tuple(input_shape)} and num_classes is {num_classes}; all of them "
            "must be at least 1"
        )
    if convolution not in ("auto", "patches", "conv"):
        raise ValueError(f"convolution is {convolution!r}; it must be 'auto', 'patches' or 'conv'")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; it must be in [0, 1)")
    if convolution == "auto":
        convolution = form_on(jax.default_backend())
    return MODELS[name].make(
        name,
        input_shape,
        num_classes,
        form=convolution,
        kernel_init=kernel_init or nnx.initializers.glorot_normal(),
        rngs=nnx.Rngs(key_or_seed),
        dropout=dropout,
    )
