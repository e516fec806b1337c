"""The ticket study as its user meets it: files, resuming after a kill, refusals, the report."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common.models.network import make_network
from experiments.common.study import engine, lab
from experiments.common.study import study as groups
from experiments.common.study.content import named_arrays
from experiments.common.study.lab import Site
from experiments.common.training import execution
from experiments.lottery_ticket import __main__ as lottery_ticket
from experiments.lottery_ticket import cells, claims, report, settings, study
from experiments.lottery_ticket.cells import Cell
from jaxsparse import lottery

SMALL = ["--scale", "0.06", "--rounds", "3", "--levels", "2,3", "--seeds", "2"]
FILES = {
    *("config.json", "curves.npz", "early_stop.png", "final.png", "masks.npz", "one_shot.png"),
    *("report.html", "results.json", "summary.json", "table.md", "training.png"),
}
STATISTICS = {"mean", "std", "standard_error", "min", "max", "n"}


def tickets_of(folder):
    options = lottery_ticket.Options(scale=0.06, rounds=3, levels="2,3", seeds=2)
    chosen, _ = lottery_ticket.resolve(options)
    return cells.build(chosen, Site(execution.replicate_keys(0, 2), folder))


def read(path):
    with np.load(path) as stored:
        return dict(stored)


def without_seconds(path):
    found = json.loads((path / "results.json").read_text())
    return {name: {k: v for k, v in cell.items() if k != "seconds"} for name, cell in found.items()}


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """The folder of a small study, and how often the network was traced before each report."""
    traces, seen, make, draw = [], [], make_network, report.report

    def counted(*args, **options):
        net = make(*args, **options)
        return net._replace(apply=lambda *args: (traces.append(args), net.apply(*args))[1])

    folder = tmp_path_factory.mktemp("study") / "small"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab, "make_network", counted)
        patch.setattr(groups, "REPORT_SECONDS", 0.0)
        patch.setattr(report, "report", lambda *args: (seen.append(len(traces)), draw(*args))[1])
        lottery_ticket.main([*SMALL, "--out", str(folder)])
    return folder, seen


@pytest.fixture(scope="module")
def finished(watched):
    """The folder of a small study."""
    return watched[0]


def test_the_files_of_a_study(finished):
    assert {path.name for path in finished.iterdir()} == FILES
    results = json.loads((finished / "results.json").read_text())
    assert len(results) == 4 + 2 * 3
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["missing_cells"] == 0
    assert "digits" in summary["dataset_description"]
    assert [level["level"] for level in summary["levels"]] == [0, 1, 2, 3]
    for level in summary["levels"]:
        kinds = {"ticket", "reinit", "random"} if level["level"] >= 2 else {"ticket"}
        assert set(level) == {"level", "weights_remaining"} | kinds
        for kind in kinds:
            for name in report.MEASURES:
                assert set(level[kind][name]) == STATISTICS
                assert level[kind][name]["n"] == 2
    assert [level["level"] for level in summary["one_shot"]] == [2, 3]
    page = (finished / "report.html").read_text()
    assert page.count("<img") == 4 and "data:image" not in page
    assert "learning_rate" in page and "Tickets and controls" in page
    assert "Validation loss at the early stop" in page


def test_the_early_stop_is_the_lowest_validation_loss(finished):
    curves = read(finished / "curves.npz")
    every = json.loads((finished / "config.json").read_text())["every"]
    for name, cell in without_seconds(finished).items():
        losses = curves[f"{name}/validation_loss"]
        assert losses.shape == (2, 120 // every) and np.isfinite(losses).all()
        assert cell["early_stop_iteration"] == lottery.early_stop(losses, every).tolist()
        np.testing.assert_allclose(cell["early_stop_validation_loss"], losses.min(1))


def test_masks_have_the_counts_of_the_ladder_and_are_nested(finished):
    tickets = tickets_of(finished)
    stored = read(finished / "masks.npz")
    counts = {}
    for level, alive in enumerate(tickets.counts):
        for path, count in named_arrays(alive).items():
            counts.setdefault(path, {})[level] = count
    for kind in ("ticket", "one_shot"):
        for path, per_level in counts.items():
            survived = stored[f"{kind}/{path}"]
            for level, count in per_level.items():
                if "kernel" in path or level == 0:
                    assert ((survived >= level).sum(tuple(range(1, survived.ndim))) == count).all()


def test_every_control_changes_what_it_says(finished):
    tickets = tickets_of(finished)
    masks = study.read_masks(tickets)
    found = {
        kind: cells.start(tickets, masks, [Cell(kind, 3), Cell(kind, 3)])
        for kind in ("ticket", *cells.CONTROLS)
    }
    weights = {
        kind: np.asarray(jax.tree.leaves(state.params)[1][:2]) for kind, state in found.items()
    }
    origin = np.asarray(jax.tree.leaves(tickets.origin)[1])
    alive = {kind: kernel != 0 for kind, kernel in weights.items()}
    assert len({int(mask[0].sum()) for mask in alive.values()}) == 1
    for kind in ("ticket", "one_shot", "random"):
        assert np.array_equal(weights[kind], np.where(alive[kind], origin, 0))
    assert np.array_equal(alive["reinit"], alive["ticket"])
    assert not np.array_equal(weights["reinit"], weights["ticket"])
    for kind in ("one_shot", "random"):
        assert not np.array_equal(alive[kind], alive["ticket"])


def test_a_killed_study_goes_on_in_the_middle_of_a_cell_with_the_same_numbers(
    finished, tmp_path, monkeypatch, call
):
    folder = tmp_path / "killed"
    make, calls = cells.build, []

    def dying(*args):
        tickets = make(*args)

        def advance(state, first, last):
            calls.append((first, last))
            if len(calls) == stop:
                raise KeyboardInterrupt
            return tickets.trainer.advance(state, first, last)

        return tickets._replace(trainer=tickets.trainer._replace(advance=advance))

    monkeypatch.setattr(cells, "build", dying)
    stop = 20  # eight calls a group: in the middle of the third
    with monkeypatch.context() as patch:
        patch.setattr(engine, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(engine, "CHUNK_SECONDS", 0.0)
        code, _, err = call(lottery_ticket.main, *SMALL, "--out", str(folder))
    assert code == 130 and "continues from here" in err
    assert (folder / "unfinished").exists()
    assert "PARTIAL" in (folder / "table.md").read_text()
    begun, calls[:] = calls[-1][0], []
    assert begun > 0
    stop = None
    code, out, _ = call(lottery_ticket.main, *SMALL, "--out", str(folder))
    assert code == 0 and calls[0][0] == begun
    assert without_seconds(folder) == without_seconds(finished)
    for name in ("curves.npz", "masks.npz"):
        one, other = read(folder / name), read(finished / name)
        assert set(one) == set(other)
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])
    assert {path.name for path in folder.iterdir()} == FILES


def test_a_finished_study_is_drawn_anew_without_training(finished, tmp_path, monkeypatch, call):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    for file in (*folder.glob("*.png"), folder / "masks.npz"):
        file.unlink()

    def never(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(cells, "build", never)
    code, out, _ = call(lottery_ticket.main, *SMALL, "--out", str(folder))
    assert code == 0 and "Tickets and controls" in out
    assert {path.name for path in folder.iterdir()} == FILES - {"masks.npz"}
    assert (folder / "table.md").read_text() == (finished / "table.md").read_text()
    line = next(line for line in out.splitlines() if "Not kept" in line)
    words = " ".join(SMALL[:4])
    assert "masks.npz; `python -m experiments.lottery_ticket" in line and words in line


def test_another_configuration_is_refused_and_nothing_overwritten(finished, call):
    before = {path: path.read_bytes() for path in finished.iterdir()}
    code, _, err = call(lottery_ticket.main, *SMALL, "--seed", "1", "--out", str(finished))
    assert code == 1 and "seed 0 there, 1 here" in err
    assert before == {path: path.read_bytes() for path in finished.iterdir()}


def test_one_trace_serves_every_level_and_control(watched):
    _, seen = watched
    assert len(seen) > 4 and seen[0] == seen[-1] > 0


BAD = [
    (["--scale", "0"], "--scale must be above 0"),
    (["--scale", "0.001"], "leaves 2 iterations"),
    (["--rounds", "0"], r"--rounds must be in [1, 255], got 0"),
    (["--levels", "0"], "--levels must be comma-separated rounds in [1, 18]"),
    (["--levels", "3,40"], "--levels must be comma-separated rounds in [1, 18]"),
    (["--levels", "some"], "--levels must be comma-separated rounds in [1, 18]"),
    (["--method", "magic"], "--method must be among one_shot, reinit, random"),
    (["--seeds", "0"], "--seeds must be at least 1"),
    (["--examples", "9"], "--examples must be at least 10"),
    (["--preset", "lenet_6"], "--preset"),
    (["--dataset", "nowhere"], "nowhere"),
]


@pytest.mark.parametrize(("args", "message"), BAD)
def test_bad_input_is_one_line_and_writes_nothing(args, message, tmp_path, call, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    code, _, err = call(lottery_ticket.main, *args, "--out", str(tmp_path / "out"))
    assert code == 2 and message in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_try_uses_the_first_examples(tmp_path, call):
    small = ["--scale", "0.02", "--rounds", "1", "--method", "", "--seeds", "1"]
    folder = tmp_path / "try"
    code, out, _ = call(lottery_ticket.main, *small, "--examples", "100", "--out", str(folder))
    assert code == 0 and "the first 100 examples of each part" in out and "(10 examples," in out
    code, _, err = call(lottery_ticket.main, *small, "--out", str(folder))
    assert code == 1 and "examples 100 there, not set here" in err


def test_every_cell_is_trained_after_what_it_needs():
    wanted = study.all_cells(5, cells.CONTROLS, (2, 4))
    calls = study.schedule(wanted, ())
    done = set()
    for now in calls:
        assert 1 <= len(now) <= study.SIDE_BY_SIDE
        assert all(study.ready(cell, done) for cell in now)
        done |= {cell.name for cell in now}
    assert done == {cell.name for cell in wanted}
    assert study.schedule(wanted, done) == []
    later = study.schedule(wanted, {"ticket-00", "ticket-01"})
    assert later[0] == [Cell("ticket", 2), Cell("one_shot", 2)]


@pytest.mark.parametrize("name", settings.PRESETS)
def test_presets_scale_in_proportion(name):
    whole = settings.PRESETS[name]
    assert settings.scaled(whole, 1.0) == whole
    half = settings.scaled(whole, 0.5)
    assert half.iterations == round(whole.iterations / 2)
    assert half.warmup == whole.warmup // 2 and half.learning_rate == whole.learning_rate


def test_warmup_and_drops():
    chosen = dataclasses.replace(
        settings.PRESETS["resnet_18"], learning_rate=0.1, warmup=10, drops=(20, 30), weight_decay=0
    )
    tx = settings.optimizer(chosen)
    state, rates, grads = tx.init(jnp.zeros(())), [], jnp.ones(())
    buffer = 0.0
    for _ in range(40):
        updates, state = tx.update(grads, state)
        buffer = 0.9 * buffer + 1
        rates.append(float(-updates) / buffer)
    np.testing.assert_allclose(rates[:10], np.arange(10) / 100, atol=1e-7)
    np.testing.assert_allclose(rates[10:20], 0.1, rtol=1e-5)
    np.testing.assert_allclose(rates[20:30], 0.01, rtol=1e-5)
    np.testing.assert_allclose(rates[30:], 0.001, rtol=1e-5)


def test_claims_against_numpy():
    def cell(kind, level, share, stop, early):
        return {
            "kind": kind,
            "level": level,
            "weights_remaining": share,
            "early_stop_iteration": stop,
            "early_stop_accuracy": early,
            "final_accuracy": early,
            "final_train_accuracy": [1.0, 0.999],
        }

    results = {
        "ticket-00": cell("ticket", 0, 1.0, [1000, 2000], [0.980, 0.982]),
        "ticket-01": cell("ticket", 1, 0.211, [900, 900], [0.983, 0.985]),
        "ticket-02": cell("ticket", 2, 0.05, [3000, 3000], [0.970, 0.972]),
        "reinit-01": cell("reinit", 1, 0.211, [1800, 1800], [0.978, 0.980]),
    }
    found = {row[0]: row[2] for row in claims.claims(results, True)[1]}
    assert found["the ticket at 21% learns faster than dense"].startswith("40 ± 0 % earlier")
    assert "+0.30 ± 0.00 points" in found["best ticket over dense at the early stop"]
    text = found["tickets no worse than dense (mean no worse than -0.05 points)"]
    assert text.startswith("down to 21.1%") and "at 5%: -1.00" in text
    assert (
        "+0.50" in found["reinitialized at 21%"] and "2.00 times" in found["reinitialized at 21%"]
    )
