"""Convolution as patches, and pooling, against XLA's own."""

import jax
import numpy as np
import pytest

from experiments.common import layers


@pytest.mark.parametrize(
    ("padding", "size", "stride"),
    [
        ("SAME", 3, 1),
        ("SAME", 4, 1),
        ("VALID", 5, 1),
        ("SAME", 3, 2),
        ("SAME", 1, 2),
        ("VALID", 2, 3),
    ],
)
@pytest.mark.parametrize("cut", [False, True])
def test_patches_equal_the_convolution(padding, size, stride, cut, monkeypatch):
    generator = np.random.default_rng(size)
    images = generator.normal(size=(7, 9, 8, 3)).astype(np.float32)
    kernel = generator.normal(size=(size, size, 3, 4)).astype(np.float32)
    rows, columns = (9, 8) if padding == "SAME" else (10 - size, 9 - size)
    shape = (7, -(-rows // stride), -(-columns // stride), 4)
    cotangent = generator.normal(size=shape).astype(np.float32)
    if cut:  # seven images, three at once
        bytes_each = 4 * 3 * size**2 * shape[1] * shape[2]
        monkeypatch.setattr(layers, "PATCH_BYTES", 3 * bytes_each + 1)

    def with_gradients(convolve):
        value, pull_back = jax.vjp(lambda *both: convolve(*both, padding, stride), images, kernel)
        return value, *pull_back(cotangent)

    expected = jax.jit(lambda: with_gradients(layers.convolve_lax))()
    found = jax.jit(lambda: with_gradients(layers.convolve_patches))()
    for one, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, reference, rtol=1e-4, atol=2e-4)
    text = str(jax.make_jaxpr(lambda: layers.convolve_patches(images, kernel, padding, stride))())
    assert "conv_general_dilated" not in text
    assert ("scan" in text) == cut


@pytest.mark.parametrize("shape", [(2, 6, 8, 3), (2, 7, 5, 1)])
def test_max_pool_equals_reduce_window(shape):
    generator = np.random.default_rng(0)
    images = generator.normal(size=shape).astype(np.float32)
    cotangent = generator.normal(size=(2, shape[1] // 2, shape[2] // 2, shape[3]))

    def reference(images):
        window = (1, 2, 2, 1)
        return jax.lax.reduce_window(images, -np.inf, jax.lax.max, window, window, "VALID")

    def with_gradient(pool):
        value, pull_back = jax.vjp(pool, images)
        return value, *pull_back(cotangent.astype(np.float32))

    expected = jax.jit(lambda: with_gradient(reference))()
    found = jax.jit(lambda: with_gradient(layers.max_pool))()
    jax.tree.map(np.testing.assert_array_equal, found, expected)
