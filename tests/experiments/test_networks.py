"""Networks as functions: batch normalization's statistics, dropout, and training's own forward."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from experiments.common.data import datasets
from experiments.common.models.layers import to_planes
from experiments.common.models.network import make_network
from experiments.common.models.registry import build


def paths(params):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value"): leaf
        for path, leaf in jax.tree.leaves_with_path(params)
    }


def examples(shape=(16, 16, 3), n=6):
    images = np.random.default_rng(0).random((n, *shape), np.float32)
    labels = np.arange(n, dtype=np.int32)
    return datasets.Dataset("made", "", images, labels, images, labels, 10)


def test_a_residual_network_learns_and_keeps_its_statistics():
    made = examples()
    net = make_network("resnet_18", made)
    params = net.init_params(jax.random.key(0))
    tx = optax.sgd(0.05, momentum=0.9)

    def loss(params, key):
        logits, moved = net.forward(params, key, made.train_inputs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, made.train_labels)
        return losses.mean(), moved

    @jax.jit
    def step(params, state, key):
        (value, moved), grads = jax.value_and_grad(loss, has_aux=True)(params, key)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return jax.tree.map(lambda p, m: p if m is None else m, params, moved), state, value

    start, state, losses = paths(params), tx.init(params), []
    for i in range(12):
        params, state, value = step(params, state, jax.random.key(i))
        losses.append(float(value))
    assert losses[-1] < 0.5 * losses[0]
    end = paths(params)
    statistics = {name for name in end if name.endswith(("/mean", "/var"))}
    assert len(statistics) == 2 * (1 + 9 * 2 + 2)
    for name, leaf in end.items():
        assert not np.array_equal(leaf, start[name]), name
    trained, _ = net.forward(params, jax.random.key(0), made.train_inputs)
    assert not np.allclose(net.apply(params, made.train_inputs), trained, atol=1e-3)


def test_statistics_are_those_of_the_batch():
    made = examples(n=64)
    net = make_network("resnet_18", made)
    params = net.init_params(jax.random.key(0))
    _, moved = net.forward(params, jax.random.key(0), made.train_inputs)
    model = build("resnet_18", key_or_seed=0, input_shape=(16, 16, 3), num_classes=10)
    graphdef = nnx.graphdef(model)
    first = nnx.merge(graphdef, params).conv.conv(to_planes(made.train_inputs))
    found = paths(moved)
    assert all(name.endswith(("/mean", "/var")) for name in found)
    mean, var = np.mean(first, (1, 2, 3)), np.var(first, (1, 2, 3))
    np.testing.assert_allclose(found["conv/norm/mean"], 0.1 * mean, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found["conv/norm/var"], 0.9 + 0.1 * var, rtol=1e-3)


def test_dropout_is_drawn_anew_while_training_and_absent_otherwise():
    made = examples(shape=(8, 8, 3))
    plain, dropped = (make_network("conv_2", made, dropout=rate) for rate in (0.0, 0.5))
    params = plain.init_params(jax.random.key(0))
    assert plain.forward is None
    inputs = made.train_inputs
    np.testing.assert_array_equal(plain.apply(params, inputs), dropped.apply(params, inputs))
    one, other, again = (
        dropped.forward(params, jax.random.key(seed), inputs)[0] for seed in (1, 2, 1)
    )
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other) and not np.allclose(one, plain.apply(params, inputs))
    for name, rate in (("resnet_18", 0.5), ("lenet_5", 1.0)):
        with pytest.raises(ValueError, match=f"dropout is {rate}"):
            make_network(name, examples(), dropout=rate)
