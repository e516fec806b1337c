"""The cells of a study of methods: each is a method at a sparsity, with all its replicates.

A method at all its sparsities is trained in one compiled function, the lanes side by side: what
tells them apart is their masks. Gradual pruning alone has its sparsity in the mask update.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

import jaxsparse
from experiments.common import data, evaluation, networks, studies, training
from experiments.common.execution import execution
from experiments.common.rivals.settings import Settings, method
from experiments.common.tracking import track

Array = jax.Array
TORCH = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""The initialization of the published code: uniform in +-1/sqrt(fan-in)."""


class Cell(NamedTuple):
    """A method at a sparsity."""

    method: str
    sparsity: float

    @property
    def name(self) -> str:
        """Such as `sparse_momentum-0.95`."""
        return self.method if self.method == "dense" else f"{self.method}-{self.sparsity:g}"


class Lab(NamedTuple):
    """Everything that trains cells.

    Attributes:
      settings: of the study.
      dataset: the examples, on the host.
      keys: one key for each replicate.
      network: the network.
      examples: inputs and labels for training, on the device.
      sets: "validation" and "test", on the device.
      steps_per_epoch: batches in one pass.
    """

    settings: Settings
    dataset: data.Dataset
    keys: Array
    network: networks.Network
    examples: tuple[Array, Array]
    sets: dict[str, evaluation.EvaluationSet]
    steps_per_epoch: int


def build(
    settings: Settings, keys: Array, data_dir: str | None = None, examples: int | None = None
) -> Lab:
    """Loads the data and puts the lab together.

    Raises:
      DataNotFound: the data set is not there.
      ValueError: settings that do not fit the data set.
    """
    dataset = data.first(data.load(settings.dataset, data_dir), examples)
    dataset = data.split_last(dataset, settings.validation)
    dataset = data.as_floats(dataset, *data.pixel_statistics(dataset))
    examples = jnp.asarray(dataset.train_inputs), jnp.asarray(dataset.train_labels)
    sets = evaluation.sets_of(dataset, ("validation", "test"))
    network = networks.network(settings.model, dataset, kernel_init=TORCH)
    steps = len(dataset.train_labels) // settings.batch_size
    return Lab(settings, dataset, keys, network, examples, sets, steps)


def groups(lab: Lab, wanted: Sequence[Cell], path: Path) -> list[studies.Group]:
    """The cells that are not done yet, method by method."""
    done = studies.finished(path)
    together: dict[Any, list[Cell]] = {}
    for cell in wanted:
        if cell.name not in done:
            alone = cell.sparsity if cell.method == "gradual" else None
            together.setdefault((cell.method, alone), []).append(cell)
    return [
        studies.Group(
            ", ".join(cell.name for cell in now),
            functools.partial(_begin, lab, now),
            functools.partial(_finish, lab, now, path),
            lab.settings.epochs * lab.steps_per_epoch,
            lab.steps_per_epoch,
        )
        for now in together.values()
    ]


def layer_densities(params: Any, opt_state: Any, dense: bool) -> dict[str, Array]:
    """The density of every prunable layer, under "density/" and its path."""
    masks = jax.tree.map(lambda p: jnp.ones(p.shape, bool), params)
    if not dense:
        masks = jaxsparse.get_masks(opt_state, params)
    found = jaxsparse.lottery.layer_densities(masks)
    return {f"density/{name.removesuffix('/kernel')}": value for name, value in found.items()}


def _begin(lab: Lab, now: Sequence[Cell]) -> tuple[training.Trainer, training.TrainState]:
    name, dense = now[0].method, now[0].method == "dense"

    def trainer(sparsity: float) -> training.Trainer:
        return training.make_trainer(
            lab.network.apply,
            lab.network.init_params,
            lambda key: method(lab.settings, name, sparsity, key, lab.steps_per_epoch),
            *lab.examples,
            batch_size=lab.settings.batch_size,
            execution=execution(lab.settings.model, jax.default_backend()),
            start=training.start_dense if dense else jaxsparse.init,
            forward=lab.network.forward,
            track=track(
                lab.network.apply,
                lab.steps_per_epoch,
                lab.settings.epochs * lab.steps_per_epoch,
                lab.sets,
                functools.partial(layer_densities, dense=dense),
            ),
        )

    made = [trainer(cell.sparsity) for cell in now]
    states = [one.init(lab.keys) for one in made]
    return made[0], jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *states)


def _finish(
    lab: Lab, now: Sequence[Cell], path: Path, state: training.TrainState, seconds: float
) -> dict[str, Any]:
    form = execution(lab.settings.model, jax.default_backend())
    loss, test_set = evaluation.cross_entropy, lab.sets["test"]
    test = evaluation.evaluate(lab.network.apply, loss, form, state.params, test_set)["accuracy"]
    curves, count = jax.device_get(state.tracked.curves), len(lab.keys)
    stored, results = studies.read_arrays(path / "curves.npz"), {}
    for i, cell in enumerate(now):
        mine = slice(i * count, (i + 1) * count)
        stored |= {f"{cell.name}/{name}": curve[mine] for name, curve in curves.items()}
        results[cell.name] = {
            "method": cell.method,
            "sparsity": cell.sparsity,
            "test_accuracy": test[mine].tolist(),
            "validation_accuracy": curves["validation_accuracy"][mine, -1].tolist(),
            "seconds": round(seconds / len(now), 1),
        }
    studies.write_arrays(path / "curves.npz", stored)
    return results
