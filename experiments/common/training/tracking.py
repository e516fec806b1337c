"""What is measured for every replicate inside the compiled loop: curves, and the best so far."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.common.training import evaluation, loop

Array = jax.Array
TEST_EVERY = 5
"""Validations from one point of a test curve to the next: the test set costs more than training."""


class Tracked(NamedTuple):
    """What is measured for one replicate during training.

    Attributes:
      params: those with the lowest validation loss so far; () if they are not kept.
      loss: that validation loss.
      iteration: when it was measured.
      curves: at each validation, `loss` (training), `validation_loss`, `validation_accuracy` and,
        at every fifth one, `test_accuracy` (else NaN); and what else was requested.
      tests: whether the test accuracy is measured at all.
    """

    params: Any
    loss: Array
    iteration: Array
    curves: dict[str, Array]
    tests: Array

    def shown(self, point: int) -> str:
        """The measure of progress: the validation accuracy of stacked replicates."""
        return f"{100 * float(self.curves['validation_accuracy'][:, point].mean()):.2f}%"


def track(
    apply: Callable[[Any, Array], Array],
    every: int,
    iterations: int,
    sets: Any,
    observe: Callable[[Any, Any], dict[str, Array]] = lambda params, opt_state: {},
    best: bool = True,
) -> loop.Track:
    """Validation loss, the best parameters so far, and curves.

    Args:
      apply: `(params, inputs) -> logits`.
      every: iterations from one validation to the next.
      iterations: of a whole training.
      sets: includes "validation", and "test" if its accuracy may be measured.
      observe: `(params, opt_state) -> more curves by name`, floating-point arrays of any shape.
      best: whether to keep the best parameters, which takes the memory of one more network.
    """
    return loop.Track(
        every,
        functools.partial(_start, observe, iterations // every, best),
        functools.partial(_update, apply, observe, every),
        (sets["validation"], sets.get("test")),
    )


def _start(observe: Callable, points: int, best: bool, params: Any, opt_state: Any) -> Tracked:
    names = ("loss", "validation_loss", "validation_accuracy", "test_accuracy")
    kinds = dict.fromkeys(names, jax.ShapeDtypeStruct((), jnp.float32))
    kinds |= jax.eval_shape(observe, params, opt_state)
    return Tracked(
        params if best else (),
        jnp.float32(jnp.inf),
        jnp.int32(0),
        {
            name: jnp.full((points, *kind.shape), jnp.nan, kind.dtype)
            for name, kind in kinds.items()
        },
        jnp.bool_(False),
    )


def _update(
    apply: Callable,
    observe: Callable,
    every: int,
    tracked: Tracked,
    state: loop.TrainState,
    count: Array,
    loss: Array,
    sets: Any,
) -> Tracked:
    (validation, test), params = sets, state.params

    def measured(params: Any, examples: evaluation.EvaluationSet) -> Array:
        return evaluation.sums(apply, evaluation.cross_entropy, params, examples).sum(0)

    def accuracy(params: Any) -> Array:
        _, correct, counts = measured(params, test)
        return correct / counts

    point = count // every - 1
    tests = tracked.tests & (point % TEST_EVERY == TEST_EVERY - 1)
    total, correct, counts = measured(params, validation)
    now = {
        "loss": loss,
        "validation_loss": total / counts,
        "validation_accuracy": correct / counts,
        "test_accuracy": jnp.float32(jnp.nan)
        if test is None
        else jax.lax.cond(tests, accuracy, lambda _: jnp.float32(jnp.nan), params),
        **observe(params, state.opt_state),
    }
    better = now["validation_loss"] < tracked.loss
    best = params if jax.tree.leaves(tracked.params) else ()
    return tracked._replace(
        params=jax.tree.map(lambda new, old: jnp.where(better, new, old), best, tracked.params),
        loss=jnp.where(better, now["validation_loss"], tracked.loss),
        iteration=jnp.where(better, count, tracked.iteration),
        curves={name: tracked.curves[name].at[point].set(value) for name, value in now.items()},
    )
