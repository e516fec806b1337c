"""Gradient flow against plain NumPy, recorded by an optimizer, and the signal it goes with."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse
from jaxsparse import analysis


def trees(seed=0):
    generator = np.random.default_rng(seed)
    shapes = {"kernel": (6, 5), "bias": (5,)}
    grads, updates = (
        {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        for _ in range(2)
    )
    masks = {"kernel": generator.random((6, 5)) < 0.4, "bias": np.ones(5, bool)}
    return grads, updates, masks


def test_norms_against_numpy():
    grads, updates, masks = jax.tree.map(jnp.asarray, trees())
    kernel = np.where(masks["kernel"], grads["kernel"], 0)
    found = analysis.gradient_flow(grads, masks)
    total = np.sqrt((kernel**2).sum() + (np.asarray(grads["bias"]) ** 2).sum())
    np.testing.assert_allclose(found.norm, total, rtol=1e-6)
    np.testing.assert_allclose(found.squared_norm, total**2, rtol=1e-6)
    np.testing.assert_allclose(sum(found.squared_layers.values()), total**2, rtol=1e-6)
    np.testing.assert_allclose(found.layers["kernel"], np.linalg.norm(kernel), rtol=1e-6)
    change = sum((np.asarray(grads[n]) * np.asarray(updates[n])).sum() for n in grads)
    np.testing.assert_allclose(analysis.first_order_change(grads, updates), change, rtol=1e-5)
    each = [np.linalg.norm(kernel) / int(masks["kernel"].sum()), np.linalg.norm(grads["bias"]) / 5]
    np.testing.assert_allclose(analysis.effective_flow(grads, masks), np.mean(each), rtol=1e-5)


def test_a_small_step_gains_what_the_flow_says():
    masks = {"w": jnp.array([True, False, True])}
    loss = lambda p: jnp.sum(jnp.sin(p["w"]) ** 2)  # noqa: E731
    params = jaxsparse.apply({"w": jnp.array([0.3, 1.0, -0.8])}, masks)
    grads, rate = jax.grad(loss)(params), 1e-3
    step = jax.tree.map(lambda p, g, m: jnp.where(m, p - rate * g, p), params, grads, masks)
    gained = loss(params) - loss(step)
    np.testing.assert_allclose(
        gained, rate * analysis.gradient_flow(grads, masks).squared_norm, rtol=1e-2
    )


def net():
    return {"kernel": jnp.arange(12.0).reshape(4, 3) / 10, "bias": jnp.zeros(3)}


def squares(params):
    return jnp.sum((params["kernel"] - 1) ** 2) + jnp.sum(params["bias"] - 1)


def test_the_flow_is_recorded_with_one_gradient_and_without_changing_a_step(count_traces):
    """At every step, mask updates among them, against NumPy; the steps are the optimizer's own."""
    plain = jaxsparse.rigl(optax.sgd(0.1), sparsity=0.5, key=0, every=2)
    recording = analysis.record_flow(plain)
    loss = count_traces(squares)

    @functools.partial(jax.jit, static_argnums=0)
    def step(tx, params, state):
        grads = jax.grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return grads, updates, optax.apply_updates(params, updates), state

    params, state = jaxsparse.init(recording, net())
    other, other_state = jaxsparse.init(plain, net())
    moved = []
    for _ in range(5):
        before = jaxsparse.get_masks(state, params)
        grads, updates, params, state = step(recording, params, state)
        _, _, other, other_state = step(plain, other, other_state)
        after = jaxsparse.get_masks(state, params)
        assert jax.tree.all(jax.tree.map(np.array_equal, params, other))
        norms = [
            np.sqrt(sum((np.asarray(g) ** 2)[np.asarray(masks[n])].sum() for n, g in grads.items()))
            for masks in (before, after)
        ]
        np.testing.assert_allclose([state.norm_before, state.flow.norm], norms, rtol=1e-6)
        moved.append(norms[0] != norms[1])
        change = sum((np.asarray(grads[n]) * np.asarray(updates[n])).sum() for n in grads)
        np.testing.assert_allclose(state.change, change, rtol=1e-5)
        np.testing.assert_allclose(state.effective, analysis.effective_flow(grads, after))
    assert moved == [False, False, True, False, True]
    assert loss.traces == 2  # one for each optimizer
    assert jaxsparse.metrics(state)["density"] == 0.5


def test_the_flow_of_a_dense_optimizer_is_recorded_too():
    tx = optax.chain(optax.clip(10.0), analysis.record_flow(optax.sgd(0.1)))
    state = tx.init(net())
    assert state[1].flow.norm == 0 and list(state[1].flow.layers) == ["bias", "kernel"]
    grads = jax.grad(squares)(net())
    _, state = tx.update(grads, state)
    recorded = optax.tree.get(state, "RecordedFlow")
    np.testing.assert_allclose(recorded.flow.norm, analysis.gradient_flow(grads).norm, rtol=1e-6)
    np.testing.assert_allclose(recorded.change, -0.1 * recorded.flow.squared_norm, rtol=1e-5)


def test_across_a_mask_update():
    loss = lambda p: jnp.sum((p["w"] - jnp.arange(4.0)) ** 2)  # noqa: E731
    params = {"w": jnp.array([5.0, 5.0, 5.0, 5.0])}
    before, after = ({"w": jnp.array(m, bool)} for m in ([1, 1, 0, 0], [1, 0, 0, 1]))
    found = analysis.flow_across_update(loss, params, before, after)
    # 2 (w - target) at the living weights: (5, 5, 0, 0), then (5, 0, 0, 0).
    np.testing.assert_allclose(found, [np.hypot(10, 8), np.hypot(10, 6)], rtol=1e-6)


def test_masks_of_another_tree():
    grads, _, _ = trees()
    with pytest.raises(ValueError, match="masks must have the structure"):
        analysis.gradient_flow(grads, {"kernel": jnp.ones((6, 5), bool)})
    with pytest.raises(ValueError, match="updates must have the structure"):
        analysis.first_order_change(grads, {"kernel": jnp.ones((6, 5))})


def test_the_signal_stays_with_the_sparse_initialization_and_falls_with_the_dense_one():
    """Figure 3 on a net of four layers: the deviation of the output against the sparsity."""
    sizes = [64, 100, 100, 100, 10]
    keys = jax.random.split(jax.random.key(0), 5)
    params = {
        f"fc{i}": {"kernel": jax.random.normal(keys[i], shape) * np.sqrt(2 / shape[0])}
        for i, shape in enumerate(itertools.pairwise(sizes))
    }
    inputs = jax.random.normal(keys[4], (200, 64))

    def forward(params):
        hidden = inputs
        for i in range(3):
            hidden = jax.nn.relu(hidden @ params[f"fc{i}"]["kernel"])
        return hidden @ params["fc3"]["kernel"]

    sparsities = [0.0, 0.5, 0.9]
    found = {
        init: np.asarray(analysis.signal_propagation(forward, params, sparsities, key=1, init=init))
        for init in ("sparse", "layer", "dense")
    }
    assert found["dense"][0] == pytest.approx(float(jnp.std(forward(params))), rel=1e-6)
    # Every layer passes on its density of the variance.
    falls = found["dense"] / found["dense"][0]
    np.testing.assert_allclose(falls, [1, 0.5**2, 0.1**2], rtol=0.35)
    for init in ("sparse", "layer"):
        np.testing.assert_allclose(found[init] / found[init][0], 1, atol=0.4)
    with pytest.raises(ValueError, match="init must be one of sparse, layer, dense, got 'he'"):
        analysis.signal_propagation(forward, params, [0.5], key=1, init="he")
