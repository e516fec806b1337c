"""What each study of costs trains, by name."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import optax

from experiments.common.training import methods

COMPRESSED, BLOCKS = "_compressed", "_blocks"
"""Suffixes of the name of a method: stored as its living values, or as living blocks of 16 by 16;
then the last layer is dense, because it has ten outputs."""


ROOM = 4.0  # so that sparse momentum redistributes weights as it does with masks


@dataclasses.dataclass(frozen=True)
class Settings:
    """One recipe for all methods; the learning rate falls by a cosine.

    Attributes:
      dataset: a name that `datasets.load` accepts.
      epochs: passes over the training set.
      batch_size: examples per step.
      sparsity: spread over the layers by `erk`.
      model: a key of `registry.MODELS`.
      optimizer: "momentum", which is SGD with Nesterov momentum, or "adam".
      learning_rate: at the first step.
      weight_decay: added to the gradient.
      validation: fraction of the training examples, the last ones, set aside.
      every_epoch: whether masks change once an epoch, as in the paper of sparse momentum, instead
        of every hundredth of the run.
    """

    dataset: str
    epochs: int
    batch_size: int
    sparsity: float = 0.95
    model: str = "lenet_300_100"
    optimizer: str = "momentum"
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    validation: float = 0.1
    every_epoch: bool = False

    def check(self, names: Sequence[str]) -> None:
        """Raises ValueError if a method or setting cannot be trained."""
        unknown = [name for name in names if parse(name)[0] not in methods.METHODS]
        if unknown or not names:
            known = ", ".join(methods.METHODS)
            raise ValueError(
                f"--method must be among {known}, each optionally followed by {COMPRESSED} or "
                f"{BLOCKS} where that is possible, got {', '.join(unknown)!r}."
            )
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"--sparsity must be in [0, 1), got {self.sparsity}.")
        if self.epochs < 4:
            raise ValueError(f"--epochs must be at least 4, got {self.epochs}.")

    def updates(self, steps: int) -> methods.MaskUpdates:
        """Masks change in the first three quarters of the run."""
        every = steps // self.epochs if self.every_epoch else max(10, steps // 100)
        return methods.MaskUpdates(every, every, steps * 3 // 4, None)

    def method(
        self, name: str, key: Any, steps: int, every: int | None = None
    ) -> optax.GradientTransformationExtraArgs:
        """A method as an optimizer for this many steps.

        Args:
          name: of the method.
          key: for its draws.
          steps: of the whole run.
          every: steps from one mask update to the next, instead of the study's.
        """
        name, form = parse(name)
        updates = self.updates(steps)
        if every is not None:
            updates = updates._replace(every=every, start=min(every, updates.stop - 1))
        kept: dict[str, Any] = {}
        if form:
            kept["storage"] = methods.storage("compressed", form)
        if form and methods.METHODS[name].moves:
            kept["room"] = ROOM
        inner = methods.optimizer(
            self.optimizer,
            self.learning_rate,
            schedule="cosine",
            weight_decay=self.weight_decay,
            steps=steps,
        )
        return methods.sparse_method(
            name,
            inner,
            key=key,
            sparsity=self.sparsity,
            distribution="erk",
            pattern=methods.pattern(form or "unstructured"),
            prunable=methods.prunable("head" if form.startswith("block") else ""),
            updates=updates,
            **kept,
        )


def parse(name: str) -> tuple[str, str]:
    """The method of a cell, and the pattern in which it is stored; empty with masks.

    >>> parse("rigl"), parse("rigl_compressed"), parse("rigl_blocks")
    (('rigl', ''), ('rigl', 'unstructured'), ('rigl', 'block:16x16'))
    """
    for ending, form in ((COMPRESSED, "unstructured"), (BLOCKS, "block:16x16")):
        if name.endswith(ending):
            return name.removesuffix(ending), form
    return name, ""


PRESETS = {
    "digits": Settings("digits", epochs=40, batch_size=24),
    "mnist": Settings("mnist", epochs=20, batch_size=100),
    "mlp": Settings("mnist", epochs=8, batch_size=128, model="mlp_4096_1024"),
    "lenet_5_caffe": Settings(
        "mnist", epochs=8, batch_size=100, model="lenet_5_caffe", every_epoch=True
    ),
    "transformer": Settings(
        "tiny_shakespeare",
        epochs=4,
        batch_size=8,
        model="character_transformer",
        optimizer="adam",
        learning_rate=1e-3,
        weight_decay=0.0,
    ),
    "vgg_16_d": Settings("cifar10", epochs=4, batch_size=128, model="vgg_16_d", every_epoch=True),
}
NAMES = {
    "mlp": ("dense", "rigl", f"rigl{COMPRESSED}", f"rigl{BLOCKS}"),
    "lenet_5_caffe": ("dense", "sparse_momentum", f"sparse_momentum{COMPRESSED}"),
    "transformer": ("dense", "rigl", f"rigl{COMPRESSED}", f"rigl{BLOCKS}"),
    "vgg_16_d": ("dense", f"sparse_momentum{COMPRESSED}"),
}
"""The methods that a preset trains if none are given; by default all methods."""
