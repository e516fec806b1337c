"""The figures of the lottery ticket paper, drawn from the results of a study."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from experiments.common.report import looks
from experiments.common.report.figures import PERCENT, note_above, plain, save
from experiments.common.report.looks import COLOURS, DENSE

Results = Mapping[str, Mapping[str, Any]]
LABELS = {kind: looks.look(kind).label for kind in ("ticket", "reinit", "random", "one_shot")}
_LINES = looks.lines(LABELS)


def over_training(
    file: Path,
    what: str,
    curves: Mapping[str, np.ndarray],
    densities: Sequence[float],
    every: int,
    note: str,
) -> None:
    """Accuracy during training, as in figure 3: tickets by density, next to reinitialized ones.

    Args:
      file: where to write it.
      what: the accuracy's name.
      curves: accuracies by the cell's name, `(replicates, points)`, NaN where not measured.
      densities: by level.
      every: iterations from one point to the next.
      note: how many replicates, and what is missing.
    """
    tickets = sorted(name for name in curves if name.startswith("ticket"))
    pairs = [name for name in sorted(curves) if name.startswith("reinit")][:2]
    pairs = [name for level in pairs for name in (level.replace("reinit", "ticket"), level)]
    shown = [tickets] + [[name for name in pairs if name in curves]] * bool(pairs)
    figure, panels = plt.subplots(
        1, len(shown), figsize=(6.2 * len(shown), 4.4), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    colours = _colours([int(name.rsplit("-", 1)[1]) for names in shown for name in names])
    late, high = [], 0.0
    for axes, names in zip(panels[0], shown, strict=True):
        for name in names:
            kind, level = name.rsplit("-", 1)
            values = curves[name]
            measured = ~np.isnan(values).any(0)
            at, values = (np.flatnonzero(measured) + 1) * every, values[:, measured]
            if not len(at):
                continue
            colour = colours[int(level)]
            label = f"{100 * densities[int(level)]:.3g}%"
            label += ", reinitialized" if kind == "reinit" else ""
            axes.fill_between(at, values.min(0), values.max(0), color=colour, alpha=0.12, lw=0)
            style = "--" if kind == "reinit" else "-"
            axes.plot(at, values.mean(0), style, color=colour, lw=1.5, label=label)
            late.append(values[:, values.shape[1] // 10 :].min())
            high = max(high, values.max())
        axes.set_xlabel("iterations")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        if axes.lines:
            axes.legend(frameon=False, fontsize=8, title="weights remaining", title_fontsize=8)
        axes.yaxis.set_major_formatter(PERCENT)
        plain(axes)
    if late:
        room = max(high - min(late), 0.005)
        panels[0][0].set_ylim(min(late) - 0.1 * room, min(1.0, high + 0.1 * room))
    panels[0][0].set_ylabel(what)
    note_above(panels[0][0], "Tickets while they train", note)
    if len(shown) > 1:
        note_above(panels[0][1], "Tickets and the same masks with new weights", "")
    save(figure, file)


def against_weights(
    file: Path,
    results: Results,
    kinds: Sequence[str],
    measures: Mapping[str, str],
    title: str,
    note: str,
) -> None:
    """Measures against weights remaining on a log axis, one panel each; bands from worst to best.

    Args:
      file: where to write it.
      results: cells by name.
      kinds: which of `LABELS` to draw; the dense network starts every line.
      measures: axis labels by the name of the measure in the results.
      title: of the figure.
      note: how many replicates, and what is missing.
    """
    figure, panels = plt.subplots(
        1, len(measures), figsize=(6.2 * len(measures), 4.4), squeeze=False, layout="constrained"
    )
    for axes, (measure, label) in zip(panels[0], measures.items(), strict=True):
        for kind in kinds:
            points = {
                cell["weights_remaining"]: np.array(cell[measure], float)
                for cell in results.values()
                if cell["kind"] == kind or cell["level"] == 0
            }
            at = sorted(points, reverse=True)
            if len(at) < 2:
                continue
            drawn = _LINES[kind]
            low, mean, high = (
                np.array([reduce(points[x]) for x in at]) for reduce in (np.min, np.mean, np.max)
            )
            x = 100 * np.array(at)
            axes.fill_between(x, low, high, color=drawn["color"], alpha=0.15, lw=0)
            axes.plot(x, mean, **drawn, ms=4, lw=1.5)
        dense = next((cell for cell in results.values() if cell["level"] == 0), None)
        if dense is not None:
            axes.axhline(np.mean(dense[measure]), color=DENSE, lw=0.8, ls=":", label="dense")
        _weights_axis(axes, results)
        axes.set_ylabel(label)
        if "accuracy" in measure:
            axes.yaxis.set_major_formatter(PERCENT)
        else:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        plain(axes)
    panels[0][0].legend(frameon=False, fontsize=8)
    note_above(panels[0][0], title, note)
    save(figure, file)


def _colours(levels: Sequence[int]) -> dict[int, Any]:
    # One colour per level, whichever panels it is in.
    found = sorted(set(levels))
    if len(found) <= len(COLOURS):
        return dict(zip(found, COLOURS, strict=False))
    shades = plt.get_cmap("viridis")(np.linspace(0, 0.95, len(found)))
    return dict(zip(found, shades, strict=True))


def _weights_axis(axes: Axes, results: Results) -> None:
    levels = sorted({100 * cell["weights_remaining"] for cell in results.values()}, reverse=True)
    marks = levels[:: max(1, -(-len(levels) // 8))]
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.xaxis.set_major_locator(FixedLocator(marks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.set_xlabel("weights remaining in % (log scale)")
