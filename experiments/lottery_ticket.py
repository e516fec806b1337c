"""The lottery ticket hypothesis: winning tickets against their controls (Frankle & Carbin, 2018).

    python -m experiments.lottery_ticket --preset lenet --out docs/results/lottery_ticket/mnist

Takes about two hours on 2 cores: LeNet-300-100 on MNIST at the paper's length, 19 levels of
iterative pruning, and at 8 of them one-shot pruning, random reinitialization and random masks, 5
replicates each. Without arguments a small study on the digits takes two minutes.

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
from experiments.common.tickets import cells, report, study
from experiments.common.tickets.settings import PRESETS, Settings, scaled

PROG = "python -m experiments.lottery_ticket"


@dataclasses.dataclass(frozen=True)
class Options:
    """Finds lottery tickets and tests them against their controls, as in the paper."""

    preset: str = option(
        "digits", "what to train: the paper's settings by name", choices=tuple(PRESETS)
    )
    dataset: str | None = option(None, "another data set than the preset's")
    scale: float = option(1.0, "shortens (or lengthens) every training in proportion")
    rounds: int | None = option(None, "times that is pruned (default: the preset's)")
    levels: str | None = option(
        None,
        "rounds after which the controls are trained, with commas between them (default: the "
        "preset's)",
    )
    controls: str = option(",".join(cells.CONTROLS), "controls, with commas between them")
    replicates: int = option(5, "runs of every cell, each with weights and batches of its own")
    seed: int = option(0, "seed of the first replicate; the others count on from it")
    minutes: float = option(
        float("inf"), "begin no further cell after that many minutes", identity=False
    )
    data_dir: str | None = option(
        None, "folder of the prepared data sets (default: $TFDS_DATA_DIR)", identity=False
    )
    out: str | None = option(
        None, "output folder (default: runs/lottery_ticket-PRESET)", identity=False
    )


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
      args: its arguments; by default those of the process.
    """
    options = cli.parse(Options, PROG, args)
    execution.use_every_core()
    console = Console()
    path = Path(options.out or f"runs/lottery_ticket-{options.preset}")
    try:
        settings, controls = resolve(options)
        folder = runs.find_run(path, identity(options, settings, controls), resume=True)
        wanted = study.all_cells(settings.rounds, controls, settings.levels)
        calls, lab = study.schedule(wanted, studies.finished(path)), None
        if calls:
            keys = jax.vmap(jax.random.key)(options.seed + jnp.arange(options.replicates))
            lab = cells.build(settings, keys, options.data_dir)
    except (ValueError, TypeError, DataNotFound) as error:
        cli.stop(str(error))
    except runs.FolderError as error:
        cli.stop(str(error), code=1)
    folder.begin()
    names = [cell.name for cell in wanted]
    command = f"{PROG}{cli.options(options)}"
    if lab is not None:
        draw = functools.partial(report.report, path, names, lab.dataset.description, command)
        what = (
            f"{sum(map(len, calls))} of {len(wanted)} cells, {options.replicates} replicates each, "
            f"{settings.iterations:,} iterations"
        )
        groups = study.groups(lab, calls, path)
        try:
            studies.run(groups, path, console, what=what, minutes=options.minutes, report=draw)
        except KeyboardInterrupt:
            cli.stop("stopped; the same command goes on from here", code=130)
    if not studies.finished(path):
        cli.stop("no cell is finished yet; the same command goes on from here", code=1)
    description = runs.read_json(path / "summary.json")["dataset_description"]
    text = report.report(path, names, description, command)
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.print(f"The report with pictures is {path}/report.html.")


def resolve(options: Options) -> tuple[Settings, tuple[str, ...]]:
    """The settings of a study, and its controls.

    Raises:
      ValueError: a value that cannot be.
    """
    settings = PRESETS[options.preset]
    if options.dataset is not None:
        settings = dataclasses.replace(settings, dataset=options.dataset)
    settings = scaled(settings, options.scale)
    if options.replicates < 1:
        raise ValueError(f"--replicates must be at least 1, got {options.replicates}.")
    rounds = settings.rounds if options.rounds is None else options.rounds
    if not 1 <= rounds <= 255:
        raise ValueError(f"--rounds must be in [1, 255], got {rounds}.")
    levels = tuple(level for level in settings.levels if level <= rounds)
    if options.levels is not None:
        levels = _levels(options.levels, rounds)
    curves = tuple(level for level in settings.curves if level <= rounds)
    controls = tuple(name for name in options.controls.split(",") if name)
    for name in controls:
        if name not in cells.CONTROLS:
            raise ValueError(f"--controls must be among {', '.join(cells.CONTROLS)}, got {name!r}.")
    settings = dataclasses.replace(settings, rounds=rounds, levels=levels, curves=curves)
    return settings, controls


def identity(options: Options, settings: Settings, controls: Sequence[str]) -> dict[str, Any]:
    """What makes two studies the same study, as JSON values."""
    found = dataclasses.asdict(settings)
    found |= {name: list(value) for name, value in found.items() if isinstance(value, tuple)}
    return {
        **found,
        "controls": list(controls),
        "replicates": options.replicates,
        "seed": options.seed,
    }


def _levels(text: str, rounds: int) -> tuple[int, ...]:
    try:
        levels = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        levels = ()
    if not levels or not 1 <= levels[0] <= levels[-1] <= rounds:
        raise ValueError(
            f"--levels must be rounds in [1, {rounds}] with commas between them, got {text!r}."
        )
    return levels


if __name__ == "__main__":
    main()
