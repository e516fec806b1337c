"""The cells of a lottery ticket study, and the one compiled function that trains them all.

A cell is one ticket or control at one level, with all its replicates. Several cells are trained
side by side; masks and initial parameters are arguments, so another level or control needs no new
compilation. What later cells need is in `Masks`, which is small enough to be stored with the
results.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxsparse
from experiments.common.study.lab import Lab, Site, begin_from, make_lab, stack
from experiments.common.training import loop, sources
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
        """A name such as `ticket-07`."""
        return f"{self.kind}-{self.level:02d}"


class Tickets(NamedTuple):
    """Everything that trains and prunes.

    Attributes:
      lab: the lab; its sets are "train", "validation" and "test".
      trainer: of stacked lanes, the replicates of several cells one after another.
      counts: living weights after every round, as `jaxsparse.lottery.ladder` returns them.
      densities: the same as a fraction of all prunable weights.
      origin: the initial parameters of the replicates, stacked.
      prune: `(scores, counts, within) -> masks`, all stacked but the counts; compiled once.
    """

    lab: Lab
    trainer: loop.Trainer
    counts: list[Any]
    densities: list[float]
    origin: Any
    prune: Callable[..., Any]


def build(settings: Settings, site: Site) -> Tickets:
    """Loads the data and assembles everything.

    Raises:
      DataNotFound: the data set is missing.
      ValueError: the settings do not fit the data set.
    """
    source = sources.load(
        settings.dataset,
        batch_size=settings.batch_size,
        validation=settings.validation,
        normalize=False,
        augment="constant" if settings.augment else None,
        **site.data,
    )
    parts = ("train", "validation", "test")
    lab = make_lab(settings, site, source, parts, dropout=settings.dropout)
    network = lab.network
    tx = jaxsparse.fixed(
        optimizer(settings),
        masks=jax.tree.map(lambda _: None, jax.eval_shape(network.init_params, site.keys[0])),
    )
    watched = track(network.apply, settings.every, settings.iterations, lab.sets)
    trainer = lab.trainer(lambda key: tx, track=watched)
    origin = trainer.init(cell_keys(site.keys, Cell("ticket", 0))).params
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), origin)
    target = {"scope": settings.scope, "prunable": prunable(settings)}

    @jax.jit
    def prune(scores: Any, counts: Any, within: Any) -> Any:
        return jax.vmap(
            lambda scores, within: lottery.prune_to(scores, counts, within=within, **target)
        )(scores, within)

    return Tickets(lab, trainer, *ladder(settings, one), origin, prune)


def cell_keys(keys: Array, cell: Cell) -> Array:
    """The key of each replicate of a cell: the order of its examples, and its new weights."""
    kind = ("ticket", *CONTROLS).index(cell.kind)
    return jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, kind), cell.level))(keys)


class Masks(NamedTuple):
    """How many rounds each weight survives; the tickets of all levels in one byte per weight.

    Attributes:
      ticket: uint8 in the structure of the parameters, replicates first; by iterative pruning.
      one_shot: the same for pruning the dense network once, to any level.
    """

    ticket: Any
    one_shot: Any


def no_masks(tickets: Tickets) -> Masks:
    """The masks before anything is pruned."""
    empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.uint8), tickets.origin)
    return Masks(empty, empty)


def masks_of(tickets: Tickets, masks: Masks, cell: Cell) -> Any:
    """The masks of a cell, replicates first."""
    survived = masks.one_shot if cell.kind == "one_shot" else masks.ticket
    found = jax.tree.map(lambda rounds: rounds >= cell.level, survived)
    if cell.kind == "random":
        chosen = prunable(tickets.lab.settings)
        found = jax.vmap(lambda key, one: lottery.shuffle_masks(key, one, prunable=chosen))(
            cell_keys(tickets.lab.site.keys, cell), found
        )
    return found


def start(tickets: Tickets, masks: Masks, cells: Sequence[Cell]) -> loop.TrainState:
    """The lanes of several cells before their first step."""
    keys = tickets.lab.site.keys
    state = tickets.trainer.init(jnp.concatenate([cell_keys(keys, cell) for cell in cells]))
    count = len(keys)
    params = [
        jax.tree.map(lambda leaf: leaf[i * count : (i + 1) * count], state.params)  # noqa: B023
        if cell.kind == "reinit"
        else tickets.origin
        for i, cell in enumerate(cells)
    ]
    drawn = ("ticket", "reinit")
    tests = [cell.kind in drawn and cell.level in tickets.lab.settings.curves for cell in cells]
    masks = stack([masks_of(tickets, masks, cell) for cell in cells])
    state = begin_from(state, stack(params), masks)
    best = jax.tree.map(jnp.copy, state.params)
    tests = jnp.repeat(jnp.array(tests), count)
    return state._replace(tracked=state.tracked._replace(params=best, tests=tests))


def prune(tickets: Tickets, masks: Masks, cell: Cell, state: loop.TrainState) -> Masks:
    """The masks with the next level of tickets, after a ticket was trained.

    Args:
      tickets: prunes the ticket.
      masks: of the levels up to this one.
      cell: the ticket.
      state: its lanes at the end of training.
    """
    if cell.kind != "ticket":
        return masks
    scores = jaxsparse.magnitude(state.params)
    if cell.level == 0:
        survived, everything = no_masks(tickets).one_shot, masks_of(tickets, masks, cell)
        for counts in tickets.counts[1:]:
            chosen = tickets.prune(scores, counts, everything)
            survived = jax.tree.map(lambda rounds, mask: rounds + mask, survived, chosen)
        masks = masks._replace(one_shot=survived)
    if cell.level == tickets.lab.settings.rounds:
        return masks
    within = masks_of(tickets, masks, cell)
    chosen = tickets.prune(scores, tickets.counts[cell.level + 1], within)
    return masks._replace(
        ticket=jax.tree.map(
            lambda old, mask: jnp.where(mask, cell.level + 1, jnp.minimum(old, cell.level)).astype(
                jnp.uint8
            ),
            masks.ticket,
            chosen,
        )
    )


def measure(tickets: Tickets, state: loop.TrainState) -> dict[str, np.ndarray]:
    """Accuracies at the early stop and at the end, one number per lane each."""
    found = {
        "early_stop_iteration": np.asarray(state.tracked.iteration),
        "early_stop_validation_loss": np.asarray(state.tracked.loss, np.float64),
    }
    for name, params, examples in (
        ("early_stop_accuracy", state.tracked.params, "test"),
        ("final_accuracy", state.params, "test"),
        ("final_train_accuracy", state.params, "train"),
    ):
        found[name] = tickets.lab.accuracy(params, examples)
    return found
