"""Convolution as patches, and pooling, against XLA's own."""

import jax
import numpy as np
import pytest

from experiments.common.models import layers


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
@pytest.mark.parametrize("rows_at_once", [1, 2, 100])
def test_patches_equal_the_convolution(padding, size, stride, rows_at_once, monkeypatch):
    generator = np.random.default_rng(size)
    planes = generator.normal(size=(3, 9, 8, 7)).astype(np.float32)
    kernel = generator.normal(size=(size, size, 3, 4)).astype(np.float32)
    rows, columns = (9, 8) if padding == "SAME" else (10 - size, 9 - size)
    shape = (4, -(-rows // stride), -(-columns // stride), 7)
    cotangent = generator.normal(size=shape).astype(np.float32)
    bytes_of_row = 4 * 3 * size**2 * shape[2] * shape[3]
    monkeypatch.setattr(layers, "PATCH_BYTES", rows_at_once * bytes_of_row)

    def with_gradients(convolve):
        value, pull_back = jax.vjp(lambda *both: convolve(*both, padding, stride), planes, kernel)
        return value, *pull_back(cotangent)

    expected = jax.jit(lambda: with_gradients(layers.convolve_lax))()
    found = jax.jit(lambda: with_gradients(layers.convolve_patches))()
    for one, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, reference, rtol=1e-4, atol=2e-4)
    text = str(jax.make_jaxpr(lambda: layers.convolve_patches(planes, kernel, padding, stride))())
    assert "conv_general_dilated" not in text
    blocks = min(
        shape[1] // n for n in range(1, shape[1] + 1) if shape[1] % n == 0 and n <= rows_at_once
    )
    assert f"length={blocks}" in text


def test_the_hessian_sees_patches_as_the_convolution():
    generator = np.random.default_rng(0)
    planes = generator.normal(size=(2, 6, 6, 3)).astype(np.float32)
    kernel, tangent = generator.normal(size=(2, 3, 3, 2, 4)).astype(np.float32)

    def product(convolve):
        def loss(kernel):
            hidden = jax.nn.softplus(convolve(planes, kernel, "SAME"))
            return (convolve(hidden, kernel.transpose(0, 1, 3, 2), "VALID", 2) ** 2).sum()

        return jax.jvp(jax.grad(loss), (kernel,), (tangent,))[1]

    expected = jax.jit(lambda: product(layers.convolve_lax))()
    found = jax.jit(lambda: product(layers.convolve_patches))()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())


def test_planes_are_images_with_the_batch_last():
    images = np.random.default_rng(0).normal(size=(2, 4, 5, 3)).astype(np.float32)
    planes = layers.to_planes(images)
    assert planes.shape == (3, 4, 5, 2)
    np.testing.assert_array_equal(layers.flatten(planes), images.reshape(2, -1))
    np.testing.assert_allclose(layers.pixel_mean(planes), images.mean((1, 2)), rtol=1e-5)


def test_equal_maxima_share_the_gradient():
    gradient = jax.grad(lambda planes: layers.max_pool(planes).sum())
    np.testing.assert_array_equal(gradient(np.ones((1, 2, 2, 1))).ravel(), [0.25] * 4)
    found = gradient(np.array([1.0, 3.0, 3.0, 2.0]).reshape(1, 2, 2, 1))
    np.testing.assert_array_equal(found.ravel(), [0, 0.5, 0.5, 0])


@pytest.mark.parametrize("shape", [(3, 6, 8, 2), (1, 7, 5, 2)])
def test_max_pool_equals_reduce_window(shape):
    generator = np.random.default_rng(0)
    planes = generator.normal(size=shape).astype(np.float32)
    cotangent = generator.normal(size=(shape[0], shape[1] // 2, shape[2] // 2, shape[3]))

    def reference(planes):
        window = (1, 2, 2, 1)
        return jax.lax.reduce_window(planes, -np.inf, jax.lax.max, window, window, "VALID")

    def with_gradient(pool):
        value, pull_back = jax.vjp(pool, planes)
        return value, *pull_back(cotangent.astype(np.float32))

    expected = jax.jit(lambda: with_gradient(reference))()
    found = jax.jit(lambda: with_gradient(layers.max_pool))()
    jax.tree.map(np.testing.assert_array_equal, found, expected)
