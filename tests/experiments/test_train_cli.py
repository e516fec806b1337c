"""The main job as its user meets it: options, errors, files, refusals, resuming after a kill."""

import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import files
from experiments.common.study.folder import find_run
from experiments.common.study.options import flag
from experiments.compare import __main__ as compare
from experiments.train import __main__ as train
from experiments.train.config import Config, default_folder, resolve

ROOT = pathlib.Path(__file__).parents[2]
SMALL = ["--epochs", "2", "--seeds", "2", "--batch-size", "100"]
FILES = ["accuracy.png", "config.json", "density.png", "masks.png", "metrics.jsonl", "summary.json"]


def contents(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished small run."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    train.main([*SMALL, "--out", str(folder)])
    return folder


def test_help_explains_every_option_with_its_default(call):
    code, out, _ = call(train.main, "--help")
    assert code == 0
    described = out[out.index("options:") :]
    for field in dataclasses.fields(Config):
        name = f"no_{field.name}" if field.default is True else field.name
        block = re.search(rf"  {flag(name)}\b.*?(?=\n  --|\Z)", described, re.S)
        assert block, field.name
        text = " ".join(block[0].split())
        assert len(text) > len(flag(name)) + 20, text
        assert "(default: " in text, text
        if field.default not in (None, "", True, False):
            assert str(field.default) in text, text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--sparsity 1.5", r"--sparsity must be in \[0, 1\), got 1.5"),
        ("--sparsity -0.1", r"--sparsity must be in \[0, 1\), got -0.1"),
        ("--sparsity nan", "--sparsity must be in"),
        ("--sparsity many", "--sparsity: invalid float value: 'many'"),
        ("--method magic", "--method: invalid choice: 'magic'.*rigl"),
        ("--model lenet", "--model: invalid choice: 'lenet'.*lenet_300_100"),
        ("--dataset nowhere --data-dir .", "'nowhere'"),
        ("--dataset ../etc", "'../etc'"),
        ("--pattern diagonal", "pattern must be unstructured, .* got 'diagonal'"),
        ("--pattern 4:2", "4:2"),
        ("--pattern 2:4 --sparsity 0.9", "0.9.*2:4"),
        ("--pattern block:4x4", "head/kernel.*--dense-layers"),
        ("--pattern 2:4 --method gradual", "gradual"),
        ("--optimizer lion", "--optimizer: invalid choice"),
        ("--distribution even", "--distribution: invalid choice"),
        ("--epochs 0", "--epochs must be at least 1, got 0"),
        ("--epochs 1.5", "--epochs: invalid int value"),
        ("--batch-size 100000", r"--batch-size must be in \[1, \d+\]"),
        ("--learning-rate 0", "--learning-rate must be above 0"),
        ("--weight-decay -1", "--weight-decay must be at least 0"),
        ("--drop-fraction 2", r"--drop-fraction must be in \[0, 1\]"),
        ("--seeds 0", "--seeds must be at least 1"),
        ("--every 5000", "no mask update"),
        ("--method gradual --stop 9000", "--stop must be below the 2400 steps"),
        ("--validation 99999", "99999"),
        ("--dense-layers (", "--dense-layers must be a regular expression"),
        ("--dense-layers .", "--dense-layers '.' leaves no weight"),
        ("--model lenet_5", "16x16 pixels"),
        ("--method dense --sparsity 0.5", "--sparsity cannot be used with --method dense"),
        ("--method fixed --every 5", "--every cannot be used with --method fixed"),
        ("--colour red", "unrecognized arguments: --colour red"),
    ],
)
def test_a_wrong_value_is_one_line_and_nothing_is_written(call, tmp_path, args, message):
    out = tmp_path / "out"
    code, printed, error = call(train.main, *args.split(), "--out", str(out))
    assert code == 2
    assert printed == ""
    assert error.startswith("error: ") and error.count("\n") == 1, error
    assert re.search(message, error), error
    assert not out.exists()


def test_a_run_leaves_its_files_and_numbers(finished):
    assert [p.name for p in sorted(finished.iterdir()) if p.is_file()] == FILES
    for name in FILES:
        if name.endswith(".png"):
            assert (finished / name).read_bytes().startswith(b"\x89PNG")
    config = json.loads((finished / "config.json").read_text())
    assert (config["algorithm"], config["sparsity"], config["epochs"]) == ("rigl", 0.9, 2)
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * 2 * 2
    assert {"method", "replicate", "seed", "step", "epoch", "loss", "test_accuracy"} <= set(
        lines[0]
    )
    assert {"density", "churn", "layer_density"} <= set(lines[0])
    assert [line["off_mask"] for line in lines] == [0] * len(lines)
    summary = json.loads((finished / "summary.json").read_text())
    last = [
        line["test_accuracy"] for line in lines if line["method"] == "rigl" and line["epoch"] == 2
    ]
    found = summary["test_accuracy"]
    assert list(found) == ["mean", "std", "standard_error", "min", "max", "n"]
    assert found["mean"] == pytest.approx(np.mean(last)) and found["n"] == 2
    assert (summary["weights"], summary["alive"]) == (50_200, 5_020)
    assert summary["sparsity"] == pytest.approx(0.9)
    assert summary["flops"] == pytest.approx(2 * 5_020)
    assert summary["seconds"] > 0
    assert "digits" in summary["dataset"]
    dense = summary["dense"]
    assert (dense["alive"], dense["sparsity"], dense["flops"]) == (50_200, 0.0, 2 * 50_200)
    assert dense["bytes_stored"] > summary["bytes_stored"]
    assert dense["bytes_training"] < summary["bytes_training"]


