"""The cells of a study of methods: each is a method at a sparsity, with all its replicates.

A method at all its sparsities is trained in one compiled function, the lanes side by side: what
tells them apart is their masks, and the numbers of a variant. Only a method that ramps has its
sparsity in the mask update.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

import jaxsparse
from experiments.common.data import datasets
from experiments.common.models.network import Network, make_network
from experiments.common.study.study import Group, Kept, read_arrays, read_results, write_arrays
from experiments.common.training import evaluation, loop, sources
from experiments.common.training.execution import execution
from experiments.common.training.methods import METHODS, prunable
from experiments.common.training.tracking import track
from experiments.sparse_momentum import variants
from experiments.sparse_momentum.settings import Settings, method, starts_sparse

Array = jax.Array
TORCH = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""Uniform in +-1/sqrt(fan-in), as the published code starts most layers, biases included."""
HE = nnx.initializers.variance_scaling(2, "fan_out", "normal")
"""Normal by fan-out, as it starts the convolutions of residual networks."""


class Cell(NamedTuple):
    """A method, or a variant of it, at a sparsity."""

    method: str
    sparsity: float

    @property
    def name(self) -> str:
        """Such as `sparse_momentum-0.95`."""
        return self.method if self.dense else f"{self.method}-{self.sparsity:g}"

    @property
    def dense(self) -> bool:
        """Whether nothing is sparse."""
        return METHODS[variants.method_of(self.method)].dense


class Lab(NamedTuple):
    """Everything that trains cells.

    Attributes:
      settings: of the study.
      dataset: the examples, on the host.
      keys: one key for each replicate.
      network: the network.
      make_trainer: as `loop.make_trainer`, the examples put in.
      sets: "validation" and "test", on the device.
      steps: of a whole run.
      every: steps from one measurement, and one mask update, to the next.
      steps_per_epoch: batches in one pass.
    """

    settings: Settings
    dataset: datasets.Dataset
    keys: Array
    network: Network
    make_trainer: Callable[..., loop.Trainer]
    sets: dict[str, evaluation.EvaluationSet]
    steps: int
    every: int
    steps_per_epoch: int


def build(
    settings: Settings, keys: Array, data_dir: str | None = None, examples: int | None = None
) -> Lab:
    """Loads the data and puts the lab together.

    Raises:
      DataNotFound: the data set is not there.
      ValueError: settings that do not fit the data set.
    """
    shared = {"batch_size": settings.batch_size, "validation": settings.validation}
    shared |= {"data_dir": data_dir, "examples": examples}
    if settings.image_size is None:
        source = sources.in_memory(settings.dataset, augment=settings.augment, **shared)
    else:
        seed = int(jax.random.bits(keys[0]))
        size = settings.image_size
        source = sources.on_disk(settings.dataset, image_size=size, seed=seed, **shared)
    network = make_network(
        settings.model,
        source.dataset,
        *source.pixels,
        dropout=settings.dropout,
        kernel_init=functools.partial(initial, settings.model),
        bias_init=None if _residual(settings.model) else initial_bias,
    )
    sets = evaluation.sets_of(source.dataset, ("validation", "test"))
    steps = source.steps_per_epoch
    length, every = settings.length(steps), settings.every(steps)
    return Lab(
        settings, source.dataset, keys, network, source.make_trainer, sets, length, every, steps
    )


