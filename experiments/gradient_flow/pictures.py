"""The figures of a study of gradient flow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter

from experiments.common.report import looks
from experiments.common.report.figures import note_above, plain, save
from experiments.common.report.looks import COLOURS, DENSE, MARKERS
from jaxsparse.analysis import Spectrum

_FAMILIES = (
    ("dense", "small_dense", "prune", "ticket"),
    ("scratch", "scratch_plus", "snip", "snip_global", "grasp", "grasp_global", "synflow"),
    ("set", "set_plus", "rigl", "rigl_plus"),
)
_SPACES = {"sparse": "-", "dense": ":"}
_GUIDE = {"color": DENSE, "lw": 0.8, "ls": ":"}


def norms(file: Path, curves: Mapping[str, np.ndarray], steps: np.ndarray, note: str) -> None:
    """The gradient norm during training on a log axis, as in figure 4; bands from worst to best.

    Args:
      file: where to write it.
      curves: `(replicates, points)` by method.
      steps: `(points,)`.
      note: what is drawn, for how many replicates, and what is missing.
    """
    figure, panels = plt.subplots(1, 3, figsize=(13.5, 4.2), sharey=True, layout="constrained")
    for axes, family in zip(panels, _FAMILIES, strict=True):
        for name in (name for name in family if name in curves):
            values, (label, colour, style) = curves[name], looks.look(name)
            axes.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.15, lw=0)
            axes.plot(steps, values.mean(0), linestyle=style, color=colour, lw=1.5, label=label)
        axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        plain(axes)
        if axes.lines:
            axes.legend(frameon=False, fontsize=8)
    panels[0].set_ylabel("L2 norm of the gradient (log scale)")
    note_above(panels[0], "Gradient norm while training", note)
    save(figure, file)


def signal(file: Path, found: Mapping[str, Any], note: str) -> None:
    """The deviation of the output at initialization against sparsity, as in figure 3."""
    figure, axes = plt.subplots(figsize=(5.6, 4.0), layout="constrained")
    labels = {"sparse": "each unit by its inputs", "layer": "each layer by its density"}
    labels["dense"] = "as if dense"
    at = np.arange(len(found["sparsities"]))
    everything = np.array([found[init] for init in labels])
    lowest = everything[everything > 0].min() / 3  # stands for zero, if nothing gets through
    for i, (init, label) in enumerate(labels.items()):
        values = np.maximum(found[init], lowest)
        axes.fill_between(at, values.min(0), values.max(0), color=COLOURS[i], alpha=0.15, lw=0)
        axes.plot(at, values.mean(0), marker=MARKERS[i], ms=4, color=COLOURS[i], label=label)
    axes.set_xticks(at, [f"{100 * s:g}%" for s in found["sparsities"]])
    axes.set_yscale("log")
    axes.set_xlabel("sparsity")
    axes.set_ylabel("standard deviation of the output (log scale)")
    plain(axes)
    axes.legend(frameon=False, fontsize=8)
    note_above(axes, "Signal at initialization", note)
    save(figure, file)


def paths(file: Path, lines: Mapping[str, Any], beziers: Mapping[str, Any], note: str) -> None:
    """The training loss on lines and on Bezier paths to the pruning solution."""
    figure, panels = plt.subplots(1, 2, figsize=(11.0, 4.2), sharey=True, layout="constrained")
    for axes, (at, losses), title in (
        (panels[0], (lines["alphas"], lines["losses"]), "Straight lines"),
        (panels[1], (beziers["points"], beziers["losses"]), "Trained Bezier paths"),
    ):
        for name, values in losses.items():
            values, (method, _, space) = np.array(values), name.partition(", ")
            label, colour, style = looks.look(method)
            style, label = (
                (_SPACES[space], f"{label}, {space} subspace") if space else (style, label)
            )
            axes.fill_between(at, values.min(0), values.max(0), color=colour, alpha=0.15, lw=0)
            axes.plot(at, values.mean(0), linestyle=style, color=colour, lw=1.5, label=label)
        for end in (0, 1):
            axes.axvline(end, **_GUIDE)
        axes.set_yscale("log")
        axes.set_xlabel("0: the solution named; 1: the pruning solution")
        plain(axes)
        axes.legend(frameon=False, fontsize=8)
        note_above(axes, title, note)
    panels[0].set_ylabel("training loss (log scale)")
    save(figure, file)


def solutions(file: Path, found: Mapping[str, Any]) -> None:
    """Starts and ends of training around one pruning solution, placed by their distances."""
    figure, axes = plt.subplots(figsize=(6.4, 5.0), layout="constrained")
    points = dict(zip(found["names"], np.array(found["map"]), strict=True))
    kinds = list(dict.fromkeys(name.split(",")[0] for name in points))
    for i, kind in enumerate(kinds):
        label, colour, _ = looks.look(kind)
        for when, face in (("start", "none"), ("end", colour)):
            own = [p for name, p in points.items() if name.startswith(f"{kind}, {when}")]
            if own:
                x, y = np.array(own).T
                axes.scatter(
                    x, y, marker=MARKERS[i % 5], s=36, facecolors=face, edgecolors=colour,
                    label=f"{label}, {when}",
                )  # fmt: skip
        if kind in points:
            axes.scatter(
                *points[kind],
                marker="*",
                s=150,
                color=looks.look("prune").colour,
                label=kind,
                zorder=3,
            )
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xlabel("first axis of the scaled L2 distances")
    axes.set_ylabel("second axis")
    plain(axes)
    axes.legend(frameon=False, fontsize=8)
    note_above(
        axes, "Where training leads", "one pruned mask; for every end another order of examples"
    )
    save(figure, file)


def spectra(file: Path, cells: Mapping[str, Mapping[str, Any]]) -> None:
    """The spectral density of the Hessian at several steps, one panel per method."""
    methods = list(dict.fromkeys(name.split("-")[1] for name in cells))
    figure, panels = plt.subplots(
        1, len(methods), figsize=(4.0 * len(methods), 3.6), squeeze=False, sharey=True,
        layout="constrained",
    )  # fmt: skip
    values = np.concatenate([np.array(cell["eigenvalues"]) for cell in cells.values()])
    width = np.ptp(values) / 150
    grid = np.linspace(values.min() - 4 * width, values.max() + 4 * width, 800)
    peak = 0.0
    steps = sorted({cell["step"] for cell in cells.values()})
    for axes, method in zip(panels[0], methods, strict=True):
        own = [cell for name, cell in cells.items() if name.split("-")[1] == method]
        for cell in sorted(own, key=lambda cell: cell["step"]):
            found = Spectrum(*(jnp.asarray(cell[part]) for part in Spectrum._fields))
            density = np.asarray(found.density(jnp.asarray(grid), width))
            peak = max(peak, density.max())
            colour = COLOURS[steps.index(cell["step"]) % 7]
            axes.plot(grid, density, color=colour, lw=1.2, label=f"step {cell['step']:,}")
        axes.axvline(0, **_GUIDE)
        axes.set_yscale("log")
        axes.set_xlabel("eigenvalue")
        axes.set_title(looks.look(method).label, fontsize=10, loc="left")
        plain(axes)
    panels[0][0].set_ylim(1e-6 * peak, 3 * peak)
    panels[0][0].set_ylabel("density of the spectrum (log scale)")
    panels[0][0].legend(frameon=False, fontsize=7)
    save(figure, file)
