"""The study of dynamic sparse training methods as its user meets it."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse
from experiments.common.data import datasets
from experiments.common.study.content import read_arrays, read_results
from experiments.common.study.lab import Site
from experiments.common.training import loop
from experiments.common.training.execution import replicate_keys
from experiments.sparse_momentum import __main__ as sparse_momentum
from experiments.sparse_momentum import cells, settings

SMALL = ["--epochs", "3", "--seeds", "2", "--sparsity", "0.9,0.8"]
SMALL += ["--method", "dense,fixed,gradual,sparse_momentum"]
FILES = {"config.json", "curves.npz", "error.png", "layers.png", "results.json", "summary.json"}
FILES |= {"table.md", "report.html"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a small study."""
    folder = tmp_path_factory.mktemp("study") / "small"
    sparse_momentum.main([*SMALL, "--out", str(folder)])
    return folder


def test_the_files_of_a_study(finished):
    assert {path.name for path in finished.iterdir()} == FILES
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["missing_cells"] == 0
    assert set(summary["methods"]) == {"dense", "fixed", "gradual", "sparse_momentum"}
    for name, found in summary["methods"].items():
        assert set(found) == ({"0.0"} if name == "dense" else {"0.9", "0.8"})
        for cell in found.values():
            assert cell["test_accuracy"]["n"] == 2
            assert 0.1 < cell["test_accuracy"]["mean"] <= 1


def test_lanes_of_one_program_differ_by_their_masks_alone(finished):
    """Every lane keeps its own number of weights, at each epoch; gradual reaches its own."""
    curves = read_arrays(finished / "curves.npz")
    sizes = {"fc1": 64 * 300, "fc2": 300 * 100, "head": 100 * 10}
    for method in ("fixed", "sparse_momentum", "gradual"):
        for sparsity in (0.9, 0.8):
            layers = {n: curves[f"{method}-{sparsity}/density/{n}"] for n in sizes}
            alive = sum(sizes[name] * layers[name] for name in sizes)
            wanted = sum(np.floor(n * (1 - sparsity) + 0.5) for n in sizes.values())
            last = alive[:, -1:] if method == "gradual" else alive
            np.testing.assert_allclose(last, wanted, rtol=1e-5)
            moved = np.ptp(layers["fc1"], axis=1).max() > 0
            assert moved == (method != "fixed")


def test_a_study_killed_before_its_first_report_is_drawn(finished, tmp_path, call):
    folder, trained = tmp_path / "copy", ("config.json", "results.json", "curves.npz")
    folder.mkdir()
    for name in trained:
        shutil.copy(finished / name, folder)
    code, _, _ = call(sparse_momentum.main, *SMALL, "--out", str(folder))
    assert code == 0 and {path.name for path in folder.iterdir()} == FILES
    assert (folder / "results.json").read_text() == (finished / "results.json").read_text()


