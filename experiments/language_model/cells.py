"""A cell is a run of a method, a sparsity and a seed; or the time that a method's steps take."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import jaxsparse
from experiments.common.faults import FolderError
from experiments.common.study.content import Content, measured, read_arrays
from experiments.common.study.lab import Site, begin_from
from experiments.common.study.study import Group
from experiments.common.training import evaluation, execution, from_disk, loop
from experiments.common.training.tracking import track
from experiments.language_model import data, layout
from experiments.language_model.decoder import make_decoder
from experiments.language_model.logs import Log
from experiments.language_model.settings import (
    LIFTED,
    PRUNABLE,
    TICKET,
    Cell,
    Settings,
    parse,
)
from jaxsparse import analysis

TURNS = 3
CURVES = ("loss", "validation_loss", "density", "flops")
_RUN = execution.Execution("conv", "map")


class Lab(NamedTuple):
    """Everything that trains cells.

    Attributes:
      settings: of the study.
      site: where it runs.
      text: the bytes.
      sets: "validation" and "test", as windows.
      sparsities: of the study; a dense run stores the masks of their tickets.
      mesh: None for one device.
      tensorboard: whether to write curves for it too.
    """

    settings: Settings
    site: Site
    text: data.Text
    sets: dict[str, evaluation.EvaluationSet]
    sparsities: tuple[float, ...]
    mesh: Mesh | None
    tensorboard: bool


def build(
    settings: Settings,
    site: Site,
    sparsities: tuple[float, ...],
    mesh: Mesh | None,
    tensorboard: bool,
) -> Lab:
    """Loads the text and assembles a lab; the errors are those of `data.read`."""
    text = data.read(
        settings.text, settings.context, data_dir=site.data_dir, examples=site.examples
    )
    windows = {"context": settings.context, "batch_size": settings.batch_size}
    sets = {name: data.held_out(getattr(text, name), **windows) for name in ("validation", "test")}
    return Lab(settings, site, text, sets, sparsities, mesh, tensorboard)


def content_of(name: str) -> Content:
    """What the folder holds of a cell; `KeyError` for an unknown name."""
    cell = parse(name)
    if cell.seed is None:
        return Content({"time": [float]})
    numbers = dict.fromkeys(("validation_loss", "test_loss", "flops"), [float])
    large = {"tickets.npz": f"{name}/"} if cell.method == "dense" else {}
    return Content(numbers | {"weights": int, "seconds": float}, {"curves.npz": f"{name}/"}, large)


def group(lab: Lab, cell: Cell) -> Group:
    """Trains a cell, or measures what its steps cost."""
    if cell.seed is None:
        return Group([cell.name], lambda _: {cell.name: Content({"time": _times(lab, cell)})})
    settings = lab.settings
    log = Log(lab.site.path, cell.name, settings.validate, tensorboard=lab.tensorboard)
    return Group(
        [cell.name],
        functools.partial(_finish, lab, cell),
        functools.partial(begin, lab, cell),
        settings.steps,
        settings.validate,
        lambda step, state: log.write(step, state.tracked.curves),
    )


def begin(lab: Lab, cell: Cell) -> tuple[loop.Trainer, loop.TrainState]:
    """The trainer of a cell, and its state before the first step."""
    trainer, key = make_trainer(lab, cell, watched=True), _key(cell)
    state = trainer.init(key)
    if cell.method == LIFTED:
        return _switching(trainer, lab.settings.lift, _everything), state
    if cell.method == TICKET:
        masks = _ticket(lab, cell, state.params)
        return _switching(trainer, lab.settings.rewind, lambda params: masks), state
    return trainer, state


def make_trainer(lab: Lab, cell: Cell, *, watched: bool) -> loop.Trainer:
    """The training functions of a cell, for one replicate.

    Args:
      lab: what trains it.
      cell: what is trained.
      watched: whether losses and density are measured during training.
    """
    settings, dense = lab.settings, cell.trained_by.dense
    apply, init_params = make_decoder(settings.shape(cell), layout.over_batch(lab.mesh))
    curves = track(
        apply,
        settings.validate,
        settings.steps,
        {"validation": lab.sets["validation"]},
        functools.partial(_density, dense),
        best=False,
    )
    blank = np.zeros((settings.batch_size, settings.context), np.int32)
    one = loop.make_trainer(
        apply,
        init_params,
        lambda key: settings.method(cell, key),
        blank,
        blank,
        batch_size=settings.batch_size,
        execution=_RUN,
        start=_start(cell),
        track=curves if watched else None,
    )
    batches = data.batches(
        lab.text.train,
        context=settings.context,
        batch_size=settings.batch_size,
        seed=cell.seed or 0,
    )
    return from_disk.fed(layout.spread(one, _key(cell), lab.mesh), batches)


def _key(cell: Cell) -> jax.Array:
    return execution.replicate_keys(cell.seed or 0, 1)


def _density(dense: bool, params: Any, opt_state: Any) -> dict[str, jax.Array]:
    return {"density": jnp.float32(1) if dense else jaxsparse.metrics(opt_state)["density"]}


def _start(cell: Cell) -> Callable[[Any, Any], tuple[Any, Any]]:
    if cell.trained_by.dense:
        return loop.start_dense
    if cell.method != TICKET:
        return jaxsparse.init
    # Up to the step to which it is rewound, a ticket is the dense run that it comes from.
    return lambda tx, params: (params, jaxsparse.set_masks(tx.init(params), _everything(params)))


def _everything(params: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), params)


def _switching(trainer: loop.Trainer, at: int, masks_of: Callable[[Any], Any]) -> loop.Trainer:
    """A trainer that puts in other masks before the step `at`; moments stay unchanged."""

    def advance(state: loop.TrainState, first: int, last: int) -> loop.TrainState:
        if first < at:
            state, first = trainer.advance(state, first, min(last, at)), min(last, at)
        if first == at < last:
            state = begin_from(state, state.params, masks_of(state.params))
        return trainer.advance(state, first, last) if first < last else state

    return trainer._replace(advance=advance)


def _tickets(lab: Lab, cell: Cell, params: Any) -> dict[str, np.ndarray]:
    """The largest weights of every kernel of a dense run, one bit per weight, by sparsity."""
    found = {}
    for sparsity in lab.sparsities:
        masks = jax.vmap(
            lambda one: jaxsparse.prune_by_magnitude(one, sparsity, prunable=PRUNABLE)  # noqa: B023
        )(params)
        bits = np.concatenate([np.asarray(mask).ravel() for mask in jax.tree.leaves(masks)])
        found[f"{cell.name}/{sparsity:g}"] = np.packbits(bits)
    return found


def _ticket(lab: Lab, cell: Cell, params: Any) -> Any:
    """The masks that the dense run of the same seed has stored, for parameters like these."""
    name = f"{Cell('dense', None, cell.seed).name}/{cell.sparsity:g}"
    file = lab.site.path / "tickets.npz"
    stored = read_arrays(file).get(name)
    if stored is None:
        raise FolderError(
            f"{file} has no masks for {cell.name}: the dense run was made for other sparsities. "
            "Choose another --out."
        )
    leaves, treedef = jax.tree.flatten(params)
    ends = np.cumsum([leaf.size for leaf in leaves])
    parts = np.split(np.unpackbits(stored, count=int(ends[-1])).astype(bool), ends[:-1])
    return treedef.unflatten(
        jnp.asarray(part.reshape(leaf.shape)) for part, leaf in zip(parts, leaves, strict=True)
    )


def _finish(lab: Lab, cell: Cell, state: loop.TrainState) -> dict[str, Content]:
    curves = jax.device_get(state.tracked.curves)
    apply, _ = make_decoder(lab.settings.shape(cell), layout.over_batch(lab.mesh))
    loss = evaluation.evaluate(
        apply, evaluation.cross_entropy, _RUN, state.params, lab.sets["test"]
    )["loss"]
    curves = {"flops": _flops(lab, cell, state.params, curves["density"]), **curves}
    numbers = {
        "validation_loss": curves["validation_loss"][:, -1],
        "test_loss": loss,
        "flops": curves["flops"][:, -1],
    }
    kept = {name: curves[name] for name in CURVES}
    shape, density = lab.settings.shape(cell), float(curves["density"][0, -1])
    weights = shape.weights - round((1 - density) * shape.sparse_weights)
    found = measured(cell.name, slice(1), numbers, kept, weights=weights)
    if cell.method == "dense":
        found = found._replace(large={"tickets.npz": _tickets(lab, cell, state.params)})
    return {cell.name: found}


def _flops(lab: Lab, cell: Cell, params: Any, density: np.ndarray) -> np.ndarray:
    """FLOPs of the training up to each measurement; those of the whole dense training are 1.

    All kernels see every byte, so a weight costs the same in each of them: only the number of
    living weights matters.
    """
    settings, dense = lab.settings, Cell("dense", None, 0)

    def forward(of: Cell) -> tuple[float, float]:
        apply, init_params = make_decoder(settings.shape(of))
        kinds = jax.eval_shape(init_params, jax.random.key(0))
        window = jax.ShapeDtypeStruct((1, settings.context), jnp.int32)
        cost = analysis.flops(apply, kinds, None, window)
        may = sum(one.dense for path, one in cost.leaves.items() if path.startswith("blocks/"))
        return cost.dense, may

    whole, may = forward(cell)
    method = cell.trained_by
    before = np.concatenate([np.ones((1, 1)), density[:, :-1]], axis=1)
    # While a network loses weights, an interval costs the mean of both its ends.
    at = (density + before) / 2 if method.ramps else density
    name = "fixed" if method.ramps else method.flops or cell.table_name
    spent = [
        analysis.training_flops(whole, whole - may * (1 - float(one)), name, every=settings.every)
        for one in at[0]
    ]
    total = 3 * forward(dense)[0] * len(spent)
    found = np.cumsum(spent)
    if cell.method == TICKET:  # the rest of the dense run, which found it
        found = found + (np.arange(1, len(spent) + 1) * settings.validate > settings.rewind) * (
            total * (1 - settings.rewind / settings.steps)
        )
    return found[None] / total


def _times(lab: Lab, cell: Cell) -> list[float]:
    """Seconds of a stretch of steps with one mask update, relative to dense training.

    Both take turns, so that other load on the machine slows both; one number per turn.
    """
    stretch = lab.settings.every

    def call(one: Cell) -> Callable[[], float]:
        trainer = make_trainer(lab, one, watched=False)
        state = trainer.init(_key(one))

        def run() -> float:
            nonlocal state
            begun = time.perf_counter()
            state = jax.block_until_ready(trainer.advance(state, stretch, 2 * stretch))
            return time.perf_counter() - begun

        return run

    ours, dense = call(cell), call(Cell("dense", None, None))
    spent = [(ours(), dense()) for _ in range(TURNS + 1)][1:]  # the first turn compiles
    return [own / other for own, other in spent]
