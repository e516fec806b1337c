"""What each study of lottery tickets trains: the settings of the papers, by name."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import optax

from experiments.common.training import methods
from jaxsparse import lottery

Prunable = Callable[[str, Any], bool]


@dataclasses.dataclass(frozen=True)
class Settings:
    """One setting of the paper, figure 2 and appendices G to I.

    Attributes:
      model: a key of `registry.MODELS`.
      dataset: a name that `datasets.load` accepts.
      iterations: steps of a training run.
      batch_size: examples per step.
      optimizer: "adam", or "momentum" (SGD, momentum 0.9).
      learning_rate: at the first step after the warmup.
      rates: the fraction of living weights that a round removes, by path regex, or one for all.
      scope: "layer" or "global".
      dense: path regex of weights that are never pruned; empty for none.
      rounds: number of prunings.
      levels: the levels, in rounds, at which the controls are trained.
      curves: the levels whose test accuracy during training is stored.
      every: steps from one validation to the next.
      validation: training examples set aside.
      drops: iterations at which the learning rate falls to a tenth.
      warmup: iterations of linear warmup.
      weight_decay: added to the gradient.
      dropout: fraction of the features that are dropped before each dense layer, in [0, 1).
      augment: mirror images, and crop them after padding by 4 pixels on each side.
    """

    model: str
    dataset: str
    iterations: int
    batch_size: int
    optimizer: str
    learning_rate: float
    rates: float | Mapping[str, float]
    rounds: int
    levels: tuple[int, ...] = ()
    curves: tuple[int, ...] = ()
    scope: str = "layer"
    dense: str = ""
    every: int = 100
    validation: int = 5000
    drops: tuple[int, ...] = ()
    warmup: int = 0
    weight_decay: float = 0.0
    dropout: float = 0.0
    augment: bool = False


_LENET = Settings(
    model="lenet_300_100",
    dataset="mnist",
    iterations=50_000,
    batch_size=60,
    optimizer="adam",
    learning_rate=1.2e-3,
    rates={"head": 0.1, "": 0.2},
    rounds=18,
    levels=(3, 7, 9, 11, 13, 15, 16, 18),
    curves=(0, 3, 7, 12, 15, 18),
)
_CONV = dataclasses.replace(
    _LENET,
    dataset="cifar10",
    rates={"conv": 0.1, "head": 0.1, "": 0.2},
    rounds=20,
    levels=(4, 8, 12, 16, 20),
    curves=(0, 4, 8, 12, 16, 20),
)
_CONV_2 = dataclasses.replace(_CONV, model="conv_2", iterations=20_000, learning_rate=2e-4)
_CONV_4 = dataclasses.replace(_CONV, model="conv_4", iterations=25_000, learning_rate=3e-4)
_CONV_6 = dataclasses.replace(
    _CONV,
    model="conv_6",
    iterations=30_000,
    learning_rate=3e-4,
    rates={"conv": 0.15, "head": 0.1, "": 0.2},
)
_DEEP = dataclasses.replace(
    _CONV,
    optimizer="momentum",
    rates=0.2,
    scope="global",
    dense="head|shortcut",
    weight_decay=1e-4,
    augment=True,
)
_RESNET = dataclasses.replace(
    _DEEP,
    model="resnet_18",
    iterations=30_000,
    batch_size=128,
    learning_rate=0.1,
    drops=(20_000, 25_000),
)
_VGG = dataclasses.replace(
    _DEEP,
    model="vgg_19",
    iterations=112_480,
    batch_size=64,
    learning_rate=0.1,
    drops=(56_240, 84_360),
)


def _dropout(settings: Settings, learning_rate: float) -> Settings:
    return dataclasses.replace(
        settings,
        iterations=3 * settings.iterations,
        learning_rate=learning_rate,
        dropout=0.5,
    )


PRESETS = {
    "digits": dataclasses.replace(
        _LENET, dataset="digits", iterations=2000, every=20, validation=200
    ),
    "lenet": _LENET,
    "lenet_one_shot": dataclasses.replace(
        _LENET, rates={"head": 0.475, "": 0.95}, rounds=1, levels=(), curves=(0, 1)
    ),
    "conv_2": _CONV_2,
    "conv_4": _CONV_4,
    "conv_6": _CONV_6,
    "conv_2_dropout": _dropout(_CONV_2, 3e-4),
    "conv_4_dropout": _dropout(_CONV_4, 2e-4),
    "conv_6_dropout": _dropout(_CONV_6, 2e-4),
    "resnet_18": _RESNET,
    "resnet_18_low": dataclasses.replace(_RESNET, learning_rate=0.01),
    "resnet_18_warmup": dataclasses.replace(_RESNET, learning_rate=0.03, warmup=20_000),
    "vgg_19": _VGG,
    "vgg_19_low": dataclasses.replace(_VGG, learning_rate=0.01),
    "vgg_19_warmup": dataclasses.replace(_VGG, warmup=10_000),
    "transformer": Settings(
        model="character_transformer",
        dataset="tiny_shakespeare",
        iterations=2000,
        batch_size=8,
        optimizer="adam",
        learning_rate=1e-3,
        warmup=100,
        rates=0.5,
        rounds=4,
        levels=(1, 2, 3, 4),
        curves=(0, 1, 2, 3, 4),
    ),
}
"""The settings by name.

