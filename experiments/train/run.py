"""Runs a job into its folder: methods side by side, logged, checkpointed, shown and reported."""

import functools
import math
import time
from pathlib import Path
from typing import Any

import jax

from experiments.common.report import figures
from experiments.common.report.console import Console
from experiments.common.report.progress import Display
from experiments.common.study.folder import RunFolder
from experiments.common.training import loop
from experiments.common.training.methods import METHODS
from experiments.train import measures
from experiments.train.job import Job, keys_of


def execute(job: Job, folder: RunFolder, console: Console) -> dict[str, Any]:
    """Trains from the newest checkpoint of the folder, or from the start, to the summary.

    Args:
      job: what `job.build` returned.
      folder: the folder of this run, entered.
      console: where progress is shown.

    Returns:
      The summary, as in `summary.json`.
    """
    begun = time.perf_counter()
    states, before = _train(job, folder, console, begun)
    lines = folder.metrics()
    _draw(job, folder.path, lines, states)
    summary = measures.summarize(job, states, lines, before + time.perf_counter() - begun)
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
    title = f"{method} at {100 * job.config.sparsity:.4g}% sparsity"
    figures.density_over_time(path / "density.png", lines, method, title, where)
    masks = measures.masks_by_name(job, method, states[method])
    first = {name: jax.device_get(mask[0]) for name, mask in masks.items()}
    shape = job.dataset.train_inputs.shape[1:]
    figures.masks(path / "masks.png", first, f"{title}, {where}", shape)


def _train(
    job: Job, folder: RunFolder, console: Console, begun: float
) -> tuple[dict[str, loop.TrainState], float]:
    # The last states, and the seconds of earlier starts.
    keys = keys_of(job.config)
    restored = folder.restore(
        {name: jax.eval_shape(trainer.init, keys) for name, trainer in job.trainers.items()},
        functools.partial(console.print, soft_wrap=True),
    )
    steps, before = dict.fromkeys(job.trainers, 0), 0.0
    if restored is not None:
        steps |= restored.progress["steps"]
        before = restored.progress["seconds"]
        console.print(f"Going on from step {min(steps.values())}.")
    replicates = f"{job.config.seeds} replicate{'s' * (job.config.seeds > 1)}"
    what = f"{replicates} of {' and '.join(steps)}, {job.steps:,} steps each"
    total = job.steps * len(steps)
    every = job.steps // job.config.epochs
    shown: dict[str, str] = {}
    saved = time.perf_counter()
    with Display(console, what, total, sum(steps.values())) as display:
        if restored is None:
            states = {name: trainer.init(keys) for name, trainer in job.trainers.items()}
            # From now on a folder with metrics and without checkpoints is one that was damaged.
            folder.save(0, states, {"steps": steps, "seconds": before})
        else:
            states = restored.state
        chunks = {
            name: loop.run(
                trainer,
                states[name],
                start=steps[name],
                stop=job.steps,
                every=every,
                sets=job.sets,
                observe=measures.observer(job, name),
            )
            for name, trainer in job.trainers.items()
        }
        while sum(steps.values()) < total:
            # In turns from evaluation to evaluation: the order of the lines is always the same.
            name = min(steps, key=lambda name: steps[name] // every)
            chunk = next(chunks[name])
            states[name], steps[name] = chunk.state, chunk.step
            if chunk.metrics is not None:
                lines = _lines(job, name, chunk)
                folder.append(lines)
                accuracy = sum(line["test_accuracy"] for line in lines) / len(lines)
                loss = float(chunk.metrics["loss"].mean())
                shown[name] = f"{name} {100 * accuracy:.2f}%, loss {loss:.3f}"
            done = sum(steps.values())
            if chunk.seconds_per_step is not None:
                display.estimate((total - done) * chunk.seconds_per_step)
            display.update(done, "; ".join(shown.values()))
            now = time.perf_counter()
            if now - saved >= job.config.checkpoint_every or done == total:
                folder.save(done, states, {"steps": steps, "seconds": before + now - begun})
                saved = time.perf_counter()
    return states, before


def _lines(job: Job, method: str, chunk: loop.Chunk) -> list[dict[str, Any]]:
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
    # JSON knows no NaN; a run that diverges must still leave files that can be read.
    return float(value) if math.isfinite(value) else None
