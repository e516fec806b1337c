"""Training on images that stay on the disk, on made-up images with the features of ImageNet."""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.common.data import datasets, tfds_reader
from experiments.common.models import registry
from experiments.common.models.network import normalize
from experiments.common.study.content import read_arrays
from experiments.common.training import evaluation, from_disk
from experiments.common.training.execution import Execution
from experiments.sparse_momentum import __main__ as sparse_momentum

LEARNING_RATE = 0.05


def load(folder, **options):
    arguments = {"image_size": 8, "batch_size": 4, "validation": 0.2, "seed": 3} | options
    return from_disk.load("imagenet2012", data_dir=folder, **arguments)


def test_images_for_evaluation_are_held_and_the_others_counted(imagenet):
    images = load(imagenet)
    found = images.dataset
    assert found.num_classes == 1000 and found.train_inputs.shape == (0, 8, 8, 3)
    assert images.steps_per_epoch == 3  # 15 images, 3 of them set aside
    np.testing.assert_array_equal(found.validation_labels, [2, 3, 4])
    np.testing.assert_array_equal(found.test_labels, np.arange(5))  # not those without a class
    for part in ("validation", "test"):
        inputs, labels = getattr(found, f"{part}_inputs"), getattr(found, f"{part}_labels")
        assert inputs.dtype == np.uint8 and labels.dtype == np.int32
        grey = np.broadcast_to(10 * labels[:, None, None, None], inputs.shape)
        np.testing.assert_allclose(inputs.astype(int), grey, atol=3)
    assert "8x8x3" in found.description and "'validation'" in found.description
    fewer = load(imagenet, examples=10, batch_size=8)
    assert fewer.steps_per_epoch == 1
    np.testing.assert_array_equal(fewer.dataset.validation_labels, [3, 4])
    assert "the first 10 examples of each split" in fewer.dataset.description


def test_training_never_sees_what_is_set_aside(imagenet):
    images = load(imagenet, validation=0.75, batch_size=2)  # classes 0, 1, 2, 3 are left
    seen = np.concatenate([labels for _, labels in itertools.islice(images.batches(0), 8)])
    assert set(seen) == {0, 1, 2, 3}


def apply(params, images):
    pixels = normalize(images).reshape(len(images), -1)
    return pixels @ params["kernel"] + params["bias"]


def init_params(key):
    return {"kernel": 0.1 * jax.random.normal(key, (192, 5)), "bias": jnp.zeros(5)}


def trainer(images, tx=None):
    return from_disk.make_trainer(
        apply,
        init_params,
        lambda key: tx or optax.sgd(LEARNING_RATE),
        images,
        batch_size=4,
        execution=Execution("conv", "vmap"),
    )


def test_steps_are_ordinary_optax_steps_over_the_stream(imagenet):
    images = load(imagenet)
    made = trainer(images)
    start = made.init(jax.random.split(jax.random.key(0), 2))
    expected = jax.tree.map(np.asarray, start.params)

    def loss(params, inputs, labels):
        return evaluation.cross_entropy(apply(params, inputs), labels).mean()

    slope = jax.jit(jax.vmap(jax.value_and_grad(loss), in_axes=(0, None, None)))
    total = 0
    for inputs, labels in itertools.islice(images.batches(0), 5):
        value, grads = slope(expected, inputs, labels)
        expected = jax.tree.map(lambda p, g: p - LEARNING_RATE * g, expected, grads)
        total = total + value
    found = made.advance(start, 0, 5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found.params, expected)
    np.testing.assert_allclose(found.loss_sum, total, rtol=1e-5)
    assert made.steps_per_epoch == 3


def test_a_run_may_be_cut_anywhere(imagenet):
    made = trainer(load(imagenet), optax.sgd(LEARNING_RATE, momentum=0.9))
    keys = jax.random.split(jax.random.key(0), 1)
    whole, cut = made.advance(made.init(keys), 0, 5), made.init(keys)
    for first, last in ((0, 2), (2, 3), (3, 5)):
        cut = made.advance(cut, first, last)
    jax.tree.map(np.testing.assert_array_equal, whole, cut)


def test_errors_say_what_to_do(imagenet, monkeypatch, made):
    with pytest.raises(ValueError, match=r"batch_size must be in \[1, 12\].*got 13"):
        load(imagenet, batch_size=13)
    with pytest.raises(datasets.DataNotFound, match="imagenet2012"):
        load(made[0] + "/nowhere")
    monkeypatch.setattr(tfds_reader, "MEMORY_LIMIT", 2**10)
    with pytest.raises(ValueError, match="the 8 images .* for evaluation take .* GiB at 8 pixels"):
        load(imagenet)


def test_a_study_of_a_residual_network_on_imagenet(imagenet, tmp_path, monkeypatch, call):
    make = registry.MODELS["resnet_50"].make
    small = registry.Model(functools.partial(make, blocks=(1,), features=(8,)))
    monkeypatch.setitem(registry.MODELS, "resnet_50", small)
    args = ["--preset", "resnet_50", "--image-size", "16", "--batch-size", "4", "--steps", "6"]
    args += ["--method", "sparse_momentum", "--sparsity", "0.5", "--seeds", "2"]
    args += ["--data-dir", imagenet, "--out", str(tmp_path / "study")]
    code, out, _ = call(sparse_momentum.main, *args)
    assert code == 0 and "imagenet2012, images of 16x16x3" in out
    summary = json.loads((tmp_path / "study" / "summary.json").read_text())
    assert summary["methods"]["sparse_momentum"]["0.5"]["test_accuracy"]["n"] == 2
    curves = read_arrays(tmp_path / "study" / "curves.npz")
    loss = curves["sparse_momentum-0.5/loss"]
    assert loss.shape == (2, 6) and np.isfinite(loss).all() and (loss[:, -1] < loss[:, 0]).all()
    start = "sparse_momentum-0.5/density/"
    layers = {name.removeprefix(start): d for name, d in curves.items() if name.startswith(start)}
    dense = {name for name, density in layers.items() if (density == 1).all()}
    assert dense == {"conv/conv", "block1/shortcut/conv"} and len(layers) == 1 + 4 + 1
