"""What a study of lottery tickets trains: the settings of the papers, by name."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import optax

from jaxsparse import lottery


@dataclasses.dataclass(frozen=True)
class Settings:
    """One setting of the paper, figure 2 and appendices G to I.

    Attributes:
      model: a key of `models.MODELS`.
      dataset: what `data.load` knows.
      iterations: steps of one training.
      batch_size: examples a step.
      optimizer: "adam", or "momentum" (SGD, momentum 0.9).
      learning_rate: at the first step after the warmup.
      rates: the fraction of the living weights that a round removes, by path regex, or one for all.
      scope: "layer" or "global".
      rounds: times that is pruned.
      levels: the levels, in rounds, at which the controls are trained.
      curves: the levels whose test accuracy is kept during training.
      every: steps from one validation to the next.
      validation: training examples set aside.
      drops: iterations at which the learning rate falls to a tenth.
      warmup: iterations of linear warmup.
      weight_decay: added to the gradient.
      dropout: fraction of the features that are dropped before each dense layer, in [0, 1).
      augment: mirror images and crop them from 4 more pixels on each side.
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
PRESETS = {
    "lenet": _LENET,
    "digits": dataclasses.replace(
        _LENET, dataset="digits", iterations=1500, every=20, validation=200
    ),
    "conv_2": dataclasses.replace(_CONV, model="conv_2", iterations=20_000, learning_rate=2e-4),
    "conv_4": dataclasses.replace(_CONV, model="conv_4", iterations=25_000, learning_rate=3e-4),
    "conv_6": dataclasses.replace(
        _CONV,
        model="conv_6",
        iterations=30_000,
        learning_rate=3e-4,
        rates={"conv": 0.15, "head": 0.1, "": 0.2},
    ),
}
"""The settings by name. `digits` is LeNet on the small set inside scikit-learn, for a first try."""


def scaled(settings: Settings, scale: float) -> Settings:
    """The same study with every length multiplied by `scale`.

    Validations stay at least 25 iterations apart, or as far as the settings have them.

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
        iterations=iterations // every * every,
        every=every,
        drops=tuple(round(at * scale) for at in settings.drops),
        warmup=round(settings.warmup * scale),
    )


def optimizer(settings: Settings) -> optax.GradientTransformation:
    """The optimizer of the settings, its schedule inside."""
    rate: Any = settings.learning_rate
    if settings.drops:
        rate = optax.piecewise_constant_schedule(rate, dict.fromkeys(settings.drops, 0.1))
    if settings.warmup:
        ramp = optax.linear_schedule(0.0, settings.learning_rate, settings.warmup)
        after = rate if callable(rate) else optax.constant_schedule(rate)
        rate = lambda count: optax.tree.where(  # noqa: E731
            count < settings.warmup, ramp(count), after(count)
        )
    plain = optax.adam(rate) if settings.optimizer == "adam" else optax.sgd(rate, momentum=0.9)
    if settings.weight_decay:
        return optax.chain(optax.add_decayed_weights(settings.weight_decay), plain)
    return plain


def ladder(settings: Settings, params: Any) -> tuple[list[Any], list[float]]:
    """The living weights after every round, and the fraction of all prunable weights they are."""
    options = {"scope": settings.scope}
    return (
        lottery.ladder(params, settings.rounds, settings.rates, **options),
        lottery.densities(params, settings.rounds, settings.rates, **options),
    )
