"""A study of lottery tickets: which cells there are, and what its folder holds of them.

config.json    what was asked for
results.json   the finished cells, every replicate
curves.npz     what was measured of them during training
masks.npz      in how many rounds each weight survives; enough to go on from, or to redraw
"""

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.common.study.study import (
    Content,
    Group,
    named_arrays,
    read_arrays,
    tree_of,
    write_arrays,
)
from experiments.common.training.loop import Trainer, TrainState
from experiments.lottery_ticket import cells
from experiments.lottery_ticket.cells import Cell, Lab, Masks

SIDE_BY_SIDE = 2
"""Cells trained at once; an even number, so that two cores share the lanes evenly."""


def all_cells(rounds: int, controls: Sequence[str], levels: Iterable[int]) -> list[Cell]:
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


def content_of(name: str) -> Content:
    """What the folder of a study holds of a cell; `KeyError` for what is no name of one."""
    kind, _, level = name.rpartition("-")
    if kind not in ("ticket", *cells.CONTROLS) or not level.isdecimal():
        raise KeyError(name)
    numbers = dict.fromkeys(cells.MEASURES, [float]) | {"weights_remaining": float}
    numbers |= {"kind": str, "level": int, "seconds": float}
    return Content(numbers, {"curves.npz": f"{name}/", "masks.npz": "ticket/"})


def groups(lab: Lab, calls: Sequence[Sequence[Cell]], path: Path) -> list[Group]:
    """The calls of a schedule as groups of a study in a folder."""
    return [
        Group(
            ", ".join(cell.name for cell in now),
            functools.partial(_begin, lab, now, path),
            functools.partial(_finish, lab, now, path),
            lab.settings.iterations,
            lab.settings.every,
        )
        for now in calls
    ]


def read_masks(lab: Lab, path: Path) -> Masks:
    """The masks that a folder holds."""
    masks, stored = cells.no_masks(lab), read_arrays(path / "masks.npz")
    return tree_of(stored, masks) if stored else masks


def _begin(lab: Lab, now: Sequence[Cell], path: Path) -> tuple[Trainer, TrainState]:
    lanes = (*now, *[now[-1]] * (SIDE_BY_SIDE - len(now)))
    return lab.trainer, cells.start(lab, read_masks(lab, path), lanes)


def _finish(
    lab: Lab, now: Sequence[Cell], path: Path, state: TrainState, seconds: float
) -> dict[str, Any]:
    found, count = cells.measure(lab, state), len(lab.keys)
    curves = jax.device_get(state.tracked.curves)
    masks, stored = read_masks(lab, path), read_arrays(path / "curves.npz")
    results = {}
    for i, cell in enumerate(now):
        mine = slice(i * count, (i + 1) * count)
        masks = cells.prune(lab, masks, cell, cells.lanes(state, i, count))
        stored |= {f"{cell.name}/{name}": curve[mine] for name, curve in curves.items()}
        results[cell.name] = {
            "kind": cell.kind,
            "level": cell.level,
            "weights_remaining": lab.densities[cell.level],
            **{name: values[mine].tolist() for name, values in found.items()},
            "seconds": round(seconds / len(now), 1),
        }
    write_arrays(path / "masks.npz", named_arrays(masks))
    write_arrays(path / "curves.npz", stored)
    return results
