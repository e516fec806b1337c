"""The command line of a study: its options, its folder, what is left to train, its report.

A study provides its options (`StudyOptions` and more) and `prepare`, which makes a `Study` from
them: the settings, a frozen dataclass; the names of its cells; how they are trained, in groups on
a `Lab`; what the folder holds of each (`content_of`); and a report, drawn from a `Finished`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from experiments.common.faults import in_one_line, stop
from experiments.common.report.console import Console
from experiments.common.study.content import (
    Content,
    Finished,
    large_files_gone,
    read_finished,
    read_results,
)
from experiments.common.study.folder import find_run
from experiments.common.study.lab import Site
from experiments.common.study.options import command_line, option, parse
from experiments.common.study.study import Group, train_groups
from experiments.common.training import execution

NOTHING_YET = 3
"""Exit code of a study that ran out of time before its first cell was finished."""


@dataclasses.dataclass(frozen=True)
class StudyOptions:
    """The options of every study."""

    seeds: int = option(
        5, "replicates of every cell, each with its own weights and batches", was="replicates"
    )
    seed: int = option(0, "seed of the first replicate; the others count up from it")
    examples: int | None = option(
        None, "use only the first so many examples, to try out a large network (default: all)"
    )
    minutes: float = option(
        float("inf"), "stop after this many minutes, and keep a checkpoint", identity=False
    )
    data_dir: str | None = option(
        None, "folder of the prepared data sets (default: $TFDS_DATA_DIR)", identity=False
    )
    out: str | None = option(None, "output folder (default: runs/STUDY-PRESET)", identity=False)


Options = TypeVar("Options", bound=StudyOptions)


class Study(NamedTuple):
    """What a study is, before anything is loaded.

    Attributes:
      name: of its folder in runs/.
      identity: what makes two studies the same study, as JSON values.
      cells: the names of all cells.
      content_of: what the files of the folder contain for a cell, as for `content.read_results`.
      what: the work, in a few words.
      begin: loads the data; `(site, cells that are left) -> (description of the data, groups)`.
      report: `(finished) -> tables as Markdown`; writes them, the pictures and `summary.json` into
        the folder, using only the files in it.
      by_seed: whether every replicate is a cell of its own, so that more can be added to a folder.
    """

    name: str
    identity: dict[str, Any]
    cells: list[str]
    content_of: Callable[[str], Content]
    what: str
    begin: Callable[[Site, Sequence[str]], tuple[str, list[Group]]]
    report: Callable[[Finished], str]
    by_seed: bool = False


def run(
    kind: type[Options],
    prog: str,
    prepare: Callable[[Options], Study],
    args: Sequence[str] | None = None,
) -> None:
    """Runs a study from its command line: trains what is not finished, and draws the report.

    Args:
      kind: the options.
      prog: the command, as the user types it.
      prepare: makes the study that the options request; `ValueError` for impossible values.
      args: its arguments; by default those of the process.
    """
    options = parse(kind, prog, args)
    execution.use_every_core()
    execution.keep_memory()
    console = Console(markup=False)
    groups: list[Group] = []
    with in_one_line(ValueError, TypeError):
        if options.seeds < 1:
            raise ValueError(f"--seeds must be at least 1, got {options.seeds}.")
        if options.examples is not None and options.examples < 10:
            raise ValueError(f"--examples must be at least 10, got {options.examples}.")
        study = prepare(options)
        path = Path(options.out or f"runs/{study.name}")
        folder = find_run(path, study.identity, resume=True)
        finished = read_results(path, study.content_of, study.cells)
        left = [name for name in study.cells if name not in finished]
        drawn = folder.summary({"dataset_description": str})
        if left or drawn is None:
            keys = execution.replicate_keys(options.seed, options.seeds)
            site = Site(keys, path, options.data_dir, options.examples)
            description, groups = study.begin(site, left)
        else:
            description = drawn["dataset_description"]
    command = f"{prog}{command_line(options)}"

    def report() -> str:
        return study.report(read_finished(path, study.cells, description, command))

    cells = f"{len(left)} of {len(study.cells)} cells"
    replicates = "" if study.by_seed else f", {options.seeds} replicates each"
    what = f"{cells}{replicates}, {study.what}"
    with in_one_line(interrupted="stopped; the same command continues from here"), folder:
        train_groups(
            groups,
            path,
            console,
            what=what,
            minutes=options.minutes,
            report=report,
            command=command,
        )
        if not read_results(path):
            stop("no cell is finished yet; the same command continues from here", code=NOTHING_YET)
        console.print(report(), highlight=False, soft_wrap=True)
        console.print(f"Tables and pictures on one page: {path}/report.html")
        gone = large_files_gone(path, finished, study.content_of)
        if gone and not left:
            again = f"`{command} --out FOLDER` makes it again"
            console.print(f"Not kept in {path}: {', '.join(gone)}; {again}.", soft_wrap=True)


def identity(options: StudyOptions, settings: Any, **more: Any) -> dict[str, Any]:
    """What makes two studies the same study, as JSON values.

    Args:
      options: of the command line.
      settings: a dataclass.
      **more: what else identifies it.
    """
    found = dataclasses.asdict(settings) | more
    found |= {"replicates": options.seeds, "seed": options.seed}
    if options.examples is not None:
        found["examples"] = options.examples
    return {name: list(v) if isinstance(v, tuple) else v for name, v in found.items()}