`digits` is LeNet on scikit-learn's small set, for a first try. `lenet_one_shot` prunes once to
5.17%, the output layer at half the rate: the paper's smallest one-shot ticket that is no worse than
dense. `low` and `warmup` are the learning rates with which the paper finds tickets in deep
networks. `transformer` is not a setting of the paper: it asks whether the hypothesis carries over
to a language model.
"""


def scaled(settings: Settings, scale: float) -> Settings:
    """The same study with every length multiplied by `scale`.

    Validations stay at least 25 iterations apart, or as far apart as in the settings.

    Raises:
      ValueError: `scale` is not above 0, or nothing is left of a training.
    """
    if not 0 < scale < math.inf:
        raise ValueError(f"--scale must be above 0, got {scale}.")
    every = max(min(settings.every, 25), round(settings.every * scale))
    iterations = round(settings.iterations * scale)
    if iterations < every:
        raise ValueError(
            f"--scale {scale} leaves {iterations} iterations, fewer than the {every} from one "
            "validation to the next."
        )
    return dataclasses.replace(
        settings,
        iterations=iterations,
        every=every,
        drops=tuple(round(at * scale) for at in settings.drops),
        warmup=round(settings.warmup * scale),
    )


def optimizer(settings: Settings) -> optax.GradientTransformation:
    """The optimizer of the settings, including its schedule."""
    rate: Any = settings.learning_rate
    if settings.drops or settings.warmup:
        drops = dict.fromkeys(settings.drops, 0.1)
        after = optax.piecewise_constant_schedule(settings.learning_rate, drops)
        ramp = optax.linear_schedule(0.0, 1.0, max(settings.warmup, 1))
        start = 0 if settings.warmup else 1  # without a warmup the ramp is already over
        rate = lambda count: after(count) * ramp(count + start)  # noqa: E731
    plain = optax.adam(rate) if settings.optimizer == "adam" else optax.sgd(rate, momentum=0.9)
    if settings.weight_decay:
        return optax.chain(optax.add_decayed_weights(settings.weight_decay), plain)
    return plain


def prunable(settings: Settings) -> Prunable:
    """Which weights may be pruned."""
    return methods.prunable(settings.dense)


def ladder(settings: Settings, params: Any) -> tuple[list[Any], list[float]]:
    """The living weights after every round, and their fraction of all prunable weights."""
    target = {"scope": settings.scope, "prunable": prunable(settings)}
    return (
        lottery.ladder(params, settings.rounds, settings.rates, **target),
        lottery.densities(params, settings.rounds, settings.rates, **target),
    )
