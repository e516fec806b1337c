"""The queue of measurements for an accelerator, at its tiny scale, as on a bare machine."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks.accelerator import __main__ as accelerator
from benchmarks.accelerator import jobs, queue
from experiments.sparse_momentum import __main__ as sparse_momentum

ROOT = pathlib.Path(__file__).parents[2]
# Flax itself imports these three of rich; to everything else they have nothing to offer.
BARE = """
import runpy, sys, types
for name in ("tensorflow_datasets", "array_record", "chex", "equinox"):
    sys.modules[name] = None
for name in ("rich", "rich.console", "rich.table", "rich.text"):
    sys.modules[name] = types.ModuleType(name)
runpy.run_module("benchmarks.accelerator", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a whole tiny queue, and what its process printed."""
    out = tmp_path_factory.mktemp("accelerator") / "results"
    done = subprocess.run(
        [sys.executable, "-c", BARE, "--tiny", "--out", str(out), "--minutes", "30"],
        cwd=ROOT,
        env={**os.environ, "TFDS_DATA_DIR": "nowhere"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done.stdout


@pytest.mark.slow
def test_a_bare_machine_measures_everything(finished):
    out, printed = finished
    assert printed.rstrip().endswith("All is done.")
    assert "tiny-steps-sorting: about 1 s" in printed, "the estimate comes before the work"
    table = (out / "table.md").read_text()
    assert "PARTIAL" not in table and "## Test accuracy over all seeds" in table
    for job in jobs.tiny():
        stored = json.loads((out / f"{job.name}.json").read_text())
        assert f"### {stored.get('study', job.name)}" in table
        for about in stored.get("calls", [stored]):
            assert {"device", "jax", "date", "command", "seconds"} <= set(about)
            assert about["command"].startswith("python -m benchmarks.accelerator --tiny --out ")
    steps = {row["method"]: row for row in read_rows(out, "steps-sorting")}
    assert set(steps) == {"dense", "fixed", "obvious rigl"}
    assert steps["dense"]["times dense"] == 1
    assert steps["obvious rigl"]["temporary bytes"] > steps["dense"]["temporary bytes"]
    ways = {row["way"] for row in read_rows(out, "selection")}
    assert {"top_k_mask", "jnp.sort"} <= ways
    for name in ("training-images", "training-transformer-bfloat16"):
        assert [row["method"] for row in read_rows(out, name)] == ["dense", "rigl"]


@pytest.mark.slow
def test_what_is_done_is_not_done_again(finished, capsys):
    out, _ = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    accelerator.main(["--tiny", "--out", str(out)])
    accelerator.main(["--tiny", "--out", str(out), "--list"])
    assert "left" not in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


def read_rows(out, name):
    return json.loads((out / f"tiny-{name}.json").read_text())["rows"]


def counted(name, seconds, calls, error=None):
    def measure():
        calls.append(name)
        if error is not None:
            raise error
        return [{"n": 1}]

    return queue.measurement(name, "stage", seconds, measure)


def test_nothing_is_begun_that_does_not_fit_and_a_failure_stops_nothing(tmp_path, capsys):
    calls = []
    todo = [
        counted("long", 100.0, calls),
        counted("broken", 1.0, calls, ValueError("no such thing")),
        counted("refused", 1.0, calls, SystemExit(2)),
        counted("short", 1.0, calls),
    ]
    reports = []
    work = lambda minutes: queue.work(todo, tmp_path, minutes, "", lambda: reports.append(0))  # noqa: E731
    assert work(1.0) == ["broken", "refused"]
    assert calls == ["broken", "refused", "short"] and len(reports) == 3
    assert "no such thing" in capsys.readouterr().err
    listed = queue.listing(todo, tmp_path)
    assert [line.split()[0] for line in listed.splitlines() if line.endswith("done")] == ["short"]
    assert "About 1 min 42 s in all are left." in listed
    assert work(2.0) == ["broken", "refused"]
    assert calls[3:] == ["long", "broken", "refused"]


def test_a_study_stops_in_time_and_goes_on(tmp_path):
    args = ["--steps", "50", "--seeds", "1", "--method", "dense"]
    job = queue.study("one", "stage", 5.0, sparse_momentum, "one", args, least=0.0)
    job.run(tmp_path, queue.RESERVE + 0.3, {"device": "this"})
    assert job.progress(tmp_path) == (0, 1) and (tmp_path / "one" / "unfinished").exists()
    assert job.left(tmp_path) == 5.0 + queue.COMPILING
    job.run(tmp_path, 600.0, {"device": "that"})
    assert job.progress(tmp_path) == (1, 1) and job.left(tmp_path) == 0
    stored = json.loads((tmp_path / "one.json").read_text())
    assert [call["cells"] for call in stored["calls"]] == [[], ["dense"]]
    assert [call["device"] for call in stored["calls"]] == ["this", "that"]


def test_the_order_of_the_queue():
    found = jobs.queue()
    names = [job.name for job in found]
    assert len(set(names)) == len(names)
    stages = list(dict.fromkeys(job.stage for job in found))
    assert stages == [
        jobs.STEPS,
        jobs.TRAINING,
        jobs.METHODS_ON_CIFAR,
        jobs.TICKETS,
        jobs.FLOW,
        jobs.OTHER_SEEDS,
    ]
    assert {f"steps-{name}" for name in ("rigl", "gradual", "deep_rewiring")} <= set(names)
    for network in ("wrn_28_2", "vgg_16_d"):
        assert f"{network}-0-dense" in names
        for method in ("fixed", "sparse_evolution", "rigl", "sparse_momentum", "gradual"):
            assert {f"{network}-0-{method}-{sparsity}" for sparsity in ("0.95", "0.9")} <= set(
                names
            )
