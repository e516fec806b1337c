"""What each study of dynamic sparse training trains: the settings of the paper, by name."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import optax

import jaxsparse
from experiments.common.training import methods
from experiments.sparse_momentum import deepr, variants

_DENSE = ("momentum", "clip", "weight_decay")
"""The options of a variant that dense training also has."""
_NEEDS = {
    "prune_rate": "drop_fraction",
    "prune_schedule": "drop_fraction",
    "period": "every",
    "temperature": "noise",
}
"""The option that a method must have of its own for this option of a variant to apply."""
_FIELDS = ("momentum", "prune_rate", "prune_schedule", "initialization", "clip", "weight_decay")
"""The options of a variant that replace the study's settings."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """One setting of Dettmers & Zettlemoyer (2019).

    Masks change after every epoch but the last, and measurements are made after every epoch; in a
    run shortened to `steps`, at least after every fifth of it.

    Attributes:
      model: a key of `registry.MODELS`.
      dataset: a name that `datasets.load` accepts.
      epochs: passes over the training set.
      batch_size: examples per step.
      sparsities: fractions of the weights that are zero.
      learning_rate: of SGD with Nesterov momentum.
      momentum: of SGD, and of sparse momentum's own.
      drop_every: steps after each of which the learning rate falls to a tenth.
      weight_decay: added to the gradient.
      validation: fraction of the training examples, the last ones, set aside.
      prune_rate: share of the living weights that the first mask update moves.
      prune_schedule: "cosine" to 0.005, "linear" to 0, or "constant".
      own: options of individual methods, by their names.
      steps: of a shortened run; None for all epochs.
      dropout: fraction of the features dropped inside wide residual networks.
      augment: mirror images, and crop them after padding by 4 pixels on each side.
      dense: path regex of weights that are never pruned; empty for none.
      image_size: None for data in memory; else the side in pixels to which the images are cut,
        which stay on disk in training and are cropped at random.
      initialization: "dense", as published: living weights keep the values of a dense layer; or
        "sparse": they are drawn as those of a dense layer with as many inputs to the unit.
      clip: norm to which the gradient of all weights together is clipped; or None.
    """

    model: str
    dataset: str
    epochs: int
    batch_size: int
    sparsities: tuple[float, ...]
    learning_rate: float = 0.1
    momentum: float = 0.9
    drop_every: int = 25_000
    weight_decay: float = 5e-4
    validation: float = 0.1
    prune_rate: float = 0.5
    prune_schedule: str = "cosine"
    own: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    steps: int | None = None
    dropout: float = 0.0
    augment: bool = False
    dense: str = ""
    image_size: int | None = None
    initialization: str = "dense"
    clip: float | None = None

    def length(self, steps_per_epoch: int) -> int:
        """Steps of a whole run."""
        return self.epochs * steps_per_epoch if self.steps is None else self.steps

    def every(self, steps_per_epoch: int) -> int:
        """Steps from one measurement, and one mask update, to the next."""
        return min(steps_per_epoch, max(1, (self.steps or 5 * steps_per_epoch) // 5))


_LENET = Settings(
    model="lenet_300_100",
    dataset="mnist",
    epochs=100,
    batch_size=100,
    sparsities=(0.99, 0.98, 0.97, 0.96, 0.95, 0.9),
    own={
        "dynamic_reparameterization": {"period": 0.25, "target": 0.3},
        "deep_rewiring": deepr.OPTIONS,
    },
)


def _cifar(model: str, *sparsities: float, dropout: float = 0.0) -> Settings:
    return Settings(
        model=model,
        dataset="cifar10",
        epochs=250,
        batch_size=128,
        sparsities=sparsities,
        drop_every=30_000,
        prune_rate=0.2,
        dropout=dropout,
        augment=True,
    )


PRESETS = {
    "digits": dataclasses.replace(
        _LENET, dataset="digits", epochs=20, batch_size=24, sparsities=(0.95, 0.9, 0.8)
    ),
    "lenet_300_100": _LENET,
    "lenet_5_caffe": dataclasses.replace(
        _LENET,
        model="lenet_5_caffe",
        sparsities=(0.995, 0.99, 0.95),
        own=_LENET.own | {"sparse_momentum": {"regrown_state": "dense"}},
        initialization="sparse",
        clip=1.0,
    ),
    "alexnet_s": _cifar("alexnet_s", 0.9),
    "alexnet_b": _cifar("alexnet_b", 0.9),
    "vgg_16_c": _cifar("vgg_16_c", 0.95),
    "vgg_16_d": _cifar("vgg_16_d", 0.95),
    "vgg_16_like": _cifar("vgg_16_like", 0.97),
    "wrn_16_8": _cifar("wrn_16_8", 0.95, dropout=0.3),
    "wrn_16_10": _cifar("wrn_16_10", 0.95, dropout=0.3),
    "wrn_22_8": _cifar("wrn_22_8", 0.95, dropout=0.3),
    "wrn_28_2": _cifar("wrn_28_2", 0.9, 0.8, 0.7, 0.6, 0.5, dropout=0.3),
    "resnet_50": Settings(
        model="resnet_50",
        dataset="imagenet2012",
        epochs=100,
        batch_size=256,
        sparsities=(0.9, 0.8),
        drop_every=30 * 4979,
        weight_decay=1e-4,
        validation=0.005,
        prune_rate=0.2,
        augment=True,
        dense="^conv/|shortcut",
        image_size=224,
    ),
}
"""The settings by name; `digits` is scikit-learn's small set, for a first try.

