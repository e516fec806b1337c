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
from experiments.common.data import datasets
from experiments.common.models.network import make_network
from experiments.common.study.study import begin_from
from experiments.common.training import evaluation, loop
from experiments.common.training.execution import execution
from experiments.common.training.tracking import track
from experiments.lottery_ticket.settings import Settings, ladder, optimizer, prunable
from jaxsparse import lottery

Array = jax.Array
CONTROLS = ("one_shot", "reinit", "random")
MEASURES = (
    *("early_stop_iteration", "early_stop_validation_loss", "early_stop_accuracy"),
    *("final_accuracy", "final_train_accuracy"),
)


class Cell(NamedTuple):
    """What is trained: "ticket", or one of `CONTROLS`, after `level` rounds of pruning."""

    kind: str
    level: int

    @property
    def name(self) -> str:
        """Such as `ticket-07`."""
        return f"{self.kind}-{self.level:02d}"


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
      prune: `(scores, counts, within) -> masks`, all stacked but the counts; compiled once.
    """

    settings: Settings
    dataset: datasets.Dataset
    keys: Array
    trainer: loop.Trainer
    sets: dict[str, evaluation.EvaluationSet]
    counts: list[Any]
    densities: list[float]
    origin: Any
    prune: Callable[..., Any]


def build(
    settings: Settings, keys: Array, data_dir: str | None = None, examples: int | None = None
) -> Lab:
    """Loads the data and puts the lab together.

    Args:
      settings: what to train.
      keys: one key for each replicate.
      data_dir: folder of the prepared data sets.
      examples: how many to use of each part of the data set; None uses all.

    Raises:
      DataNotFound: the data set is not there.
      ValueError: settings that do not fit the data set.
    """
    dataset = datasets.first(datasets.load(settings.dataset, data_dir), examples)
    if dataset.validation_inputs is None:
        dataset = datasets.split_validation(dataset, settings.validation, seed=0)
    network = make_network(settings.model, dataset, dropout=settings.dropout)
    dataset = datasets.as_floats(dataset)
    sets = evaluation.sets_of(dataset, ("train", "validation", "test"))
    tx = jaxsparse.fixed(
        optimizer(settings),
        masks=jax.tree.map(lambda _: None, jax.eval_shape(network.init_params, keys[0])),
    )
    trainer = loop.make_trainer(
        network.apply,
        network.init_params,
        lambda key: tx,
        jnp.asarray(dataset.train_inputs),
        jnp.asarray(dataset.train_labels),
        batch_size=settings.batch_size,
        execution=execution(settings.model, jax.default_backend()),
        start=jaxsparse.init,
        augment=functools.partial(datasets.augment, mode="constant") if settings.augment else None,
        forward=network.forward,
        track=track(network.apply, settings.every, settings.iterations, sets),
    )
    origin = trainer.init(cell_keys(keys, Cell("ticket", 0))).params
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), origin)
    target = {"scope": settings.scope, "prunable": prunable(settings)}

    @jax.jit
    def prune(scores: Any, counts: Any, within: Any) -> Any:
        return jax.vmap(
            lambda scores, within: lottery.prune_to(scores, counts, within=within, **target)
        )(scores, within)

    return Lab(settings, dataset, keys, trainer, sets, *ladder(settings, one), origin, prune)


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
        chosen = prunable(lab.settings)
        found = jax.vmap(lambda key, one: lottery.shuffle_masks(key, one, prunable=chosen))(
            cell_keys(lab.keys, cell), found
        )
    return found


def start(lab: Lab, masks: Masks, cells: Sequence[Cell]) -> loop.TrainState:
    """The lanes of several cells before their first step."""
    state = lab.trainer.init(jnp.concatenate([cell_keys(lab.keys, cell) for cell in cells]))
    count = len(lab.keys)
    params = [
        jax.tree.map(lambda leaf: leaf[i * count : (i + 1) * count], state.params)  # noqa: B023
        if cell.kind == "reinit"
        else lab.origin
        for i, cell in enumerate(cells)
    ]
    drawn = ("ticket", "reinit")
    tests = [cell.kind in drawn and cell.level in lab.settings.curves for cell in cells]
    masks = _concatenate([masks_of(lab, masks, cell) for cell in cells])
    state = begin_from(state, _concatenate(params), masks)
    best = jax.tree.map(jnp.copy, state.params)
    tests = jnp.repeat(jnp.array(tests), count)
    return state._replace(tracked=state.tracked._replace(params=best, tests=tests))


def prune(lab: Lab, masks: Masks, cell: Cell, state: loop.TrainState) -> Masks:
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
        survived, everything = no_masks(lab).one_shot, masks_of(lab, masks, cell)
        for counts in lab.counts[1:]:
            chosen = lab.prune(scores, counts, everything)
            survived = jax.tree.map(lambda rounds, mask: rounds + mask, survived, chosen)
        masks = masks._replace(one_shot=survived)
    if cell.level == lab.settings.rounds:
        return masks
    within = masks_of(lab, masks, cell)
    chosen = lab.prune(scores, lab.counts[cell.level + 1], within)
    return masks._replace(
        ticket=jax.tree.map(
            lambda old, mask: jnp.where(mask, cell.level + 1, jnp.minimum(old, cell.level)).astype(
                jnp.uint8
            ),
            masks.ticket,
            chosen,
        )
    )


def measure(lab: Lab, state: loop.TrainState) -> dict[str, np.ndarray]:
    """Accuracies at the early stop and at the end, one number a lane each."""
    found = {
        "early_stop_iteration": np.asarray(state.tracked.iteration),
        "early_stop_validation_loss": np.asarray(state.tracked.loss, np.float64),
    }
    for name, params, examples in (
        ("early_stop_accuracy", state.tracked.params, "test"),
        ("final_accuracy", state.params, "test"),
        ("final_train_accuracy", state.params, "train"),
    ):
        found[name] = lab.trainer.evaluate(params, lab.sets[examples])["accuracy"]
    return found


def lanes(tree: Any, index: int, count: int) -> Any:
    """The replicates of one of several cells, on the first device."""
    cut = jax.tree.map(lambda leaf: np.asarray(leaf[index * count : (index + 1) * count]), tree)
    return jax.tree.map(jnp.asarray, cut)


def _concatenate(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *trees)
