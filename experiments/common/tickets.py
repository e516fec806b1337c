"""The cells of a lottery ticket study, and the one compiled function that trains them all.

A cell is one ticket or control at one level, with all its replicates. Several cells are trained
side by side; masks and initial parameters are arguments, so nothing is compiled anew for another
level or control. What the later cells need lies in `Masks`, small enough to be kept with the
results.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxsparse
from experiments.common import data, evaluation, jobs, training
from experiments.common.execution import execution
from experiments.common.ticket_settings import Settings, ladder, optimizer
from jaxsparse import lottery

Array = jax.Array
CONTROLS = ("one_shot", "reinit", "random")


class Cell(NamedTuple):
    """What is trained: "ticket", or one of `CONTROLS`, after `level` rounds of pruning."""

    kind: str
    level: int

    @property
    def name(self) -> str:
        """Such as `ticket-07`."""
        return f"{self.kind}-{self.level:02d}"


class Tracked(NamedTuple):
    """What is measured of one replicate while it trains.

    Attributes:
      params: those with the lowest validation loss so far.
      loss: that validation loss.
      iteration: when it was measured.
      curves: at every validation, `loss` (training), `validation_loss`, `validation_accuracy` and
        `test_accuracy`.
      tests: whether the test accuracy is measured at all.
    """

    params: Any
    loss: Array
    iteration: Array
    curves: dict[str, Array]
    tests: Array


class Lab(NamedTuple):
    """Everything that trains cells.

    Attributes:
      settings: of the study.
      dataset: the examples, on the host.
      keys: one key for each replicate.
      trainer: of stacked lanes, the replicates of several cells one after the other.
      sets: "train", "validation" and "test", on the device.
      counts: living weights after every round, as `jaxsparse.lottery.ladder` has them.
      densities: the same as a fraction of all prunable weights.
      origin: the initial parameters of the replicates, stacked.
    """

    settings: Settings
    dataset: data.Dataset
    keys: Array
    trainer: training.Trainer
    sets: dict[str, evaluation.EvaluationSet]
    counts: list[Any]
    densities: list[float]
    origin: Any


def build(settings: Settings, keys: Array, data_dir: str | None = None) -> Lab:
    """Loads the data and puts the lab together.

    Args:
      settings: what to train.
      keys: one key for each replicate.
      data_dir: folder of the prepared data sets.

    Raises:
      DataNotFound: the data set is not there.
      ValueError: settings that do not fit the data set.
    """
    dataset = data.load(settings.dataset, data_dir)
    if dataset.validation_inputs is None:
        dataset = data.split_validation(dataset, settings.validation, seed=0)
    apply, init_params = jobs.network(settings.model, dataset, mean=0.0, std=1.0)
    parts = {
        name: (_floats(getattr(dataset, f"{name}_inputs")), getattr(dataset, f"{name}_labels"))
        for name in ("train", "validation", "test")
    }
    sets = {
        name: evaluation.evaluation_set(*map(jnp.asarray, pair)) for name, pair in parts.items()
    }
    tx = jaxsparse.fixed(
        optimizer(settings),
        masks=jax.tree.map(lambda _: None, jax.eval_shape(init_params, keys[0])),
    )
    points = settings.iterations // settings.every
    trainer = training.make_trainer(
        apply,
        init_params,
        lambda key: tx,
        *map(jnp.asarray, parts["train"]),
        batch_size=settings.batch_size,
        execution=execution(settings.model, jax.default_backend()),
        start=jaxsparse.init,
        augment=functools.partial(data.augment, mode="constant") if settings.augment else None,
        track=training.Track(
            settings.every,
            functools.partial(_start_tracking, points),
            functools.partial(_track, apply, settings.every),
            (sets["validation"], sets["test"]),
        ),
    )
    origin = trainer.init(cell_keys(keys, Cell("ticket", 0))).params
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), origin)
    return Lab(settings, dataset, keys, trainer, sets, *ladder(settings, one), origin)


def cell_keys(keys: Array, cell: Cell) -> Array:
    """The key of each replicate of a cell: the order of its examples, and its new weights."""
    kind = ("ticket", *CONTROLS).index(cell.kind)
    return jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, kind), cell.level))(keys)


class Masks(NamedTuple):
    """How many rounds each weight survives; the tickets of all levels in one byte a weight.

    Attributes:
      ticket: uint8 in the structure of the parameters, replicates first; by iterative pruning.
      one_shot: the same by pruning the dense network once, to any level.
    """

    ticket: Any
    one_shot: Any


def no_masks(lab: Lab) -> Masks:
    """Before anything is pruned."""
    empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.uint8), lab.origin)
    return Masks(empty, empty)


def masks_of(lab: Lab, masks: Masks, cell: Cell) -> Any:
    """The masks of a cell, replicates first."""
    survived = masks.one_shot if cell.kind == "one_shot" else masks.ticket
    found = jax.tree.map(lambda rounds: rounds >= cell.level, survived)
    if cell.kind == "random":
        found = jax.vmap(lottery.shuffle_masks)(cell_keys(lab.keys, cell), found)
    return found


def start(lab: Lab, masks: Masks, cells: Sequence[Cell]) -> training.TrainState:
    """The lanes of several cells before their first step."""
    state = lab.trainer.init(jnp.concatenate([cell_keys(lab.keys, cell) for cell in cells]))
    count = len(lab.keys)
    params = [
        jax.tree.map(lambda leaf: leaf[i * count : (i + 1) * count], state.params)  # noqa: B023
        if cell.kind == "reinit"
        else lab.origin
        for i, cell in enumerate(cells)
    ]
    tests = [cell.level in lab.settings.curves and cell.kind != "one_shot" for cell in cells]
    return _with_tickets(
        state,
        _concatenate(params),
        _concatenate([masks_of(lab, masks, cell) for cell in cells]),
        jnp.repeat(jnp.array(tests), count),
    )


def prune(lab: Lab, masks: Masks, cell: Cell, state: training.TrainState) -> Masks:
    """The masks with the next level of tickets, after a ticket was trained.

    Args:
      lab: the lab.
      masks: of the levels up to this one.
      cell: the ticket.
      state: its lanes at the end of training.
    """
    if cell.kind != "ticket":
        return masks
    scores = jaxsparse.magnitude(state.params)
    if cell.level == 0:
        survived = no_masks(lab).one_shot
        for counts in lab.counts[1:]:
            chosen = _prune_to(lab.settings.scope, scores, counts, None)
            survived = jax.tree.map(lambda rounds, mask: rounds + mask, survived, chosen)
        masks = masks._replace(one_shot=survived)
    if cell.level == lab.settings.rounds:
        return masks
    within = masks_of(lab, masks, cell)
    chosen = _prune_to(lab.settings.scope, scores, lab.counts[cell.level + 1], within)
    return masks._replace(
        ticket=jax.tree.map(
            lambda old, mask: jnp.where(mask, cell.level + 1, jnp.minimum(old, cell.level)).astype(
                jnp.uint8
            ),
            masks.ticket,
            chosen,
        )
    )


def measure(lab: Lab, state: training.TrainState) -> dict[str, np.ndarray]:
    """Accuracies at the early stop and at the end, one number a lane each."""
    found = {
        "early_stop_iteration": np.asarray(state.tracked.iteration),
        "early_stop_validation_loss": np.asarray(state.tracked.loss, np.float64),
    }
    for when, params in (("early_stop", state.tracked.params), ("final", state.params)):
        for name, key in (("test", "accuracy"), ("train", "train_accuracy")):
            found[f"{when}_{key}"] = lab.trainer.evaluate(params, lab.sets[name])["accuracy"]
    return found


def lanes(tree: Any, index: int, count: int) -> Any:
    """The replicates of one of several cells, on the first device."""
    cut = jax.tree.map(lambda leaf: np.asarray(leaf[index * count : (index + 1) * count]), tree)
    return jax.tree.map(jnp.asarray, cut)


def _floats(inputs: np.ndarray) -> np.ndarray:
    # In [0, 1], once and for all: on a CPU that is a fifth of a step of LeNet.
    return inputs.astype(np.float32) / 255 if inputs.dtype == np.uint8 else inputs


def _concatenate(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *trees)


@jax.jit
@jax.vmap
def _with_tickets(
    state: training.TrainState, params: Any, masks: Any, tests: Array
) -> training.TrainState:
    params = jaxsparse.apply(params, masks)
    return state._replace(
        params=params,
        opt_state=jaxsparse.set_masks(state.opt_state, masks),
        tracked=state.tracked._replace(params=params, tests=tests),
    )


@functools.partial(jax.jit, static_argnums=0)
def _prune_to(scope: str, scores: Any, counts: Any, within: Any) -> Any:
    return jax.vmap(
        lambda scores, within: lottery.prune_to(scores, counts, within=within, scope=scope)
    )(scores, within)


def _start_tracking(points: int, params: Any) -> Tracked:
    names = ("loss", "validation_loss", "validation_accuracy", "test_accuracy")
    return Tracked(
        params,
        jnp.float32(jnp.inf),
        jnp.int32(0),
        {name: jnp.full(points, jnp.nan, jnp.float32) for name in names},
        jnp.bool_(False),
    )


def _track(
    apply: Callable, every: int, tracked: Tracked, params: Any, count: Array, loss: Array, sets: Any
) -> Tracked:
    validation, test = sets

    def accuracy(params: Any) -> Array:
        _, correct, counts = evaluation.sums(apply, evaluation.cross_entropy, params, test)
        return correct / counts

    total, correct, counts = evaluation.sums(apply, evaluation.cross_entropy, params, validation)
    now = {
        "loss": loss,
        "validation_loss": total / counts,
        "validation_accuracy": correct / counts,
        "test_accuracy": jax.lax.cond(
            tracked.tests, accuracy, lambda _: jnp.float32(jnp.nan), params
        ),
    }
    better = now["validation_loss"] < tracked.loss
    point = count // every - 1
    return tracked._replace(
        params=jax.tree.map(lambda new, old: jnp.where(better, new, old), params, tracked.params),
        loss=jnp.where(better, now["validation_loss"], tracked.loss),
        iteration=jnp.where(better, count, tracked.iteration),
        curves={name: tracked.curves[name].at[point].set(value) for name, value in now.items()},
    )
