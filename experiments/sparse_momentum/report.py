"""The report of a study of methods: `summary.json`, tables and figures, made from files alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.common.report import pages
from experiments.common.report.pages import Table
from experiments.common.report.tables import Statistics, percent, statistics
from experiments.common.study.content import Finished, read_arrays
from experiments.sparse_momentum import pictures, sides
from experiments.sparse_momentum.paper import PUBLISHED

PICTURES = {
    "error.png": "Test error against the weights that live",
    "layers.png": "Density of the layers while training",
}
Results = Mapping[str, Mapping[str, Any]]


def report(finished: Finished) -> str:
    """Writes the whole report; see `command.Study`."""
    path, config, results = finished.path, finished.config, finished.results
    study = config["study"]
    measure = "validation accuracy" if study == "tuning" else "test accuracy"
    key = measure.replace(" ", "_")
    found = _by_method(results, key)
    methods = {
        name: {str(s): {key: stats} for s, stats in cells.items()} for name, cells in found.items()
    }
    finished.summarize(seconds=finished.seconds, methods=methods)
    note = f"{finished.replicates}: mean and standard error"
    what = f"{config['model']} on {config['dataset']}"
    sparsities = sorted({cell["sparsity"] for cell in results.values()} - {0.0}, reverse=True)
    published = PUBLISHED.get(config["model"], {}) if config["dataset"] == "mnist" else {}
    length, unit = f"{config['epochs']} epochs", "epoch"
    if config["steps"] is not None:
        length = f"{config['steps']:,} steps of batches of {config['batch_size']}"
        unit = "measurement"
    facts = [
        f"{note[0].upper()}{note[1:]}; {measure} after {length}, evaluated once"
        f"{'; the test set was left alone' if study == 'tuning' else ''}. "
        f"Data: {finished.description}. {finished.made_by}"
    ]
    if study != "main":
        sides.draw(study, path, found, measure, what, note)
        tables = sides.tables(study, found, measure)
        shown = {f"{study}.png": study.capitalize()}
        return pages.write(path, f"Dynamic sparse training, {study}: {what}", facts, tables, shown)
    tables = {
        "By density": _table(found, sparsities),
        "Against the paper": _against(found, published),
    }
    if sparsities:
        curves = read_arrays(path / "curves.npz")
        pictures.error_against_density(path / "error.png", found, f"Test error, {what}", note)
        pictures.layer_densities(path / "layers.png", curves, results, what, note, unit)
    return pages.write(path, f"Dynamic sparse training: {what}", facts, tables, PICTURES)


def _by_method(results: Results, measure: str) -> dict[str, dict[float, Statistics]]:
    found: dict[str, dict[float, Statistics]] = {}
    for cell in sorted(results.values(), key=lambda cell: -cell["sparsity"]):
        stats = statistics(cell[measure])
        found.setdefault(cell["method"], {})[cell["sparsity"]] = stats
    return found


def _table(found: Mapping[str, Mapping[float, Statistics]], sparsities: Sequence[float]) -> Table:
    rows = []
    for name, cells in found.items():
        if name == "dense":
            rows.append([name, *[percent(cells[0.0])] * len(sparsities)])
        else:
            rows.append([name, *(percent(cells[s]) if s in cells else "" for s in sparsities)])
    return ["", *(f"{100 * (1 - s):g}%" for s in sparsities)], rows


def _against(found: Mapping[str, Mapping[float, Statistics]], published: Mapping) -> Table:
    rows = []
    for name, densities in published.items():
        for density, (value, error) in densities.items():
            ours = found.get(name, {}).get(round(1 - density, 6))
            if ours is None:
                continue
            theirs = f"{value:.2f}" + ("" if error is None else f" ± {error:.2f}")
            gap = 100 * ours["mean"] - value
            spread = f"{percent(ours)}, n = {ours['n']}"
            rows.append([name, f"{100 * density:g}%", theirs, spread, f"{gap:+.2f}"])
    return ["", "weights", "paper", "ours", "difference"], rows
