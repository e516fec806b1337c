"""Gradient flow against plain NumPy, and recorded inside a sparse optimizer."""

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
    np.testing.assert_allclose(found.flow, total**2, rtol=1e-6)
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
    np.testing.assert_allclose(gained, rate * analysis.gradient_flow(grads, masks).flow, rtol=1e-2)


def test_the_flow_is_recorded_inside_a_sparse_optimizer_with_one_gradient():
    params = {"kernel": jnp.arange(12.0).reshape(4, 3) / 10, "bias": jnp.zeros(3)}
    tx = jaxsparse.rigl(
        optax.chain(analysis.record_flow(), optax.sgd(0.1)), sparsity=0.5, key=0, every=2
    )
    params, state = jaxsparse.init(tx, params)

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: jnp.sum((p["kernel"] - 1) ** 2) + jnp.sum(p["bias"] - 1))(params)
        updates, state = tx.update(grads, state, params)
        return grads, optax.apply_updates(params, updates), state

    for _ in range(5):
        grads, params, state = step(params, state)
        masks = jaxsparse.get_masks(state, params)
        recorded = state.inner_state[0]
        np.testing.assert_allclose(
            recorded.norm, analysis.gradient_flow(grads, masks).norm, rtol=1e-6
        )


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