`wrn_28_2`, from the comparison with Mostafa & Wang, gets the recipe of the others. The options of
DSR are those that `--study tuning` found best at 5%, those of DeepR are the ones in Mostafa &
Wang's code for CIFAR-10: the settings for the cited numbers on MNIST were not released. `resnet_50`
is the recipe of the paper's comparison on ImageNet, in float32: the first convolution and the
shortcuts stay dense. In `lenet_5_caffe` SGD's momentum under sparse momentum is dense, as in the
published code; its `initialization` and `clip` are not the paper's, but without them networks at
0.5 and 1% start dead, or die when their loss explodes.
"""


def rate(settings: Settings, count: Any) -> Any:
    """The learning rate at a step."""
    return settings.learning_rate * 0.1 ** (count // settings.drop_every)


def optimizer(
    settings: Settings,
    sparse: Callable[[Any], optax.GradientTransformation] = lambda sgd: sgd,
) -> optax.GradientTransformationExtraArgs:
    """SGD with Nesterov momentum, clipping, weight decay and a falling learning rate.

    The weight decay comes before the method that makes SGD `sparse`, so that sparse momentum's own
    momentum includes it, as in the published code.
    """
    sgd = optax.sgd(functools.partial(rate, settings), momentum=settings.momentum, nesterov=True)
    made = [optax.add_decayed_weights(settings.weight_decay), sparse(sgd)]
    if settings.clip is not None:
        made.insert(0, optax.clip_by_global_norm(settings.clip))
    return optax.chain(*made)


def method(
    settings: Settings, name: str, sparsity: float, key: Any, steps_per_epoch: int
) -> optax.GradientTransformationExtraArgs:
    """One of `methods.METHODS` at a sparsity, or a variant of it, as an optimizer.

    A variant's options are those of the method, and: `momentum`, of both SGD and sparse momentum;
    `prune_rate`, `prune_schedule`, `clip` (inf for never), `weight_decay` and
    `initialization`, as in the settings; `period`, epochs from one mask update to the next;
    `distribution`, one of `methods.DISTRIBUTIONS`; and DeepR's `temperature`, as in `deepr`.

    Args:
      settings: of the study.
      name: a method or a variant; see `variants`.
      sparsity: in [0, 1); ignored by "dense".
      key: draws the masks; may be traced.
      steps_per_epoch: batches in one pass.
    """
    algorithm, own = variants.parse(name)
    rest = {key: value for key, value in settings.own.get(algorithm, {}).items() if key not in own}
    make = functools.partial(_method, settings, algorithm, sparsity, key, steps_per_epoch, **rest)
    return variants.build(make, own)


def starts_sparse(settings: Settings, name: str) -> bool:
    """Whether a method or variant redraws its living weights, according to their number."""
    algorithm, own = variants.parse(name)
    chosen = _varied(settings, own)[0].initialization
    if chosen not in ("dense", "sparse"):
        raise ValueError(f"initialization must be dense or sparse, got {chosen!r}.")
    return not methods.METHODS[algorithm].dense and chosen == "sparse"


def check(settings: Settings, name: str) -> None:
    """Raises ValueError or TypeError if a name is not a method or a valid variant."""
    algorithm, own = variants.parse(name)
    if algorithm not in methods.METHODS:
        known = ", ".join(methods.METHODS)
        raise ValueError(f"--method must be among {known}, got {algorithm!r}.")
    found = methods.METHODS[algorithm]
    for option in own:
        unknown = found.dense and option not in _DENSE
        if unknown or (option in _NEEDS and _NEEDS[option] not in found.options):
            raise ValueError(f"--method: {algorithm} has no option {option!r}.")
    starts_sparse(settings, name)
    clip = _varied(settings, own)[0].clip
    if isinstance(clip, str) or (clip is not None and not clip > 0):
        raise ValueError(f"--method: clip must be a number above 0, got {clip!r}.")
    _method(settings, algorithm, 0.5, 0, 1000, **own)


def _varied(settings: Settings, options: Mapping[str, Any]) -> tuple[Settings, dict[str, Any]]:
    """The settings, replaced by a variant's own where it has any, and the rest of its options."""
    fields = {name: value for name, value in options.items() if name in _FIELDS}
    rest = {name: value for name, value in options.items() if name not in fields}
    return dataclasses.replace(settings, **fields), rest


