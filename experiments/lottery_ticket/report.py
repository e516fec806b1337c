"""The report of a lottery ticket study: `summary.json`, tables, figures, one page with them all.

Made from the files of the study alone, so that everything can be drawn again without training.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.report import pages
from experiments.common.report.pages import Table
from experiments.common.report.tables import number, percent, statistics
from experiments.common.study.content import Finished, read_arrays
from experiments.lottery_ticket import pictures
from experiments.lottery_ticket.cells import MEASURES
from experiments.lottery_ticket.claims import Results, claims, share_of

PICTURES = {
    "training.png": "Accuracy while training",
    "early_stop.png": "Early-stop iteration and accuracy against weights remaining",
    "one_shot.png": "One-shot against iterative pruning",
    "final.png": "Accuracies at the end of training",
}


def report(finished: Finished) -> str:
    """Writes the whole report; see `command.Study`."""
    path, config, results = finished.path, finished.config, finished.results
    note = f"{finished.replicates}: mean, and from worst to best"
    finished.summarize(seconds=finished.seconds, **_by_level(results))
    _draw(path, config, results, note)
    facts = [
        f"{note[0].upper()}{note[1:]}. ± is one standard error.",
        f"Data: {finished.description}. Early stop: the iteration of the lowest validation loss "
        f"({config['validation']:,} examples, every {config['every']} iterations); accuracies are "
        "measured on the test set.",
        finished.made_by,
    ]
    tickets = (cell for cell in results.values() if cell["kind"] == "ticket" and cell["level"])
    if not all("layers" in cell for cell in tickets):
        facts.append(
            "These results do not say where the weights of every ticket are; "
            f"`{finished.command} --out FOLDER` measures it again."
        )
    kinds = [k for k in pictures.LABELS if any(cell["kind"] == k for cell in results.values())]
    tables = {
        "Against the paper": claims(results, _is_the_papers(config)),
        "Tickets and controls": levels(results, [k for k in kinds if k != "one_shot"]),
        "One-shot pruning": levels(results, ("ticket", "one_shot")),
        "Validation loss at the early stop": _losses(results, kinds),
        "Where the weights of the tickets are": _places(results),
    }
    title = f"Lottery tickets: {config['model']} on {config['dataset']}"
    return pages.write(path, title, facts, tables, PICTURES)


def _by_level(results: Results) -> dict[str, Any]:
    """Statistics over the replicates, by level; one-shot tickets separately."""
    by_level: dict[int, dict[str, Any]] = {}
    one_shot = []
    for cell in sorted(results.values(), key=lambda cell: cell["level"]):
        start = {"level": cell["level"], "weights_remaining": cell["weights_remaining"]}
        found = {name: statistics(cell[name]) for name in MEASURES}
        if cell["kind"] == "one_shot":
            one_shot.append(start | found)
        else:
            by_level.setdefault(cell["level"], start)[cell["kind"]] = found
    return {"levels": list(by_level.values()), "one_shot": one_shot}


def levels(results: Results, kinds: Sequence[str]) -> Table:
    """Early stop and accuracies of several kinds of cells, one row per level that has all."""
    header = ["weights remaining"]
    for kind in kinds:
        label = pictures.LABELS[kind]
        header += [f"{label}: early stop", f"{label}: accuracy there", f"{label}: at the end"]
    rows = []
    for level in sorted({cell["level"] for cell in results.values()}):
        cells = [results.get(f"{kind}-{level:02d}") for kind in kinds]
        if cells[0] is None or (kinds[-1] == "one_shot" and cells[-1] is None):
            continue
        row = [share_of(cells[0])]
        for cell in cells:
            row += ["", "", ""] if cell is None else _measured(cell)
        rows.append(row)
    return header, rows


def _measured(cell: Mapping[str, Any]) -> list[str]:
    stop = statistics(cell["early_stop_iteration"])
    accuracies = (statistics(cell[name]) for name in ("early_stop_accuracy", "final_accuracy"))
    return [number(stop, 0), *map(percent, accuracies)]


def _losses(results: Results, kinds: Sequence[str]) -> Table:
    rows = []
    for level in sorted({cell["level"] for cell in results.values()}):
        cells = [results.get(f"{kind}-{level:02d}") for kind in kinds]
        rows.append([share_of(next(filter(None, cells))), *map(_loss, cells)])
    return ["weights remaining", *(pictures.LABELS[kind] for kind in kinds)], rows


def _loss(cell: Mapping[str, Any] | None) -> str:
    return "" if cell is None else number(statistics(cell["early_stop_validation_loss"]), 4)


def _is_the_papers(config: Mapping[str, Any]) -> bool:
    wanted = {"model": "lenet_300_100", "dataset": "mnist", "iterations": 50_000}
    return all(config[name] == value for name, value in wanted.items())


def _places(results: Results) -> Table:
    found = {cell["level"]: cell for cell in results.values() if "layers" in cell}
    layers = dict.fromkeys(layer for cell in found.values() for layer in cell["layers"])
    rows = []
    for _, cell in sorted(found.items()):
        pairs = (cell["overlap"], cell["overlap_by_chance"])
        row = [share_of(cell), *(f"{100 * cell['layers'][layer]:.1f}%" for layer in layers)]
        rows.append([*row, *(f"{np.mean(pair):.3f}" if pair else "" for pair in pairs)])
    return ["weights remaining", *layers, "overlap of two replicates", "by chance"], rows


def _followed(path: Path) -> tuple[str, dict[str, np.ndarray]]:
    # Test accuracies; those on validation data if the levels that keep them were not trained.
    stored = read_arrays(path / "curves.npz")
    for kind in ("test", "validation"):
        curves = {
            name.split("/")[0]: values
            for name, values in stored.items()
            if name.endswith(f"/{kind}_accuracy") and not np.isnan(values).all()
        }
        if len(curves) > 1:
            break
    return f"{kind} accuracy", curves


def _draw(path: Path, config: Mapping[str, Any], results: Results, note: str) -> None:
    if len(results) < 2:
        return
    densities = {cell["level"]: cell["weights_remaining"] for cell in results.values()}
    shares = [densities.get(level, 0.0) for level in range(max(densities) + 1)]
    followed = _followed(path)
    pictures.over_training(path / "training.png", *followed, shares, config["every"], note)
    stop = {
        "early_stop_iteration": "early-stop iteration",
        "early_stop_accuracy": "test accuracy at the early stop",
    }
    end = {
        "final_accuracy": f"test accuracy after {config['iterations']:,} iterations",
        "final_train_accuracy": "training accuracy there",
    }
    controls, trained = ("ticket", "reinit", "random"), {c["kind"] for c in results.values()}
    for file, kinds, measures, title in (
        ("early_stop.png", controls, stop, "Tickets and their controls at the early stop"),
        ("one_shot.png", ("ticket", "one_shot"), stop, "Iterative and one-shot pruning"),
        ("final.png", controls, end, "Tickets and their controls at the end"),
    ):
        if "one_shot" in trained or "one_shot" not in kinds:
            pictures.against_weights(path / file, results, kinds, measures, title, note)
