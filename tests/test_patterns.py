"""Every pattern in every layout against loops over single weights."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse
from jaxsparse import Axes, block, channel, fan_in, n_m, unstructured
from jaxsparse.patterns import group_mask
from tests import reference

LAYOUTS = {
    "flax": ((8, 6), Axes((0,), (1,))),
    "equinox": ((6, 8), Axes((1,), (0,))),
    "convolution": ((2, 3, 4, 6), Axes((2,), (3,))),
    "stacked": ((3, 8, 6), Axes((1,), (2,), (0,))),
    "attention_out": ((2, 4, 6), Axes((0, 1), (2,))),
    "qkv": ((8, 2, 6), Axes((0,), (1, 2))),
}
PATTERNS = {
    "unstructured": (unstructured, {}),
    "n_m": (n_m(1, 4), {"m": 4}),
    "block": (block(2, 3), {"rows": 2, "columns": 3}),
    "channel": (channel, {}),
    "fan_in": (fan_in, {}),
}
SPARSITY = 0.75


def rows_of(name, shape, axes, options):
    if name == "unstructured":
        return [[[index] for index in np.ndindex(*shape)]]
    return reference.groups(shape, name, *axes, **options)


def random_scores(shape, seed=0):
    """Whole numbers with ties, so that means over groups come out alike everywhere."""
    draw = np.random.default_rng(seed).integers(-20, 20, shape)
    return draw.astype(np.float32)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", PATTERNS)
def test_groups_are_gathered_and_spread(name, layout):
    """The means of the groups, row by row, and a mask of the groups back on their weights."""
    (pattern, options), (shape, axes) = PATTERNS[name], LAYOUTS[layout]
    scores = random_scores(shape)
    rows = rows_of(name, shape, axes, options)
    expected = np.array([[np.mean([scores[i] for i in group]) for group in row] for row in rows])
    sizes = pattern.groups("w", shape, axes)
    assert sizes == (len(rows), len(rows[0]), len(rows[0][0]))
    means = pattern.gather(jnp.asarray(scores), axes)
    assert np.allclose(np.sort(means.reshape(sizes[:2]), 0), np.sort(expected, 0))
    positive = pattern.spread(means > 0, shape, axes)
    for group in itertools.chain(*rows):
        alive = np.mean([scores[i] for i in group]) > 0
        assert all(bool(positive[i]) == alive for i in group)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("unstructured", "flax"),
        ("n_m", "equinox"),
        ("n_m", "stacked"),
        ("n_m", "attention_out"),
        ("block", "equinox"),
        ("block", "convolution"),
        ("channel", "flax"),
        ("channel", "stacked"),
        ("fan_in", "equinox"),
        ("fan_in", "convolution"),
        ("fan_in", "qkv"),
    ],
)
def test_prune_keeps_the_best_groups_of_every_row(name, layout):
    (pattern, options), (shape, axes) = PATTERNS[name], LAYOUTS[layout]
    scores = random_scores(shape)
    rows = rows_of(name, shape, axes, options)
    kept = reference.target_count(len(rows[0]), SPARSITY)
    given = {"pattern": pattern, "axes": axes, "signed": True}
    found = jaxsparse.prune({"w": jnp.asarray(scores)}, SPARSITY, **given)
    expected = reference.best_groups(scores, rows, kept)
    assert np.array_equal(found["w"], expected)
    for row in rows:
        alive = [[bool(expected[i]) for i in group] for group in row]
        assert all(len(set(group)) == 1 for group in alive)
        assert sum(group[0] for group in alive) == kept


@pytest.mark.parametrize("name", PATTERNS)
def test_within_and_drop_and_grow_move_whole_groups(name):
    """Dead groups stay dead under `within`; a move keeps the count of every row."""
    (pattern, options), (shape, axes) = PATTERNS[name], LAYOUTS["flax"]
    rows = rows_of(name, shape, axes, options)
    given = {"pattern": pattern, "axes": axes}
    masks = jaxsparse.random_masks(0, {"w": jnp.zeros(shape)}, SPARSITY, **given)
    scores = {"w": jnp.asarray(random_scores(shape, 1))}
    kept = reference.target_count(len(rows[0]), SPARSITY)
    again = jaxsparse.prune(scores, SPARSITY, within=masks, signed=True, **given)
    assert np.array_equal(again["w"], masks["w"])
    others = jax.tree.map(jnp.logical_not, masks)
    fresh = jaxsparse.prune(scores, SPARSITY, within=others, signed=True, **given)
    expected = reference.best_groups(np.asarray(scores["w"]), rows, kept, np.asarray(others["w"]))
    assert np.array_equal(fresh["w"], expected)
    moved = jaxsparse.drop_and_grow(masks, scores, {"w": -scores["w"]}, 0.5, **given)["w"]
    for row in rows:
        assert sum(all(bool(moved[i]) for i in group) for group in row) == kept
    assert int(moved.sum()) == int(masks["w"].sum())


@pytest.mark.parametrize("inputs", [41, 55, 83, 784])
@pytest.mark.parametrize("name", ["channel", "block"])
def test_groups_of_any_size_are_alive_as_a_whole(name, inputs):
    """Sizes whose reciprocal is not exact: 41 * (1 / 41) is not 1 in float32."""
    axes = Axes((0,), (1,))
    pattern = block(inputs, 1) if name == "block" else channel
    mask = jnp.broadcast_to(jnp.arange(4) < 3, (inputs, 4))
    for function in (group_mask, jax.jit(group_mask, static_argnums=(0, 1))):
        assert function(pattern, axes, mask).ravel().tolist() == [True, True, True, False]
    one_less = mask.at[inputs - 1, 0].set(False)
    assert group_mask(pattern, axes, one_less).ravel().tolist() == [False, True, True, False]


def test_a_move_of_nothing_changes_nothing():
    """Also where the size of a group has no exact reciprocal."""
    mask = {"kernel": jnp.broadcast_to(jnp.arange(4) < 3, (41, 4))}
    scores = {"kernel": jnp.ones((41, 4))}
    moved = jaxsparse.drop_and_grow(mask, scores, scores, 0.0, pattern=channel)
    assert np.array_equal(moved["kernel"], mask["kernel"])


def test_names():
    names = [p.name for p in (unstructured, n_m(2, 4), block(4, 8), channel, fan_in)]
    assert names == ["unstructured", "2:4", "block:4x8", "channel", "fan_in"]


def test_groups_are_scored_by_their_mean_in_half_precision_too():
    """A sum of 784 ones does not fit bfloat16; the mean of a group must."""
    scores = jnp.ones((784, 3), jnp.bfloat16) * jnp.array([1.0, 1.03125, 0.96875], jnp.bfloat16)
    masks = jaxsparse.prune({"kernel": scores}, 0.6, pattern=channel)
    assert masks["kernel"][0].tolist() == [False, True, False]
