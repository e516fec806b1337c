"""The lottery ticket hypothesis: winning tickets and their controls (Frankle & Carbin, 2018).

    python -m experiments.lottery_ticket --preset lenet --out docs/results/lottery_ticket/mnist

Takes about two hours on 2 cores: LeNet-300-100 on MNIST at the paper's length, 19 levels of
iterative pruning, and at 8 of them one-shot pruning, random reinitialization and random masks, 5
replicates each. Without arguments it runs a small study on the digits in two minutes.

Each finished cell goes to `results.json` at once, and the report is drawn again. The same command
continues where it was stopped, even in the middle of a cell.
"""

import dataclasses
from collections.abc import Sequence

from experiments.common.study import command
from experiments.common.study.lab import Site
from experiments.common.study.options import option
from experiments.common.study.study import Group
from experiments.lottery_ticket import cells, report, study
from experiments.lottery_ticket.settings import PRESETS, Settings, scaled

PROG = "python -m experiments.lottery_ticket"


@dataclasses.dataclass(frozen=True)
class Options(command.StudyOptions):
    """Finds lottery tickets and tests them against their controls, as in the paper."""

    preset: str = option(
        "digits", "what to train: the paper's settings by name", choices=tuple(PRESETS)
    )
    dataset: str | None = option(None, "a data set other than the preset's")
    scale: float = option(1.0, "shortens (or lengthens) every training in proportion")
    rounds: int | None = option(None, "number of prunings (default: the preset's)")
    levels: str | None = option(
        None,
        "rounds after which the controls are trained, comma-separated (default: the preset's)",
    )
    method: str = option(
        ",".join(cells.CONTROLS),
        "controls to train in addition to the tickets, comma-separated",
        was="controls",
    )


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
      args: its arguments; by default those of the process.
    """
    command.run(Options, PROG, prepare, args)


def prepare(options: Options) -> command.Study:
    """The study that the options request."""
    settings, controls = resolve(options)
    wanted = study.all_cells(settings.rounds, controls, settings.levels)

    def begin(site: Site, left: Sequence[str]) -> tuple[str, list[Group]]:
        tickets = cells.build(settings, site)
        calls = study.schedule(wanted, {cell.name for cell in wanted}.difference(left))
        return tickets.lab.source.dataset.description, study.groups(tickets, calls)

    return command.Study(
        f"lottery_ticket-{options.preset}",
        command.identity(options, settings, controls=controls),
        [cell.name for cell in wanted],
        study.content_of,
        f"{settings.iterations:,} iterations",
        begin,
        report.report,
    )


def resolve(options: Options) -> tuple[Settings, tuple[str, ...]]:
    """The settings of a study, and its controls.

    Raises:
      ValueError: a value is invalid.
    """
    settings = PRESETS[options.preset]
    if options.dataset is not None:
        settings = dataclasses.replace(settings, dataset=options.dataset)
    if options.examples is not None:
        most = max(1, options.examples // 10)
        settings = dataclasses.replace(settings, validation=min(settings.validation, most))
    settings = scaled(settings, options.scale)
    rounds = settings.rounds if options.rounds is None else options.rounds
    if not 1 <= rounds <= 255:
        raise ValueError(f"--rounds must be in [1, 255], got {rounds}.")
    levels = tuple(level for level in settings.levels if level <= rounds)
    if options.levels is not None:
        levels = _levels(options.levels, rounds)
    curves = tuple(level for level in settings.curves if level <= rounds)
    controls = tuple(name for name in options.method.split(",") if name)
    for name in controls:
        if name not in cells.CONTROLS:
            raise ValueError(f"--method must be among {', '.join(cells.CONTROLS)}, got {name!r}.")
    settings = dataclasses.replace(settings, rounds=rounds, levels=levels, curves=curves)
    return settings, controls


def _levels(text: str, rounds: int) -> tuple[int, ...]:
    try:
        levels = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        levels = ()
    if not levels or not 1 <= levels[0] <= levels[-1] <= rounds:
        raise ValueError(f"--levels must be comma-separated rounds in [1, {rounds}], got {text!r}.")
    return levels


if __name__ == "__main__":
    main()