def initial(model: str, key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """The first value of a kernel, as in the published code."""
    init = HE if _residual(model) and len(shape) == 4 else TORCH
    return init(key, shape, dtype)


def initial_bias(key: Array, kernel: Array) -> Array:
    """The first bias of a layer of a network without residuals; in one with them it is zero.

    It matters where the layer is very sparse: a unit of ReLU whose input and bias are zero has no
    gradient, and never gets one.
    """
    limit = (kernel.size // kernel.shape[-1]) ** -0.5
    return jax.random.uniform(key, kernel.shape[-1:], kernel.dtype, -limit, limit)


def _residual(model: str) -> bool:
    return model.startswith(("wrn", "resnet"))


def kept(tests: bool, name: str) -> Kept:
    """What the folder of a study holds of a cell; `KeyError` for what is no name of one.

    Args:
      tests: whether the test accuracy is measured.
      name: of the cell.
    """
    if name.split("+")[0].split("-")[0] not in METHODS:
        raise KeyError(name)
    numbers = {"method": str, "sparsity": float, "seconds": float, "validation_accuracy": [float]}
    numbers |= {"test_accuracy": [float]} if tests else {}
    return Kept(numbers, {"curves.npz": f"{name}/"})


def groups(lab: Lab, wanted: Sequence[Cell], path: Path, tests: bool = True) -> list[Group]:
    """The cells that are not done yet, program by program; `tests`: with the test accuracy."""
    done = read_results(path)
    together: dict[Any, list[Cell]] = {}
    for cell in wanted:
        if cell.name not in done:
            ramps = METHODS[variants.method_of(cell.method)].ramps
            alone = cell.sparsity if ramps else None
            together.setdefault((variants.program(cell.method), alone), []).append(cell)
    return [
        Group(
            _together(now),
            functools.partial(_begin, lab, now),
            functools.partial(_finish, lab, now, path, tests),
            lab.steps,
            lab.every,
        )
        for now in together.values()
    ]


def _together(now: Sequence[Cell]) -> str:
    names, few = [cell.name for cell in now], 6
    return ", ".join(names[:few]) + (f" and {len(names) - few} more" if len(names) > few else "")


def layer_densities(params: Any, opt_state: Any, dense: bool) -> dict[str, Array]:
    """The density of every prunable layer, under "density/" and its path."""
    masks = jax.tree.map(lambda p: jnp.ones(p.shape, bool), params)
    if not dense:
        masks = jaxsparse.get_masks(opt_state, params)
    found = jaxsparse.lottery.layer_densities(masks)
    return {f"density/{name.removesuffix('/kernel')}": value for name, value in found.items()}


def _begin(lab: Lab, now: Sequence[Cell]) -> tuple[loop.Trainer, loop.TrainState]:
    dense = now[0].dense

    def trainer(cell: Cell) -> loop.Trainer:
        return lab.make_trainer(
            lab.network.apply,
            lab.network.init_params,
            lambda key: method(lab.settings, cell.method, cell.sparsity, key, lab.steps_per_epoch),
            execution=execution(lab.settings.model, jax.default_backend()),
            start=loop.start_dense if dense else jaxsparse.init,
            forward=lab.network.forward,
            track=track(
                lab.network.apply,
                lab.every,
                lab.steps,
                lab.sets,
                functools.partial(layer_densities, dense=dense),
            ),
        )

    made = [trainer(cell) for cell in now]
    states = [one.init(lab.keys) for one in made]
    if starts_sparse(lab.settings, now[0].method):
        states = [_draw_anew(state, lab.keys, lab.settings.dense) for state in states]
    return made[0], jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *states)


@functools.partial(jax.jit, static_argnums=2)
def _draw_anew(state: loop.TrainState, keys: Array, dense: str) -> loop.TrainState:
    """Lanes before their first step, with living weights uniform in +-1/sqrt(living fan-in)."""

    def draw(key: Array, params: Any, opt_state: Any) -> Any:
        return jaxsparse.sparse_init(
            jax.random.fold_in(key, 3),
            params,
            jaxsparse.get_masks(opt_state, params),
            scale=1 / 3,
            distribution="uniform",
            prunable=prunable(dense),
            axes="flax",
        )

    return state._replace(params=jax.vmap(draw)(keys, state.params, state.opt_state))


def _finish(
    lab: Lab,
    now: Sequence[Cell],
    path: Path,
    tests: bool,
    state: loop.TrainState,
    seconds: float,
) -> dict[str, Any]:
    measured = {}
    if tests:
        form = execution(lab.settings.model, jax.default_backend())
        loss, test_set = evaluation.cross_entropy, lab.sets["test"]
        found = evaluation.evaluate(lab.network.apply, loss, form, state.params, test_set)
        measured["test_accuracy"] = found["accuracy"]
    curves, count = jax.device_get(state.tracked.curves), len(lab.keys)
    measured["validation_accuracy"] = curves["validation_accuracy"][:, -1]
    stored, results = read_arrays(path / "curves.npz"), {}
    for i, cell in enumerate(now):
        mine = slice(i * count, (i + 1) * count)
        stored |= {f"{cell.name}/{name}": curve[mine] for name, curve in curves.items()}
        results[cell.name] = {
            "method": cell.method,
            "sparsity": cell.sparsity,
            **{name: values[mine].tolist() for name, values in measured.items()},
            "seconds": round(seconds / len(now), 1),
        }
    write_arrays(path / "curves.npz", stored)
    return results
