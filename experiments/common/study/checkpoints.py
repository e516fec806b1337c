"""The newest two states of a run on disk, with the checksums of their arrays and files.

A checkpoint is complete when `checksums.json` is in its folder: by then everything has been read
back and compared.
"""

import functools
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from experiments.common import files
from experiments.common.faults import FolderError, first_line, quiet

_SEAL = "checksums.json"
_ROOM = 2**19  # bytes for what Orbax writes besides the arrays
_LOOK = {"progress": {}, "arrays": {...: str}, "files": {...: str}, "checksum": str}


class Restored(NamedTuple):
    """A checkpoint.

    Attributes:
      state: the pytree that was saved, in the structure of the template.
      progress: the JSON object that was saved with it.
    """

    state: Any
    progress: dict[str, Any]


class Checkpoints:
    """The checkpoints in a folder; nothing is read or written before the first method call.

    Args:
      path: the folder.
      remedy: what a user can do if no checkpoint is intact.
    """

    def __init__(self, path: Path, remedy: str):
        self._path, self._remedy = path.absolute(), remedy

    def save(self, number: int, state: Any, progress: Mapping[str, Any]) -> None:
        """Writes a checkpoint, reads it back, and then removes the second one before it.

        Args:
          number: larger than at any earlier save.
          state: pytree of arrays; typed keys must be raw key data.
          progress: a JSON object that is restored with it.

        Raises:
          FolderError: it cannot be written, or differs from what was written.
        """
        arrays, folder = _named_arrays(state), self._path / str(number)
        # Checked first: Orbax raises many kinds of errors for a full disk.
        size, free = sum(a.nbytes for a in arrays.values()), shutil.disk_usage(self._path.parent)[2]
        if free < size + _ROOM:
            raise _full(folder, f"it takes {size + _ROOM:,} bytes, and the disk has {free:,}")
        try:
            with quiet("absl"):
                self._manager.save(
                    number, args=ocp.args.Composite(state=ocp.args.StandardSave(arrays))
                )
        except (OSError, ValueError) as error:
            raise _full(folder, first_line(error)) from error
        content = {
            "progress": dict(progress),
            "arrays": _checksums(arrays),
            "files": {
                file.relative_to(folder).as_posix(): files.digest(file.read_bytes())
                for file in sorted(folder.rglob("*"))
                if file.is_file()
            },
        }
        if _checksums(self._read_arrays(number, arrays)) != content["arrays"]:
            raise FolderError(
                f"{folder} differs from what was written: is the disk faulty? Choose another --out."
            )
        files.write_json(folder / _SEAL, content | {"checksum": _checksum(content)})

    def restore(self, template: Any, say: Callable[[str], Any]) -> Restored | None:
        """The newest intact checkpoint, or None if none was ever finished.

        Later ones are removed, and one line says so.

        Args:
          template: a pytree of arrays or shapes like the one that was saved.
          say: called with that line.

        Raises:
          FolderError: all of them are damaged.
        """
        if not self._path.exists():
            return None
        if not self._path.is_dir():
            raise FolderError(f"{self._path} is not a folder of checkpoints: {self._remedy}.")
        faults: dict[int, FolderError] = {}
        restored = None
        for number in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self._read(number, template)
                break
            except FolderError as error:
                faults[number] = error
        damages = [error for number, error in faults.items() if self._seal(number).exists()]
        if restored is None and damages:
            raise FolderError(f"{damages[0]} No checkpoint is intact: {self._remedy}.")
        if restored is not None and faults:
            say(f"{next(iter(faults.values()))} Continuing from the checkpoint before.")
        for number in faults:
            self._manager.delete(number)
        return restored

    def close(self) -> None:
        """Closes what Orbax keeps open."""
        if "_manager" in vars(self):
            self._manager.close()
            del self._manager

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        # Saved before the call returns: the next chunk of steps donates the arrays to be saved.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        with quiet("absl"):
            return ocp.CheckpointManager(self._path, options=options)

    def _seal(self, number: int) -> Path:
        return self._path / str(number) / _SEAL

    def _read(self, number: int, template: Any) -> Restored:
        # Files before arrays: Orbax raises many kinds of errors for a damaged file.
        seal = self._seal(number)
        stored = files.read_json(seal, _LOOK)
        if stored is None:
            raise FolderError(f"{seal.parent} was never finished.")
        if stored.pop("checksum") != _checksum(stored):
            raise _damaged(seal, "its checksum differs")
        for name, checksum in stored["files"].items():
            file = seal.parent / name
            if not file.is_file():
                raise _damaged(file, "it is missing")
            if files.digest(file.read_bytes()) != checksum:
                raise _damaged(file, "its checksum differs")
        like = _named_arrays(template)
        if list(like) != list(stored["arrays"]):
            raise _damaged(seal.parent, "it belongs to another network or another version")
        arrays = self._read_arrays(number, like)
        if _checksums(arrays) != stored["arrays"]:
            raise _damaged(seal.parent, "the checksum of an array differs")
        return Restored(_put_back(template, arrays), stored["progress"])

    def _read_arrays(self, number: int, like: Mapping[str, Any]) -> dict[str, Any]:
        # To the host: the devices hold the saved state, and may differ from the last start's.
        hosts = {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in like.items()}
        args = ocp.args.Composite(state=ocp.args.StandardRestore(hosts))
        try:
            with quiet("absl"):
                return self._manager.restore(number, args=args).state
        except Exception as error:  # Orbax and its storage may raise anything.
            raise _damaged(self._path / str(number), first_line(error)) from error


def _damaged(file: Path, why: str) -> FolderError:
    return FolderError(f"{file} is damaged ({why}).")


def _full(folder: Path, why: str) -> FolderError:
    return FolderError(
        f"{folder} cannot be written ({why}); free some space; the same command continues from the "
        "checkpoint before."
    )


def _checksum(content: Mapping[str, Any]) -> str:
    return files.digest(json.dumps(content, sort_keys=True).encode())


def _checksums(arrays: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for name, leaf in arrays.items():
        array = np.asarray(leaf)
        found[name] = files.digest(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return found


def _named_arrays(tree: Any) -> dict[str, Any]:
    # Flat and by name, so that any container can be saved; Orbax rejects arrays without elements.
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
        if np.prod(leaf.shape, dtype=int)
    }


def _put_back(template: Any, arrays: Mapping[str, Any]) -> Any:
    def leaf(path: Any, like: Any) -> Any:
        found = arrays.get(jax.tree_util.keystr(path, simple=True, separator="."))
        return jnp.zeros(like.shape, like.dtype) if found is None else jnp.asarray(found)

    return jax.tree.map_with_path(leaf, template)
