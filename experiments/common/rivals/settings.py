"""What a study of dynamic sparse training trains: the settings of the paper, by name."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import optax

import jaxsparse
from experiments.common import methods

METHODS = (
    "dense",
    "fixed",
    "gradual",
    "sparse_evolution",
    "deep_rewiring",
    "dynamic_reparameterization",
    "rigl",
    "sparse_momentum",
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """One setting of Dettmers & Zettlemoyer (2019).

    Attributes:
      model: a key of `models.MODELS`.
      dataset: what `data.load` knows.
      epochs: passes over the training set; masks change after each but the last.
      batch_size: examples a step.
      densities: fractions of the weights that live.
      learning_rate: of SGD with Nesterov momentum.
      momentum: of SGD, and of sparse momentum's own.
      drop_every: steps after which the learning rate falls to a tenth, again and again.
      weight_decay: added to the gradient.
      validation: fraction of the training examples, the last ones, set aside.
      prune_rate: share of the living weights that the first mask update moves.
      prune_schedule: "cosine" to 0.005, "linear" to 0, or "constant".
      own: options of single methods, by their names.
    """

    model: str
    dataset: str
    epochs: int
    batch_size: int
    densities: tuple[float, ...]
    learning_rate: float = 0.1
    momentum: float = 0.9
    drop_every: int = 25_000
    weight_decay: float = 5e-4
    validation: float = 0.1
    prune_rate: float = 0.5
    prune_schedule: str = "cosine"
    own: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)


_LENET = Settings(
    model="lenet_300_100",
    dataset="mnist",
    epochs=100,
    batch_size=100,
    densities=(0.01, 0.02, 0.03, 0.04, 0.05, 0.1),
)
PRESETS = {
    "digits": dataclasses.replace(
        _LENET, dataset="digits", epochs=40, batch_size=24, densities=(0.05, 0.1, 0.2)
    ),
    "lenet_300_100": _LENET,
    "lenet_5_caffe": dataclasses.replace(
        _LENET, model="lenet_5_caffe", densities=(0.005, 0.01, 0.05)
    ),
}
"""The settings by name; `digits` is the small set inside scikit-learn, for a first try."""


def optimizer(settings: Settings) -> optax.GradientTransformation:
    """SGD with Nesterov momentum, weight decay and falling learning rate."""

    def rate(count: Any) -> Any:
        return settings.learning_rate * 0.1 ** (count // settings.drop_every)

    return optax.chain(
        optax.add_decayed_weights(settings.weight_decay),
        optax.sgd(rate, momentum=settings.momentum, nesterov=True),
    )


def method(
    settings: Settings, name: str, sparsity: float, key: Any, steps_per_epoch: int
) -> optax.GradientTransformationExtraArgs:
    """One of `METHODS` at a sparsity, as an optimizer.

    Args:
      settings: of the study.
      name: the method, with "+" and a variant's name where it has one in `settings.own`.
      sparsity: in [0, 1); nothing to "dense".
      key: draws the masks; may be traced.
      steps_per_epoch: batches in one pass.
    """
    steps = settings.epochs * steps_per_epoch
    algorithm = name.split("+")[0]
    own = dict(settings.own.get(name, {}))
    if algorithm in methods.DROPPING:
        rates = {
            "cosine": lambda p: jaxsparse.cosine(p, steps, 0.005),
            "linear": lambda p: jaxsparse.linear(p, steps),
            "constant": jaxsparse.constant,
        }
        schedule = rates[own.pop("prune_schedule", settings.prune_schedule)]
        own["drop_fraction"] = schedule(own.pop("prune_rate", settings.prune_rate))
    if algorithm == "sparse_momentum":
        own = {"momentum": settings.momentum} | own
    updates = methods.MaskUpdates(steps_per_epoch, steps_per_epoch, steps, None)
    if algorithm == "gradual":  # the masks rest for the last quarter
        updates = updates._replace(stop=steps * 3 // 4)
    return methods.sparse_method(
        algorithm,
        optimizer(settings),
        key=key,
        sparsity=sparsity,
        distribution="uniform",
        pattern=jaxsparse.unstructured,
        prunable=jaxsparse.default_prunable,
        updates=updates,
        **own,
    )
