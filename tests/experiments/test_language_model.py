"""The study of a language model: its text, its cells, its plan and its command line."""

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse
from experiments.common.report.tables import size
from experiments.common.study import engine
from experiments.common.study.content import read_arrays, read_results
from experiments.common.training import loop
from experiments.language_model import __main__ as language_model
from experiments.language_model import cells, data, plan
from experiments.language_model.decoder import Architecture, make_decoder
from experiments.language_model.logs import Log
from experiments.language_model.settings import PRESETS, TICKET, Cell, Settings, parse

SMALLEST = Architecture(layers=2, width=16, heads=4, groups=2, hidden=24)
TINY = Settings(
    *(SMALLEST, 16, 4, 16, 1e-2), text="tiny_shakespeare", every=2, validate=4, weight_decay=0.1
)


def test_masks_are_switched_once_and_where_they_should():
    calls = []

    def advance(state, first, last):
        calls.append((first, last))
        return state

    params = {"kernel": jnp.arange(1.0, 9).reshape(1, 2, 4)}
    tx = jaxsparse.fixed(optax.sgd(0.1), 0.5, key=0)
    params, opt_state = jax.vmap(lambda params: jaxsparse.init(tx, params))(params)
    state = loop.TrainState(params, opt_state, *[jnp.zeros(1)] * 3)
    run = cells._switching(loop.Trainer(None, advance, None, 1), 4, cells._everything).advance
    assert run(state, 0, 4).opt_state.masks["kernel"].mean() == 0.5
    assert run(state, 4, 6).opt_state.masks["kernel"].mean() == 1.0
    assert run(state, 2, 6).opt_state.masks["kernel"].mean() == 1.0
    assert run(state, 5, 6).opt_state.masks["kernel"].mean() == 0.5
    assert calls == [(0, 4), (4, 6), (2, 4), (4, 6), (5, 6)]


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_muon_takes_the_matrix_of_each_layer(sparsity):
    """The kernels of layers move along orthogonal matrices, all else by Adam; masks hold."""
    settings = dataclasses.replace(TINY, optimizer="muon", weight_decay=0.0)
    params = make_decoder(SMALLEST)[1](jax.random.key(0))
    tx = settings.method(Cell("fixed", sparsity, 0), jax.random.key(1))
    params, state = jaxsparse.init(tx, params)
    grads = optax.tree.random_like(jax.random.key(2), params)
    for _ in range(2):  # the rate of the first step is 0
        updates, state = jax.jit(tx.update)(grads, state, params)
    up, norm = updates["blocks"]["up"]["kernel"][...], updates["norm"]["scale"][...]
    np.testing.assert_allclose(jnp.abs(norm), jnp.abs(norm).max(), rtol=1e-3)  # Adam's signs
    assert (up == 0).mean() == sparsity
    if sparsity == 0:
        singular = jnp.linalg.svd(up, compute_uv=False)  # of each layer
        assert singular.shape == (2, 16) and (singular.max(1) < 2 * singular.min(1)).all()


BYTES = bytes(range(32, 127)) * 60


def test_the_bytes_of_a_file(tmp_path):
    pytest.importorskip("grain")
    text = tmp_path / "text.txt"
    text.write_bytes(BYTES)
    found = data.read(str(text), 16, data_dir=None, examples=None)
    whole = np.frombuffer(text.read_bytes(), np.uint8)
    parts = found.train, found.validation, found.test
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert len(found.test) == len(found.validation) == len(whole) // 20
    windows = {"context": 16, "batch_size": 4}
    sets = data.held_out(found.test, **windows)
    assert sets.inputs.shape[1:] == (4, 16)
    batches = data.batches(found.train, **windows, seed=3)
    first, *more = [next(batches(step)) for step in (0, 5, 6)]
    later = batches(5)
    for batch in more:
        jax.tree.map(np.testing.assert_array_equal, batch, next(later))
    inputs, labels = first
    np.testing.assert_array_equal(inputs[:, 1:], labels[:, :-1])
    assert inputs.shape == (4, 16) and not np.array_equal(inputs, more[0][0])
    few = data.read(str(text), 16, data_dir=None, examples=3)
    assert len(few.train) == 49 and "49 bytes for train" in few.description


def test_names_of_cells():
    for name in ("dense-0", "rigl-0.9-3", "small_dense-0.75-0", "time-fixed-0.9"):
        assert parse(name).name == name
    for name in ("dense", "magic-0.9-0", "rigl-0", "rigl-0.9-0-1", ""):
        with pytest.raises(KeyError):
            parse(name)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--method", "rigl,magic"], "--method must be among dense.*magic"),
        (["--method", "ticket"], "ticket needs dense"),
        (["--sparsity", "1"], r"--sparsity must be in \[0, 1\), got 1"),
        (["--sparsity", "much"], "--sparsity must be comma-separated numbers"),
        (["--steps", "30"], "--steps must be a multiple of 20"),
        (["--learning-rate", "0"], "--learning-rate must be above 0"),
        (["--batch-size", "0"], "batch_size must be at least 1"),
        (["--mesh", "rows:2"], "--mesh must be like data:4,model:2"),
        (["--mesh", "data:64"], "needs 64 devices.*xla_force_host_platform_device_count=64"),
        (["--mesh", "data:3"], "--batch-size must be a multiple of data:3, got 8"),
        (["--text", "nowhere.txt"], "tiny_shakespeare or a file, but nowhere.txt is not a file"),
    ],
)
def test_values_that_cannot_be(args, words, call, tmp_path):
    code, _, err = call(language_model.main, *args, "--out", str(tmp_path / "out"))
    assert code == 2 and err.count("\n") == 1
    assert re.search(words, err)
    assert not (tmp_path / "out").exists()


