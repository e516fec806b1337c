"""The files of a run: written in one step, and checked when they are read.

If anything is wrong with one, a `FolderError` names the file in one line and says what to do.
"""

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from experiments.common.faults import FolderError

UNFINISHED = ".part"
LOCK = ".lock"

_AGAIN = "delete it, and the same command makes it again"
_BEGIN = "choose another --out, or delete the folder to start over"
_TRAINED = (
    "put a whole copy back, or delete results.json, table.md and all .npz files of its folder to "
    "train everything again"
)
_REMEDIES = {
    "config.json": _BEGIN,
    "metrics.jsonl": "put a whole copy back, or delete the folder to start over",
    "checksums.json": "its checkpoint counts for nothing",
    "results.json": _TRAINED,
    "curves.npz": _TRAINED,
    "masks.npz": _TRAINED,
    "solutions.npz": _TRAINED,
}


def damaged(file: Path, why: str) -> FolderError:
    """The error of a file that does not contain what was written to it."""
    return FolderError(f"{file} is damaged ({why}): {_remedy(file)}.")


def missing(file: Path) -> FolderError:
    """The error of a file that must be there."""
    return FolderError(f"{file} is missing: {_remedy(file)}.")


def refused(path: str | Path, error: OSError) -> FolderError:
    """The error of a file or folder that the system refuses to read or write."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "free some space, and the same command continues" if full else "choose another --out"
    return FolderError(f"{path}: {error.strerror or error}; {remedy}.")


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[IO[bytes]]:
    """A binary file to write; it takes the name of `file` in one step when it is complete.

    The unfinished file is always a new one: a link under its name is removed, never followed.
    """
    part = file.with_name(file.name + UNFINISHED)
    try:
        part.unlink(missing_ok=True)
        with open(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), "w+b") as opened:
            yield opened
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(part, file)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise refused(file, error) from error


def write_text(file: Path, text: str) -> None:
    """Writes a text file in one step: a reader sees the whole old or the whole new one."""
    with replacing(file) as opened:
        opened.write(text.encode())


def write_json(file: Path, content: Any) -> None:
    """Writes a JSON file in one step."""
    write_text(file, json.dumps(content, indent=2) + "\n")


def read_json(file: Path, like: Any = None) -> dict[str, Any] | None:
    """A JSON file's object; None if there is no file.

    Args:
      file: the file.
      like: what it must hold, as `check` takes it.

    Raises:
      FolderError: the file cannot be read, or is not a JSON object, or contains something else.
    """
    try:
        found = json.loads(read_bytes(file))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise damaged(file, str(error)) from error
    check(file, found, {} if like is None else like)
    return found


UNREADABLE = (
    *(ValueError, KeyError, EOFError, OSError, NotImplementedError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, struct.error, OverflowError, MemoryError),
)
"""What a damaged .npz file raises."""


def load_arrays(file: Any) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, each checked against its checksum; raises one of `UNREADABLE`."""
    with zipfile.ZipFile(file) as stored:
        return {
            name.removesuffix(".npy"): np.lib.format.read_array(
                io.BytesIO(stored.read(name)), allow_pickle=False
            )
            for name in stored.namelist()
        }


def read_bytes(file: Path) -> bytes:
    """The whole file; `FileNotFoundError` if there is none, `FolderError` if it cannot be read."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise refused(file, error) from error


def check(file: Path, found: Any, like: Any, place: str = "") -> None:
    """Checks the content of a JSON file against what it must look like.

    Args:
      file: for the error message.
      found: the content of the file, or of a place in it.
      like: a type (`float` for any number); `[like]` for a list that is not empty; `(like,)` for
        that or null; a dict for an object with at least its keys; a dict with the key `...` for an
        object with such values.
      place: where in the file it was found.

    Raises:
      FolderError: it looks different.
    """
    where = f"{place} " if place else ""
    if isinstance(like, tuple):
        if found is not None:
            check(file, found, like[0], place)
    elif isinstance(like, dict):
        if not isinstance(found, dict):
            raise damaged(file, f"{where}is not a JSON object")
        for key, value in like.items():
            for name in found if key is ... else (key,):
                if name not in found:
                    raise damaged(file, f"{where}has no {name!r}")
                check(file, found[name], value, f"{place}.{name}" if place else name)
    elif isinstance(like, list):
        if not isinstance(found, list) or not found:
            raise damaged(file, f"{where}is not a list of values")
        for value in found:
            check(file, value, like[0], place)
    elif isinstance(found, bool) or not isinstance(found, (int, float) if like is float else like):
        raise damaged(file, f"{where}is {str(found)[:40]!r}, not of type {like.__name__}")


def digest(content: bytes) -> str:
    """The checksum of the content of a file or an array."""
    return hashlib.sha256(content).hexdigest()


def remove(folder: Path) -> None:
    """Removes a folder that is no longer needed, if it exists."""
    shutil.rmtree(folder, ignore_errors=True)


class Lock:
    """The right to write into a folder, for one process at a time.

    The kernel holds the lock, so it ends with its process, however that ends; the file `.lock`
    contains the process id for others to read.
    """

    def __init__(self, folder: Path):
        self._file = folder / LOCK
        self._handle: int | None = None

    def take(self) -> None:
        """Takes the lock, also from a process that no longer exists.

        Raises:
          FolderError: another process has it.
        """
        while self._handle is None:
            handle = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                other = os.read(handle, 20).decode(errors="replace").strip() or "unknown"
                os.close(handle)
                raise FolderError(
                    f"process {other} is at work in {self._file.parent}; wait for it, or choose "
                    "another --out."
                ) from None
            # The previous holder may have removed the file between the two calls.
            if self._file.exists() and os.path.samestat(os.fstat(handle), self._file.stat()):
                os.ftruncate(handle, 0)
                os.write(handle, f"{os.getpid()}\n".encode())
                self._handle = handle
            else:
                os.close(handle)

    def release(self) -> None:
        """Releases the lock."""
        if self._handle is not None:
            self._file.unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = None


def _remedy(file: Path) -> str:
    return _REMEDIES.get(file.name, _AGAIN)
