"""Sparse networks from scratch: sparse momentum and its rivals (Dettmers & Zettlemoyer, 2019).

    python -m experiments.sparse_momentum --preset lenet_300_100 --out docs/results/rivals/lenet_300

Takes about two hours on 2 cores: LeNet-300-100 on MNIST with the paper's settings, 100 epochs,
eight methods, six densities, 5 replicates each. Without arguments a small study on the digits.

Every finished cell goes to `results.json` at once, and the report is drawn anew. The same command
goes on where it was stopped, also in the middle of a cell.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console

from experiments.common import cli, execution, runs, studies
from experiments.common.cli import option
from experiments.common.data import DataNotFound
from experiments.common.rivals import cells, report
from experiments.common.rivals.settings import METHODS, PRESETS, Settings

PROG = "python -m experiments.sparse_momentum"


@dataclasses.dataclass(frozen=True)
class Options:
    """Compares sparse momentum with its rivals, as in the paper."""

    preset: str = option(
        "digits", "what to train: the paper's settings by name", choices=tuple(PRESETS)
    )
    methods: str = option(",".join(METHODS), "methods, with commas between them")
    densities: str | None = option(
        None, "fractions of the weights that live, with commas (default: the preset's)"
    )
    epochs: int | None = option(None, "passes over the training set (default: the preset's)")
    replicates: int = option(5, "runs of every cell, each with weights and batches of its own")
    seed: int = option(0, "seed of the first replicate; the others count on from it")
    minutes: float = option(
        float("inf"), "begin no further cell after that many minutes", identity=False
    )
    data_dir: str | None = option(
        None, "folder of the prepared data sets (default: $TFDS_DATA_DIR)", identity=False
    )
    out: str | None = option(
        None, "output folder (default: runs/sparse_momentum-PRESET)", identity=False
    )


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
      args: its arguments; by default those of the process.
    """
    options = cli.parse(Options, PROG, args)
    execution.use_every_core()
    console = Console()
    path = Path(options.out or f"runs/sparse_momentum-{options.preset}")
    try:
        settings, names = resolve(options)
        folder = runs.find_run(path, identity(options, settings, names), resume=True)
        wanted = all_cells(settings, names)
        keys = jax.vmap(jax.random.key)(options.seed + jnp.arange(options.replicates))
        lab = cells.build(settings, keys, options.data_dir)
    except (ValueError, TypeError, DataNotFound) as error:
        cli.stop(str(error))
    except runs.FolderError as error:
        cli.stop(str(error), code=1)
    folder.begin()
    groups = cells.groups(lab, wanted, path)
    draw = functools.partial(
        report.report,
        path,
        [cell.name for cell in wanted],
        lab.dataset.description,
        f"{PROG}{cli.options(options)}",
    )
    what = f"{len(wanted)} cells, {options.replicates} replicates each, {settings.epochs} epochs"
    try:
        studies.run(groups, path, console, what=what, minutes=options.minutes, report=draw)
    except KeyboardInterrupt:
        cli.stop("stopped; the same command goes on from here", code=130)
    console.print(draw(), markup=False, highlight=False, soft_wrap=True)
    console.print(f"Pictures and tables are in {path}.")


def resolve(options: Options) -> tuple[Settings, tuple[str, ...]]:
    """The settings of a study, and its methods.

    Raises:
      ValueError: a value that cannot be.
    """
    settings = PRESETS[options.preset]
    names = tuple(name for name in options.methods.split(",") if name)
    for name in names:
        if name not in METHODS:
            raise ValueError(f"--methods must be among {', '.join(METHODS)}, got {name!r}.")
    if options.densities is not None:
        try:
            densities = tuple(float(text) for text in options.densities.split(","))
        except ValueError:
            densities = ()
        if not densities or not all(0 < density <= 1 for density in densities):
            raise ValueError(
                f"--densities must be numbers in (0, 1] with commas between them, got "
                f"{options.densities!r}."
            )
        settings = dataclasses.replace(settings, densities=densities)
    if options.epochs is not None:
        settings = dataclasses.replace(settings, epochs=options.epochs)
    for name, value in (("epochs", settings.epochs), ("replicates", options.replicates)):
        if value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}.")
    return settings, names


def all_cells(settings: Settings, names: Sequence[str]) -> list[cells.Cell]:
    """Every method at every density; dense once."""
    found = []
    for name in names:
        sparsities = [0.0] if name == "dense" else [round(1 - d, 6) for d in settings.densities]
        found += [cells.Cell(name, sparsity) for sparsity in sparsities]
    return found


def identity(options: Options, settings: Settings, names: Sequence[str]) -> dict[str, Any]:
    """What makes two studies the same study, as JSON values."""
    found = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    found |= {name: list(value) for name, value in found.items() if isinstance(value, tuple)}
    found["own"] = {name: dict(value) for name, value in settings.own.items()}
    return {**found, "methods": list(names), "replicates": options.replicates, "seed": options.seed}


if __name__ == "__main__":
    main()
