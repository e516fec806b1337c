"""What a study of costs trains, by name."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import optax

import jaxsparse
from experiments.common.training import methods


@dataclasses.dataclass(frozen=True)
class Settings:
    """One recipe for all methods: SGD with Nesterov momentum, its rate falling by a cosine.

    Attributes:
      dataset: what `datasets.load` knows.
      epochs: passes over the training set.
      batch_size: examples a step.
      sparsity: spread over the layers by `erk`.
      model: a key of `registry.MODELS`.
      learning_rate: at the first step.
      weight_decay: added to the gradient.
      validation: fraction of the training examples, the last ones, set aside.
    """

    dataset: str
    epochs: int
    batch_size: int
    sparsity: float = 0.95
    model: str = "lenet_300_100"
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    validation: float = 0.1

    def check(self, names: Sequence[str]) -> None:
        """Raises ValueError unless everything can be trained."""
        unknown = [name for name in names if name not in methods.METHODS]
        if unknown or not names:
            known = ", ".join(methods.METHODS)
            raise ValueError(f"--method must be among {known}, got {', '.join(unknown)!r}.")
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"--sparsity must be in [0, 1), got {self.sparsity}.")
        if self.epochs < 4:
            raise ValueError(f"--epochs must be at least 4, got {self.epochs}.")

    def updates(self, steps: int) -> methods.MaskUpdates:
        """Masks change every hundredth of the run, in its first three quarters."""
        every = max(10, steps // 100)
        return methods.MaskUpdates(every, every, steps * 3 // 4, None)

    def method(self, name: str, key: Any, steps: int) -> optax.GradientTransformationExtraArgs:
        """A method as an optimizer for so many steps."""
        inner = methods.optimizer(
            "momentum",
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
            pattern=jaxsparse.unstructured,
            prunable=jaxsparse.default_prunable,
            updates=self.updates(steps),
        )


PRESETS = {
    "digits": Settings("digits", epochs=40, batch_size=24),
    "mnist": Settings("mnist", epochs=20, batch_size=100),
}
