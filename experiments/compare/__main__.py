"""Compares all sparse training methods, and dense training, at several sparsities.

    python -m experiments.compare --dataset mnist --out docs/results/compare/mnist

Takes about 15 minutes on 2 cores: dense training and five methods at three sparsities, 3 replicates
of LeNet-300-100, 20 epochs. Expect 98.6% from dense training; at 90% sparsity 98.4% from gradual
pruning, RigL and sparse momentum; at 98% sparsity 98.3% from gradual pruning, 97.9% from RigL and
95.6% from fixed random masks.

Each finished cell goes to `results.json` at once, and the table and the picture are drawn again.
The same command continues where it was stopped, even in the middle of a cell.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.common import files
from experiments.common.faults import in_one_line
from experiments.common.report import figures
from experiments.common.report.console import Console
from experiments.common.report.tables import count, duration, markdown, percent
from experiments.common.study.folder import find_run
from experiments.common.study.options import command_line, identity, option, parse
from experiments.common.training.methods import DISTRIBUTIONS, METHODS, OPTIMIZERS
from experiments.train import measures
from experiments.train.config import Config, resolve
from experiments.train.job import Job, build
from experiments.train.run import execute

PROG = "python -m experiments.compare"


@dataclasses.dataclass(frozen=True)
class Options:
    """Compares all sparse training methods, and dense training, at several sparsities."""

    dataset: str = option("digits", "data set, as for experiments.train")
    model: str = option("lenet_300_100", "network, as for experiments.train")
    method: str = option(
        ",".join(name for name, method in METHODS.items() if method.compared),
        "sparse methods, comma-separated",
        was="algorithms",
    )
    sparsity: str = option("0.9,0.95,0.98", "fractions of zeros, comma-separated", was="sparsities")
    distribution: str = option(
        "erk", "how the sparsity is spread over the layers", choices=DISTRIBUTIONS
    )
    optimizer: str = option(
        "momentum", "inner optimizer, as for experiments.train", choices=OPTIMIZERS
    )
    learning_rate: float | None = option(None, "at the first step (default: the optimizer's)")
    weight_decay: float = option(5e-4, "added to the gradient; by adamw to the update")
    epochs: int | None = option(None, "passes over the training set (default: the data set's)")
    batch_size: int | None = option(None, "examples per step (default: the data set's)")
    seeds: int = option(3, "replicates of every cell")
    seed: int = option(0, "seed of the first replicate; the others count up from it", later=True)
    minutes: float = option(
        float("inf"), "start no further cell after this many minutes", identity=False
    )
    data_dir: str | None = option(
        None, "folder of the prepared data sets (default: $TFDS_DATA_DIR)", identity=False
    )
    out: str | None = option(None, "output folder (default: runs/compare-DATASET)", identity=False)


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
      args: its arguments; by default those of the process.
    """
    options = parse(Options, PROG, args)
    path = Path(options.out or f"runs/compare-{options.dataset.replace('/', '_')}")
    with in_one_line(ValueError, TypeError):
        wanted = cells(options)
        folder = find_run(path, identity(options), resume=True)
        results = read_results(path)
        missing = [config for config in wanted if _name(config) not in results]
        first = build(missing[0]) if missing else None
    with in_one_line(interrupted="stopped; the same command continues from here"), folder:
        run(options, wanted, path, first, Console(markup=False))


def cells(options: Options) -> list[Config]:
    """The configuration of every cell, dense training first.

    Raises:
      ValueError: a value is invalid.
    """
    try:
        sparsities = [float(text) for text in options.sparsity.split(",")]
    except ValueError:
        raise ValueError(
            f"--sparsity must be comma-separated numbers, got {options.sparsity!r}."
        ) from None
    own = {"method", "sparsity", "distribution", "out"}
    names = {field.name for field in dataclasses.fields(Options)} - own
    given = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(Config)
        if field.name in names
    }
    sparse = [
        {"method": method, "sparsity": sparsity, "distribution": options.distribution}
        for sparsity in sparsities
        for method in options.method.split(",")
    ]
    return [
        resolve(Config(**given, **cell, dense_twin=False))
        for cell in ({"method": "dense"}, *sparse)
    ]


def read_results(path: Path) -> dict[str, Any]:
    """The summaries of the finished cells, by name.

    Raises:
      FolderError: the file that contains them is damaged or missing.
    """
    file = path / "results.json"
    results = files.read_json(file, {...: measures.SUMMARY})
    if results is None and (path / "table.md").exists():
        raise files.missing(file)
    return results or {}


