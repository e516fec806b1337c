"""Loss and accuracy of stacked replicates on examples that are on the device."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common.data.datasets import Dataset
from experiments.common.training.execution import Execution, over_replicates, place

Array = jax.Array
Apply = Callable[[Any, Array], Array]
Loss = Callable[[Array, Array], Array]


class EvaluationSet(NamedTuple):
    """Examples in batches of one size; the last is padded with labels of -1, which do not count.

    Attributes:
      inputs: `(batches, size, ...)`.
      labels: int32 `(batches, size, ...)`.
    """

    inputs: Array
    labels: Array


def cross_entropy(logits: Array, labels: Array) -> Array:
    """The loss of every example (or token), in the shape of the labels."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def evaluation_set(inputs: Array, labels: Array, size: int = 1000) -> EvaluationSet:
    """Examples in equal batches.

    Args:
      inputs: `(n, ...)`.
      labels: int32 `(n, ...)`, at least 0.
      size: examples per batch, at least 1.
    """
    size = min(size, len(labels))
    fill = -len(labels) % size
    inputs = jnp.concatenate([inputs, jnp.repeat(inputs[:1], fill, axis=0)])
    labels = jnp.concatenate([labels, jnp.full((fill, *labels.shape[1:]), -1, labels.dtype)])
    return EvaluationSet(
        inputs.reshape(-1, size, *inputs.shape[1:]), labels.reshape(-1, size, *labels.shape[1:])
    )


def sets_of(dataset: Dataset, names: Sequence[str]) -> dict[str, EvaluationSet]:
    """Parts of a data set on the device: those of "train", "validation" and "test" that it has."""
    return {
        name: evaluation_set(
            jnp.asarray(getattr(dataset, f"{name}_inputs")),
            jnp.asarray(getattr(dataset, f"{name}_labels")),
        )
        for name in names
        if getattr(dataset, f"{name}_inputs") is not None
    }


def evaluate(
    apply: Apply, loss: Loss, execution: Execution, params: Any, examples: EvaluationSet
) -> dict[str, np.ndarray]:
    """Mean loss and accuracy, one number per replicate each; compiled once for all methods.

    Args:
      apply: `(params, inputs) -> logits` of one replicate.
      loss: `(logits, labels) -> loss of every example`.
      execution: how replicates are compiled here.
      params: stacked replicates.
      examples: what to evaluate on.
    """
    (params, examples) = place(params, examples)
    return _means(_sums_of_all(apply, loss, execution.replicates, params, examples))


def sums(apply: Apply, loss: Loss, params: Any, examples: EvaluationSet) -> Array:
    """Sums of losses, right answers and examples of one replicate, float32 `(batches, 3)`."""
    return jax.lax.map(lambda batch: _sums(apply, loss, params, *batch), tuple(examples))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _sums_of_all(
    apply: Apply, loss: Loss, form: str, params: Any, examples: EvaluationSet
) -> Array:
    return over_replicates(functools.partial(sums, apply, loss), form)((params,), examples)


def _sums(apply: Apply, loss: Loss, params: Any, inputs: Array, labels: Array) -> Array:
    # Sums of losses, of right answers, and of examples that count.
    counts = labels >= 0
    logits = apply(params, inputs)
    losses = jnp.where(counts, loss(logits, jnp.maximum(labels, 0)), 0)
    correct = counts & (logits.argmax(-1) == labels)
    return jnp.stack([part.sum().astype(jnp.float32) for part in (losses, correct, counts)])


def _means(sums: Array) -> dict[str, np.ndarray]:
    # In float64 on the host, so that 9853 right answers of 10,000 are 0.9853.
    loss, correct, counts = np.moveaxis(np.asarray(sums, np.float64).sum(-2), -1, 0)
    return {"loss": loss / counts, "accuracy": correct / counts}
