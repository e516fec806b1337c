"""Lanczos and the exact Hessian against NumPy, on nets with masks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxsparse
from jaxsparse import analysis


def problem(seed=0):
    """A small net, its masks and four batches; the loss has curvature of both signs."""
    keys = jax.random.split(jax.random.key(seed), 5)
    params = {
        "fc": {
            "kernel": jax.random.normal(keys[0], (5, 6)),
            "bias": jax.random.normal(keys[1], (6,)),
        },
        "head": {"kernel": jax.random.normal(keys[2], (6, 3))},
    }
    masks = jaxsparse.random_masks(1, params, 0.4)
    inputs = jax.random.normal(keys[3], (4, 8, 5))
    labels = jax.random.randint(keys[4], (4, 8), 0, 3)
    return params, masks, (inputs, labels)


def loss(params, batch):
    inputs, labels = batch
    hidden = jnp.tanh(inputs @ params["fc"]["kernel"] + params["fc"]["bias"])
    logits = hidden @ params["head"]["kernel"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def by_hand(params, masks, batches):
    """The Hessian of the mean loss over all batches by jax.hessian, living weights only."""
    params = jaxsparse.apply(params, masks)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    alive = np.concatenate([np.asarray(mask).ravel() for mask in jax.tree.leaves(masks)])

    def mean(vector):
        tree = unravel(vector)
        return jax.vmap(lambda batch: loss(tree, batch))(batches).mean()

    return np.asarray(jax.hessian(mean)(flat))[np.ix_(alive, alive)]


def test_the_exact_hessian_is_jaxs_on_living_weights():
    params, masks, batches = problem()
    expected = by_hand(params, masks, batches)
    for rows in (7, 100):
        found = analysis.exact_hessian(loss, params, batches, masks, rows=rows)
        np.testing.assert_allclose(found, expected, atol=2e-5)
    product, n = analysis.hessian_product(loss, params, batches, masks)
    v = np.random.default_rng(0).normal(size=n).astype(np.float32)
    np.testing.assert_allclose(product(v), expected @ v, atol=5e-5)


def test_sharded_batches_are_spread_over_the_devices():
    """Every device goes through its own batches; the products are those of one device."""
    params, masks, batches = problem()
    mesh = Mesh(np.array(jax.devices()[:4]), ("x",))
    spread = jax.device_put(batches, NamedSharding(mesh, PartitionSpec("x")))
    alone, n = analysis.hessian_product(loss, params, batches, masks)
    together, _ = analysis.hessian_product(loss, params, spread, masks)
    v = jnp.arange(n, dtype=jnp.float32) / n
    np.testing.assert_allclose(together(v), alone(v), atol=1e-6)
    assert len(together(v).sharding.device_set) == 4
    found = analysis.exact_hessian(loss, params, spread, masks)
    np.testing.assert_allclose(found, by_hand(params, masks, batches), atol=2e-5)
    diagonal, off = analysis.lanczos(together, n, 6, key=3)
    expected = analysis.lanczos(alone, n, 6, key=3)
    np.testing.assert_allclose(jnp.append(diagonal, off), jnp.append(*expected), atol=1e-4)


def test_the_exact_spectrum_and_its_negative_share():
    params, masks, batches = problem()
    values = np.linalg.eigvalsh(by_hand(params, masks, batches).astype(np.float64))
    found = analysis.exact_spectrum(loss, params, batches, masks)
    np.testing.assert_allclose(found.eigenvalues, values, atol=2e-5)
    clearly = (values < -1e-5 * np.abs(values).max()).mean()
    assert 0 < clearly < 1
    np.testing.assert_allclose(found.negative, clearly, rtol=1e-5)
    rounded = analysis.Spectrum(jnp.array([-1e-9, 0.0, 1e-9, 2.0]), jnp.full(4, 0.25))
    assert rounded.negative == 0


def test_the_spectrum_across_a_mask_update():
    """Dropped weights are gone, grown ones start at zero, whatever the parameters hold there."""
    params, before, batches = problem()
    after = jaxsparse.random_masks(7, params, 0.4)
    moved = jaxsparse.apply(jaxsparse.apply(params, before), after)
    found = analysis.spectrum_across_update(loss, params, batches, before, after, steps=20, key=3)
    for spectrum, start, masks in zip(found, (params, moved), (before, after), strict=True):
        exact = np.linalg.eigvalsh(by_hand(start, masks, batches))
        np.testing.assert_allclose(spectrum.extremes, [exact[0], exact[-1]], rtol=2e-3, atol=1e-4)


def test_lanczos_against_eigh():
    params, masks, batches = problem()
    exact = np.linalg.eigvalsh(by_hand(params, masks, batches).astype(np.float64))
    found = analysis.spectrum(loss, params, batches, masks, steps=20, key=3)
    low, high = found.extremes
    np.testing.assert_allclose([low, high], [exact[0], exact[-1]], rtol=2e-3, atol=1e-5)
    assert low < 0 < high
    np.testing.assert_allclose(found.weights.sum(), 1, rtol=1e-5)


def test_lanczos_finds_all_of_a_matrix_with_as_many_steps_as_rows():
    generator = np.random.default_rng(1)
    half = generator.normal(size=(12, 12))
    matrix = jnp.asarray(half + half.T, jnp.float32)
    diagonal, off = analysis.lanczos(lambda v: matrix @ v, 12, 12, key=0)
    found = np.linalg.eigvalsh(np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1))
    np.testing.assert_allclose(found, np.linalg.eigvalsh(matrix), atol=2e-4)


def test_the_quadrature_estimates_moments_and_the_negative_share():
    """Many draws on a known spectrum: the trace and the share below zero."""
    values = jnp.concatenate([jnp.full(60, -1.0), jnp.full(140, 2.0)])

    def bowl(params, weights):
        return (weights * params["w"] ** 2).sum() / 2

    found = analysis.spectrum(bowl, {"w": jnp.ones(200)}, values[None], steps=2, draws=40, key=0)
    mean = float((found.eigenvalues * found.weights).sum())
    assert abs(mean - float(values.mean())) < 0.05
    assert abs(float(found.negative) - 0.3) < 0.03
    grid = jnp.linspace(-4, 5, 901)
    density = found.density(grid, 0.1)
    np.testing.assert_allclose(np.trapezoid(density, grid), 1, atol=1e-3)
    assert density[jnp.argmin(jnp.abs(grid - 2))] > density[jnp.argmin(jnp.abs(grid + 1))] > 0.5


def test_integer_leaves_and_dense_masks_are_left_alone():
    params = {"w": jnp.array([1.0, 2.0]), "count": jnp.int32(3)}

    def cubic(params, batch):
        return (batch * params["w"] ** 3).sum() * params["count"].astype(jnp.float32) / 6

    found = analysis.exact_hessian(cubic, params, jnp.array([[1.0, 1.0]]))
    np.testing.assert_allclose(found, [[3.0, 0.0], [0.0, 6.0]])


def test_bad_input():
    params, masks, batches = problem()
    with pytest.raises(ValueError, match="(?s)GiB, more than.*use spectrum, whose Lanczos"):
        analysis.exact_hessian(loss, params, batches, masks, memory=100)
    with pytest.raises(ValueError, match="no living weight"):
        nothing = jax.tree.map(jnp.zeros_like, masks)
        analysis.hessian_product(loss, params, batches, nothing)
    with pytest.raises(ValueError, match="masks must have the structure"):
        analysis.spectrum(loss, params, batches, {"fc": 1}, key=0)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        analysis.spectrum(loss, params, batches, masks, steps=0, key=0)
    with pytest.raises(ValueError, match=r"steps must be in \[1, 3\]"):
        analysis.lanczos(lambda v: v, 3, 4, key=0)
