"""A cell is a method: how accurate it is after every epoch, and what a step of it costs."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxsparse
from experiments.common.models.network import Network, accelerated, make_network
from experiments.common.study.content import Content, measured
from experiments.common.study.lab import Lab, Site, cut, make_lab
from experiments.common.study.study import Group
from experiments.common.training import loop, sources
from experiments.common.training.methods import METHODS
from experiments.common.training.tracking import track
from experiments.cost.settings import Settings, parse
from jaxsparse import analysis, sparse

TURNS, LONG = 7, 60.0  # turns; fewer if they take longer than this many seconds
NEAR = jaxsparse.sparse_momentum_rule(sparsity=0.5).window
"""Steps before a mask update in which compressed sparse momentum reads dense gradients."""
FAR = 10


def build(settings: Settings, site: Site) -> Lab:
    """Loads the data and assembles the lab; the errors are those of `sources.load`."""
    shared = {"batch_size": settings.batch_size, "validation": settings.validation}
    source = sources.load(settings.dataset, **shared, **site.data)
    return make_lab(settings, site, source, ("validation", "test"))


def content_of(name: str) -> Content:
    """What the folder holds of a cell; `KeyError` for an unknown name."""
    METHODS[parse(name)[0]]
    numbers = dict.fromkeys(("test_accuracy", "time", "flops"), [float]) | {"seconds": float}
    return Content(numbers, {"curves.npz": f"{name}/"})


def group(lab: Lab, name: str) -> Group:
    """Trains a method, and then measures its steps."""
    every, steps = lab.source.steps_per_epoch, _steps(lab)
    density = functools.partial(_density, METHODS[parse(name)[0]].dense)
    watched = track(_network(lab, name).apply, every, steps, lab.sets, density)

    def begin() -> tuple[loop.Trainer, loop.TrainState]:
        trainer = _trainer(lab, name, watched)
        return trainer, trainer.init(lab.site.keys)

    return Group([name], functools.partial(_finish, lab, name), begin, steps, every)


def _steps(lab: Lab) -> int:
    return lab.settings.epochs * lab.source.steps_per_epoch


def _trainer(
    lab: Lab, name: str, watched: loop.Track | None = None, every: int | None = None
) -> loop.Trainer:
    make_tx = lambda key: lab.settings.method(name, key, _steps(lab), every)  # noqa: E731
    method, form = parse(name)
    return lab.trainer(
        make_tx,
        dense=METHODS[method].dense,
        track=watched,
        network=_network(lab, name),
        compressed=bool(form),
    )


def _network(lab: Lab, name: str) -> Network:
    """The lab's network, or for compressed parameters the same in the form that they can read."""
    if not parse(name)[1]:
        return lab.network
    source, model = lab.source, lab.settings.model
    return accelerated(make_network(model, source.dataset, *source.pixels, convolution="conv"))


def _density(dense: bool, params: Any, opt_state: Any) -> dict[str, jax.Array]:
    if dense:
        return {"density": jnp.float32(1)}
    return {"density": jaxsparse.metrics(opt_state, params=params)["density"]}


def _finish(lab: Lab, name: str, state: loop.TrainState) -> dict[str, Content]:
    lanes = lab.mine(0)
    curves = jax.device_get(state.tracked.curves)
    kept = {key: curves[key] for key in ("validation_accuracy", "density")}
    ours = cut((state.params, state.opt_state), lanes)
    kept["flops"] = np.stack([_flops(lab, name, ours, i, kept) for i in range(len(lab.site.keys))])
    numbers = {
        "test_accuracy": lab.accuracy(state.params, "test", _network(lab, name)),
        "flops": kept["flops"][:, -1],
    }
    return {name: measured(name, lanes, numbers, kept, time=_times(lab, name))}


def _flops(lab: Lab, name: str, states: Any, i: int, curves: Any) -> np.ndarray:
    """FLOPs of the training up to each measurement; those of dense training are 1."""
    one = jax.tree.map(lambda leaf: leaf[i], states)
    method = parse(name)[0]
    masks = None if METHODS[method].dense else jaxsparse.get_masks(one[1], one[0])
    params = sparse.expand(one[0])
    cost = analysis.flops(lab.network.apply, params, masks, lab.sets["test"].inputs[0, :1])
    every, sparsities = lab.settings.updates(_steps(lab)).every, 1 - curves["density"][i]
    step = functools.partial(
        analysis.training_flops,
        cost.dense,
        cost.sparse,
        METHODS[method].flops or method,
        every=every,
    )
    points = np.arange(1, len(sparsities) + 1)
    each = [step(sparsities=sparsities[:n].tolist()) for n in points]
    return np.array(each) * points / (3 * cost.dense * len(points))


def _times(lab: Lab, name: str) -> list[float]:
    """Seconds of a step, including mask updates, relative to dense training; one number per turn.

    Steps far from a mask update and the last ones before it are timed separately, taking turns with
    dense steps, so that other load on the machine slows all of them.
    """
    every = lab.settings.updates(_steps(lab)).every
    near = 0 if METHODS[parse(name)[0]].dense else min(every, NEAR)
    far, never = min(every, FAR), _steps(lab)
    timed = [_timed(lab, name, far, never), _timed(lab, "dense", far, never)]
    if near:
        timed.append(_timed(lab, name, near, near))
    for call in timed:
        call()  # compiles
    found, begun = [], time.perf_counter()
    while len(found) < TURNS and (len(found) < 3 or time.perf_counter() - begun < LONG):
        apart, dense, *before = (call() for call in timed)
        step = (1 - near / every) * apart + sum(near / every * seconds for seconds in before)
        found.append(step / dense)
    return found


def _timed(lab: Lab, name: str, steps: int, every: int) -> Callable[[], float]:
    """A call that trains this many steps of a method and returns the seconds per step."""
    trainer = _trainer(lab, name, every=every)
    state = trainer.init(lab.site.keys)

    def call() -> float:
        nonlocal state
        begun = time.perf_counter()
        state = jax.block_until_ready(trainer.advance(state, 0, steps))
        return (time.perf_counter() - begun) / steps

    return call
