"""Order, scale and augmentation of batches, against plain NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common.data import datasets
from experiments.common.models.network import normalize


def test_batch_indices_is_a_permutation_cut_into_rows():
    key = jax.random.key(0)
    rows = datasets.batch_indices(key, 103, 10)
    assert rows.shape == (10, 10) and rows.dtype == jnp.int32
    assert len(np.unique(rows)) == 100 and rows.min() >= 0 and rows.max() < 103
    assert (rows != datasets.batch_indices(jax.random.key(1), 103, 10)).any()
    assert (np.diff(rows.reshape(-1)) != 1).any()
    stacked = jax.vmap(lambda key: datasets.batch_indices(key, 103, 10))(jax.random.split(key, 2))
    for one, alone in zip(stacked, jax.random.split(key, 2), strict=True):
        np.testing.assert_array_equal(one, datasets.batch_indices(alone, 103, 10))
    for size in (0, 104):
        with pytest.raises(ValueError, match="batch_size"):
            datasets.batch_indices(key, 103, size)


def test_normalize():
    images = jnp.array([[[0, 51], [255, 102]]], jnp.uint8)
    np.testing.assert_allclose(normalize(images), images / 255.0, rtol=1e-6)
    channels = normalize(images, jnp.array([0.5, 0.1]), jnp.array([2.0, 0.5]))
    np.testing.assert_allclose(channels[0, 0], [-0.25, 0.2], rtol=1e-5)
    tokens = jnp.arange(3)
    assert normalize(tokens) is tokens


@pytest.mark.parametrize("mode", ["reflect", "constant"])
def test_augment_is_a_padded_crop_or_its_mirror(mode):
    generator = np.random.default_rng(0)
    images = generator.integers(1, 256, (700, 6, 5, 2), np.uint8)
    pad = 2
    moved = np.asarray(
        jax.jit(datasets.augment, static_argnums=(2, 3))(
            jax.random.key(0), jnp.asarray(images), pad, mode
        )
    )
    assert moved.shape == images.shape and moved.dtype == np.uint8
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode=mode)
    seen = set()
    for image, around in zip(moved, padded, strict=True):
        found = {
            (i, j, mirrored)
            for i in range(2 * pad + 1)
            for j in range(2 * pad + 1)
            for mirrored in (False, True)
            if (around[i : i + 6, j : j + 5][:, :: -1 if mirrored else 1] == image).all()
        }
        assert found
        seen |= found
    assert len(seen) == 2 * (2 * pad + 1) ** 2


def test_augment_under_vmap_and_its_errors():
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8))
    keys = jax.random.split(jax.random.key(0), 3)
    stacked = jax.jit(jax.vmap(datasets.augment, (0, None)))(keys, images)
    augment = jax.jit(datasets.augment)
    for key, one in zip(keys, stacked, strict=True):
        np.testing.assert_array_equal(one, augment(key, images))
    for options in ({"pad": 8}, {"pad": -1}, {"mode": "wrap"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            datasets.augment(keys[0], images, **options)
    unmoved = np.asarray(jax.jit(functools.partial(datasets.augment, pad=0))(keys[0], images))
    for image, one in zip(np.asarray(images), unmoved, strict=True):
        assert (one == image).all() or (one == image[:, ::-1]).all()
