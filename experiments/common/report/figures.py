"""Pictures of a run and of a study: accuracy, density, churn and masks."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # Files only: a run must not require a display.

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.axis import Axis  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.text import Text  # noqa: E402
from matplotlib.ticker import (  # noqa: E402
    FuncFormatter,
    LogFormatter,
    LogLocator,
    MaxNLocator,
    NullLocator,
)

from experiments.common import files  # noqa: E402
from experiments.common.report import looks  # noqa: E402
from experiments.common.report.looks import DENSE  # noqa: E402
from jaxsparse import plot  # noqa: E402
from jaxsparse.plot import layer_style, plain  # noqa: E402, F401

PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.4g}%")

Lines = Sequence[Mapping[str, Any]]


def accuracy_over_time(file: Path, lines: Lines, methods: Sequence[str], title: str) -> None:
    """Test accuracy of each method over the epochs; the band spans from worst to best seed."""
    figure, axes = _figure(6.4, 4.0)
    late, high = [], 0.0
    for method, drawn in looks.lines(methods).items():
        epochs, values = _series(lines, method, "test_accuracy")
        band = {"color": drawn["color"], "alpha": 0.15, "lw": 0}
        axes.fill_between(epochs, values.min(0), values.max(0), **band)
        axes.plot(epochs, values.mean(0), **drawn | {"marker": None}, lw=1.8)
        late.append(values[:, values.shape[1] // 4 :].min())
        high = max(high, values.max())
    low = min(late)
    room = max(high - low, 0.01)
    axes.set_ylim(max(0, low - 0.1 * room), min(1.0, high + 0.1 * room))
    _epochs(axes)
    axes.set_ylabel("test accuracy")
    axes.yaxis.set_major_formatter(PERCENT)
    axes.legend(frameon=False)
    note_above(axes, title, f"mean of {_replicates(lines)}; band: worst to best")
    save(figure, file)


def density_over_time(file: Path, lines: Lines, method: str, title: str, where: str) -> None:
    """Share of living weights in each layer, and how many of them each mask update replaced."""
    lines = [line for line in lines if line["method"] == method]
    layers = list(lines[0]["layer_density"])
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(6.4, 5.2), sharex=True, height_ratios=(3, 2), layout="constrained"
    )
    epochs, _ = _series(lines, method, "density")
    means = {at: _series(lines, method, "layer_density", at)[1].mean(0) for at in layers}
    found = [dict(zip(means, row, strict=True)) for row in zip(*means.values(), strict=True)]
    plot.density_per_layer(found, epochs, ax=top)
    epochs, values = _series(lines, method, "density")
    top.plot(epochs, values.mean(0), color=DENSE, lw=2.4, alpha=0.6, label="all of them")
    top.set_xlabel("")
    top.legend(frameon=False, fontsize=8)
    note = "" if len(layers) <= 8 else "; the layers from input (dark) to output (bright)"
    note_above(top, title, f"{where}, mean of {_replicates(lines)}{note}")
    epochs, values = _series(lines, method, "churn")
    plot.churn_over_time(list(values.mean(0)), epochs, ax=bottom)
    _epochs(bottom)
    save(figure, file)


def masks(
    file: Path, masks: Mapping[str, np.ndarray], title: str, image: Sequence[int] | None = None
) -> None:
    """The masks of one network, one panel each, inputs from top to bottom.

    Args:
      file: where to write it.
      masks: boolean arrays by path, outputs on the last axis.
      title: of the whole figure.
      image: shape of the network's input; if the first mask has as many inputs, one more panel
        shows how many living weights read each pixel.
    """
    first = next(iter(masks.values()))
    fits = image is not None and len(image) >= 2 and first.shape[0] == math.prod(image)
    figure = plot.mask_image(
        masks, image=image if fits else None, axes="flax", prunable=lambda path, mask: True
    )
    figure.suptitle(title + " (blue: alive)", x=0.01, ha="left", fontsize=11)
    save(figure, file)


def accuracy_against_sparsity(
    file: Path, results: Mapping[str, Mapping[float, Mapping[str, float]]], title: str, note: str
) -> None:
    """Test accuracy of each method at each sparsity; bands are one standard error.

    Args:
      file: where to write it.
      results: `{method: {sparsity: statistics}}`; `dense` has its only value at sparsity 0.
      title: what was trained, and on what.
      note: how many replicates, and what is missing.
    """
    figure, axes = _figure(6.8, 4.4)
    levels = sorted({s for method, found in results.items() if method != "dense" for s in found})
    places = {sparsity: i for i, sparsity in enumerate(levels)}
    others = [method for method in results if method != "dense" and results[method]]
    for method, drawn in looks.lines(others).items():
        found = results[method]
        at = [places[sparsity] for sparsity in sorted(found)]
        mean = np.array([found[sparsity]["mean"] for sparsity in sorted(found)])
        error = np.array([found[sparsity]["standard_error"] for sparsity in sorted(found)])
        band = {"color": drawn["color"], "alpha": 0.2, "lw": 0}
        axes.fill_between(at, mean - error, mean + error, **band)
        axes.plot(at, mean, **drawn)
    if results.get("dense"):
        (dense,) = results["dense"].values()
        mean, error = dense["mean"], dense["standard_error"]
        axes.axhspan(mean - error, mean + error, color=DENSE, alpha=0.12, lw=0)
        axes.axhline(mean, color=DENSE, ls="--", label="dense")
    axes.set_xticks(range(len(levels)), [f"{100 * level:g}%" for level in levels])
    axes.set_xlabel("sparsity")
    axes.set_ylabel("test accuracy")
    axes.yaxis.set_major_formatter(PERCENT)
    axes.legend(frameon=False, loc="lower left")
    note_above(axes, title, note)
    save(figure, file)


def _series(lines: Lines, method: str, *keys: str) -> tuple[np.ndarray, np.ndarray]:
    # Epochs, and one row of values per replicate.
    rows: dict[int, dict[float, float]] = {}
    for line in lines:
        if line["method"] == method:
            value = line
            for key in keys:
                value = value[key]
            rows.setdefault(line["replicate"], {})[line["epoch"]] = value
    epochs = sorted(rows[0])
    return np.array(epochs), np.array([[row[epoch] for epoch in epochs] for row in rows.values()])


def _replicates(lines: Lines) -> str:
    n = len({line["replicate"] for line in lines})
    return f"{n} replicate{'s' if n > 1 else ''}"


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    plain(axes)
    return figure, axes


def _epochs(axes: Axes) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def log_ticks(axis: Axis, formatter: Any) -> None:
    """Ticks of a logarithmic axis: 1, 2 and 5 times the powers of ten, and no others."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(formatter)


def note_above(axes: Axes, title: str, note: str) -> None:
    """A title with a line in small print below it."""
    axes.set_title(title, loc="left", fontsize=11, pad=20)
    text = axes.annotate(
        note, (0, 1), (0, 5), "axes fraction", "offset points", fontsize=8, color="#555555"
    )
    text.set_in_layout(False)  # a long one must not push panels apart


def save(figure: Figure, file: Path) -> None:
    """Writes the file, with every text unchanged, and closes the figure."""
    for text in figure.findobj(Text):
        if text.get_wrap():  # to wrap lines, matplotlib looks for formulas anyway
            text.set_text(text.get_text().replace("$", r"\$"))
        else:
            text.set_parse_math(False)  # a name such as "a$b" is not a formula
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        for formatter, ticks in (
            (axis.get_major_formatter(), axis.get_major_ticks()),
            (axis.get_minor_formatter(), axis.get_minor_ticks()),
        ):
            for tick in ticks if isinstance(formatter, LogFormatter) else ():
                tick.label1.set_parse_math(True)  # a power of ten is a formula
    try:
        with files.replacing(file) as opened:
            figure.savefig(opened, dpi=150, format="png")
    finally:
        plt.close(figure)
