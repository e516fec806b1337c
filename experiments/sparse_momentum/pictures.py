"""The figures of a study of dynamic sparse training methods."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from experiments.common.report import looks
from experiments.common.report.figures import (
    PERCENT,
    layer_style,
    log_ticks,
    note_above,
    plain,
    save,
)
from experiments.common.training.methods import METHODS
from experiments.sparse_momentum.variants import method_of


def error_against_density(
    file: Path, found: Mapping[str, Mapping[float, Any]], title: str, note: str
) -> None:
    """Test error of each method against density, both on a log axis; bands: one standard error.

    Args:
      file: where to write it.
      found: statistics of the test accuracy by method and sparsity.
      title: of the figure.
      note: how many replicates, and what is missing.
    """
    figure, axes = plt.subplots(figsize=(7.0, 4.8), layout="constrained")
    densities: set[float] = set()
    drawn = looks.lines(name for name in found if name != "dense")
    for name, style in drawn.items():
        at = sorted(found[name], reverse=True)
        x = [100 * (1 - s) for s in at]
        densities |= set(x)
        _error_line(axes, style, x, [found[name][s] for s in at])
    if "dense" in found:
        axes.axhline(1 - found["dense"][0.0]["mean"], color=looks.DENSE, ls="--", label="dense")
    axes.set_xscale("log")
    _log_percent(axes)
    axes.xaxis.set_major_locator(FixedLocator(sorted(densities)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.set_xlabel("weights in % (log scale)")
    axes.set_ylabel("test error (log scale)")
    plain(axes)
    axes.legend(frameon=False, fontsize=8)
    note_above(axes, title, note)
    save(figure, file)


def layer_densities(
    file: Path,
    curves: Mapping[str, np.ndarray],
    results: Mapping[str, Mapping[str, Any]],
    what: str,
    note: str,
    unit: str,
) -> None:
    """Density of each layer over time, for variants of the methods that redistribute."""
    names = [n for n, cell in results.items() if METHODS[method_of(cell["method"])].redistributes]
    if not names:
        return
    names = sorted(names, key=lambda name: (results[name]["method"], -results[name]["sparsity"]))
    columns = min(len(names), 3)
    rows = -(-len(names) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(4.2 * columns, 3.2 * rows), squeeze=False, layout="constrained"
    )
    for axes, name in zip(grid.flat, names, strict=False):
        start = f"{name}/density/"
        layers = [key.removeprefix(start) for key in curves if key.startswith(start)]
        for i, layer in enumerate(sorted(layers, key=_depth)):
            values = curves[start + layer].mean(0)
            times = np.arange(1, len(values) + 1)
            axes.plot(times, values, **layer_style(i, len(layers), layer))
        _log_percent(axes)
        axes.set_xlabel(unit)
        cell = results[name]
        variant = looks.look(cell["method"]).label.replace(" + ", "\n+ ")
        axes.set_title(f"{variant}, {100 * (1 - cell['sparsity']):g}%", fontsize=9)
        plain(axes)
    for axes in list(grid.flat)[len(names) :]:
        axes.set_axis_off()
    grid[0][0].set_ylabel("density of the layer (log scale)")
    lines, layers = grid[0][0].get_legend_handles_labels()
    below = {"loc": "outside lower center", "ncol": min(len(layers), 8)}
    figure.legend(lines, layers, frameon=False, fontsize=8, **below)
    title = f"Where the weights go: {what}. {note}."
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, wrap=True)
    save(figure, file)


def _error_line(
    axes: plt.Axes, style: Mapping[str, Any], x: Sequence[float], found: Sequence[Any]
) -> None:
    # A line from statistics of the accuracy at each x; its band is one standard error.
    mean = np.array([1 - stats["mean"] for stats in found])
    error = np.array([stats["standard_error"] for stats in found])
    axes.fill_between(x, mean - error, mean + error, color=style["color"], alpha=0.2, lw=0)
    axes.plot(x, mean, **style, ms=4, lw=1.5)


def _log_percent(axes: plt.Axes) -> None:
    axes.set_yscale("log")
    log_ticks(axes.yaxis, PERCENT)


def _depth(layer: str) -> tuple[int, list[int]]:
    # From input to output: conv, block1/conv1, ..., fc1, ..., head.
    kinds = ("conv", "block", "fc", "head")
    kind = re.match("[a-z]*", layer)[0]
    return kinds.index(kind) if kind in kinds else -1, [int(n) for n in re.findall(r"\d+", layer)]


def sensitivity(
    file: Path, lines: Mapping[str, Mapping[str, Mapping[float, Any]]], title: str, note: str
) -> None:
    """Error against the value of each option, one panel each; bands: one standard error.

    Args:
      file: where to write it.
      lines: statistics of the accuracy by option, variant and value.
      title: of the figure.
      note: how many replicates, and what is missing.
    """
    figure, grid = plt.subplots(
        1, len(lines), figsize=(4.8 * len(lines), 4.2), squeeze=False, layout="constrained"
    )
    styles = looks.lines(dict.fromkeys(name for drawn in lines.values() for name in drawn))
    for axes, (option, variants) in zip(grid.flat, lines.items(), strict=True):
        for name, found in variants.items():
            x = sorted(found)
            _error_line(axes, styles[name], x, [found[value] for value in x])
        axes.set_xlabel(option.replace("_", " "))
        _log_percent(axes)
        plain(axes)
        axes.legend(frameon=False, fontsize=8)
    grid[0][0].set_ylabel("error (log scale)")
    figure.suptitle(f"{title}. {note[0].upper()}{note[1:]}.", x=0.01, ha="left", fontsize=10)
    save(figure, file)


def dots(file: Path, rows: Mapping[str, Any], measure: str, title: str, note: str) -> None:
    """The accuracy of each variant as a dot; bars: one standard error.

    Args:
      file: where to write it.
      rows: statistics by variant, from top to bottom.
      measure: the kind of accuracy.
      title: of the figure.
      note: how many replicates, and what is missing.
    """
    figure, axes = plt.subplots(figsize=(8.0, 1.4 + 0.28 * len(rows)), layout="constrained")
    places = np.arange(len(rows))[::-1]
    for place, (name, stats) in zip(places, rows.items(), strict=True):
        colour = looks.look(name.split(" ")[0]).colour
        axes.errorbar(
            stats["mean"], place, xerr=stats["standard_error"], fmt="o", color=colour, capsize=3
        )
    axes.set_yticks(places, [looks.readable(name) for name in rows], fontsize=8)
    axes.xaxis.set_major_formatter(PERCENT)
    axes.set_xlabel(measure)
    plain(axes)
    note_above(axes, title, note)
    save(figure, file)
