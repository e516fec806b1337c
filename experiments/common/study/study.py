"""A study: groups of runs, trained one after the other into a folder, resumable at any moment.

results.json   the finished cells, every replicate
*.npz          what does not fit into JSON
unfinished/    a checkpoint of the group under way; goes when it is done
"""

import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxsparse
from experiments.common import files
from experiments.common.faults import first_line
from experiments.common.report.console import Console
from experiments.common.report.progress import Display
from experiments.common.study import engine
from experiments.common.study.folder import RunFolder
from experiments.common.training import execution
from experiments.common.training.loop import Trainer, TrainState

REPORT_SECONDS = 60.0


class Group(NamedTuple):
    """Cells that are trained side by side, in one call of one compiled function.

    Attributes:
      name: of the cells together; it also says whose a checkpoint is.
      begin: the trainer, and its state before the first step; called when the group's turn comes.
      finish: `(state, seconds) -> results by the names of the cells`, after the last step. The
        state may have more lanes than `begin` gave it, behind the others.
      iterations: of the training; none for a group that only measures.
      every: iterations from one measurement to the next.
    """

    name: str
    begin: Callable[[], tuple[Trainer | None, TrainState | None]]
    finish: Callable[[TrainState | None, float], dict[str, Any]]
    iterations: int
    every: int


@jax.jit
@jax.vmap
def begin_from(state: TrainState, params: Any, masks: Any) -> TrainState:
    """Lanes before their first step, with parameters and masks put in."""
    return state._replace(
        params=jaxsparse.apply(params, masks), opt_state=jaxsparse.set_masks(state.opt_state, masks)
    )


class Content(NamedTuple):
    """What a folder holds of a finished cell.

    Attributes:
      numbers: what `results.json` has under the name of the cell, as `files.check` takes it.
      arrays: how the names of its arrays begin, by .npz file.
    """

    numbers: Any
    arrays: Mapping[str, str] = {}


def read_results(path: Path, content_of: Callable[[str], Content] | None = None) -> dict[str, Any]:
    """The results of a folder by the names of the cells.

    Args:
      path: the folder.
      content_of: what the files hold of the cell of a name, `KeyError` for names that no cell has;
        where it is given, everything is held against it.

    Raises:
      FolderError: a file is damaged or missing.
    """
    file = path / "results.json"
    results = files.read_json(file)
    if results is None and (path / "table.md").exists():
        raise files.missing(file)
    if results is None or content_of is None:
        return results or {}
    names: dict[str, dict[str, str]] = {}
    for name, cell in results.items():
        try:
            found = content_of(name)
        except KeyError:
            raise files.damaged(file, f"{name!r} is no cell of this study") from None
        files.check(file, cell, found.numbers, name)
        for arrays, start in found.arrays.items():
            names.setdefault(arrays, {})[start] = name
    for arrays, starts in names.items():
        read_arrays(path / arrays, starts)
    return results


def train_groups(
    groups: Sequence[Group],
    path: Path,
    console: Console,
    *,
    what: str,
    minutes: float,
    report: Callable[[], Any],
) -> None:
    """Trains groups whose cells are not in the results yet.

    Args:
      groups: in their order.
      path: the folder.
      console: where progress is shown.
      what: the work, for the line with the estimate.
      minutes: after so many it stops, also in the middle of a group, of which a checkpoint stays.
      report: called when there are new results, at most once in `REPORT_SECONDS`.
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
            found = group.finish(trained.states.get("group"), trained.seconds)
            files.write_json(path / "results.json", read_results(path) | found)
            files.remove(path / "unfinished")
            if time.perf_counter() - reported > REPORT_SECONDS:
                report()
                reported = time.perf_counter()
            done += group.iterations


def read_arrays(file: Path, starts: Mapping[str, str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an .npz file; none where there is no file.

    Args:
      file: the file.
      starts: how the names of arrays begin that must be there, each with its cell.

    Raises:
      FolderError: the file is damaged or refused, or arrays are missing.
    """
    arrays: dict[str, np.ndarray] = {}
    try:
        arrays = files.load_arrays(io.BytesIO(files.read_bytes(file)))
    except FileNotFoundError:
        if starts:
            raise files.missing(file) from None
    except files.UNREADABLE as error:
        raise files.damaged(file, first_line(error)) from error
    for start, cell in (starts or {}).items():
        if not any(name.startswith(start) for name in arrays):
            raise files.damaged(file, f"nothing of {cell} is in it")
    return arrays


def write_arrays(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an .npz file in one step: a reader sees the old one or the new one, whole."""
    with files.replacing(file) as opened:
        np.savez_compressed(opened, **arrays)


def named_arrays(tree: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """The leaves of a tree as `write_arrays` takes them, by names such as `prefix/fc1/kernel`."""
    return {_name(prefix, p): np.asarray(v) for p, v in jax.tree.leaves_with_path(tree)}


def tree_of(arrays: Mapping[str, np.ndarray], like: Any, prefix: str = "") -> Any:
    """What `named_arrays` took apart, in the structure of `like`, on the device."""
    return jax.tree.map_with_path(lambda p, _: jnp.asarray(arrays[_name(prefix, p)]), like)


def _name(prefix: str, path: tuple[Any, ...]) -> str:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return f"{prefix}/{name}" if prefix else name


def _remove_stale(path: Path) -> None:
    # Killed between the results of a group and the removal: all its cells are finished.
    stored = files.read_json(path / "unfinished" / "config.json", {"group": str})
    if stored is not None and stored["group"].split(", ")[0] in read_results(path):
        files.remove(path / "unfinished")


def _train(
    group: Group, path: Path, display: Display, done: int, deadline: float
) -> engine.Trained:
    begun = time.perf_counter()
    trainer, state = group.begin()
    if trainer is None:
        return engine.Trained({}, True, time.perf_counter() - begun)
    training = engine.Training(trainer, execution.fill(state), group.iterations, group.every)
    config = {"group": group.name}
    remedy = f"delete {path / 'unfinished'} to train it from its start"
    folder = RunFolder(path / "unfinished", config, remedy)
    if files.read_json(folder.path / "config.json") != config:
        files.remove(folder.path)

    def show(name: str, chunk: engine.Chunk) -> str:
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
