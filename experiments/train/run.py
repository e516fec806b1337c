"""Runs a job in its folder: methods side by side, with logs, checkpoints, progress and a report."""

import math
from pathlib import Path
from typing import Any

import jax

from experiments.common.report import figures, looks
from experiments.common.report.console import Console
from experiments.common.report.progress import Display
from experiments.common.study import engine
from experiments.common.study.folder import RunFolder
from experiments.common.training import loop
from experiments.common.training.methods import METHODS
from experiments.train import measures
from experiments.train.job import Job, keys_of


def execute(job: Job, folder: RunFolder, console: Console) -> dict[str, Any]:
    """Trains from the newest checkpoint of the folder, or from the start, up to the summary.

    Args:
      job: what `job.build` returned.
      folder: the folder of this run, already entered.
      console: where progress is shown.

    Returns:
      The summary, as in `summary.json`.
    """
    trained, paces = _train(job, folder, console)
    lines = folder.metrics()
    _draw(job, folder.path, lines, trained.states)
    summary = measures.summarize(job, trained.states, lines, trained.seconds, paces)
    folder.finish(summary)
    return summary


def _draw(
    job: Job,
    path: Path,
    lines: list[dict[str, Any]],
    states: dict[str, loop.TrainState],
) -> None:
    method = job.config.method
    where = f"{job.config.model} on {job.config.dataset}"
    figures.accuracy_over_time(path / "accuracy.png", lines, list(states), where)
    if METHODS[method].dense:
        return
    title = f"{looks.look(method).label} at {100 * job.config.sparsity:.4g}% sparsity"
    figures.density_over_time(path / "density.png", lines, method, title, where)
    masks = measures.masks_by_name(job, method, states[method])
    first = {name: jax.device_get(mask[0]) for name, mask in masks.items()}
    shape = job.dataset.train_inputs.shape[1:]
    figures.masks(path / "masks.png", first, f"{title}, {where}", shape)


def _train(
    job: Job, folder: RunFolder, console: Console
) -> tuple[engine.Trained, dict[str, list[float]]]:
    """Trains, and returns by method the seconds of a step of one replicate, call by call."""
    paces: dict[str, list[float]] = {name: [] for name in job.trainers}
    keys, names = keys_of(job.config), list(job.trainers)
    replicates = f"{job.config.seeds} replicate{'s' * (job.config.seeds > 1)}"
    what = f"{replicates} of {' and '.join(names)}, {job.steps:,} steps each"
    trainings = {
        name: engine.Training(
            trainer,
            trainer.init(keys),
            job.steps,
            trainer.steps_per_epoch,
            engine.evaluation_of(trainer, job.sets, measures.observer(job, name)),
        )
        for name, trainer in job.trainers.items()
    }

    def show(name: str, chunk: engine.Chunk) -> str:
        lines = _lines(job, name, chunk)
        folder.append(lines)
        if chunk.seconds_per_step is not None:
            paces[name].append(chunk.seconds_per_step / job.config.seeds)
        accuracy = sum(line["test_accuracy"] for line in lines) / len(lines)
        loss = float(chunk.metrics["loss"].mean())
        return f"{name} {100 * accuracy:.2f}%, loss {loss:.3f}"

    with Display(console, what, job.steps * len(names)) as display:
        trained = engine.train(
            trainings,
            folder,
            display,
            show,
            checkpoint_every=job.config.checkpoint_every,
            longest=engine.CHUNK_SECONDS,
        )
    return trained, paces


def _lines(job: Job, method: str, chunk: engine.Chunk) -> list[dict[str, Any]]:
    found = jax.device_get(chunk.metrics)
    epoch = chunk.step / job.trainers[method].steps_per_epoch
    return [
        {
            "method": method,
            "replicate": i,
            "seed": job.config.seed + i,
            "step": chunk.step,
            "epoch": epoch,
            **jax.tree.map(lambda values: _finite(values[i]), found),  # noqa: B023
        }
        for i in range(job.config.seeds)
    ]


def _finite(value: Any) -> float | None:
    # JSON has no NaN; a run that diverges must still leave readable files.
    return float(value) if math.isfinite(value) else None
