"""Controls change one thing and keep the rest: counts, signs, places."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse
from jaxsparse import lottery


def ticket(seed, density):
    """A random tree of parameters and masks with biases and a scalar."""
    generator = np.random.default_rng(seed)
    shapes = {"fc/kernel": (9, 7), "conv/kernel": (3, 3, 2, 5), "fc/bias": (7,)}
    params = {
        name: jnp.asarray(generator.normal(size=shape), jnp.float32)
        for name, shape in shapes.items()
    }
    masks = {
        name: jnp.asarray(generator.random(shape) < density) | (name == "fc/bias")
        for name, shape in shapes.items()
    }
    return params, masks


SEEDS, DENSITIES = st.integers(0, 2**20), st.sampled_from([0.0, 0.05, 0.3, 0.9, 1.0])
KERNELS = ("fc/kernel", "conv/kernel")


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(SEEDS, DENSITIES)
def test_shuffled_masks_keep_the_count_of_every_layer(seed, density):
    _, masks = ticket(seed, density)
    found = lottery.shuffle_masks(seed, masks)
    for name in KERNELS:
        assert found[name].sum() == masks[name].sum()
    assert found["fc/bias"].all()


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(SEEDS, DENSITIES)
def test_masks_shuffled_globally_keep_the_total(seed, density):
    _, masks = ticket(seed, density)
    found = lottery.shuffle_masks(seed, masks, scope="global")
    assert sum(found[name].sum() for name in KERNELS) == sum(masks[n].sum() for n in KERNELS)
    assert found["fc/bias"].all()


def test_shuffling_moves_every_weight_alike():
    mask = {"kernel": jnp.arange(40).reshape(8, 5) < 10}
    shuffles = jax.vmap(lambda key: lottery.shuffle_masks(key, mask)["kernel"])(
        jax.random.split(jax.random.key(0), 4000)
    )
    # Each place is alive in a quarter of the shuffles: 4000 coins of 1/4, five deviations.
    assert np.abs(shuffles.mean(0) - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 4000)


def test_global_shuffling_lets_layers_exchange_weights():
    masks = {"a/kernel": jnp.ones((10, 10), bool), "b/kernel": jnp.zeros((10, 10), bool)}
    found = lottery.shuffle_masks(0, masks, scope="global")
    assert 30 < found["a/kernel"].sum() < 70


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(SEEDS, DENSITIES)
def test_inverted_masks(seed, density):
    _, masks = ticket(seed, density)
    found = lottery.invert_masks(masks)
    for name in KERNELS:
        assert np.array_equal(found[name], ~np.asarray(masks[name]))
    assert found["fc/bias"].all()


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(SEEDS)
def test_signs_are_kept(seed):
    params, _ = ticket(seed, 1.0)
    other, _ = ticket(seed + 1, 1.0)
    found, constant = lottery.keep_signs(params, other), lottery.keep_signs(params)
    for name in KERNELS:
        p, q = np.asarray(params[name]), np.asarray(other[name])
        assert np.array_equal(found[name], np.sign(p) * np.abs(q))
        np.testing.assert_allclose(constant[name], np.sign(p) * p.std(), rtol=1e-5)
    assert np.array_equal(found["fc/bias"], params["fc/bias"])


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
def test_noise_has_the_size_that_was_asked_for(sigma):
    key = jax.random.key(3)
    params = {"kernel": 0.02 * jax.random.normal(key, (200, 200)), "bias": jnp.ones(200)}
    found = lottery.add_noise(4, params, sigma)
    noise = np.asarray(found["kernel"] - params["kernel"])
    np.testing.assert_allclose(noise.std(), sigma * params["kernel"].std(), rtol=0.02)
    assert abs(noise.mean()) < 5 * noise.std() / 200
    assert np.array_equal(found["bias"], params["bias"])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float64])
def test_types_stay(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        params = {"kernel": jnp.ones((4, 4), dtype).at[0].set(2)}
        for found in (lottery.add_noise(0, params, 1.0), lottery.keep_signs(params)):
            assert found["kernel"].dtype == dtype


def test_the_same_masks_with_new_weights_is_apply():
    params, masks = ticket(0, 0.3)
    other, _ = ticket(1, 0.3)
    found = jaxsparse.apply(other, masks)
    for name in KERNELS:
        assert np.array_equal(found[name], np.where(masks[name], other[name], 0))


def test_bad_input():
    params, masks = ticket(0, 0.5)
    with pytest.raises(ValueError, match="sigma must be at least 0, got -1"):
        lottery.add_noise(0, params, -1)
    with pytest.raises(ValueError, match="scope must be one of layer, global"):
        lottery.shuffle_masks(0, masks, scope="all")
    with pytest.raises(ValueError, match="magnitudes must have the structure"):
        lottery.keep_signs(params, {"fc/kernel": 1})
    with pytest.raises(TypeError, match="key must be"):
        lottery.shuffle_masks(None, masks)
