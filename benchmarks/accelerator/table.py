"""What the queue has found so far, as one page of Markdown, made from the result files alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.accelerator.queue import Job
from experiments.common import files
from experiments.common.report.tables import markdown, percent, statistics
from experiments.common.study.content import read_results

TITLE = "# Measured on an accelerator"


def write(jobs: Sequence[Job], out: Path) -> None:
    """Writes `table.md` into the folder of the results."""
    done = [job.progress(out) for job in jobs]
    missing = sum(pieces - ready for ready, pieces in done)
    parts = [TITLE]
    if missing:
        parts.append(f"PARTIAL: {missing} of {sum(n for _, n in done)} pieces are missing.")
    for stage in dict.fromkeys(job.stage for job in jobs):
        found = [
            (job, stored)
            for job in jobs
            if job.stage == stage and (stored := files.read_json(out / f"{job.name}.json"))
        ]
        texts = [_measured(job.name, stored) for job, stored in found if "rows" in stored]
        folders: dict[str, list[dict[str, Any]]] = {}
        for _, stored in found:
            if "study" in stored:
                folders.setdefault(stored["study"], []).extend(stored["calls"])
        texts += [_studied(out, folder, calls) for folder, calls in folders.items()]
        if texts:
            parts += [f"## {stage}", *texts]
    methods = _methods(out)
    if methods:
        parts += ["## Test accuracy over all seeds", *methods]
    files.write_text(out / "table.md", "\n\n".join(parts) + "\n")


def _measured(name: str, stored: dict[str, Any]) -> str:
    rows = stored["rows"]
    header = list(dict.fromkeys(column for row in rows for column in row))
    texts = [[_text(row.get(column)) for column in header] for row in rows]
    return f"### {name}\n\n{_on([stored])}\n\n{markdown(header, texts)}"


def _studied(out: Path, folder: str, calls: Sequence[dict[str, Any]]) -> str:
    cells = len(read_results(out / folder))
    seconds = sum(call["seconds"] for call in calls)
    report = f" [Its report]({folder}/table.md)." if (out / folder / "table.md").exists() else ""
    return f"### {folder}\n\n{cells} cells in {seconds:,.0f} s. {_on(calls)}{report}"


def _on(calls: Sequence[dict[str, Any]]) -> str:
    # Every distinct device and version, in the order of the calls.
    where = dict.fromkeys(
        f"{call['device']}, jax {call['jax']}, matrix products in {call['matmul_precision']} "
        "precision"
        for call in calls
    )
    days = sorted({call["date"][:10] for call in calls})
    commands = dict.fromkeys(f"`{call['command']}`" for call in calls)
    return f"{'; '.join(where)}; {', '.join(days)}; {', '.join(commands)}."


def _methods(out: Path) -> list[str]:
    """Test accuracy by method and sparsity of the networks whose folders are `NETWORK-SEED`."""
    found: dict[str, dict[str, dict[float, list[float]]]] = {}
    for file in sorted(out.glob("*-[0-9]/results.json")):
        network = file.parent.name.rpartition("-")[0]
        for cell in read_results(file.parent).values():
            by_sparsity = found.setdefault(network, {}).setdefault(cell["method"], {})
            by_sparsity.setdefault(cell["sparsity"], []).extend(cell["test_accuracy"])
    texts = []
    for network, methods in found.items():
        sparsities = sorted({s for cells in methods.values() for s in cells}, reverse=True)
        header = [network, *(f"{100 * (1 - s):g}%" for s in sparsities)]
        rows = [
            [name, *(_accuracy(cells[s]) if s in cells else "" for s in sparsities)]
            for name, cells in methods.items()
        ]
        texts.append(markdown(header, rows))
    return texts


def _accuracy(values: Sequence[float]) -> str:
    return f"{percent(statistics(values))}, n = {len(values)}"


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
