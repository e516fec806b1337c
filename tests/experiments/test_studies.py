"""How a group of runs is cut into calls, on a trainer that only counts and a clock of its own."""

import math
import pathlib
import types
from typing import NamedTuple

import jax.numpy as jnp
import pytest

from experiments.common.report.console import Console
from experiments.common.study import engine, study
from experiments.common.study.content import Content, read_results
from experiments.common.study.engine import CHUNK_SECONDS, LONGEST_SECONDS
from experiments.common.study.study import Group, train_groups
from experiments.compare import __main__ as compare
from experiments.gradient_flow import __main__ as gradient_flow
from experiments.lottery_ticket import __main__ as lottery_ticket
from experiments.sparse_momentum import __main__ as sparse_momentum


class Nothing(NamedTuple):
    """Measures nothing."""

    def shown(self, point):
        assert point >= 0
        return ""


class State(NamedTuple):
    """Has no arrays."""

    tracked: Nothing = Nothing()


@pytest.mark.parametrize(
    ("seconds", "every", "iterations"),
    [(1e-3, 100, 5000), (0.1, 100, 550), (12.0, 351, 1000), (400.0, 5, 13), (1e-3, 1, 7)],
)
def test_calls_are_short_and_end_at_measurements(seconds, every, iterations, tmp_path, monkeypatch):
    now, calls = 0.0, []

    def advance(state, first, last):
        nonlocal now
        now += seconds * (last - first) + (0 if calls else 20.0)  # the first compiles
        calls.append((first, last))
        return state

    clock = types.SimpleNamespace(perf_counter=lambda: now)
    for module in (engine, study):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(engine, "CHECKPOINT_SECONDS", math.inf)
    group = Group(
        ["cell"],
        lambda state: {"cell": Content({})},
        lambda: (types.SimpleNamespace(advance=advance), State()),
        iterations,
        every,
    )
    console, report = Console(quiet=True), lambda: None
    train_groups([group], tmp_path, console, what="calls", minutes=math.inf, report=report)
    assert read_results(tmp_path)["cell"]["seconds"] == pytest.approx(now, abs=0.06)
    assert calls[0][0] == 0 and calls[-1][1] == iterations
    assert all(one[1] == other[0] for one, other in zip(calls, calls[1:], strict=False))
    longest = max(last - first for first, last in calls)
    assert longest == 1 or longest * seconds <= max(CHUNK_SECONDS * 2, 60)
    ends = {last for _, last in calls}
    if every * seconds > LONGEST_SECONDS:
        assert ends >= set(range(every, iterations, every))
    else:
        late = [last for first, last in calls if first >= every]
        assert all(last % every == 0 or last == iterations for last in late)
    assert len(calls) <= 8 + iterations * seconds / 2


class Counted(NamedTuple):
    """Has one array, the number of steps that it has seen."""

    steps: jnp.ndarray
    tracked: Nothing = Nothing()


def test_a_study_stops_in_time_in_the_middle_of_a_group_and_goes_on_there(tmp_path, monkeypatch):
    now, calls = 0.0, []

    def advance(state, first, last):
        nonlocal now
        now += 6.0 * (last - first)
        calls.append((first, last))
        return state._replace(steps=state.steps + (last - first))

    def group(name):
        trainer = types.SimpleNamespace(advance=advance)
        begin = lambda: (trainer, Counted(jnp.zeros(1, jnp.int32)))  # noqa: E731
        finish = lambda state: {name: Content({"steps": int(state.steps[0])})}  # noqa: E731
        return Group([name], finish, begin, 30)

    for module in (engine, study):
        monkeypatch.setattr(module, "time", types.SimpleNamespace(perf_counter=lambda: now))
    shared = {"what": "calls", "minutes": 1.0, "report": lambda: None}
    found, ends = [], []
    while len(found) < 2:
        left = [group(name) for name in ("first", "second") if name not in found]
        began = now
        train_groups(left, tmp_path, Console(quiet=True), **shared)
        assert now - began <= 60.0 + 6.0
        found = list(read_results(tmp_path))
        ends.append(now)
    made = {"steps": 30, "seconds": 30 * 6.0}  # by all starts together
    assert read_results(tmp_path) == {"first": made, "second": made}
    assert now == 2 * 30 * 6.0, "no step was made twice"
    assert len(ends) >= 6
    assert not (tmp_path / "unfinished").exists()


def test_the_published_results_are_whole():
    """Their commands can draw them anew."""
    root = pathlib.Path(__file__).parents[2] / "docs" / "results"
    assert compare.read_results(root / "compare" / "mnist")
    kinds = {"lottery_ticket": lottery_ticket, "sparse_momentum": sparse_momentum}
    for name, kind in (kinds | {"gradient_flow": gradient_flow}).items():
        found = sorted((root / name).rglob("results.json"))
        assert found
        for file in found:
            tuning = {"study": "tuning"} if "tuning" in file.parts else {}
            content_of = kind.prepare(kind.Options(**tuning)).content_of
            assert read_results(file.parent, content_of, list(read_results(file.parent)))
