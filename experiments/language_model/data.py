"""Bytes of a text: random windows of it for training, drawn by Grain, and the rest to measure."""

import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.common.data import tfds_reader, tfds_source
from experiments.common.faults import DataNotFound, first_line
from experiments.common.training.evaluation import EvaluationSet, evaluation_set

PREPARED = "tiny_shakespeare"
HELD = 0.05
"""The share of a file, at its end, used for the test, and as much before it for validation."""

Batch = tuple[np.ndarray, np.ndarray]


class Text(NamedTuple):
    """A text as bytes.

    Attributes:
      description: one line, shown with every number measured on it.
      train, validation, test: uint8.
    """

    description: str
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def read(text: str, context: int, *, data_dir: str | None, examples: int | None) -> Text:
    """A prepared text, or any file.

    Args:
      text: "tiny_shakespeare", or a path; a large file is not read into memory.
      context: bytes per window; every part must have at least one window.
      data_dir: folder of the prepared data sets.
      examples: use only this many windows of each part; None for all.

    Raises:
      DataNotFound: the text is missing.
      ValueError: it is too short.
    """
    parts = _prepared(data_dir) if text == PREPARED else _file(Path(text))
    if examples is not None:
        parts = {name: part[: examples * context + 1] for name, part in parts.items()}
    for name, part in parts.items():
        if len(part) <= context + 1:
            raise ValueError(
                f"the {name} part of {text} has {len(part)} bytes; it must have more than "
                f"{context + 1}, a window and the byte after it."
            )
    counts = ", ".join(f"{len(part):,} bytes for {name}" for name, part in parts.items())
    what = "Tiny Shakespeare" if text == PREPARED else Path(text).name
    return Text(f"{what}: {counts}", **parts)


def _prepared(data_dir: str | None) -> dict[str, np.ndarray]:
    texts = tfds_reader.read_texts(tfds_source.locate(PREPARED, data_dir))
    return {
        name: np.frombuffer(texts.get(name, "").encode(), np.uint8)
        for name in ("train", "validation", "test")
    }


def _file(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DataNotFound(f"--text must be {PREPARED} or a file, but {path} is not a file.")
    held = int(path.stat().st_size * HELD)
    if not held:
        raise ValueError(f"--text {path} has {path.stat().st_size} bytes: nothing to train on.")
    content = np.memmap(path, np.uint8, mode="r")
    return {
        "train": content[: -2 * held],
        "validation": content[-2 * held : -held],
        "test": content[-held:],
    }


class _Windows:
    """The windows at every place of a text, for Grain."""

    def __init__(self, text: np.ndarray, context: int):
        self._text, self._context = text, context

    def __len__(self) -> int:
        return len(self._text) - self._context

    def __getitem__(self, place: int) -> np.ndarray:
        return np.asarray(self._text[place : place + self._context + 1])


def batches(
    text: np.ndarray, *, context: int, batch_size: int, seed: int
) -> Callable[[int], Iterator[Batch]]:
    """Windows in a random order, without end.

    Args:
      text: bytes.
      context: length of a window.
      batch_size: windows per batch.
      seed: of the order.

    Returns:
      `(step) -> (bytes, next bytes) of that step and those after it`, each int32
      `(batch_size, context)`: so a resumed run continues with the right batches.

    Raises:
      DataNotFound: Grain is not installed.
    """
    grain = _grain()
    windows = grain.MapDataset.source(_Windows(text, context)).seed(seed).shuffle().repeat()
    found = windows.batch(batch_size)

    def from_step(step: int) -> Iterator[Batch]:
        for index in itertools.count(step):
            window = found[index].astype(np.int32)
            yield window[:, :-1], window[:, 1:]

    return from_step


def held_out(text: np.ndarray, *, context: int, batch_size: int) -> EvaluationSet:
    """Adjacent windows, in batches."""
    whole = (len(text) - 1) // context * context
    inputs, labels = (part.astype(np.int32) for part in (text[:whole], text[1 : whole + 1]))
    return evaluation_set(inputs.reshape(-1, context), labels.reshape(-1, context), batch_size)


@functools.cache
def _grain() -> Any:
    try:
        import grain
    except ImportError as error:
        raise DataNotFound(
            f"grain cannot be imported ({first_line(error)}); install this project's extra "
            "'experiments'."
        ) from error
    return grain
