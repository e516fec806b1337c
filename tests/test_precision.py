"""Every float type where it hurts: moments of another type, overflow, lost digits, few bits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse

DRAW = np.random.default_rng(0)
KERNEL = DRAW.normal(size=(8, 8)).astype(np.float32)
INPUTS = DRAW.normal(size=(16, 8)).astype(np.float32)


def loss(params, dtype):
    found = jnp.tanh(jnp.asarray(INPUTS, dtype) @ params["kernel"].astype(dtype))
    return jnp.mean(found.astype(jnp.float32) ** 2)


def in_float32(inner):
    """The optimizer with state and arithmetic in float32, whatever the parameters are."""

    def wide(tree):
        return optax.tree_utils.tree_cast(tree, jnp.float32)

    def update(grads, state, params):
        return inner.update(wide(grads), state, wide(params))

    return optax.GradientTransformation(lambda params: inner.init(wide(params)), update)


@pytest.mark.standard_promotion  # Adam leans on it
def test_bfloat16_parameters_with_float32_moments():
    tx = jaxsparse.rigl(in_float32(optax.adam(0.05)), 0.75, key=0, every=2, drop_fraction=0.5)
    params, state = jaxsparse.init(tx, {"kernel": jnp.asarray(KERNEL, jnp.bfloat16)})
    start = state.masks["kernel"]

    @jax.jit
    def step(params, state):
        grads = jax.grad(loss)(params, jnp.bfloat16)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, updates

    for _ in range(6):
        params, state, updates = step(params, state)
        mask, adam = state.masks["kernel"], state.inner_state[0]
        assert updates["kernel"].dtype == params["kernel"].dtype == jnp.bfloat16
        assert adam.mu["kernel"].dtype == adam.nu["kernel"].dtype == jnp.float32
        assert not np.any(np.asarray(params["kernel"], np.float32)[~np.asarray(mask)])
        assert not np.any(np.asarray(adam.nu["kernel"])[~np.asarray(mask)])
        assert mask.sum() == 16
    assert not np.array_equal(mask, start)
    # A second moment in bfloat16 would have eight bits of it.
    assert np.any(np.asarray(adam.nu["kernel"]) != adam.nu["kernel"].astype(jnp.bfloat16))


@pytest.mark.parametrize("outside", [True, False])
def test_float16_with_loss_scaling(outside):
    """A scale that is too large is halved; the steps that it spoils move neither weight nor mask.

    Outside of the wrapper `apply_if_finite` stops its clock too, inside of it a mask update that
    was due is made up for.
    """

    def method(inner):
        return jaxsparse.rigl(inner, 0.75, key=0, every=2, drop_fraction=0.5)

    sgd = optax.sgd(0.1, 0.9)
    tx = (
        optax.apply_if_finite(method(sgd), 100)
        if outside
        else method(optax.apply_if_finite(sgd, 100))
    )
    params, state = jaxsparse.init(tx, {"kernel": jnp.asarray(KERNEL, jnp.float16)})

    @jax.jit
    def step(params, state, scale):
        def scaled(params):
            return loss(params, jnp.float16) * scale

        grads = jax.grad(scaled)(params)
        good = jnp.all(jnp.isfinite(grads["kernel"]))
        # Divided in float32, because a float16 loses the small ones.
        grads = {"kernel": (grads["kernel"].astype(jnp.float32) / scale).astype(jnp.float16)}
        updates, new = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), new, jnp.where(good, scale, scale / 2), good

    scale, spoiled = jnp.float32(2**24), []
    for _ in range(16):
        before = params, jaxsparse.get_masks(state, params)
        params, state, scale, good = step(params, state, scale)
        masks = jaxsparse.get_masks(state, params)
        spoiled.append(not good)
        if not good:
            np.testing.assert_array_equal(params["kernel"], before[0]["kernel"])
            np.testing.assert_array_equal(masks["kernel"], before[1]["kernel"])
        assert np.all(np.isfinite(params["kernel"]))
        assert not np.any(np.asarray(params["kernel"])[~np.asarray(masks["kernel"])])
        assert masks["kernel"].sum() == 16
    found = jaxsparse.metrics(state)
    assert spoiled[:4] == [True] * 4 and not any(spoiled[-6:])
    assert found["last_update"] > 2
    assert (found["postponed"] == 0) == outside


def test_products_beyond_a_float16():
    """300 * 300 is more than a float16 holds, 1e-5 * 1e-5 less; their order must be known."""
    weights = {"w": jnp.array([300, 400, 1e-5, 2e-5], jnp.float16)}
    found = jaxsparse.saliency(weights, weights)["w"]
    assert found.dtype == jnp.float32 and np.all(np.diff(found[jnp.array([2, 3, 0, 1])]) > 0)
    batch = jnp.full(4, 300, jnp.float16)

    def linear(params, batch):
        return jnp.sum(params["w"] * batch)

    def square(params, batch):
        return jnp.sum(params["w"] ** 2 * batch)

    for score in (
        jaxsparse.snip(linear, weights, [batch]),
        jaxsparse.grasp(square, weights, [batch / 300], prunable=lambda path, leaf: True),
    ):
        assert np.all(np.isfinite(score["w"])) and np.argmax(score["w"]) == 1


def test_float64_knows_what_float32_does_not():
    with jax.enable_x64():
        close = 1 + 1e-12 * DRAW.permutation(64).reshape(8, 8)
        mask = jaxsparse.prune_by_magnitude({"kernel": jnp.asarray(close)}, 0.75)["kernel"]
        np.testing.assert_array_equal(mask, close >= np.sort(close.ravel())[-16])
        assert jaxsparse.saliency({"w": close}, {"w": close})["w"].dtype == jnp.float64


@pytest.mark.parametrize("few", ["float8_e4m3fn", "float8_e5m2"])
def test_eight_bits_are_left_alone(few):
    """They are a stored form, which means nothing without its scale."""
    stored = {"kernel": jnp.asarray(KERNEL, few), "scale": jnp.float32(0.1)}
    params = {"quantized": stored, "fc": {"kernel": jnp.asarray(KERNEL)}}
    tx = jaxsparse.rigl(optax.sgd(0.1), 0.75, key=0)
    started, state = jaxsparse.init(tx, params)
    assert state.masks["quantized"]["kernel"].all() and state.masks["fc"]["kernel"].sum() == 16
    assert started["quantized"]["kernel"].dtype == few
    np.testing.assert_array_equal(
        started["quantized"]["kernel"].astype(jnp.float32), stored["kernel"].astype(jnp.float32)
    )
    assert state.sparse == ("fc/kernel",)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, started), state, started)
    assert updates["quantized"]["kernel"].dtype == few
    with pytest.raises(ValueError, match=rf"quantized/kernel \(8, 8\): of {few}, fewer than 16"):
        tx.init({"quantized": stored})
    with pytest.raises(TypeError, match=f"16 bits or more, got {few}; convert it"):
        jaxsparse.selection.top_k_mask(stored["kernel"], 3)
