"""Jobs one after another, as far as the time allows; what is done is not done again.

A job is either one measurement, which has to fit into the remaining time, or a study, which stops
in time with a checkpoint. `NAME.json` says what was measured, on what, when and how. What a study
trained is in its folder, as usual.
"""

import datetime
import gc
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax

from experiments.common import files
from experiments.common.report.tables import duration
from experiments.common.study import command
from experiments.common.study.content import read_results
from experiments.common.study.options import command_line, parse

RESERVE = 30.0
"""Seconds reserved for a study to write a checkpoint and its report."""
COMPILING = 60.0
"""Seconds that a study takes before its first step; it does not start with less than twice that."""


class Job(NamedTuple):
    """One line of the queue.

    Attributes:
      name: of its result.
      stage: what it belongs to.
      progress: `(folder of the results) -> (finished pieces, all pieces)`.
      left: `(folder) -> seconds that the rest will take`: first estimated, later measured.
      least: it does not start with fewer seconds than this.
      run: `(folder, seconds, about) -> None`; writes its result, with what it was measured on.
    """

    name: str
    stage: str
    progress: Callable[[Path], tuple[int, int]]
    left: Callable[[Path], float]
    least: float
    run: Callable[[Path, float, dict[str, Any]], None]


def measurement(
    name: str, stage: str, seconds: float, measure: Callable[[], list[dict[str, Any]]]
) -> Job:
    """A job that measures once, and takes about this many seconds."""

    def progress(out: Path) -> tuple[int, int]:
        return int((out / f"{name}.json").exists()), 1

    def run(out: Path, time_left: float, about: dict[str, Any]) -> None:
        began = time.perf_counter()
        rows = measure()
        spent = round(time.perf_counter() - began, 1)
        files.write_json(out / f"{name}.json", about | {"seconds": spent, "rows": rows})

    return Job(name, stage, progress, lambda out: seconds * (1 - progress(out)[0]), seconds, run)


def study(
    name: str,
    stage: str,
    seconds: float,
    module: ModuleType,
    folder: str,
    args: Sequence[str],
    least: float = 2 * COMPILING,
) -> Job:
    """A study, or some cells of one, that continues where it was stopped.

    Args:
      name: of the job.
      stage: what it belongs to.
      seconds: estimate for one cell.
      module: one of `experiments` with `Options`, `prepare` and `main`.
      folder: of the study.
      args: its options.
      least: it does not start with fewer seconds than this.
    """
    options = parse(module.Options, module.PROG, args)
    cells = module.prepare(options).cells

    def done(out: Path) -> list[str]:
        finished = read_results(out / folder)
        return [cell for cell in cells if cell in finished]

    def left(out: Path) -> float:
        found = read_results(out / folder)
        known = [cell["seconds"] for cell in found.values() if "seconds" in cell]
        each = max(known, default=seconds)
        missing = len(cells) - len(done(out))
        return missing * each + COMPILING * (missing > 0)

    def run(out: Path, time_left: float, about: dict[str, Any]) -> None:
        before, began, file = done(out), time.perf_counter(), out / f"{name}.json"
        stored = files.read_json(file) or {
            "study": folder,
            "command": f"{module.PROG}{command_line(options)}",
            "calls": [],
        }

        def record() -> None:
            spent = round(time.perf_counter() - began, 1)
            cells = [cell for cell in done(out) if cell not in before]
            call = about | {"seconds": spent, "cells": cells}
            files.write_json(file, stored | {"calls": [*stored["calls"], call]})

        record()  # so cells of a killed call still have a device and a date
        minutes = max(0.0, time_left - RESERVE) / 60
        try:
            module.main([*args, "--minutes", str(minutes), "--out", str(out / folder)])
        except SystemExit as end:
            if end.code != command.NOTHING_YET:
                raise
        finally:
            record()

    return Job(name, stage, lambda out: (len(done(out)), len(cells)), left, least, run)


def work(
    jobs: Sequence[Job], out: Path, minutes: float, command: str, report: Callable[[], Any]
) -> list[str]:
    """Does what is left, in order, as long as time remains.

    Args:
      jobs: the queue.
      out: the folder of the results.
      minutes: no job starts if its estimate does not fit into them.
      command: stored with the results.
      report: called after each job.

    Returns:
      The names of the jobs that failed; the jobs after them ran nevertheless.
    """
    deadline, failed = time.perf_counter() + 60 * minutes, []
    out.mkdir(parents=True, exist_ok=True)
    for job in jobs:
        done, pieces = job.progress(out)
        time_left = deadline - time.perf_counter()
        if done == pieces or time_left < job.least:
            continue
        print(f"{job.name}: about {duration(job.left(out))}", flush=True)
        try:
            job.run(out, time_left, surroundings(command))
        except (Exception, SystemExit) as error:
            if isinstance(error, SystemExit) and error.code == 130:
                raise
            if not isinstance(error, SystemExit):  # which has already said why
                traceback.print_exc()
            failed.append(job.name)
        report()
        jax.clear_caches()
        gc.collect()
    return failed


def surroundings(command: str) -> dict[str, Any]:
    """On what device, when and how something is measured."""
    device = jax.devices()[0]
    now = datetime.datetime.now(datetime.UTC)
    return {
        "device": device.device_kind,
        "backend": jax.default_backend(),
        "devices": jax.device_count(),
        "jax": jax.__version__,
        "matmul_precision": jax.config.jax_default_matmul_precision or "default",
        "date": now.isoformat(timespec="seconds"),
        "command": command,
    }


def listing(jobs: Sequence[Job], out: Path) -> str:
    """What is done and what is left, as text."""
    width = max(len(job.name) for job in jobs)
    lines, stage, total = [], None, 0.0
    for job in jobs:
        if job.stage != stage:
            stage = job.stage
            lines.append(f"{stage}:")
        done, pieces = job.progress(out)
        left = job.left(out)
        total += left
        text = "done" if done == pieces else f"about {duration(left)} left"
        count = f"{done} of {pieces}" if pieces > 1 else ""
        lines.append(f"  {job.name:{width}}  {count:>9}  {text}".rstrip())
    rest = f"About {duration(total)} in all are left." if total else "All is done."
    return "\n".join([*lines, rest])
