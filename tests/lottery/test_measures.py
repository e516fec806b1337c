"""Early stop, densities and distances, against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse import lottery


def test_early_stop_against_numpy():
    losses = np.random.default_rng(0).random((4, 3, 50))
    found = lottery.early_stop(losses, every=100)
    assert np.array_equal(found, (losses.argmin(-1) + 1) * 100)
    assert found.dtype == jnp.int32


def test_early_stop_takes_the_first_of_equals_and_never_nan():
    assert lottery.early_stop(jnp.array([jnp.nan, 0.5, 0.2, 0.2, jnp.nan]), every=10) == 30
    assert jax.jit(lambda x: lottery.early_stop(x, 2))(jnp.array([3.0, 1.0])) == 4


@pytest.mark.parametrize("losses", [jnp.zeros(()), jnp.zeros((3, 0))])
def test_early_stop_needs_a_loss(losses):
    with pytest.raises(ValueError, match="losses must be"):
        lottery.early_stop(losses, 1)
    with pytest.raises(ValueError, match="every must be at least 1"):
        lottery.early_stop(jnp.ones(3), 0)


def test_layer_densities():
    masks = {"fc": {"kernel": jnp.arange(12).reshape(3, 4) < 3, "bias": jnp.ones(4, bool)}}
    found = lottery.layer_densities(masks)
    assert {name: float(value) for name, value in found.items()} == {"fc/kernel": 0.25}


def test_distance_against_numpy():
    generator = np.random.default_rng(1)
    a, b = (
        {"w": jnp.asarray(generator.normal(size=(5, 4))), "n": jnp.int32(3), "b": jnp.ones(2)}
        for _ in range(2)
    )
    masks = {"w": jnp.asarray(generator.random((5, 4)) < 0.5), "n": jnp.bool_(True), "b": None}
    found = lottery.distance(a, b, masks)
    difference = np.where(masks["w"], np.asarray(a["w"]) - np.asarray(b["w"]), 0)
    np.testing.assert_allclose(found.leaves["w"], np.linalg.norm(difference), rtol=1e-5)
    np.testing.assert_allclose(found.total, np.linalg.norm(difference), rtol=1e-5)
    assert set(found.leaves) == {"w", "b"}


def test_distance_of_other_trees():
    with pytest.raises(ValueError, match="origin must have the structure"):
        lottery.distance({"w": jnp.ones(2)}, {"v": jnp.ones(2)})
