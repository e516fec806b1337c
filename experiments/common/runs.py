"""The folder of a run: what was asked for, what was measured, and how to go on after a kill.

    config.json      the configuration; written first, never changed
    metrics.jsonl    one JSON object a line, appended at every evaluation
    checkpoints/     the newest state (Orbax); says how many metric lines belong to it
    summary.json     the result; written last, so that it marks a finished run

A file appears under its name only when it is complete, so a kill at any moment leaves a folder
that can be resumed.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments.common import cli

_UNFINISHED = ".part"


class FolderError(Exception):
    """The output folder cannot be used; the message is one line for the user."""


class Restored(NamedTuple):
    """A checkpoint.

    Attributes:
      state: the pytree that was saved, in the structure of the template.
      progress: the JSON object that was saved beside it.
    """

    state: Any
    progress: dict[str, Any]


class RunFolder:
    """One run's folder; `find_run` makes it."""

    def __init__(self, path: Path, config: Mapping[str, Any]):
        self.path = path
        self._config = config
        self._manager: ocp.CheckpointManager | None = None
        self._lines = 0

    @property
    def summary(self) -> dict[str, Any] | None:
        """The result of a finished run, or None."""
        return read_json(self.path / "summary.json")

    def begin(self) -> None:
        """Makes the folder and writes the configuration, unless they are there."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / "config.json").exists():
            write_json(self.path / "config.json", self._config)

    def metrics(self) -> list[dict[str, Any]]:
        """The metric lines so far."""
        file = self.path / "metrics.jsonl"
        if not file.exists():
            return []
        return [json.loads(line) for line in file.read_text().splitlines()]

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Adds metric lines."""
        lines = [json.dumps(line) + "\n" for line in lines]
        with open(self.path / "metrics.jsonl", "a") as file:
            file.writelines(lines)
        self._lines += len(lines)

    def save(self, number: int, state: Any, progress: Mapping[str, Any]) -> None:
        """Writes a checkpoint and then removes the one before it.

        Args:
          number: larger than at any earlier save.
          state: pytree of arrays; typed keys must be raw key data.
          progress: a JSON object that comes back with it.
        """
        progress = {**progress, "metric_lines": self._lines}
        self._checkpoints().save(
            number,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_named_arrays(state)),
                progress=ocp.args.JsonSave(progress),
            ),
        )

    def restore(self, template: Any) -> Restored | None:
        """The newest checkpoint, or None; metric lines written after it are dropped.

        Args:
          template: a pytree of arrays or shapes like the one that was saved.
        """
        newest = self._checkpoints().latest_step()
        if newest is None:
            self._keep_lines(0)
            return None
        arrays = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), _named_arrays(template)
        )
        read = self._checkpoints().restore(
            newest,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(arrays), progress=ocp.args.JsonRestore()
            ),
        )
        self._keep_lines(read.progress["metric_lines"])
        return Restored(_put_back(template, read.state), read.progress)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Writes the result: from now on the run is finished."""
        write_json(self.path / "summary.json", summary)

    def close(self) -> None:
        """Ends what Orbax keeps open."""
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def _checkpoints(self) -> ocp.CheckpointManager:
        if self._manager is None:
            # Saved before the call returns: a chunk of steps donates the very arrays it would read.
            options = ocp.CheckpointManagerOptions(
                max_to_keep=1, enable_async_checkpointing=False, cleanup_tmp_directories=True
            )
            self._manager = ocp.CheckpointManager(
                (self.path / "checkpoints").absolute(), options=options
            )
        return self._manager

    def _keep_lines(self, count: int) -> None:
        file = self.path / "metrics.jsonl"
        lines = file.read_text().splitlines(keepends=True)[:count] if file.exists() else []
        _write(file, "".join(lines))
        self._lines = count


def find_run(path: str | Path, config: Mapping[str, Any], *, resume: bool) -> RunFolder:
    """The folder of a run, new or old; nothing is written before its `begin`.

    Args:
      path: where it is or will be.
      config: the identity of the run (`cli.identity`), as JSON values.
      resume: whether an earlier start of the same run may be gone on with, or its result read.

    Raises:
      FolderError: the folder holds something else, or the same run and `resume` is False.
    """
    path = Path(path)
    try:
        found = sorted(entry.name for entry in path.iterdir()) if path.exists() else []
    except NotADirectoryError:
        raise FolderError(f"{path} is a file; --out names a folder.") from None
    run = RunFolder(path, config)
    if all(name.endswith(_UNFINISHED) for name in found):
        return run
    stored = read_json(path / "config.json")
    if stored is None:
        raise FolderError(
            f"{path} is not empty and holds no run ({', '.join(found[:3])}); choose another --out."
        )
    other = cli.differences(stored, config)
    if other:
        raise FolderError(
            f"{path} holds another configuration ({'; '.join(other)}); choose another --out."
        )
    if not resume:
        what = "this run, finished" if run.summary else "an unfinished start of this run"
        then = "print its table" if run.summary else "go on with it"
        raise FolderError(f"{path} holds {what}; add --resume to {then}, or choose another --out.")
    return run


def read_json(file: Path) -> dict[str, Any] | None:
    """A JSON file's object; None where there is no file."""
    return json.loads(file.read_text()) if file.exists() else None


def write_json(file: Path, content: Any) -> None:
    """Writes a JSON file in one step: a reader sees the old one or the new one, whole."""
    _write(file, json.dumps(content, indent=2) + "\n")


def _write(file: Path, text: str) -> None:
    part = file.with_name(file.name + _UNFINISHED)
    part.write_text(text)
    os.replace(part, file)


def _named_arrays(tree: Any) -> dict[str, Any]:
    # Flat and by name, so that any container can be saved; Orbax refuses arrays without elements.
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
        if np.prod(leaf.shape, dtype=int)
    }


def _put_back(template: Any, arrays: Mapping[str, Any]) -> Any:
    def leaf(path: Any, like: Any) -> Any:
        found = arrays.get(jax.tree_util.keystr(path, simple=True, separator="."))
        return jax.numpy.zeros(like.shape, like.dtype) if found is None else found

    return jax.tree.map_with_path(leaf, template)