def test_a_finished_study_is_not_trained_again(finished, monkeypatch, call):
    def never(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(loop, "make_trainer", never)
    code, out, _ = call(sparse_momentum.main, *SMALL, "--out", str(finished))
    assert code == 0 and "By density" in out


def test_a_study_takes_methods_and_sparsities_beside_those_it_has(finished, tmp_path, call):
    folder = shutil.copytree(finished, tmp_path / "copy")
    before = read_results(folder)
    more = ["--sparsity", "0.7", "--method", "dense,fixed", "--out", str(folder)]
    code, out, _ = call(sparse_momentum.main, *SMALL, *more)
    assert code == 0 and "1 of 2 cells" in out
    after = read_results(folder)
    assert set(after) == {*before, "fixed-0.7"}
    assert {name: after[name] for name in before} == before
    drawn = json.loads((folder / "summary.json").read_text())["methods"]
    assert set(drawn["fixed"]) == {"0.9", "0.8", "0.7"} and "gradual" in drawn


def test_another_configuration_is_refused(finished, call):
    code, _, err = call(sparse_momentum.main, *SMALL, "--seed", "1", "--out", str(finished))
    assert code == 1 and "seed 0 there, 1 here" in err


BAD = [
    (["--method", "magic"], "--method must be among"),
    (["--sparsity", "1"], "--sparsity must be comma-separated numbers in [0, 1)"),
    (["--sparsity", "few"], "--sparsity must be comma-separated numbers in [0, 1)"),
    (["--epochs", "0"], "--epochs must be at least 1"),
    (["--seeds", "0"], "--seeds must be at least 1"),
    (["--steps", "4"], "--steps must be at least 5"),
    (["--steps", "9", "--epochs", "2"], "--epochs and --steps exclude each other"),
    (["--batch-size", "0"], "--batch-size must be at least 1"),
    (["--batch-size", "5000"], "batch_size must be in [1, 12"),
    (["--image-size", "64"], "--image-size cannot be used with --preset digits"),
    (["--preset", "resnet_50", "--image-size", "8"], "--image-size must be at least 16"),
    (["--preset", "wrn_16_8", "--dataset", "nowhere"], "data set 'nowhere' is not in"),
]


@pytest.mark.parametrize(("args", "message"), BAD)
def test_bad_input_is_one_line_and_writes_nothing(args, message, tmp_path, call):
    code, _, err = call(sparse_momentum.main, *args, "--out", str(tmp_path / "out"))
    assert code == 2 and message in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_run_cut_short_goes_through_mask_updates(tmp_path, call):
    small = ["--seeds", "1", "--examples", "400", "--sparsity", "0.9", "--steps", "11"]
    methods = ["--method", "sparse_momentum,gradual", "--batch-size", "20"]
    code, out, _ = call(sparse_momentum.main, *small, *methods, "--out", str(tmp_path))
    assert code == 0 and "after 11 steps of batches of 20" in out
    curves = read_arrays(tmp_path / "curves.npz")  # after steps 2, 4, 6, 8 and 10
    for method in ("sparse_momentum", "gradual"):
        density = curves[f"{method}-0.9/density/fc1"]
        assert density.shape == (1, 5) and len(np.unique(density)) > 1
        assert np.isfinite(curves[f"{method}-0.9/validation_accuracy"]).all()


RECIPES = {
    "alexnet_s": (0.9,),
    "alexnet_b": (0.9,),
    "vgg_16_c": (0.95,),
    "vgg_16_d": (0.95,),
    "vgg_16_like": (0.97,),
    "wrn_16_8": (0.95,),
    "wrn_16_10": (0.95,),
    "wrn_22_8": (0.95,),
    "wrn_28_2": (0.9, 0.8, 0.7, 0.6, 0.5),
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe_of_cifar(name):
    found, steps = settings.PRESETS[name], 45_000 // 128
    assert found.model == name and found.dataset == "cifar10" and found.augment
    assert found.sparsities == RECIPES[name] and found.batch_size == 128
    assert found.length(steps) == 87_750 and found.every(steps) == 351
    assert (found.learning_rate, found.momentum, found.weight_decay) == (0.1, 0.9, 5e-4)
    assert (found.drop_every, found.prune_rate, found.validation) == (30_000, 0.2, 0.1)
    assert found.dropout == (0.3 if name.startswith("wrn") else 0.0)


def test_augmentation_dropout_and_dense_layers_reach_the_training(monkeypatch, made):
    data_dir, _, _ = made  # images of 5 x 7 pixels
    monkeypatch.setattr(datasets, "augment", functools.partial(datasets.augment, pad=2))
    recipe = dataclasses.replace(
        settings.PRESETS["wrn_28_2"],
        model="lenet_300_100",
        dataset="made",
        batch_size=4,
        steps=5,
        dense="^fc1/",
    )
    losses = []
    site = Site(replicate_keys(0, 1), data_dir=data_dir)
    for case in ({}, {"augment": False}, {"dropout": 0.0}):
        lab = cells.build(dataclasses.replace(recipe, **case), site)
        (group,) = cells.groups(lab, [cells.Cell("fixed", 0.5)])
        trainer, state = group.begin()
        assert group.iterations == 5 and group.every == 1
        curves = trainer.advance(state, 0, 1).tracked.curves
        losses.append(float(curves["loss"][0, 0]))
        densities = [float(curves[f"density/{name}"][0, 0]) for name in ("fc1", "fc2", "head")]
        assert densities == [1.0, 0.5, 0.5]
    assert len(set(losses)) == 3 and np.isfinite(losses).all()


def test_the_last_tenth_is_for_validation():
    whole = datasets.load("digits")
    split = datasets.split_last(whole, 0.1)
    n = len(whole.train_labels)
    assert len(split.validation_labels) == round(0.1 * n)
    joined = np.concatenate([split.train_labels, split.validation_labels])
    assert np.array_equal(joined, whole.train_labels)
    with pytest.raises(ValueError, match="fraction is 1.5"):
        datasets.split_last(whole, 1.5)


def test_the_optimizer_is_the_papers():
    chosen = settings.Settings("lenet_300_100", "mnist", 1, 1, (0.9,), drop_every=3)
    tx, params = settings.optimizer(chosen), jnp.float32(2.0)
    state, buffer = tx.init(params), 0.0
    for step in range(7):
        updates, state = tx.update(jnp.float32(1.0), state, params)
        slope = 1.0 + 5e-4 * float(params)
        buffer = 0.9 * buffer + slope
        expected = -0.1 * 0.1 ** (step // 3) * (slope + 0.9 * buffer)
        np.testing.assert_allclose(updates, expected, rtol=1e-5)
        params = optax.apply_updates(params, updates)


def test_the_momentum_of_sparse_momentum_has_the_weight_decay_in_it():
    chosen = settings.Settings("lenet_300_100", "mnist", 2, 1, (0.9,))
    tx = settings.method(chosen, "sparse_momentum", 0.5, 0, steps_per_epoch=10)
    params, state = jaxsparse.init(tx, {"kernel": jnp.ones((4, 5))})
    _, state = tx.update({"kernel": jnp.full((4, 5), 0.25)}, state, params)
    expected = 0.25 + 5e-4 * params["kernel"]
    kept = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (4, 5)]
    assert any(jnp.allclose(leaf, expected, atol=1e-7) for leaf in kept)


def test_the_initialization_is_uniform_by_fan_in():
    kernel = cells.initial("lenet_300_100", jax.random.key(0), (400, 300), jnp.float32)
    assert abs(kernel).max() <= 1 / 20
    np.testing.assert_allclose(kernel.std(), 1 / 20 / np.sqrt(3), rtol=0.02)


def test_biases_start_uniform_by_fan_in():
    chosen = settings.Settings("lenet_300_100", "digits", 1, 4, (0.9,))
    lab = cells.build(chosen, Site(replicate_keys(0, 1)))
    start = lab.network.init_params(jax.random.key(0))
    for layer in start:
        bias, kernel = start[layer]["bias"][...], start[layer]["kernel"][...]
        limit = 1 / np.sqrt(len(kernel))
        assert limit / 2 < abs(bias).max() <= limit
        assert abs(np.corrcoef(bias, kernel[0])[0, 1]) < 0.9


def test_a_sparse_initialization_counts_living_inputs():
    chosen = settings.Settings("lenet_300_100", "digits", 1, 4, (0.9,), steps=5)
    lab = cells.build(chosen, Site(replicate_keys(0, 2)))

    def first(name):
        (group,) = cells.groups(lab, [cells.Cell(name, 0.9)])
        return group.begin()[1].params["fc1"]["kernel"][...]

    dense, sparse = first("fixed"), first("fixed+initialization=sparse")
    np.testing.assert_array_equal(dense != 0, sparse != 0)
    assert abs(dense).max() <= 1 / 8
    alive = (sparse != 0).sum(1)
    assert (abs(sparse) <= 1 / np.sqrt(np.maximum(alive, 1))[:, None]).all()
    spread = np.sqrt((sparse**2).sum(1) * 3)[alive > 0]  # 1 in the mean, however many are alive
    assert abs(np.mean(spread**2) - 1) < 0.1
    assert not np.allclose(sparse[0], sparse[1])
    with pytest.raises(ValueError, match="initialization must be dense or sparse, got 'warm'"):
        settings.check(chosen, "fixed+initialization=warm")


def test_the_convolutions_of_residual_networks_start_normal_by_fan_out():
    shape = (3, 3, 40, 160)
    kernel = cells.initial("wrn_16_10", jax.random.key(0), shape, jnp.float32)
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 160)), rtol=0.02)
    assert abs(np.mean(kernel**4) / np.mean(kernel**2) ** 2 - 3) < 0.1
    other = cells.initial("vgg_16_d", jax.random.key(0), shape, jnp.float32)
    assert abs(other).max() <= 1 / np.sqrt(9 * 40)
