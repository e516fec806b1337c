"""Every pattern in every algorithm: it trains and keeps its shape, or the factory says why not."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse

PATTERNS = {
    "unstructured": jaxsparse.unstructured,
    "2:4": jaxsparse.n_m(2, 4),
    "block": jaxsparse.block(2, 4),
    "channel": jaxsparse.channel,
    "fan_in": jaxsparse.fan_in,
}
ALGORITHMS = {
    "fixed": (jaxsparse.fixed, {"key": 0}),
    "gradual": (jaxsparse.gradual, {"start": 1, "stop": 5, "every": 2}),
    "gradual global": (
        jaxsparse.gradual,
        {"start": 1, "stop": 5, "every": 2, "scope": "global"},
    ),
    "sparse_evolution": (jaxsparse.sparse_evolution, {"key": 0, "every": 2}),
    "rigl": (jaxsparse.rigl, {"key": 0, "every": 2, "drop_fraction": 0.5}),
    "rigl accumulate": (
        jaxsparse.rigl,
        {"key": 0, "every": 2, "drop_fraction": 0.5, "accumulate": 2},
    ),
    "rigl removing units": (
        jaxsparse.rigl,
        {"key": 0, "every": 2, "drop_fraction": 0.5, "min_salient": 0.9, "keep_units": ()},
    ),
    "sparse_momentum": (jaxsparse.sparse_momentum, {"key": 0, "every": 2}),
    "sparse_momentum none": (
        jaxsparse.sparse_momentum,
        {"key": 0, "every": 2, "redistribution": "none"},
    ),
    "sparse_momentum random": (
        jaxsparse.sparse_momentum,
        {"key": 0, "every": 2, "growth": "random", "redistribution": "none"},
    ),
    "sparse_momentum global": (
        jaxsparse.sparse_momentum,
        {"key": 0, "every": 2, "drop_by": "global", "growth": "global", "drop_fraction": 0.5},
    ),
}
REFUSED = {
    ("2:4", "gradual"): "no intermediate sparsity",
    ("2:4", "gradual global"): "scope",
    ("2:4", "sparse_momentum"): "redistribution",
    ("fan_in", "gradual global"): "scope",
    ("fan_in", "sparse_momentum"): "redistribution",
    ("2:4", "sparse_momentum global"): "redistribution",
    ("fan_in", "sparse_momentum global"): "redistribution",
} | {
    (pattern, "rigl removing units"): "min_salient needs pattern=fan_in"
    for pattern in PATTERNS
    if pattern != "fan_in"
}
MOVING = ("gradual global", "sparse_momentum", "sparse_momentum global")
"""What fixes the total of all layers only."""
SHAPES = {"a": {"kernel": (8, 16)}, "b": {"kernel": (3, 3, 8, 8)}, "c": {"bias": (16,)}}


def keeps_shape(pattern, masks, removes=False):
    """Checks a mask against its pattern, written without the library.

    Where units can be removed, the fan-ins of those that are left differ by one at most.
    """
    for mask in (np.asarray(masks["a"]["kernel"]), np.asarray(masks["b"]["kernel"])):
        rows = np.moveaxis(mask, -1, 0)
        if pattern == "2:4":
            runs = np.moveaxis(mask, -2, -1).reshape(-1, 4)
            assert (runs.sum(1) == 2).all()
        elif pattern == "fan_in":
            fans = [int(row.sum()) for row in rows if row.any()]
            assert max(fans) - min(fans) <= removes
            assert (len(fans) < len(rows)) == removes
        elif pattern == "channel":
            assert all(row.all() or not row.any() for row in rows)
        elif pattern == "block":
            for plane in mask.reshape(-1, *mask.shape[-2:]):
                blocks = plane.reshape(plane.shape[0] // 2, 2, plane.shape[1] // 4, 4)
                counts = blocks.sum((1, 3))
                assert set(counts.ravel()) <= {0, 8}


def trained(tx, params):
    """The masks at first, and weights and masks after eight steps."""
    params, state = jaxsparse.init(tx, params)
    first = jaxsparse.get_masks(state, params)

    @jax.jit
    def run(params, state):
        def step(carry, key):
            params, state = carry
            grads = jax.tree.map(lambda p: jax.random.normal(key, p.shape), params)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), jax.random.split(jax.random.key(0), 8))[0]

    params, state = run(params, state)
    return first, params, jaxsparse.get_masks(state, params)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_pattern_in_algorithm(pattern, algorithm):
    factory, options = ALGORITHMS[algorithm]
    if reason := REFUSED.get((pattern, algorithm)):
        with pytest.raises(ValueError, match=reason):
            factory(optax.sgd(0.1), 0.5, pattern=PATTERNS[pattern], **options)
        return
    options = dict(options, pattern=PATTERNS[pattern])
    if algorithm in MOVING and pattern == "channel":
        options["prunable"] = lambda path, leaf: path == "a/kernel"
    tx = factory(optax.sgd(0.1), 0.5, **options)
    weights = np.random.default_rng(0)
    params = jax.tree.map(
        lambda shape: jnp.asarray(weights.normal(size=shape), jnp.float32),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    first, params, masks = trained(tx, params)
    keeps_shape(pattern, masks, removes=algorithm == "rigl removing units")
    jax.tree.map(lambda p, m: np.testing.assert_array_equal(p[~m], 0), params, masks)
    assert masks["c"]["bias"].all()
    alive = [int(masks[name]["kernel"].sum()) for name in ("a", "b")]
    if "prunable" in options:
        assert alive == [64, 576]
    elif algorithm in MOVING:
        assert sum(alive) == (128 + 576) // 2
    else:
        assert alive == [64, 288]
    moved = any((first[name]["kernel"] != masks[name]["kernel"]).any() for name in ("a", "b"))
    assert moved == (algorithm != "fixed")


@pytest.mark.parametrize("pattern", ["block", "channel"])
def test_whole_groups_move_between_layers(pattern):
    """Sparse momentum gives one layer groups of another; their total stays, exactly."""
    tx = jaxsparse.sparse_momentum(
        optax.sgd(0.1), 0.5, key=0, every=2, drop_fraction=0.5, pattern=PATTERNS[pattern]
    )
    draw = np.random.default_rng(0)
    params = {
        "a": {"kernel": jnp.asarray(draw.normal(size=(8, 16)), jnp.float32)},
        "b": {"kernel": jnp.asarray(draw.normal(size=(8, 24)), jnp.float32)},
    }
    first, _, masks = trained(tx, params)
    keeps_shape(pattern, masks)
    before, after = ([int(m[name]["kernel"].sum()) for name in "ab"] for m in (first, masks))
    assert before == [64, 96] and sum(after) == 160
    assert after != before


def test_removal_warns_where_no_layer_is_named():
    """A class that loses its inputs is never predicted; only the user knows the last layer."""
    params = {"fc": {"kernel": jnp.ones((4, 6))}, "head": {"kernel": jnp.ones((6, 4))}}
    options = {"key": 0, "pattern": jaxsparse.fan_in, "min_salient": 0.3}
    with pytest.warns(UserWarning, match="every layer, the last one.*keep_units") as caught:
        jaxsparse.rigl(optax.sgd(0.1), 0.5, **options).init(params)
    assert [warning.filename for warning in caught] == [__file__]
    for keep in ("head", ["head"], ()):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            jaxsparse.rigl(optax.sgd(0.1), 0.5, keep_units=keep, **options).init(params)


def test_a_layer_that_the_distribution_leaves_dense_may_be_named():
    params = {"fc": {"kernel": jnp.ones((400, 100))}, "head": {"kernel": jnp.ones((100, 2))}}
    tx = jaxsparse.rigl(
        optax.sgd(0.1),
        0.9,
        key=0,
        pattern=jaxsparse.fan_in,
        distribution=jaxsparse.erk,
        min_salient=0.3,
        keep_units="head",
    )
    masks = jaxsparse.get_masks(tx.init(params), params)
    assert masks["head"]["kernel"].all() and not masks["fc"]["kernel"].all()
