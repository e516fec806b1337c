"""A small decoder, its layout on a mesh, and the study that trains it."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxsparse
from experiments.common.study.content import read_arrays, read_results
from experiments.common.training import loop
from experiments.common.training.execution import Execution, replicate_keys
from experiments.language_model import __main__ as language_model
from experiments.language_model import cells, data, layout, plan
from experiments.language_model.decoder import (
    Architecture,
    Block,
    make_decoder,
    rotate,
    smaller,
)
from experiments.language_model.settings import (
    LIFTED,
    PRESETS,
    SMALL,
    TICKET,
    Cell,
    Settings,
    parse,
)

SMALLEST = Architecture(layers=2, width=16, heads=4, groups=2, hidden=24)
TINY = Settings(
    *(SMALLEST, 16, 4, 16, 1e-2), text="tiny_shakespeare", every=2, validate=4, weight_decay=0.1
)
TOKENS = jax.random.randint(jax.random.key(7), (4, 16), 0, 256)


def decoder(**changes):
    apply, init_params = make_decoder(dataclasses.replace(SMALLEST, **changes))
    return jax.jit(apply), jax.jit(init_params)(jax.random.key(0))


def test_a_later_byte_changes_no_earlier_logit():
    apply, params = decoder()
    before, after = apply(params, TOKENS), apply(params, TOKENS.at[:, 9].set(TOKENS[:, 9] ^ 1))
    np.testing.assert_array_equal(before[:, :9], after[:, :9])
    assert jnp.all(jnp.any(before[:, 9:] != after[:, 9:], axis=(0, 2)))


def test_rotary_products_depend_on_the_distance_alone():
    one, other = jax.random.normal(jax.random.key(0), (2, 1, 8))
    turned = rotate(jnp.broadcast_to(one, (12, 1, 8))), rotate(jnp.broadcast_to(other, (12, 1, 8)))
    products = jnp.einsum("ihd,jhd->ij", *turned)
    for distance in range(-5, 6):
        along = jnp.diagonal(products, distance)
        np.testing.assert_allclose(along, along[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(products[0, 0], (one * other).sum(), rtol=1e-5)
    assert jnp.ptp(products[0]) > 0.1


def test_grouped_queries_are_full_attention_where_groups_repeat():
    grouped = Block(SMALLEST, nnx.Rngs(0))
    full = Block(dataclasses.replace(SMALLEST, groups=4), nnx.Rngs(0))
    for name in ("query", "out", "gate", "up", "down"):
        getattr(full, name).kernel[...] = getattr(grouped, name).kernel[...]
    for name in ("key", "value"):
        kernel = getattr(grouped, name).kernel[...].reshape(16, 2, 4)
        getattr(full, name).kernel[...] = jnp.repeat(kernel, 2, axis=1).reshape(16, 16)
    stream = jax.random.normal(jax.random.key(1), (2, 5, 16))
    expected = jax.jit(grouped)(stream)
    np.testing.assert_allclose(jax.jit(full)(stream), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["1m", "10m", "100m", "1b"])
def test_a_preset_has_the_weights_of_its_name(name):
    shape = PRESETS[name].architecture
    PRESETS[name].check()
    _, init_params = make_decoder(shape)
    kinds = jax.eval_shape(init_params, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(kinds)) == shape.weights
    wanted = {"1m": 1e6, "10m": 1e7, "100m": 1e8, "1b": 1e9}[name]
    assert 0.95 * wanted < shape.weights < 1.05 * wanted


def test_a_small_decoder_has_as_many_weights_as_live_in_a_sparse_one():
    whole = PRESETS["1m"].architecture
    for sparsity in (0.75, 0.9):
        small = PRESETS["1m"].shape(Cell(SMALL, sparsity, 0))
        alive = whole.weights - sparsity * whole.sparse_weights
        assert small.width < whole.width and 0.99 * alive < small.weights <= alive
    with pytest.raises(ValueError, match="choose a lower sparsity"):
        smaller(whole, 100)


def test_masters_are_float32_and_checkpoints_change_nothing():
    apply, params = decoder()
    half, again = decoder(compute="bfloat16")[0], decoder(checkpoint=True)[0]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    logits = apply(params, TOKENS)
    assert half(params, TOKENS).dtype == jnp.float32
    np.testing.assert_allclose(half(params, TOKENS), logits, atol=0.1)

    def loss(apply):
        return lambda params: jnp.mean(apply(params, TOKENS) ** 2)

    grads, same = jax.grad(loss(apply))(params), jax.grad(loss(again))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), grads, same)


def trainer_of(method, mesh=None):
    cell = Cell(method, 0.75, 0)
    apply, init_params = make_decoder(SMALLEST, layout.over_batch(mesh))
    trainer = loop.make_trainer(
        apply,
        init_params,
        lambda key: TINY.method(cell, key),
        TOKENS,
        jnp.roll(TOKENS, -1, axis=1),
        batch_size=4,
        execution=Execution("conv", "map"),
        start=jaxsparse.init,
    )
    return layout.spread(trainer, replicate_keys(0, 1), mesh)


def test_scanned_kernels_are_sparse_and_nothing_else():
    trainer = trainer_of("rigl")
    state = trainer.advance(trainer.init(replicate_keys(0, 1)), 0, 6)
    params, opt_state = jax.tree.map(lambda leaf: leaf[0], (state.params, state.opt_state))
    found = jaxsparse.metrics(opt_state, params=params)
    assert found["off_mask"] == 0 and found["last_update"] == 4
    masks = jaxsparse.get_masks(opt_state, params)
    for path, mask in jax.tree.leaves_with_path(masks):
        kernel = "kernel" in jax.tree_util.keystr(path)
        assert mask.mean() == (0.25 if kernel else 1.0)
    assert masks["blocks"]["gate"]["kernel"][...].shape == (2, 16, 24)


def test_a_mesh_gives_the_same_losses_and_masks():
    found = []
    for mesh in (None, layout.make_mesh("data:2,model:2")):
        trainer = trainer_of("rigl", mesh)
        state = trainer.init(replicate_keys(0, 1))
        if mesh is not None:
            gate = state.params["blocks"]["gate"]["kernel"][...]
            assert gate.sharding.shard_shape(gate.shape) == (1, 2, 8, 12)
            masks = jaxsparse.get_masks(state.opt_state, state.params)
            mask = masks["blocks"]["gate"]["kernel"][...]
            assert mask.sharding.is_equivalent_to(gate.sharding, 4)
        state = trainer.advance(trainer.advance(state, 0, 3), 3, 6)
        found.append(jax.device_get((state.loss_sum, state.opt_state.masks)))
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, found[1][1], found[0][1])


def test_masks_are_switched_once_and_where_they_should():
    calls = []

    class Recorder:
        def advance(self, state, first, last):
            calls.append((first, last))
            return state

        def _replace(self, advance):
            self.run = advance
            return self

    params = {"kernel": jnp.arange(1.0, 9).reshape(1, 2, 4)}
    tx = jaxsparse.fixed(optax.sgd(0.1), 0.5, key=0)
    params, opt_state = jax.vmap(lambda params: jaxsparse.init(tx, params))(params)
    state = loop.TrainState(params, opt_state, *[jnp.zeros(1)] * 3)
    recorder = Recorder()
    switching = cells._switching(Recorder._replace(recorder, None), 4, cells._everything)
    del switching
    run = recorder.run
    assert run(state, 0, 4).opt_state.masks["kernel"].mean() == 0.5
    assert run(state, 4, 6).opt_state.masks["kernel"].mean() == 1.0
    assert run(state, 2, 6).opt_state.masks["kernel"].mean() == 1.0
    assert run(state, 5, 6).opt_state.masks["kernel"].mean() == 0.5
    assert calls == [(0, 4), (4, 6), (2, 4), (4, 6), (5, 6)]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(bytes(range(32, 127)) * 60)
    return path


def test_the_bytes_of_a_file(text):
    pytest.importorskip("grain")
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
        (["--sparsity", "much"], "--sparsity must be numbers"),
        (["--steps", "30"], "--steps must be a multiple of 20"),
        (["--learning-rate", "0"], "--learning-rate must be above 0"),
        (["--batch-size", "0"], "batch_size must be at least 1"),
        (["--mesh", "rows:2"], "--mesh must be like data:4,model:2"),
        (["--mesh", "data:64"], "needs 64 devices.*xla_force_host_platform_device_count=64"),
        (["--mesh", "data:3"], "--batch-size must be a multiple of data:3, got 8"),
        (["--text", "nowhere.txt"], "must be tiny_shakespeare or a file, but nowhere.txt is none"),
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
    args = ["--plan", "--method", "dense,rigl", "--mesh", "data:2,model:2"]
    code, out, err = call(language_model.main, *args)
    assert code == 0, err
    assert "The steps lower for cuda and tpu." in out and "| rigl |" in out
    one, four = (plan.memory(TINY, Cell("rigl", 0.9, 0), mesh) for mesh in (None, "data:2,model:2"))
    assert one["parameters"] == 4 * SMALLEST.weights
    shared = SMALLEST.sparse_weights + 256 * SMALLEST.width
    rest = SMALLEST.weights - shared
    assert four["parameters"] == shared + 4 * rest
    assert 0 < four["masks"] <= one["masks"] / 3


def test_the_steps_of_the_large_presets_lower():
    for name in ("100m", "1b"):
        step, given = plan.training_step(PRESETS[name], Cell("rigl", 0.9, 0), "data:4,model:2")
        exported = jax.export.export(step, platforms=plan.PLATFORMS)(*given)
        assert set(exported.platforms) == set(plan.PLATFORMS)
        assert exported.nr_devices == 8
        places = jax.tree.map(lambda leaf: leaf.sharding.spec, given[0])
        assert places["blocks"]["down"]["kernel"][...] == jax.P(None, "model", "data")


ALL = ["dense", SMALL, "gradual", "rigl", LIFTED, TICKET]


@pytest.fixture
def study(monkeypatch, text, tmp_path, call):
    pytest.importorskip("grain")
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    monkeypatch.setattr(cells, "TURNS", 1)

    def run(name, *args, methods=ALL):
        path = tmp_path / name
        given = ["--text", str(text), "--sparsity", "0.75", "--method", ",".join(methods)]
        return path, *call(language_model.main, *given, *args, "--out", str(path))

    return run


def test_a_study_from_its_command_line(study):
    path, code, out, err = study("whole")
    assert code == 0, err
    results = read_results(path, cells.content_of)
    runs = ["dense-0", *(f"{name}-0.75-0" for name in ALL[1:])]
    timed = [f"time-{name}-0.75" for name in (SMALL, "gradual", "rigl")]
    assert list(results) == runs + timed
    curves = read_arrays(path / "curves.npz")
    density = {name: curves[f"{name}/density"][0].tolist() for name in runs}
    assert density["dense-0"] == [1, 1, 1, 1] == density["small_dense-0.75-0"]
    assert density["rigl-0.75-0"] == [0.25] * 4
    assert density["fixed_then_dense-0.75-0"] == [0.25, 0.25, 0.25, 1]
    assert density["ticket-0.75-0"] == [1, 0.25, 0.25, 0.25]
    ramp = density["gradual-0.75-0"]
    assert ramp[0] == 1 and ramp[-1] == 0.25 and sorted(ramp, reverse=True) == ramp
    for name in ("dense", "ticket-0.75"):
        loss = curves[f"{name}-0/validation_loss"][0]
        assert loss[-1] < loss[0]
    same = [curves[f"{name}-0/validation_loss"][0, 0] for name in ("dense", "ticket-0.75")]
    np.testing.assert_allclose(*same, rtol=1e-5)  # until it is rewound, it is the dense run
    flops = {name: results[name]["flops"][0] for name in runs}
    assert flops["dense-0"] == 1
    assert flops["rigl-0.75-0"] < flops["gradual-0.75-0"] < 1 < flops["ticket-0.75-0"]
    lines = (path / "logs" / "rigl-0.75-0.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [4, 8, 12, 16]
    assert json.loads(lines[-1])["validation_loss"] > 0
    table = (path / "table.md").read_text()
    assert "## 75% of the kernels zero" in table and "PARTIAL" not in table
    assert (path / "loss.png").stat().st_size > 1000


def test_a_stopped_run_goes_on_and_more_seeds_are_added(study, monkeypatch):
    one = ["dense"]
    whole, *_ = study("whole", methods=one)
    path, code, _, err = study("stopped", "--minutes", "1e-9", methods=one)
    assert code == 3 and "no cell is finished yet" in err
    assert (path / "unfinished").exists()
    path, code, out, _ = study("stopped", methods=one)
    assert code == 0 and "Going on from step" in out
    first, second = (read_arrays(folder / "curves.npz") for folder in (whole, path))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    path, code, out, _ = study("stopped", "--seeds", "2", methods=one)
    assert code == 0 and "1 of 2 cells" in out
    assert list(read_results(path)) == ["dense-0", "dense-1"]
    _, code, _, err = study("stopped", "--steps", "20", methods=one)
    assert code == 1 and "another configuration (steps 16 there, 20 here" in err


def test_curves_for_tensorboard(study):
    pytest.importorskip("tensorboardX")
    path, code, _, err = study("seen", "--tensorboard", methods=["dense"])
    assert code == 0, err
    (events,) = (path / "logs" / "dense-0").iterdir()
    assert b"validation_loss" in events.read_bytes()
