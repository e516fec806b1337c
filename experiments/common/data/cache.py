"""Decoded arrays on disk, so that a second start takes a fraction of a second."""

import contextlib
import hashlib
import os
import pathlib
import tempfile
from collections.abc import Callable

import numpy as np

from experiments.common import files

Arrays = dict[str, np.ndarray]


def folder() -> pathlib.Path | None:
    """Folder of the cache: `JAXSPARSE_CACHE`, else `~/.cache/jaxsparse`; None if set but empty."""
    chosen = os.environ.get("JAXSPARSE_CACHE")
    if chosen == "":
        return None
    return pathlib.Path(chosen or "~/.cache/jaxsparse").expanduser()


def cached(label: str, identity: str, make: Callable[[], Arrays]) -> Arrays:
    """Arrays of an earlier call with the same label and identity, else those that `make` returns.

    A cache that cannot be read or written costs time but never breaks a run: its errors are
    ignored. The file gets its name only when it is complete, so parallel runs do no harm.

    Args:
      label: readable beginning of the file's name; "/" is allowed.
      identity: everything that the arrays depend on; its hash is part of the file's name.
      make: called without arguments if nothing is cached.

    Returns:
      A dict of NumPy arrays.
    """
    where = folder()
    if where is None:
        return make()
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    path = where / f"{label.replace('/', '-')}-{digest}.npz"
    with contextlib.suppress(*files.UNREADABLE):
        return files.load_arrays(path)
    arrays = make()
    with contextlib.suppress(OSError):
        _write(path, arrays)
    return arrays


def _write(path: pathlib.Path, arrays: Arrays) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
        raise