def _method(
    settings: Settings,
    algorithm: str,
    sparsity: float,
    key: Any,
    steps_per_epoch: int,
    *,
    period: float = 1.0,
    distribution: str = "uniform",
    temperature: Any = None,
    **own: Any,
) -> optax.GradientTransformationExtraArgs:
    settings, own = _varied(settings, own)
    steps, every = settings.length(steps_per_epoch), settings.every(steps_per_epoch)
    found = methods.METHODS[algorithm]
    if "drop_fraction" in found.options:
        schedules = {
            "cosine": lambda p: jaxsparse.schedules.cosine(p, steps, 0.005),
            "linear": lambda p: jaxsparse.schedules.linear(p, steps),
            "constant": jaxsparse.schedules.constant,
        }
        known, schedule = ", ".join(schedules), settings.prune_schedule
        if schedule not in schedules:
            raise ValueError(f"prune_schedule must be one of {known}, got {schedule!r}.")
        own["drop_fraction"] = schedules[schedule](settings.prune_rate)
    if distribution not in methods.DISTRIBUTIONS:
        known = ", ".join(methods.DISTRIBUTIONS)
        raise ValueError(f"distribution must be one of {known}, got {distribution!r}.")
    if "momentum" in found.options:
        own["momentum"] = settings.momentum
    if "noise" in found.options:
        own.setdefault("stop", deepr.stop(steps))
    if temperature is not None:
        own["noise"] = deepr.noise(temperature, steps)
    every = max(1, round(period * every))
    updates = methods.MaskUpdates(every, every, steps, None)
    if found.ramps:  # the masks stay fixed for the last quarter
        updates = updates._replace(stop=steps * 3 // 4)
    sparse = functools.partial(
        methods.sparse_method,
        algorithm,
        key=key,
        sparsity=sparsity,
        distribution=distribution,
        pattern=methods.pattern(own.pop("pattern", "unstructured")),
        prunable=methods.prunable(settings.dense),
        updates=updates,
        **own,
    )
    return optimizer(settings, sparse)