def run(
    options: Options, wanted: Sequence[Config], path: Path, first: Job | None, console: Console
) -> None:
    """Trains the cells that are not in the results yet, and reports after each.

    Args:
      options: of the command line.
      wanted: its cells.
      path: its folder.
      first: the first of those cells, built; None if all are finished.
      console: where progress is shown.
    """
    begun, results, unfinished = time.perf_counter(), read_results(path), path / "unfinished"
    missing = [config for config in wanted if _name(config) not in results]
    if not any((unfinished / _name(config)).exists() for config in missing):
        files.remove(unfinished)
    for config in missing:
        if time.perf_counter() - begun > 60 * options.minutes:
            break
        name = _name(config)
        with in_one_line(ValueError, TypeError):
            job = first if config is missing[0] else build(config)
        console.print(f"Cell {len(results) + 1} of {len(wanted)}: {name}")
        remedy = f"delete {unfinished} to train it from its start"
        with find_run(unfinished / name, identity(config), resume=True, remedy=remedy) as cell:
            results[name] = cell.summary(measures.SUMMARY) or execute(job, cell, console)
        files.write_json(path / "results.json", results)
        report(options, wanted, results, path)
        files.remove(unfinished)
        if config is missing[0]:
            left = (len(missing) - 1) * (time.perf_counter() - begun)
            console.print(f"The other cells will take about {duration(left)}.")
    if results:
        report(options, wanted, results, path)
        text = (path / "table.md").read_text()
        console.print(text, highlight=False, soft_wrap=True)


def report(options: Options, wanted: Sequence[Config], results: dict[str, Any], path: Path) -> None:
    """Writes `table.md` and `accuracy.png` from the finished cells.

    Args:
      options: of the command line.
      wanted: all its cells.
      results: summaries of the finished ones, by name.
      path: its folder.
    """
    missing = len(wanted) - sum(_name(config) in results for config in wanted)
    partial = f"PARTIAL: {missing} of {len(wanted)} cells are missing. " if missing else ""
    any_result = next(iter(results.values()))
    n = any_result["test_accuracy"]["n"]
    note = f"{partial}Mean ± standard error of {n} replicates."
    first = wanted[0]
    how = (
        f"{first.epochs} epochs in batches of {first.batch_size}, optimizer {first.optimizer} with "
        f"learning rate {first.learning_rate:g} ({first.schedule}) and weight decay "
        f"{first.weight_decay:g}, sparsity spread by {options.distribution}."
    )
    found: dict[str, dict[float, Any]] = {}
    for config in wanted:
        if _name(config) in results:
            found.setdefault(config.method, {})[config.sparsity] = results[_name(config)]
    levels = sorted({config.sparsity for config in wanted} - {0.0})
    header = ["", *(f"{100 * level:g}% sparse" for level in levels)]

    def table(show: Callable[[dict[str, Any]], str]) -> str:
        rows = [
            [method, *(show(at[s]) if s in at else "missing" for s in _levels(method, levels))]
            for method, at in found.items()
        ]
        return markdown(header, rows)

    title = f"{options.model} on {options.dataset}"
    text = [
        f"# {title}: sparse training methods",
        f"{note} {how} Data: {any_result['dataset_description']}. Made by `{PROG}"
        f"{command_line(options)}`; std, min and max are in `results.json`.",
        "Test accuracy:",
        table(lambda summary: percent(summary["test_accuracy"])),
        "FLOPs per example of a forward pass, living weights only:",
        table(lambda summary: count(summary["flops"])),
        "FLOPs per example of a training step, living weights only:",
        table(lambda summary: count(summary["training_flops"])),
    ]
    figures.accuracy_against_sparsity(
        path / "accuracy.png",
        {
            method: {s: summary["test_accuracy"] for s, summary in at.items()}
            for method, at in found.items()
        },
        title,
        f"{partial}Mean and standard error of {n} replicates.",
    )
    files.write_text(path / "table.md", "\n\n".join(text) + "\n")


def _levels(method: str, levels: Sequence[float]) -> Sequence[float]:
    return [0.0] * len(levels) if METHODS[method].dense else levels


def _name(config: Config) -> str:
    dense = METHODS[config.method].dense
    return config.method if dense else f"{config.method}-{config.sparsity:g}"


if __name__ == "__main__":
    main()
