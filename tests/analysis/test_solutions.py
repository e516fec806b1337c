"""Distances, scaling to the plane, and agreement of predictions, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse import analysis


def test_distances_against_numpy():
    generator = np.random.default_rng(0)
    found = [
        {"a": generator.normal(size=(3, 4)), "b": generator.normal(size=2), "n": np.int32(1)}
        for _ in range(4)
    ]
    flat = np.stack([np.concatenate([t["a"].ravel(), t["b"]]) for t in found])
    expected = np.linalg.norm(flat[:, None] - flat[None], axis=-1)
    trees = [jax.tree.map(lambda x: jnp.asarray(x), tree) for tree in found]
    np.testing.assert_allclose(analysis.distances(trees), expected, rtol=1e-5, atol=1e-6)


def test_points_of_a_plane_keep_their_distances():
    points = np.random.default_rng(1).normal(size=(7, 2))
    between = np.linalg.norm(points[:, None] - points[None], axis=-1)
    found = np.asarray(analysis.multidimensional_scaling(jnp.asarray(between, jnp.float32)))
    again = np.linalg.norm(found[:, None] - found[None], axis=-1)
    np.testing.assert_allclose(again, between, atol=1e-3)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-5)
    assert found[:, 0].var() > found[:, 1].var()


def test_agreement_against_loops():
    generator = np.random.default_rng(2)
    logits, labels = (
        generator.normal(size=(3, 40, 5)).astype(np.float32),
        generator.integers(0, 5, 40),
    )
    found = analysis.agreement(jnp.asarray(logits), jnp.asarray(labels))
    odds = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    differ = np.mean([(logits[i].argmax(-1) != logits[j].argmax(-1)).mean() for i, j in pairs])
    kl = np.mean([(odds[i] * np.log(odds[i] / odds[j])).sum(-1).mean() for i, j in pairs])
    np.testing.assert_allclose(found.disagreement, differ, rtol=1e-5)
    np.testing.assert_allclose(found.divergence, kl, rtol=1e-4)
    np.testing.assert_allclose(found.accuracies, (logits.argmax(-1) == labels).mean(-1), rtol=1e-6)
    np.testing.assert_allclose(
        found.ensemble, (odds.mean(0).argmax(-1) == labels).mean(), rtol=1e-6
    )
    one = analysis.disagreement(jnp.asarray(logits), jnp.asarray(logits[0]))
    assert one[0] == 0 and one.shape == (3,)
    apart = analysis.divergence(jnp.asarray(logits), jnp.asarray(logits[1]))
    expected = [(odds[i] * np.log(odds[i] / odds[1])).sum(-1).mean() for i in range(3)]
    np.testing.assert_allclose(apart, expected, rtol=1e-4, atol=1e-6)


def test_bad_input():
    with pytest.raises(ValueError, match="at least one tree"):
        analysis.distances([])
    with pytest.raises(ValueError, match="solutions must have the structure"):
        analysis.distances([{"a": jnp.ones(2)}, {"b": jnp.ones(2)}])
    with pytest.raises(ValueError, match="must be square"):
        analysis.multidimensional_scaling(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"dimensions must be in \[1, 2\]"):
        analysis.multidimensional_scaling(jnp.ones((2, 2)), 3)
    with pytest.raises(ValueError, match="k at least 2"):
        analysis.agreement(jnp.ones((1, 4, 3)), jnp.ones(4, int))
