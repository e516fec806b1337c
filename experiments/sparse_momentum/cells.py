"""The cells of a study of methods: each is a method at a sparsity, with all its replicates.

A method is trained at all its sparsities in one compiled function, with the lanes side by side:
only their masks, and the numbers of a variant, distinguish them. Only a method that ramps has its
sparsity in the mask update.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

import jaxsparse
from experiments.common.study.content import Content, measured
from experiments.common.study.lab import Lab, Site, make_lab, stack
from experiments.common.study.study import Group
from experiments.common.training import loop, sources
from experiments.common.training.methods import METHODS, prunable
from experiments.common.training.tracking import track
from experiments.sparse_momentum import variants
from experiments.sparse_momentum.settings import Settings, method, starts_sparse

Array = jax.Array
TORCH = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""Uniform in +-1/sqrt(fan-in), as in the published code for most layers, including biases."""
HE = nnx.initializers.variance_scaling(2, "fan_out", "normal")
"""Normal by fan-out, as in that code for the convolutions of residual networks."""


class Cell(NamedTuple):
    """A method, or a variant of it, at a sparsity."""

    method: str
    sparsity: float

    @property
    def name(self) -> str:
        """A name such as `sparse_momentum-0.95`."""
        return self.method if self.dense else f"{self.method}-{self.sparsity:g}"

    @property
    def dense(self) -> bool:
        """Whether nothing is sparse."""
        return METHODS[variants.method_of(self.method)].dense


def build(settings: Settings, site: Site) -> Lab:
    """Loads the data and assembles the lab.

    Raises:
      DataNotFound: the data set is missing.
      ValueError: the settings do not fit the data set.
    """
    source = sources.load(
        settings.dataset,
        batch_size=settings.batch_size,
        image_size=settings.image_size,
        validation=settings.validation,
        augment="reflect" if settings.augment else None,
        **site.data,
    )
    return make_lab(
        settings,
        site,
        source,
        ("validation", "test"),
        dropout=settings.dropout,
        kernel_init=functools.partial(initial, settings.model),
        bias_init=None if _residual(settings.model) else initial_bias,
    )


def initial(model: str, key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """The initial value of a kernel, as in the published code."""
    init = HE if _residual(model) and len(shape) == 4 else TORCH
    return init(key, shape, dtype)


def initial_bias(key: Array, kernel: Array) -> Array:
    """The initial bias of a layer of a network without residuals; with residuals it is zero.

    It matters if the layer is very sparse: a ReLU unit whose input and bias are zero has no
    gradient, and never gets one.
    """
    limit = (kernel.size // kernel.shape[-1]) ** -0.5
    return jax.random.uniform(key, kernel.shape[-1:], kernel.dtype, -limit, limit)


def _residual(model: str) -> bool:
    return model.startswith(("wrn", "resnet"))


def content_of(tests: bool, name: str) -> Content:
    """What the folder of a study holds of a cell; `KeyError` for an unknown name.

    Args:
      tests: whether the test accuracy is measured.
      name: of the cell.
    """
    if name.split("+")[0].split("-")[0] not in METHODS:
        raise KeyError(name)
    numbers = {"method": str, "sparsity": float, "seconds": float, "validation_accuracy": [float]}
    numbers |= {"test_accuracy": [float]} if tests else {}
    return Content(numbers, {"curves.npz": f"{name}/"})


def groups(lab: Lab, left: Sequence[Cell], tests: bool = True) -> list[Group]:
    """The cells that are not done yet, program by program; `tests`: measure the test accuracy."""
    together: dict[Any, list[Cell]] = {}
    for cell in left:
        alone = cell.sparsity if METHODS[variants.method_of(cell.method)].ramps else None
        together.setdefault((variants.program(cell.method), alone), []).append(cell)
    return [
        Group(
            [cell.name for cell in now],
            functools.partial(_finish, lab, now, tests),
            functools.partial(_begin, lab, now),
            *_lengths(lab),
        )
        for now in together.values()
    ]


def _lengths(lab: Lab) -> tuple[int, int]:
    steps = lab.source.steps_per_epoch
    return lab.settings.length(steps), lab.settings.every(steps)


def layer_densities(params: Any, opt_state: Any, dense: bool) -> dict[str, Array]:
    """The density of each prunable layer, under "density/" and its path."""
    masks = jax.tree.map(lambda p: jnp.ones(p.shape, bool), params)
    if not dense:
        masks = jaxsparse.get_masks(opt_state, params)
    found = jaxsparse.lottery.layer_densities(masks)
    return {f"density/{name.removesuffix('/kernel')}": value for name, value in found.items()}


def _begin(lab: Lab, now: Sequence[Cell]) -> tuple[loop.Trainer, loop.TrainState]:
    settings, dense = lab.settings, now[0].dense
    iterations, every = _lengths(lab)
    densities = functools.partial(layer_densities, dense=dense)
    watched = track(lab.network.apply, every, iterations, lab.sets, densities)

    def trainer(cell: Cell) -> loop.Trainer:
        epoch = lab.source.steps_per_epoch
        make_tx = lambda key: method(settings, cell.method, cell.sparsity, key, epoch)  # noqa: E731
        return lab.trainer(make_tx, dense=dense, track=watched)

    trainers = [trainer(cell) for cell in now]
    states = [one.init(lab.site.keys) for one in trainers]
    if starts_sparse(settings, now[0].method):
        states = [_draw_anew(state, lab.site.keys, settings.dense) for state in states]
    return trainers[0], stack(states)


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
    lab: Lab, now: Sequence[Cell], tests: bool, state: loop.TrainState
) -> dict[str, Content]:
    curves = jax.device_get(state.tracked.curves)
    numbers = {"test_accuracy": lab.accuracy(state.params, "test")} if tests else {}
    numbers["validation_accuracy"] = curves["validation_accuracy"][:, -1]
    return {
        cell.name: measured(
            cell.name, lab.mine(i), numbers, curves, method=cell.method, sparsity=cell.sparsity
        )
        for i, cell in enumerate(now)
    }
