"""The curves of a run during training: JSON lines, and events for TensorBoard."""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import files
from experiments.common.faults import first_line


class Log:
    """The log of one cell, in `logs/` in the folder of a study.

    It is always written completely, from the curves in the state, so that it agrees with them no
    matter how often the run was stopped.

    Args:
      path: folder of the study.
      name: of the cell.
      every: steps from one point of a curve to the next.
      tensorboard: whether to write events as well, into `logs/NAME/`.
    """

    def __init__(self, path: Path, name: str, every: int, *, tensorboard: bool):
        self._folder, self._name, self._every = path / "logs", name, every
        self._tensorboard, self._writer, self._sent = tensorboard, None, 0

    def write(self, done: int, curves: Mapping[str, Any]) -> None:
        """Writes what is known after `done` steps; the curves come from stacked replicates."""
        rows = {key: np.asarray(values)[0] for key, values in curves.items()}
        lines = [
            {"step": (point + 1) * self._every}
            | {key: float(row[point]) for key, row in rows.items() if math.isfinite(row[point])}
            for point in range(done // self._every)
        ]
        self._folder.mkdir(exist_ok=True)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        files.write_text(self._folder / f"{self._name}.jsonl", text)
        if self._tensorboard:
            self._send(lines)

    def _send(self, lines: list[dict[str, float]]) -> None:
        if self._writer is None:
            shutil.rmtree(self._folder / self._name, ignore_errors=True)
            self._writer = need_tensorboard()(str(self._folder / self._name))
        for line in lines[self._sent :]:
            for key in line.keys() - {"step"}:
                self._writer.add_scalar(key, line[key], line["step"])
        self._writer.flush()
        self._sent = len(lines)


def need_tensorboard() -> Any:
    """The class that writes events for TensorBoard.

    Raises:
      ValueError: tensorboardX is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ValueError(
            f"--tensorboard needs tensorboardX ({first_line(error)}): install this project's extra "
            "'tensorboard'."
        ) from error
    return SummaryWriter