def test_a_text_that_is_too_short(call, tmp_path):
    short = tmp_path / "short.txt"
    short.write_bytes(b"abc" * 50)
    for content in (b"abc" * 50, b"abc"):
        short.write_bytes(content)
        code, _, err = call(language_model.main, "--text", str(short), "--out", str(tmp_path / "o"))
        assert code == 2 and "bytes" in err and str(short) in err


def test_the_plan_of_a_mesh(monkeypatch, call):
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    args = ["--plan", "--method", "rigl", "--mesh", "data:2,model:2"]
    code, out, err = call(language_model.main, *args)
    assert code == 0, err
    # Kernels and embedding are split over all four devices, norms are on each.
    split = SMALLEST.sparse_weights + 256 * SMALLEST.width
    expected = split + 4 * (SMALLEST.weights - split)
    assert f"| rigl | {size(expected)} |" in out
    assert "The steps lower for cuda and tpu." in out


def test_the_step_of_the_largest_preset_lowers():
    step, given = plan.training_step(PRESETS["1b"], Cell("rigl", 0.9, 0), "data:4,model:2")
    exported = jax.export.export(step, platforms=plan.PLATFORMS)(*given)
    assert set(exported.platforms) == set(plan.PLATFORMS) and exported.nr_devices == 8
    for path, leaf in jax.tree.leaves_with_path(given):
        if "'down'" in jax.tree_util.keystr(path):  # kernel, both moments and mask
            assert leaf.sharding.spec == jax.P(None, "model", "data")


def test_the_log_is_whole_however_often_it_is_written(tmp_path):
    pytest.importorskip("tensorboardX")
    curves = {"loss": np.array([[3.0, 2.0, np.nan]]), "density": np.array([[1.0, 0.5, np.nan]])}
    for _ in range(2):  # as after a stop
        log = Log(tmp_path, "dense-0", 5, tensorboard=True)
        log.write(5, curves)
        log.write(10, curves)
    lines = (tmp_path / "logs" / "dense-0.jsonl").read_text().splitlines()
    first = {"step": 5, "loss": 3.0, "density": 1.0}
    assert list(map(json.loads, lines)) == [first, {"step": 10, "loss": 2.0, "density": 0.5}]
    (events,) = (tmp_path / "logs" / "dense-0").iterdir()
    assert b"density" in events.read_bytes()


METHODS = ["dense", "gradual", TICKET]


def run(folder, text, *args, methods):
    given = ["--text", str(text), "--sparsity", "0.75", "--method", ",".join(methods)]
    language_model.main([*given, *args, "--out", str(folder)])


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    pytest.importorskip("grain")
    path = tmp_path_factory.mktemp("study")
    text = path / "text.txt"
    text.write_bytes(BYTES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "tiny", TINY)
        patch.setattr(cells, "TURNS", 1)
        run(path / "out", text, methods=METHODS)
        yield path / "out", text


def test_a_study_from_its_command_line(study):
    path, _ = study
    results = read_results(path, cells.content_of)
    runs = ["dense-0", "gradual-0.75-0", "ticket-0.75-0"]
    assert list(results) == [*runs, "time-gradual-0.75"]
    curves = read_arrays(path / "curves.npz")
    dense, ramp, ticket = (curves[f"{name}/density"][0].tolist() for name in runs)
    assert dense == [1, 1, 1, 1] and ticket == [1, 0.25, 0.25, 0.25]
    assert ramp[0] == 1 and ramp[-1] == 0.25 and sorted(ramp, reverse=True) == ramp
    losses = [curves[f"{name}/validation_loss"][0] for name in runs]
    assert all(loss[-1] < loss[0] for loss in losses)
    # Until it is rewound, a ticket is the dense run.
    np.testing.assert_allclose(losses[2][0], losses[0][0], rtol=1e-5)
    flops = [results[name]["flops"][0] for name in runs]
    assert flops[0] == 1 and flops[1] < 1 < flops[2] < 2
    lines = (path / "logs" / "gradual-0.75-0.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [4, 8, 12, 16]
    table = (path / "table.md").read_text()
    assert "## 75% of the kernels zero" in table and "PARTIAL" not in table
    assert (path / "loss.png").stat().st_size > 1000


def test_a_stopped_run_goes_on(study, tmp_path, monkeypatch, call):
    whole, text = study
    monkeypatch.setattr(engine, "CHECKPOINT_SECONDS", 0.0)

    def stop(*_):
        raise KeyboardInterrupt

    start = functools.partial(run, tmp_path / "out", text, methods=["dense"])
    with monkeypatch.context() as patch:
        patch.setattr(Log, "write", stop)
        code, _, err = call(lambda _: start(), "")
    assert code == 130 and "the same command continues from here" in err
    code, out, _ = call(lambda _: start(), "")
    assert code == 0 and "Continuing from step" in out
    first, second = (read_arrays(folder / "curves.npz") for folder in (whole, tmp_path / "out"))
    for name, curve in second.items():
        np.testing.assert_array_equal(curve, first[name])


def test_a_folder_takes_more_seeds_but_no_other_recipe(study, call):
    path, text = study
    more = functools.partial(run, path, text, methods=METHODS)
    code, out, _ = call(lambda _: more("--seeds", "2", "--minutes", "0"), "")
    assert code == 0 and "3 of 7 cells, 16 steps" in out and "PARTIAL" in out
    code, _, err = call(lambda _: more("--steps", "20"), "")
    assert code == 1 and "another configuration (steps 16 there, 20 here" in err
