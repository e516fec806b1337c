"""What the folder of a study holds about its finished cells.

results.json   numbers, for every replicate, and the command that made each cell
*.npz          what does not fit into JSON
summary.json   what the report found; made from the other files alone
"""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import files
from experiments.common.faults import first_line


class Content(NamedTuple):
    """What a folder holds about a finished cell; or what it must look like.

    Attributes:
      numbers: what `results.json` has under the name of the cell; or its form, as `files.check`
        takes it. The `seconds` of the training and the `command` are added.
      arrays: for each .npz file its arrays by name; or how their names begin.
      large: the same for files that are only needed to train further cells. No report uses them, so
        a finished folder can do without.
    """

    numbers: dict[str, Any]
    arrays: Mapping[str, Any] = {}
    large: Mapping[str, Any] = {}


def measured(
    name: str,
    lanes: slice,
    numbers: Mapping[str, np.ndarray],
    curves: Mapping[str, np.ndarray],
    **facts: Any,
) -> Content:
    """What was measured for a cell.

    Args:
      name: of the cell.
      lanes: its own; see `Lab.mine`.
      numbers: one per lane, by name.
      curves: of every lane, by name; they go to `curves.npz`.
      **facts: what else `results.json` says about the cell.
    """
    mine = {key: np.asarray(values)[lanes].tolist() for key, values in numbers.items()}
    drawn = {f"{name}/{key}": np.asarray(values)[lanes] for key, values in curves.items()}
    return Content(facts | mine, {"curves.npz": drawn})


class Finished(NamedTuple):
    """What a report is made from.

    Attributes:
      path: the folder of the study.
      config: what was requested.
      results: the finished cells by name.
      wanted: the names of all cells.
      description: of the data.
      command: that makes the report.
    """

    path: Path
    config: dict[str, Any]
    results: dict[str, Any]
    wanted: Sequence[str]
    description: str
    command: str

    @property
    def missing(self) -> int:
        """How many cells are not finished."""
        return sum(name not in self.results for name in self.wanted)

    @property
    def replicates(self) -> str:
        """What a picture or table says about its numbers: how many runs, and whether cells are
        missing."""
        n, missing = self.config["replicates"], self.missing
        note = f"{n} replicate{'s' * (n > 1)}"
        cells = f"{missing} of {len(self.wanted)} cells are missing"
        return f"PARTIAL, {cells}; {note}" if missing else note

    @property
    def commands(self) -> dict[str, list[str]]:
        """The cells by the command that made them; under "" those whose command is unknown."""
        found: dict[str, list[str]] = {}
        for name, cell in self.results.items():
            command = cell.get("command", self.command if name in self.wanted else "")
            found.setdefault(command, []).append(name)
        return found

    @property
    def made_by(self) -> str:
        """A sentence with the command of every cell."""
        first, *others = self.commands or [self.command]
        if first and not others:
            return f"Made by `{first}`."
        parts = [
            (f"`{command}`" if command else "a command that was not kept") + f": {', '.join(names)}"
            for command, names in self.commands.items()
        ]
        return f"Made by {'; '.join(parts)}."

    @property
    def seconds(self) -> float:
        """The training time of all cells together."""
        return round(sum(cell["seconds"] for cell in self.results.values()), 1)

    def summarize(self, **found: Any) -> None:
        """Writes `summary.json`."""
        start = {"dataset_description": self.description, "missing_cells": self.missing}
        files.write_json(self.path / "summary.json", start | found)


def read_finished(path: Path, wanted: Sequence[str], description: str, command: str) -> Finished:
    """What the folder of a study holds; arguments as in `Finished`."""
    config = files.read_json(path / "config.json") or {}
    return Finished(path, config, read_results(path), wanted, description, command)


def read_results(
    path: Path,
    content_of: Callable[[str], Content] | None = None,
    wanted: Sequence[str] = (),
) -> dict[str, Any]:
    """The results in a folder by the names of the cells.

    Args:
      path: the folder.
      content_of: what the files contain for the cell of a name, `KeyError` for names that no cell
        has; if it is given, everything is checked against it.
      wanted: the names of all cells. If one is not finished, large files must be there too.

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
    unfinished = any(name not in results for name in wanted)
    for name, cell in results.items():
        try:
            found = content_of(name)
        except KeyError:
            raise files.damaged(file, f"{name!r} is not a cell of this study") from None
        files.check(file, cell, found.numbers, name)
        large = {file: s for file, s in found.large.items() if unfinished or (path / file).exists()}
        for arrays, start in {**found.arrays, **large}.items():
            names.setdefault(arrays, {})[start] = name
    for arrays, starts in names.items():
        read_arrays(path / arrays, starts)
    return results


def large_files_gone(
    path: Path, results: Mapping[str, Any], content_of: Callable[[str], Content]
) -> list[str]:
    """The names of the large files that a finished folder lacks."""
    large = dict.fromkeys(file for name in results for file in content_of(name).large)
    return [file for file in large if not (path / file).exists()]


def write_contents(
    path: Path,
    found: Mapping[str, Content],
    seconds: float | None,
    command: str | None = None,
) -> None:
    """Adds finished cells to the folder of a study.

    Args:
      path: the folder.
      found: what to store about them, by their names.
      seconds: that the training of each took; None for what was only measured.
      command: that makes them; None if there is none.
    """
    # Arrays first: a cell is finished when its numbers are there.
    arrays: dict[str, dict[str, np.ndarray]] = {}
    for content in found.values():
        for file, added in {**content.arrays, **content.large}.items():
            arrays.setdefault(file, {}).update(added)
    for file, added in arrays.items():
        write_arrays(path / file, read_arrays(path / file) | added)
    more: dict[str, Any] = {} if seconds is None else {"seconds": round(seconds, 1)}
    more |= {} if command is None else {"command": command}
    numbers = {name: content.numbers | more for name, content in found.items()}
    files.write_json(path / "results.json", read_results(path) | numbers)


def read_arrays(file: Path, starts: Mapping[str, str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an .npz file; none if there is no file.

    Args:
      file: the file.
      starts: how the names of required arrays begin, each with its cell.

    Raises:
      FolderError: the file is damaged or unreadable, or arrays are missing.
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
    """Writes an .npz file in one step: a reader sees the whole old or the whole new one."""
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
