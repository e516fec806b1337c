"""Interpolation between two solutions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsparse import analysis


def trees():
    keys = jax.random.split(jax.random.key(0), 4)
    return tuple(
        {"w": jax.random.normal(a, (5, 3)), "b": jax.random.normal(b, (3,)), "count": jnp.int32(2)}
        for a, b in (keys[:2], keys[2:])
    )


def test_the_line_against_numpy():
    start, end = trees()
    alphas = np.linspace(-0.2, 1.2, 29)
    found = analysis.interpolation(lambda p: p["w"], start, end, alphas)
    expected = [(1 - a) * np.asarray(start["w"]) + a * np.asarray(end["w"]) for a in alphas]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_ends_are_the_solutions_bit_for_bit(dtype):
    start, end = jax.tree.map(
        lambda leaf: leaf.astype(dtype) if leaf.dtype != jnp.int32 else leaf, trees()
    )
    found = analysis.interpolation(lambda p: p, start, end, jnp.array([0.0, 1.0]))
    for index, tree in enumerate((start, end)):
        for name in ("w", "b"):
            assert np.array_equal(found[name][index], tree[name])
            assert found[name].dtype == dtype
    assert found["count"].tolist() == [2, 2]


@pytest.mark.parametrize("alphas", [None, np.linspace(-0.2, 1.2, 29)], ids=["default", "numpy"])
def test_the_grid_of_the_paper_meets_both_ends_exactly(alphas):
    """Whatever rounding does to 0 and 1 on the way."""
    start, end = trees()
    found = analysis.interpolation(lambda p: p["w"], start, end, alphas)
    assert len(found) == 29
    assert np.array_equal(found[4], start["w"]) and np.array_equal(found[24], end["w"])
    expected = 1.2 * np.asarray(start["w"]) - 0.2 * np.asarray(end["w"])
    np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-6)


def test_the_line_under_the_masks_of_either_end():
    start, end = trees()
    masks = {"w": start["w"] > 0, "b": jnp.ones(3, bool), "count": None}
    alphas = np.array([0.0, 0.3, 1.0])
    found = analysis.interpolation(lambda p: p, start, end, alphas, masks=masks)
    line = [(1 - a) * np.asarray(start["w"]) + a * np.asarray(end["w"]) for a in alphas]
    np.testing.assert_allclose(found["w"], np.where(masks["w"], line, 0), rtol=1e-5, atol=1e-6)
    assert np.array_equal(found["b"][2], end["b"])


def test_all_points_are_one_trace():
    traces = []

    def loss(params):
        traces.append(1)
        return params["w"].sum()

    analysis.interpolation(loss, *trees(), jnp.linspace(0, 1, 29))
    assert len(traces) == 1


def test_instability_against_numpy():
    start, end = trees()

    def loss(params):
        return (params["w"] ** 2).sum()

    a, b = np.asarray(start["w"]), np.asarray(end["w"])
    values = [(((1 - t) * a + t * b) ** 2).sum() for t in np.linspace(0, 1, 30)]
    expected = max(values) - (values[0] + values[-1]) / 2
    np.testing.assert_allclose(analysis.instability(loss, start, end), expected, rtol=1e-4)
    assert analysis.instability(loss, start, start) == 0


def test_bad_input():
    start, end = trees()
    with pytest.raises(ValueError, match="points must be at least 3, got 2"):
        analysis.instability(lambda p: p["w"].sum(), start, end, points=2)
    with pytest.raises(ValueError, match="alphas must be a vector"):
        analysis.interpolation(lambda p: p["w"].sum(), start, end, 0.5)
    for build in (
        lambda other: analysis.interpolation(lambda p: p, start, other),
        lambda other: analysis.train_bezier(
            ring, start, other, jnp.zeros(2), optax.sgd(0.1), key=0
        ),
    ):
        with pytest.raises(ValueError, match="end must have the structure.*differs is 'extra'"):
            build(end | {"extra": jnp.ones(2)})
    with pytest.raises(ValueError, match="masks must have the structure"):
        analysis.interpolation(lambda p: p, start, end, masks={"w": jnp.ones((5, 3), bool)})
    with pytest.raises(ValueError, match="end at 'w' has shape"):
        analysis.interpolation(lambda p: p, start, end | {"w": jnp.ones(2)}, jnp.ones(2))


def ring(params, _=None):
    """A ring of minima of radius 1 in the first two weights."""
    return (jnp.sum(params["w"][:2] ** 2) - 1) ** 2 + jnp.sum(params["w"][2:] ** 2)


@pytest.mark.standard_promotion  # Adam's own bias correction needs it
def test_a_trained_curve_goes_round_the_barrier_of_the_line():
    start = {"w": jnp.array([-1.0, 0.0, 0.0])}
    end = {"w": jnp.array([1.0, 0.05, 0.0])}
    ts = jnp.linspace(0, 1, 21)
    line = analysis.interpolation(ring, start, end, ts)
    curve = analysis.train_bezier(ring, start, end, jnp.zeros(600), optax.adam(0.05), key=0)
    bent = curve.values(ring, ts)
    assert analysis.barrier(line) > 0.9 and analysis.barrier(bent) < 0.3
    for t, tree in ((0.0, start), (1.0, end)):
        assert np.array_equal(curve.at(jnp.float32(t))["w"], tree["w"])
    a, c, b = (np.asarray(tree["w"]) for tree in curve)
    np.testing.assert_allclose(curve.at(0.3)["w"], 0.49 * a + 0.42 * c + 0.09 * b, rtol=1e-5)


@pytest.mark.standard_promotion  # Adam's own bias correction needs it
def test_a_curve_in_the_sparse_subspace_stays_there():
    start, end = {"w": jnp.array([-1.0, 0.0, 0.0])}, {"w": jnp.array([1.0, 0.0, 0.0])}
    masks = {"w": jnp.array([True, False, True])}
    options = {"key": 0, "masks": masks}
    curve = analysis.train_bezier(ring, start, end, jnp.zeros(300), optax.adam(0.05), **options)
    assert curve.control["w"][1] == 0
    assert analysis.barrier(curve.values(ring, jnp.linspace(0, 1, 21))) > 0.9


def test_barrier():
    assert analysis.barrier(jnp.array([1.0, 0.2, 0.5])) == 0
    assert analysis.barrier(jnp.array([1.0, 4.0, 2.0])) == 2
    with pytest.raises(ValueError, match="losses must be a vector"):
        analysis.barrier(jnp.ones((2, 2)))
