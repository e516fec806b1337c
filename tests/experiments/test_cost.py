"""The small study: what accuracy costs."""

import re

import numpy as np
import pytest

from experiments.common import files
from experiments.common.study.content import read_arrays, read_results
from experiments.cost import __main__ as cost
from experiments.cost import cells
from experiments.cost.settings import PRESETS

SMALL = ["--epochs", "4", "--seeds", "2", "--sparsity", "0.9"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("cost") / "small"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "TURNS", 2)
        cost.main([*SMALL, "--method", "dense,gradual,rigl", "--out", str(path)])
    return path


def test_the_files_of_the_study(folder):
    results, curves = read_results(folder, cells.content_of), read_arrays(folder / "curves.npz")
    assert list(results) == ["dense", "gradual", "rigl"]
    summary = files.read_json(folder / "summary.json")
    assert summary["missing_cells"] == 0
    assert summary["methods"]["rigl"]["test_accuracy"]["mean"] > 0.8
    for name in results:
        assert curves[f"{name}/validation_accuracy"].shape == (2, 4)
        assert len(results[name]["time"]) == 2 and min(results[name]["time"]) > 0
    for file in ("cost.png", "report.html", "table.md"):
        assert (folder / file).stat().st_size > 100


def test_flops_are_those_of_the_method(folder):
    """Of dense training 1 in all; of RigL (3 f_S T + 2 f_S + f_D) / (T + 1); of a ramp the sum."""
    curves = read_arrays(folder / "curves.npz")
    np.testing.assert_allclose(curves["dense/flops"], [[0.25, 0.5, 0.75, 1.0]] * 2)
    density, steps = 0.1, 4 * (1293 // 24)
    every = PRESETS["digits"].updates(steps).every
    rigl = (3 * density * every + 2 * density + 1) / (every + 1) / 3
    np.testing.assert_allclose(curves["rigl/flops"][:, -1], rigl, rtol=0.02)
    ramp = curves["gradual/density"].cumsum(1) / 4
    np.testing.assert_allclose(curves["gradual/flops"], ramp, rtol=0.02)
    assert np.all(np.diff(curves["gradual/density"]) <= 0)


def test_a_folder_takes_more_methods(folder, monkeypatch, call):
    monkeypatch.setattr(cells, "TURNS", 1)
    before = read_results(folder)
    code, out, _ = call(cost.main, *SMALL, "--method", "rigl,fixed", "--out", str(folder))
    assert code == 0 and "1 of 2 cells" in out and "| fixed |" in out
    after = read_results(folder)
    assert {name: after[name] for name in before} == before and "fixed" in after


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--method", "rigl,magic"], "--method must be among dense.*magic"),
        (["--sparsity", "1"], r"--sparsity must be in \[0, 1\), got 1.0"),
        (["--epochs", "3"], "--epochs must be at least 4, got 3"),
    ],
)
def test_values_that_cannot_be(args, words, call, tmp_path):
    code, _, err = call(cost.main, *args, "--out", str(tmp_path))
    assert code == 2 and err.count("\n") == 1
    assert re.search(words, err)
