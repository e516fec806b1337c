"""The folder of a run: what was requested, what was measured, and how to resume after a kill.

    config.json      the configuration; written first, never changed
    metrics.jsonl    one JSON object per line, appended at each evaluation
    checkpoints/     the newest two states; each says which metric lines belong to it
    summary.json     the result; written last, so that it marks a finished run
    .lock            the process at work, while there is one

A file gets its name only when it is complete, so a kill at any moment leaves a folder that can be
resumed.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from experiments.common import files
from experiments.common.faults import FolderError
from experiments.common.study.checkpoints import Checkpoints, Restored
from experiments.common.study.options import differences

ANOTHER = "choose another --out, or delete the folder to start over"


class RunFolder:
    """One run's folder; `find_run` makes it.

    As a context manager it makes the folder, locks it for this process and writes the
    configuration.

    Args:
      path: where it is or will be.
      config: the identity of the run, as JSON values.
      remedy: what a user can do if the run in the folder cannot be resumed.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], remedy: str = ANOTHER):
        self.path, self.remedy = path, remedy
        self._config = config
        self._lock = files.Lock(path)
        self._checkpoints = Checkpoints(path / "checkpoints", remedy)
        self._lines, self._digest = 0, hashlib.sha256()

    def summary(self, like: Any = None) -> dict[str, Any] | None:
        """The result of a finished run, or None; `like` as for `files.check`."""
        return files.read_json(self.path / "summary.json", like)

    def __enter__(self) -> "RunFolder":
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock.take()
        try:
            if not (self.path / "config.json").exists():
                files.write_json(self.path / "config.json", self._config)
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._checkpoints.close()
        finally:
            self._lock.release()

    def metrics(self) -> list[dict[str, Any]]:
        """The metric lines so far."""
        return [json.loads(line) for line in self._stored_lines()]

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Adds metric lines."""
        file, added = self.path / "metrics.jsonl", [json.dumps(line) + "\n" for line in lines]
        text = "".join(added).encode()
        try:
            with open(file, "ab") as opened:
                opened.write(text)
                opened.flush()
                os.fsync(opened.fileno())
        except OSError as error:
            raise files.refused(file, error) from error
        self._lines += len(added)
        self._digest.update(text)

    def save(self, number: int, state: Any, progress: Mapping[str, Any]) -> None:
        """Writes a checkpoint of the state, with the number of metric lines that belong to it.

        Args:
          number, state, progress: as for `Checkpoints.save`.
        """
        lines = {"metric_lines": self._lines, "metric_checksum": self._digest.hexdigest()}
        self._checkpoints.save(number, state, {**progress, **lines})

    def restore(self, template: Any, say: Callable[[str], Any]) -> Restored | None:
        """The newest intact checkpoint, or None; metric lines after it are dropped.

        Args:
          template, say: as for `Checkpoints.restore`.

        Raises:
          FolderError: no checkpoint is intact, or lines that belong to it are missing.
        """
        restored, lines = self._checkpoints.restore(template, say), self._stored_lines()
        file = self.path / "metrics.jsonl"
        if restored is None:
            if lines:
                raise FolderError(
                    f"{self.path / 'checkpoints'} is gone or was never finished, but {file} has "
                    f"lines: {self.remedy}."
                )
            return None
        count = restored.progress["metric_lines"]
        if len(lines) < count:
            why = f"{len(lines)} lines where the checkpoint counts {count}"
            raise files.damaged(file, why if lines or file.exists() else "it is missing")
        kept = b"".join(lines[:count])
        digest = hashlib.sha256(kept)
        if digest.hexdigest() != restored.progress["metric_checksum"]:
            raise files.damaged(file, "its lines are not those that the checkpoint counts")
        if len(lines) > count:
            files.write_text(file, kept.decode())
        self._lines, self._digest = count, digest
        return restored

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Writes the result: from now on the run is finished."""
        files.write_json(self.path / "summary.json", summary)

    def _stored_lines(self) -> list[bytes]:
        try:
            return files.read_bytes(self.path / "metrics.jsonl").splitlines(keepends=True)
        except FileNotFoundError:
            return []


def find_run(
    path: str | Path, config: Mapping[str, Any], *, resume: bool, remedy: str = ANOTHER
) -> RunFolder:
    """The folder of a run, new or old; nothing is written until it is entered.

    Args:
      path: where it is or will be.
      config: the identity of the run (`options.identity`), as JSON values.
      resume: whether an earlier start of the same run may be resumed, or its result read.
      remedy: as for `RunFolder`.

    Raises:
      FolderError: the folder cannot be used or holds something else, or holds the same run and
        `resume` is False.
    """
    path = Path(path)
    run = RunFolder(path, config, remedy)
    found = [name for name in _names(path) if not name.endswith((files.UNFINISHED, files.LOCK))]
    if not found:
        return run
    stored = files.read_json(path / "config.json")
    if stored is None:
        raise FolderError(
            f"{path} is not empty and has no config.json of a run ({', '.join(found[:3])}); choose "
            "another --out."
        )
    other = differences(stored, config)
    if other:
        raise FolderError(f"{path} holds another configuration ({'; '.join(other)}); {remedy}.")
    if not resume:
        done = (path / "summary.json").exists()
        what = "this run, finished" if done else "an unfinished start of this run"
        then = "print its table" if done else "resume it"
        raise FolderError(f"{path} holds {what}; add --resume to {then}, or choose another --out.")
    return run


def _names(path: Path) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except FileNotFoundError:
        if path.is_symlink():
            raise FolderError(
                f"{path} is a link to {os.readlink(path)}, which does not exist; choose another "
                "--out."
            ) from None
        return []
    except NotADirectoryError:
        what = "is a file" if path.exists() else "lies below a file"
        raise FolderError(f"{path} {what}; --out names a folder.") from None
    except OSError as error:
        raise FolderError(f"{path}: {error.strerror}; choose another --out.") from None
