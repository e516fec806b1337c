"""The report of a study of language models, made from its files alone."""

import math
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np

from experiments.common.report import looks, pages
from experiments.common.report.figures import note_above, plain, save
from experiments.common.report.tables import Statistics, count, number, statistics
from experiments.common.study.content import Finished, read_arrays
from experiments.language_model.settings import LIFTED, SMALL, TICKET, TIME, Cell, parse

_HEADER = [
    *("", "living weights", "validation loss", "bits per byte", "test loss"),
    *("FLOPs / dense", "time / dense", "seeds"),
]


class Runs(NamedTuple):
    """The runs of a method at a sparsity, one per seed.

    Attributes:
      cell: of the first run.
      found: statistics of their entries in `results.json`, by name.
      loss, flops: means of their curves, one number per measurement.
      time: seconds per step relative to a dense one, or None if it is not measured yet.
    """

    cell: Cell
    found: dict[str, Statistics]
    loss: np.ndarray
    flops: np.ndarray
    time: float | None


def report(finished: Finished) -> str:
    """Writes the whole report; see `command.Study`."""
    config, curves = finished.config, read_arrays(finished.path / "curves.npz")
    named: dict[str, list[Cell]] = {}
    for cell in map(parse, finished.results):
        if cell.seed is not None:
            named.setdefault(cell._replace(seed=None).name.removeprefix(f"{TIME}-"), []).append(
                cell
            )
    runs = {name: _runs(finished, curves, cells) for name, cells in named.items()}
    sparsities = sorted({one.cell.sparsity for one in runs.values()} - {None}) or [None]
    shown = {
        sparsity: [one for one in runs.values() if one.cell.sparsity in (None, sparsity)]
        for sparsity in sparsities
    }
    finished.summarize(
        seconds=round(sum(cell.get("seconds", 0) for cell in finished.results.values()), 1),
        methods={name: one.found for name, one in runs.items()},
        time={name: one.time for name, one in runs.items()},
    )
    layers, width = (config["architecture"][key] for key in ("layers", "width"))
    steps = f"{config['steps']:,} steps of {config['batch_size']}x{config['context']} bytes"
    what = f"{layers} layers of width {width}, {steps}"
    missing = f"PARTIAL, {finished.missing} of {len(finished.wanted)} cells are missing. "
    note = missing if finished.missing else ""
    _draw(finished, shown, what, note)
    facts = [
        f"{note}Mean and standard error of the seeds; losses in nats per byte. FLOPs: of the whole "
        "training over those of dense training, living weights only, which arrays with masks do "
        "not save; of a ticket with the dense run that found it. Time: of a step, mask updates "
        "among them, in turns with dense training on one machine. "
        f"Embedding, norms and output layer are dense. Data: {finished.description}. "
        f"{finished.made_by}"
    ]
    tables = {
        _title(sparsity): (_HEADER, [_row(one) for one in sorted(group, key=_order)])
        for sparsity, group in shown.items()
        if group
    }
    pictures = {"loss.png": "Validation loss against FLOPs and against time"}
    return pages.write(finished.path, f"Pretraining: {what}", facts, tables, pictures)


def _runs(finished: Finished, curves: Any, cells: list[Cell]) -> Runs:
    results = [finished.results[cell.name] for cell in cells]
    keys = ("weights", "validation_loss", "test_loss", "flops")
    found = {key: statistics([np.mean(one[key]) for one in results]) for key in keys}
    loss, flops = (
        np.mean([curves[f"{cell.name}/{key}"][0] for cell in cells], axis=0)
        for key in ("validation_loss", "flops")
    )
    return Runs(cells[0], found, loss, flops, _time(finished, cells[0]))


def _time(finished: Finished, cell: Cell) -> float | None:
    method = "fixed" if cell.method in (LIFTED, TICKET) else cell.method
    if method == "dense":
        return 1.0
    timed = [one for one in map(parse, finished.results) if one.seed is None]
    own = [one for one in timed if one.method == method]
    exact = [one for one in own if one.sparsity == cell.sparsity]
    if not exact and method != SMALL:
        # The time of steps with masks hardly depends on the sparsity: it is measured at one.
        exact = own
    return float(np.median(finished.results[exact[0].name]["time"])) if exact else None


def _title(sparsity: float | None) -> str:
    return "Finished so far" if sparsity is None else f"{100 * sparsity:g}% of the kernels zero"


def _order(one: Runs) -> tuple[bool, float]:
    return one.cell.method != "dense", one.found["validation_loss"]["mean"]


def _row(one: Runs) -> list[str]:
    found, loss = one.found, one.found["validation_loss"]
    return [
        one.cell.method,
        count(found["weights"]["mean"]),
        number(loss, 4),
        f"{loss['mean'] / math.log(2):.3f}",
        number(found["test_loss"], 4),
        f"{found['flops']['mean']:.3f}",
        "" if one.time is None else f"{one.time:.2f}",
        str(loss["n"]),
    ]


def _draw(finished: Finished, shown: dict[float | None, list[Runs]], what: str, note: str) -> None:
    config, rows = finished.config, len(shown)
    figure, panels = plt.subplots(
        rows, 2, figsize=(10.5, 3.9 * rows + 0.5), sharey="row", squeeze=False, layout="constrained"
    )
    drawn = looks.lines({one.cell.method: None for group in shown.values() for one in group})
    legend = {}
    for (left, right), (sparsity, group) in zip(panels, shown.items(), strict=True):
        low, late = math.inf, []
        for one in sorted(group, key=_order):
            points = np.arange(1, len(one.loss) + 1) / len(one.loss)
            # A ticket is its dense run up to the step to which it is rewound.
            rewound = config["rewind"] / config["steps"] if one.cell.method == TICKET else 0.0
            kept = points > rewound
            style = drawn[one.cell.method] | {"ms": 3, "lw": 1.3}
            legend[one.cell.method] = left.plot(one.flops[kept], one.loss[kept], **style)[0]
            if one.time is not None:
                right.plot(points[kept] * one.time, one.loss[kept], **style)
            low = min(low, one.loss.min())
            late.append(one.loss[len(one.loss) // 3])
        room = max(late) - low
        left.set_ylim(low - 0.05 * room, max(late) + 0.05 * room)
        left.set_ylabel("validation loss, nats per byte")
        left.set_xlabel("FLOPs of living weights, dense training = 1")
        right.set_xlabel("time, dense training = 1")
        for axes in (left, right):
            plain(axes)
        note_above(left, f"{_title(sparsity)}: {what}", f"{note}mean of the seeds")
    figure.legend(
        legend.values(),
        [looks.look(name).label for name in legend],
        loc="outside lower center",
        ncol=5,
        frameon=False,
    )
    save(figure, finished.path / "loss.png")
