"""A study of lottery tickets: which cells there are, and what its folder holds about them.

config.json    what was requested
results.json   the finished cells, for every replicate
curves.npz     what was measured of them during training
masks.npz      in how many rounds each weight survives: large, and needed only to continue from
"""

import functools
from collections.abc import Iterable, Sequence

import jax

from experiments.common.study.content import Content, measured, named_arrays, read_arrays, tree_of
from experiments.common.study.lab import cut
from experiments.common.study.study import Group
from experiments.common.training.loop import Trainer, TrainState
from experiments.lottery_ticket import cells
from experiments.lottery_ticket.cells import Cell, Masks, Tickets
from experiments.lottery_ticket.places import places
from experiments.lottery_ticket.settings import prunable

SIDE_BY_SIDE = 2
"""Cells trained at once; an even number, so that two cores share the lanes evenly."""


def all_cells(rounds: int, controls: Sequence[str], levels: Iterable[int]) -> list[Cell]:
    """All cells, in an order in which each needs only those before it."""
    order = [Cell("ticket", level) for level in range(rounds + 1)]
    return order + [Cell(kind, level) for level in levels for kind in controls]


def ready(cell: Cell, done: Iterable[str]) -> bool:
    """Whether the ticket that a cell is made from has been trained."""
    before = 0 if cell.kind == "one_shot" else cell.level - 1
    return cell == Cell("ticket", 0) or Cell("ticket", before).name in done


def schedule(wanted: Sequence[Cell], done: Iterable[str]) -> list[list[Cell]]:
    """The cells that are not done yet, grouped by call; each call trains them side by side."""
    calls, names = [], set(done)
    left = [cell for cell in wanted if cell.name not in names]
    while left:
        now = [cell for cell in left if ready(cell, names)][:SIDE_BY_SIDE]
        left = [cell for cell in left if cell not in now]
        names |= {cell.name for cell in now}
        calls.append(now)
    return calls


def content_of(name: str) -> Content:
    """What the folder of a study holds of a cell; `KeyError` for an unknown name."""
    kind, _, level = name.rpartition("-")
    if kind not in ("ticket", *cells.CONTROLS) or not level.isdecimal():
        raise KeyError(name)
    numbers = dict.fromkeys(cells.MEASURES, [float]) | {"weights_remaining": float}
    numbers |= {"kind": str, "level": int, "seconds": float}
    return Content(numbers, {"curves.npz": f"{name}/"}, {"masks.npz": "ticket/"})


def groups(tickets: Tickets, calls: Sequence[Sequence[Cell]]) -> list[Group]:
    """The calls of a schedule as groups of a study."""
    settings = tickets.lab.settings
    return [
        Group(
            [cell.name for cell in now],
            functools.partial(_finish, tickets, now),
            functools.partial(_begin, tickets, now),
            settings.iterations,
            settings.every,
        )
        for now in calls
    ]


def read_masks(tickets: Tickets) -> Masks:
    """The masks in the folder."""
    masks, stored = cells.no_masks(tickets), read_arrays(tickets.lab.site.path / "masks.npz")
    return tree_of(stored, masks) if stored else masks


def _begin(tickets: Tickets, now: Sequence[Cell]) -> tuple[Trainer, TrainState]:
    lanes = (*now, *[now[-1]] * (SIDE_BY_SIDE - len(now)))
    return tickets.trainer, cells.start(tickets, read_masks(tickets), lanes)


def _finish(tickets: Tickets, now: Sequence[Cell], state: TrainState) -> dict[str, Content]:
    numbers, curves = cells.measure(tickets, state), jax.device_get(state.tracked.curves)
    masks, found = read_masks(tickets), {}
    for i, cell in enumerate(now):
        mine = tickets.lab.mine(i)
        masks = cells.prune(tickets, masks, cell, cut(state, mine))
        content = measured(
            cell.name,
            mine,
            numbers,
            curves,
            kind=cell.kind,
            level=cell.level,
            weights_remaining=tickets.densities[cell.level],
        )
        if cell.kind == "ticket" and cell.level > 0:
            own = cells.masks_of(tickets, masks, cell)
            content.numbers.update(places(own, prunable(tickets.lab.settings)))
        found[cell.name] = content._replace(large={"masks.npz": named_arrays(masks)})
    return found
