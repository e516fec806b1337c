"""The training engine: trains in calls of a few seconds, saves checkpoints and resumes from them.

How a run is split into calls, and how often it is stopped and resumed, does not change its
numbers.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.common.report.progress import Display
from experiments.common.study.folder import RunFolder
from experiments.common.training.evaluation import EvaluationSet
from experiments.common.training.loop import Metrics, Trainer, TrainState

CHUNK_SECONDS = 3.0
LONGEST_SECONDS = 60.0
CHECKPOINT_SECONDS = 60.0


class Training(NamedTuple):
    """A training from its first step, or from where it resumes, to its last.

    Attributes:
      trainer: what trains it.
      state: after `start` steps; it is donated.
      steps: of the whole training.
      every: steps from one measurement to the next; the last step is measured in any case.
      measure: `(state, steps since the last measurement) -> metrics` between two calls; None if a
        `Track` measures inside the compiled loop.
      start: steps done before.
    """

    trainer: Trainer
    state: TrainState
    steps: int
    every: int
    measure: Callable[[TrainState, int], Metrics] | None = None
    start: int = 0


class Chunk(NamedTuple):
    """What one call of the compiled loop has done.

    Attributes:
      state: the state after it.
      step: the number of steps done since the start of the training.
      metrics: at a measurement, what `Training.measure` found, or {} without it; else None.
      seconds_per_step: of all replicates together, without compilation; None until it is known.
    """

    state: TrainState
    step: int
    metrics: Metrics | None
    seconds_per_step: float | None


class Trained(NamedTuple):
    """What `train` leaves.

    Attributes:
      states: the last states, by name.
      finished: whether these are the states after the last step.
      seconds: training time, all starts together.
    """

    states: dict[str, TrainState]
    finished: bool
    seconds: float


def chunks(training: Training, longest: float = LONGEST_SECONDS) -> Iterator[Chunk]:
    """Trains to the last step in calls of about `CHUNK_SECONDS`, and yields after each.

    The first call is one step, which compiles. Calls end at measurements: at each one if `measure`
    is called between calls, at some of them if they are frequent and made inside the loop. A call
    ends between measurements only if these are more than `longest` seconds apart.
    """
    trainer, state, steps, every, measure, step = training
    size, per_step = 1, None
    while step < steps:
        end = min(steps, step + (size if measure is None else min(size, every)))
        if end - end % every > step:
            end -= end % every
        begun = time.perf_counter()
        state = jax.block_until_ready(trainer.advance(state, step, end))
        spent = (time.perf_counter() - begun) / (end - step)
        size = max(every, int(CHUNK_SECONDS / spent))
        if spent * every > longest:
            size = max(1, int(longest / spent))
        if step == training.start:
            size = min(size, 10)  # that call compiled; a few steps show the speed
        else:
            per_step = spent
        step, metrics = end, None
        if end % every == 0 or end == steps:
            metrics = {}
            if measure is not None:
                metrics = measure(state, (end - 1) % every + 1)
                state = state._replace(loss_sum=jnp.zeros_like(state.loss_sum))
        yield Chunk(state, step, metrics, per_step)


def evaluation_of(
    trainer: Trainer,
    sets: Mapping[str, EvaluationSet],
    observe: Callable[[TrainState], Metrics] = lambda state: {},
) -> Callable[[TrainState, int], Metrics]:
    """A `Training.measure`: the mean training loss since the last measurement, and evaluations.

    Args:
      trainer: what evaluates.
      sets: what to evaluate on, by name; metrics are called `name_loss` and `name_accuracy`.
      observe: more metrics of a state, one number per replicate each.
    """

    def measure(state: TrainState, steps: int) -> Metrics:
        found = {"loss": state.loss_sum / steps}
        for name, examples in sets.items():
            evaluated = trainer.evaluate(state.params, examples)
            found |= {f"{name}_{key}": value for key, value in evaluated.items()}
        return found | observe(state)

    return measure


def train(
    trainings: Mapping[str, Training],
    folder: RunFolder,
    display: Display,
    show: Callable[[str, Chunk], str],
    *,
    checkpoint_every: float,
    longest: float = LONGEST_SECONDS,
    deadline: float = math.inf,
    done: int = 0,
) -> Trained:
    """Trains in turn from measurement to measurement, from the newest checkpoint or the start.

    Args:
      trainings: by name, before their first step.
      folder: where the checkpoints go, already entered. If measurements are made between calls, it
        keeps the first and the last state, because metric lines belong to a checkpoint.
      display: where progress is shown.
      show: `(name, chunk) -> text` at every measurement; it may append metric lines to the folder.
      checkpoint_every: seconds from one checkpoint to the next, at least.
      longest: as for `chunks`.
      deadline: on the clock of `time.perf_counter`; when it passes, a checkpoint is saved and
        training stops.
      done: steps of the display before these.
    """
    begun = saved = time.perf_counter()
    states = {name: one.state for name, one in trainings.items()}
    steps, before = dict.fromkeys(trainings, 0), 0.0
    total = sum(one.steps for one in trainings.values())
    logged = any(one.measure is not None for one in trainings.values())

    def save() -> None:
        progress = {"steps": steps, "seconds": before + time.perf_counter() - begun}
        folder.save(sum(steps.values()), states, progress)

    restored = folder.restore(jax.eval_shape(lambda: states), display.say)
    if restored is not None:
        jax.tree.map(lambda leaf: leaf.delete(), states)  # freed, as a call would do
        states, steps = restored.state, restored.progress["steps"]
        before = restored.progress["seconds"]
        display.say(f"Continuing from step {min(steps.values())}.")
    elif logged:
        save()
    calls = {
        name: chunks(one._replace(state=states[name], start=steps[name]), longest)
        for name, one in trainings.items()
    }
    texts: dict[str, str] = {}
    at, late = sum(steps.values()), False
    while at < total and not late:
        # The order of the metric lines is always the same.
        left = [name for name, one in trainings.items() if steps[name] < one.steps]
        name = min(left, key=lambda name: steps[name] // trainings[name].every)
        chunk = next(calls[name])
        at += chunk.step - steps[name]
        states[name], steps[name] = chunk.state, chunk.step
        if chunk.metrics is not None:
            texts[name] = show(name, chunk)
        if chunk.seconds_per_step is not None:
            display.estimate((display.total - done - at) * chunk.seconds_per_step)
        display.update(done + at, "; ".join(texts.values()))
        now = time.perf_counter()
        late = now > deadline
        if logged if at == total else late or now - saved >= checkpoint_every:
            save()
            saved = time.perf_counter()
    return Trained(states, at == total, before + time.perf_counter() - begun)
