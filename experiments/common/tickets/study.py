"""A study of lottery tickets in its folder: cell after cell, resumable at any moment.

config.json    what was asked for
results.json   the finished cells, every replicate
curves.npz     what was measured of them during training
masks.npz      in how many rounds each weight survives; enough to go on from, or to redraw
unfinished/    a checkpoint of the cells under way; goes when they are done
"""

import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from experiments.common import runs, training
from experiments.common.display import Display
from experiments.common.tickets import cells as cells_
from experiments.common.tickets.cells import Cell, Lab

SIDE_BY_SIDE = 2
"""Cells trained at once; an even number, so that two cores share the lanes evenly."""
CHUNK_SECONDS = 3.0
CHECKPOINT_SECONDS = 60.0


def cells(rounds: int, controls: Sequence[str], levels: Iterable[int]) -> list[Cell]:
    """All cells, in an order in which each can stand on those before it."""
    order = [Cell("ticket", level) for level in range(rounds + 1)]
    return order + [Cell(kind, level) for level in levels for kind in controls]


def ready(cell: Cell, done: Iterable[str]) -> bool:
    """Whether everything that a cell needs has been trained: the ticket before it."""
    before = 0 if cell.kind == "one_shot" else cell.level - 1
    return cell == Cell("ticket", 0) or Cell("ticket", before).name in done


def schedule(wanted: Sequence[Cell], done: Iterable[str]) -> list[list[Cell]]:
    """The cells that are not done yet, as they are trained side by side, call after call."""
    calls, names = [], set(done)
    left = [cell for cell in wanted if cell.name not in names]
    while left:
        now = [cell for cell in left if ready(cell, names)][:SIDE_BY_SIDE]
        left = [cell for cell in left if cell not in now]
        names |= {cell.name for cell in now}
        calls.append(now)
    return calls


def run(
    lab: Lab,
    wanted: Sequence[Cell],
    folder: runs.RunFolder,
    console: Console,
    minutes: float,
    report: Callable[[], Any],
) -> dict[str, Any]:
    """Trains the cells that are not in the results yet.

    Args:
      lab: what trains them.
      wanted: all cells.
      folder: the folder, begun.
      console: where progress is shown.
      minutes: no further cells are begun after so many.
      report: called whenever there are new results.

    Returns:
      The results by the names of the cells.
    """
    path, begun = folder.path, time.perf_counter()
    results = runs.read_json(path / "results.json") or {}
    masks = _read_masks(lab, path)
    calls = schedule(wanted, results)
    settings, count = lab.settings, len(lab.keys)
    what = (
        f"{sum(map(len, calls))} of {len(wanted)} cells, {count} replicates each, "
        f"{settings.iterations:,} iterations"
    )
    with Display(console, what, len(calls) * settings.iterations) as display:
        for call, now in enumerate(calls):
            if time.perf_counter() - begun > 60 * minutes:
                break
            began = time.perf_counter()
            state = _train(lab, masks, now, path, display, call, len(calls))
            found = cells_.measure(lab, state)
            curves = jax.device_get(state.tracked.curves)
            seconds = time.perf_counter() - began
            for i, cell in enumerate(now):
                mine = slice(i * count, (i + 1) * count)
                masks = cells_.prune(lab, masks, cell, cells_.lanes(state, i, count))
                _write_curves(path, cell, {name: curve[mine] for name, curve in curves.items()})
                results[cell.name] = {
                    "kind": cell.kind,
                    "level": cell.level,
                    "weights_remaining": lab.densities[cell.level],
                    **{name: values[mine].tolist() for name, values in found.items()},
                    "seconds": round(seconds / len(now), 1),
                }
            _write_masks(lab, masks, path)
            runs.write_json(path / "results.json", results)
            shutil.rmtree(path / "unfinished", ignore_errors=True)
            report()
    return results


def _train(
    lab: Lab,
    masks: cells_.Masks,
    cells: Sequence[Cell],
    path: Path,
    display: Display,
    call: int,
    calls: int,
) -> training.TrainState:
    lanes = (*cells, *[cells[-1]] * (SIDE_BY_SIDE - len(cells)))
    state = cells_.start(lab, masks, lanes)
    names = [cell.name for cell in cells]
    folder = runs.RunFolder(path / "unfinished", {"cells": names})
    restored, step = None, 0
    if (runs.read_json(folder.path / "config.json") or {}).get("cells") == names:
        restored = folder.restore(jax.eval_shape(lambda: state))
    if restored is not None:
        state, step = restored.state, restored.progress["step"]
    total = lab.settings.iterations
    size = lab.settings.every
    saved = time.perf_counter()
    while step < total:
        began = time.perf_counter()
        end = min(total, step + size)
        state = jax.block_until_ready(lab.trainer.advance(state, step, end))
        now = time.perf_counter()
        if step and not (restored and size == lab.settings.every):  # compiled before
            display.estimate(
                (now - began) / (end - step) * (total - end + (calls - call - 1) * total)
            )
        size = max(1, round(CHUNK_SECONDS / (now - began) * (end - step) / lab.settings.every))
        size *= lab.settings.every
        step = end
        last = step // lab.settings.every - 1
        accuracy = float(state.tracked.curves["validation_accuracy"][:, last].mean())
        display.update(call * total + step, f"{', '.join(names)}: {100 * accuracy:.2f}%")
        if now - saved > CHECKPOINT_SECONDS and step < total:
            folder.begin()
            folder.save(step, state, {"step": step})
            saved = time.perf_counter()
    folder.close()
    return state


def _read_masks(lab: Lab, path: Path) -> cells_.Masks:
    masks = cells_.no_masks(lab)
    if not (path / "masks.npz").exists():
        return masks
    with np.load(path / "masks.npz") as stored:
        return jax.tree.map_with_path(lambda p, leaf: jnp.asarray(stored[_name(p)]), masks)


def _write_masks(lab: Lab, masks: cells_.Masks, path: Path) -> None:
    leaves = jax.tree.leaves_with_path(jax.device_get(masks))
    _write(path / "masks.npz", {_name(p): leaf for p, leaf in leaves})


def _write_curves(path: Path, cell: Cell, curves: dict[str, np.ndarray]) -> None:
    stored = {}
    if (path / "curves.npz").exists():
        with np.load(path / "curves.npz") as file:
            stored = dict(file)
    stored |= {f"{cell.name}/{name}": curve for name, curve in curves.items()}
    _write(path / "curves.npz", stored)


def _write(file: Path, arrays: dict[str, np.ndarray]) -> None:
    part = file.with_suffix(".part.npz")
    np.savez_compressed(part, **arrays)
    os.replace(part, file)


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
