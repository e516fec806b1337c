"""The report of a study of gradient flow, made from its files alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.report import pages
from experiments.common.report.pages import Table
from experiments.common.report.tables import percent, statistics
from experiments.common.study.content import Finished, read_arrays
from experiments.gradient_flow import pictures
from experiments.gradient_flow.claims import claims
from experiments.gradient_flow.settings import METHODS

MEASURES = ("test_accuracy", "initial_gradient_norm", "final_gradient_norm")
PICTURES = {
    "norms.png": "Gradient norm while training",
    "signal.png": "Deviation of the output at initialization against sparsity",
    "paths.png": "The loss on paths to the pruning solution",
    "map.png": "Solutions by their distances",
    "spectra.png": "Spectra of the Hessian while training",
}
TRAINED = {
    "shared_ticket": "ticket",
    "shared_scratch": "scratch",
    "shared_scratch_new": "scratch, different initializations",
    "shared_restart": "restart from the pruning solution",
    "prune": "different prunings",
}


def report(finished: Finished) -> str:
    """Writes the whole report; see `command.Study`."""
    path, config, results = finished.path, finished.config, finished.results
    finished.summarize(**_measured(results))
    note = f"{finished.replicates}: mean and standard error"
    _draw(path, config, results, f"{finished.replicates}: mean, and from lowest to highest")
    facts = [
        f"{note[0].upper()}{note[1:]}. {100 * config['sparsity']:g}% of the weights of every layer "
        "are zero; if all layers compete (global, SynFlow), of all layers together. Data: "
        f"{finished.description}.",
        f"Gradient norm: L2, not squared, of living weights and biases, without penalty, on "
        f"{config['flow_examples']:,} fixed training examples.",
        finished.made_by,
    ]
    tables = {
        "Against the paper": claims(results, config),
        "Methods": _methods(results),
        "Where mask updates lead the gradient": _updates(config, results),
        "What the solutions have in common": _agreement(results),
        "Curvature": _curvature(results),
    }
    title = f"Gradient flow: {config['model']} on {config['dataset']}"
    return pages.write(path, title, facts, tables, PICTURES)


def _measured(results: Mapping[str, Any]) -> dict[str, Any]:
    def measured(name: str) -> dict[str, Any]:
        return {measure: statistics(results[name][measure]) for measure in MEASURES}

    trained = [name for name in results if MEASURES[0] in results[name]]
    return {
        "methods": {name: measured(name) for name in METHODS if name in trained},
        "shared": {name: measured(name) for name in trained if name not in METHODS},
    }


def _methods(results: Mapping[str, Any]) -> Table:
    header = ["", "test accuracy", "gradient norm before training", "and after"]
    rows = []
    for name in METHODS:
        if name in results:
            accuracy, before, after = (statistics(results[name][measure]) for measure in MEASURES)
            rows.append([name, percent(accuracy), _number(before), _number(after)])
    return header, rows


def _updates(config: Mapping[str, Any], results: Mapping[str, Any]) -> Table:
    header = ["", *(f"step {step:,}" for step in config["snapshots"])]
    rows = []
    for name in ("set", "set_plus", "rigl", "rigl_plus"):
        if name in results:
            before, after = (
                np.array(results[name][f"norm_{when}_update"]) for when in ("before", "after")
            )
            change = [statistics(column) for column in (after / before - 1).T]
            rows.append([name, *(f"{100 * s['mean']:+.0f}%" for s in change)])
    return header, rows


def _agreement(results: Mapping[str, Any]) -> Table:
    header = ["", "test accuracy", "ensemble", "disagreement", "with the pruning solution", "KL"]
    found = results.get("agreement", {})
    rows = []
    for name, row in ((name, row) for name, row in found.items() if name in TRAINED):
        pairs, pruned = statistics(row["disagreement"]), statistics(row["disagreement_with_pruned"])
        rows.append(
            [
                TRAINED[name],
                percent(statistics(row["accuracies"])),
                f"{100 * row['ensemble']:.2f} %",
                f"{pairs['mean']:.4f} ± {pairs['std']:.4f}",
                f"{pruned['mean']:.4f} ± {pruned['std']:.4f}",
                f"{row['divergence']:.4f}",
            ]
        )
    return header, rows


def _curvature(results: Mapping[str, Any]) -> Table:
    # Most eigenvalues are zero up to rounding: only those well below zero count as negative.
    header = ["", "step", "lowest eigenvalue", "highest", "share below -0.1% of the highest"]
    header += ["lowest after a mask update", "share"]
    rows = []
    for name, found in results.items():
        if name.startswith("spectrum-"):
            row = [name.split("-")[1], f"{found['step']:,}", *_extent(found)]
            after = found.get("after_update")
            rows.append([*row, *(_extent(after)[::2] if after else ("", ""))])
    return header, rows


def _extent(found: Mapping[str, Any]) -> tuple[str, str, str]:
    values, weights = np.array(found["eigenvalues"]), np.array(found["weights"])
    share = weights[values < -1e-3 * values.max()].sum() / weights.sum()
    return f"{values.min():.3g}", f"{values.max():.3g}", f"{100 * share:.2f}%"


def _draw(path: Path, config: Mapping[str, Any], results: Mapping[str, Any], note: str) -> None:
    curves = {
        name.removesuffix("/all"): values
        for name, values in read_arrays(path / "curves.npz").items()
        if name.endswith("/all") and name.removesuffix("/all") in METHODS
    }
    if curves:
        points = next(iter(curves.values())).shape[1]
        steps = [config["measure"] * i for i in range(points - 1)] + [config["iterations"]]
        pictures.norms(path / "norms.png", curves, np.array(steps), note)
    if "signal" in results:
        pictures.signal(path / "signal.png", results["signal"], note)
    if "lines" in results and "beziers" in results:
        pictures.paths(path / "paths.png", results["lines"], results["beziers"], note)
    if "distances" in results:
        pictures.solutions(path / "map.png", results["distances"])
    spectra = {name: cell for name, cell in results.items() if name.startswith("spectrum-")}
    if spectra:
        pictures.spectra(path / "spectra.png", spectra)


def _number(found: Mapping[str, float]) -> str:
    return f"{found['mean']:.3g} ± {found['standard_error']:.2g}"