def test_a_finished_folder_is_refused_without_resume(call, finished):
    before = contents(finished)
    code, _, error = call(train.main, *SMALL, "--out", str(finished))
    assert code == 1 and error.count("\n") == 1
    assert "finished" in error and "--resume" in error
    assert contents(finished) == before


def test_resume_prints_the_table_of_a_finished_run(call, finished):
    before = contents(finished)
    code, out, _ = call(train.main, *SMALL, "--out", str(finished), "--resume")
    assert code == 0 and "5,020 (10%)" in out and "50,200" in out and "±" in out
    assert contents(finished) == before


@pytest.mark.parametrize("resume", [[], ["--resume"]], ids=["plain", "resume"])
def test_a_folder_of_another_run_is_refused(call, finished, resume):
    before = contents(finished)
    args = [*SMALL, "--sparsity", "0.8", "--every", "7", "--out", str(finished), *resume]
    code, _, error = call(train.main, *args)
    assert code == 1 and error.count("\n") == 1
    assert "sparsity 0.9 there, 0.8 here" in error and "every None there, 7 here" in error
    assert "epochs" not in error
    assert contents(finished) == before


def test_a_folder_that_is_no_run_is_refused(call, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    code, _, error = call(train.main, *SMALL, "--out", str(tmp_path))
    assert code == 1 and "letter.txt" in error and error.count("\n") == 1
    code, _, error = call(train.main, *SMALL, "--out", str(tmp_path / "letter.txt"))
    assert code == 1 and "is a file" in error
    assert [p.name for p in tmp_path.iterdir()] == ["letter.txt"]


def test_the_default_folder_says_the_configuration(call, monkeypatch, tmp_path, finished):
    assert default_folder(resolve(Config())).as_posix() == "runs/digits-lenet_300_100-rigl-0.9"
    other = resolve(Config(sparsity=0.98, epochs=3, dense_twin=False))
    assert default_folder(other).name == "digits-lenet_300_100-rigl-0.98-epochs_3-dense_twin_False"
    # The same command twice, without --out, shows the first run's table: no error, no new run.
    monkeypatch.chdir(tmp_path)
    folder = default_folder(resolve(Config(epochs=2, seeds=2, batch_size=100)))
    folder.parent.mkdir()
    folder.symlink_to(finished)
    code, out, _ = call(train.main, *SMALL)
    assert code == 0 and "5,020 (10%)" in out and "finished before" in out


def test_killed_at_any_moment_and_resumed_it_ends_with_the_same_numbers(tmp_path):
    args = ["--epochs", "6", "--seeds", "2", "--checkpoint-every", "0", "--out"]
    # What the other process compiles, this one reads: the compiler takes longer than the training.
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.train", *args, str(cut)],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    metrics = cut / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 7):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    _, error = process.communicate()
    assert process.returncode == -signal.SIGKILL, error.decode()
    assert not (cut / "summary.json").exists()
    train.main([*args, str(cut), "--resume"])
    train.main([*args, str(whole)])
    found = [json.loads((folder / "summary.json").read_text()) for folder in (cut, whole)]
    for summary in found:
        del summary["seconds"], summary["seconds_per_step"]
    assert found[0] == found[1]
    assert metrics.read_text() == (whole / "metrics.jsonl").read_text()


def test_a_checkpoint_comes_back_whole_and_drops_later_lines(tmp_path):
    state = {"weights": (jnp.arange(3.0), jnp.ones((0, 4))), "flag": jnp.array(True), "none": None}
    with find_run(tmp_path / "run", {"a": 1}, resume=False) as folder:
        assert folder.restore(state, pytest.fail) is None
        folder.append([{"step": 1}])
        folder.save(1, state, {"steps": 1})
        folder.append([{"step": 2}])
    with find_run(tmp_path / "run", {"a": 1}, resume=True) as again:
        restored = again.restore(state, pytest.fail)
        assert restored.progress["steps"] == 1
        assert again.metrics() == [{"step": 1}]
    np.testing.assert_array_equal(restored.state["weights"][0], state["weights"][0])
    assert restored.state["weights"][1].shape == (0, 4)
    assert restored.state["flag"].dtype == bool


def test_a_study_reports_after_every_cell_and_goes_on(call, tmp_path):
    args = "--method fixed --sparsity 0.5 --epochs 1 --seeds 2 --batch-size 200".split()
    args += ["--out", str(tmp_path)]
    code, _, _ = call(compare.main, *args, "--minutes", "-1")
    assert code == 0 and not (tmp_path / "results.json").exists()
    config = compare.cells(compare.Options(**{"method": "fixed", "sparsity": "0.5"}))
    assert [(c.method, c.sparsity, c.dense_twin) for c in config] == [
        ("dense", 0.0, False),
        ("fixed", 0.5, False),
    ]
    code, out, _ = call(compare.main, *args)
    assert code == 0 and "| fixed |" in out
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results) == ["dense", "fixed-0.5"]
    del results["fixed-0.5"]
    files.write_json(tmp_path / "results.json", results)
    code, out, _ = call(compare.main, *args, "--minutes", "-1")
    assert code == 0 and "PARTIAL" in out
    assert "PARTIAL: 1 of 2 cells" in (tmp_path / "table.md").read_text()
