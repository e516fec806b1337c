"""Groups of cells, trained one after another into the folder of a study, resumable at any moment.

unfinished/    a checkpoint of the current group; removed when it is done
"""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.common import files
from experiments.common.report.console import Console
from experiments.common.report.progress import Display
from experiments.common.study import engine
from experiments.common.study.content import Content, read_results, write_contents
from experiments.common.study.folder import RunFolder
from experiments.common.training import execution
from experiments.common.training.loop import Trainer, TrainState

REPORT_SECONDS = 60.0
SHOWN = 6  # cell names in the name of a group


class Group(NamedTuple):
    """Cells that are trained side by side, in one call of one compiled function.

    Attributes:
      cells: their names.
      finish: `(state) -> contents by the names of the cells`, after the last step. The state may
        have more lanes than `begin` gave it, after the others; it is None without `begin`.
      begin: the trainer, and its state before the first step, called when the group's turn comes;
        None for a group that only measures.
      iterations: of the training.
      every: iterations from one measurement to the next.
      watch: called with the iterations done and the state whenever there are new measurements.
    """

    cells: Sequence[str]
    finish: Callable[[Any], dict[str, Content]]
    begin: Callable[[], tuple[Trainer, TrainState]] | None = None
    iterations: int = 0
    every: int = 1
    watch: Callable[[int, TrainState], None] = lambda done, state: None

    @property
    def name(self) -> str:
        """The names of the cells together; it identifies the checkpoint."""
        more = len(self.cells) - SHOWN
        return ", ".join(self.cells[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def train_groups(
    groups: Sequence[Group],
    path: Path,
    console: Console,
    *,
    what: str,
    minutes: float,
    report: Callable[[], Any],
    command: str | None = None,
) -> None:
    """Trains groups whose cells are not in the results yet.

    Args:
      groups: in their order.
      path: the folder.
      console: where progress is shown.
      what: the work, for the line with the estimate.
      minutes: it stops after this many, even in the middle of a group, which keeps a checkpoint.
      report: called when there are new results, at most once in `REPORT_SECONDS`.
      command: kept with the results.
    """
    done, reported = 0, -math.inf
    deadline = time.perf_counter() + 60 * minutes
    with Display(console, what, max(1, sum(group.iterations for group in groups))) as display:
        _remove_stale(path)
        for group in groups:
            if time.perf_counter() > deadline:
                break
            display.update(done, group.name)
            trained = _train(group, path, display, done, deadline)
            if not trained.finished:
                break
            found = group.finish(trained.states.get("group"))
            seconds = trained.seconds / len(found) if group.begin else None
            write_contents(path, found, seconds, command)
            files.remove(path / "unfinished")
            if time.perf_counter() - reported > REPORT_SECONDS:
                report()
                reported = time.perf_counter()
            done += group.iterations


def _remove_stale(path: Path) -> None:
    # Killed between the results of a group and the removal: all its cells are finished.
    stored = files.read_json(path / "unfinished" / "config.json", {"group": str})
    if stored is not None and stored["group"].split(", ")[0] in read_results(path):
        files.remove(path / "unfinished")


def _train(
    group: Group, path: Path, display: Display, done: int, deadline: float
) -> engine.Trained:
    if group.begin is None:
        return engine.Trained({}, True, 0.0)
    trainer, state = group.begin()
    training = engine.Training(trainer, execution.fill(state), group.iterations, group.every)
    config = {"group": group.name}
    remedy = f"delete {path / 'unfinished'} to train it from its start"
    folder = RunFolder(path / "unfinished", config, remedy)
    if files.read_json(folder.path / "config.json") != config:
        files.remove(folder.path)

    def show(name: str, chunk: engine.Chunk) -> str:
        group.watch(chunk.step, chunk.state)
        point = chunk.step // group.every - 1
        return f"{group.name}: {chunk.state.tracked.shown(point)}"

    with folder:
        return engine.train(
            {"group": training},
            folder,
            display,
            show,
            checkpoint_every=engine.CHECKPOINT_SECONDS,
            deadline=deadline,
            done=done,
        )
