"""Tables and figures of the side studies, from their results alone."""

from collections.abc import Mapping
from pathlib import Path

from experiments.common.report.pages import Table
from experiments.common.report.tables import Statistics, percent
from experiments.sparse_momentum import pictures, variants

Found = Mapping[str, Mapping[float, Statistics]]
Lines = dict[str, dict[str, dict[float, Statistics]]]


def tables(study: str, found: Found, measure: str) -> dict[str, Table]:
    """The tables of a study by title.

    Args:
      study: a key of `variants.STUDIES`, but `main`.
      found: statistics of the accuracy by variant and sparsity.
      measure: what the accuracies are, such as "test accuracy".
    """
    if study == "sensitivity":
        return {
            f"{measure} against {option}".capitalize(): _against(drawn)
            for option, drawn in lines(found).items()
        }
    rows, base = [], _rows(found).get("sparse_momentum")
    for name, stats in _rows(found).items():
        gap = "" if base is None or study != "ablation" else _gap(stats, base)
        rows.append([name, percent(stats), str(stats["n"]), gap])
    header = ["", measure, "n", "difference"]
    if study != "ablation":
        header, rows = header[:-1], [row[:-1] for row in rows]
    return {f"{measure} of every variant".capitalize(): (header, rows)}


def draw(study: str, path: Path, found: Found, measure: str, what: str, note: str) -> None:
    """Writes the figure of a study, named after the study, into its folder."""
    file, title = path / f"{study}.png", f"{measure.capitalize()}, {what}"
    if study == "sensitivity":
        drawn = lines(found)
        if drawn:
            pictures.sensitivity(file, drawn, title.replace("accuracy", "error"), note)
    else:
        pictures.dots(file, _rows(found), measure, title, note)


def lines(found: Found) -> Lines:
    """Statistics by option, by the variant without it, and by its value."""
    drawn: Lines = {}
    for label, (name, stats) in _labelled(found).items():
        _, options = variants.parse(name)
        for option, value in options.items():
            if isinstance(value, float):
                rest = label.replace(f"+{option}={_text(name, option)}", "")
                drawn.setdefault(option, {}).setdefault(rest, {})[value] = stats
    return drawn


def _rows(found: Found) -> dict[str, Statistics]:
    """Every cell; the cells of a method are adjacent, the best first."""
    order = list(dict.fromkeys(variants.method_of(name) for name in found))
    labelled = _labelled(found).items()
    ranked = sorted(
        labelled,
        key=lambda item: (order.index(variants.method_of(item[1][0])), -item[1][1]["mean"]),
    )
    return {label: stats for label, (_, stats) in ranked}


def _labelled(found: Found) -> dict[str, tuple[str, Statistics]]:
    """The variants by name, with their density if there are several."""
    several = len({s for cells in found.values() for s in cells if s > 0}) > 1
    return {
        name + (f" at {100 * (1 - s):g}%" if several and s > 0 else ""): (name, stats)
        for name, cells in found.items()
        for s, stats in cells.items()
    }


def _text(name: str, option: str) -> str:
    """The value of an option as it was written."""
    return dict(part.split("=", 1) for part in name.split("+")[1:])[option]


def _against(drawn: Mapping[str, Mapping[float, Statistics]]) -> Table:
    values = sorted({value for found in drawn.values() for value in found})
    rows = [
        [label, *(percent(found[value]) if value in found else "" for value in values)]
        for label, found in drawn.items()
    ]
    return ["", *(f"{value:g}" for value in values)], rows


def _gap(stats: Statistics, base: Statistics) -> str:
    return "" if stats is base else f"{100 * (stats['mean'] - base['mean']):+.2f}"
