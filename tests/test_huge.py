"""Nets of more than 2^31 weights: abstract arrays for the traces, numbers for the arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxsparse

LARGEST = 2**31 - 1
WHEN = {"key": 0, "every": 10}
NETS = {
    "3 * 2^30": {f"layer{i}": {"kernel": (2**15, 2**15)} for i in range(3)},
    "2^36": {f"layer{i}": {"kernel": (2**15, 2**16 - 1)} for i in range(33)},
}
SGD = optax.sgd(0.1)
ALGORITHMS = {
    "fixed": lambda: jaxsparse.fixed(SGD, 0.9, key=0),
    "gradual": lambda: jaxsparse.gradual(SGD, 0.9, start=1, stop=10),
    "sparse_evolution": lambda: jaxsparse.sparse_evolution(SGD, 0.9, **WHEN),
    "sparse_evolution sign": lambda: jaxsparse.sparse_evolution(SGD, 0.9, drop_by="sign", **WHEN),
    "rigl": lambda: jaxsparse.rigl(SGD, 0.9, stop=100, **WHEN),
    "rigl units": lambda: jaxsparse.rigl(
        SGD, 0.9, pattern=jaxsparse.fan_in, min_salient=0.3, **WHEN
    ),
    "deep_rewiring": lambda: jaxsparse.deep_rewiring(SGD, 0.9, key=0),
    "dynamic_reparameterization": lambda: jaxsparse.dynamic_reparameterization(SGD, 0.9, **WHEN),
    "sparse_momentum": lambda: jaxsparse.sparse_momentum(SGD, 0.9, **WHEN),
    "sparse_momentum neurons": lambda: jaxsparse.sparse_momentum(
        SGD, 0.9, growth="momentum_neuron", redistribution="nonzero", **WHEN
    ),
}
GLOBAL = {
    "gradual": lambda: jaxsparse.gradual(SGD, 0.9, start=1, stop=10, scope="global"),
    "drop": lambda: jaxsparse.sparse_momentum(SGD, 0.9, drop_by="global", **WHEN),
    "growth": lambda: jaxsparse.sparse_momentum(SGD, 0.9, growth="global", **WHEN),
}
TOO_MANY = r"a global choice counts at most 2,147,483,647 weights .* have [0-9,]{13,}; choose by"


def abstract(net, dtype=jnp.float32):
    shapes = NETS[net]
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, dtype), shapes, is_leaf=lambda x: type(x) is tuple
    )


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm(name, net):
    tx, params = ALGORITHMS[name](), abstract(net)
    state = jax.eval_shape(tx.init, params)
    updates, after = jax.eval_shape(tx.update, params, state, params)
    same = lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype)  # noqa: E731
    assert jax.tree.all(jax.tree.map(same, updates, params))
    assert jax.tree.all(jax.tree.map(same, after, state))
    found = jax.eval_shape(jaxsparse.metrics, after)
    assert found["density"].shape == found["churn"].shape == ()


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", GLOBAL)
def test_a_global_choice_among_too_many_is_refused(name, net):
    tx, params = GLOBAL[name](), abstract(net)
    with pytest.raises(ValueError, match=TOO_MANY):
        state = jax.eval_shape(tx.init, params)
        jax.eval_shape(tx.update, params, state, params)


@pytest.mark.parametrize("net", NETS)
def test_functions_of_scores_and_masks(net):
    scores, masks = abstract(net), abstract(net, jnp.bool_)
    prune = lambda s: jaxsparse.prune(s, 0.9)  # noqa: E731
    rounds = lambda s: jaxsparse.prune_iteratively(  # noqa: E731
        lambda p: p, s, 0.9, scope="layer", rounds=3
    )
    draw = lambda p: jaxsparse.random_masks(0, p, 0.9, distribution=jaxsparse.erk)  # noqa: E731
    for make in (prune, rounds, draw):
        found = jax.eval_shape(make, scores)
        assert jax.tree.all(jax.tree.map(lambda a, b: a.shape == b.shape, found, masks))
    moved = jax.eval_shape(jaxsparse.drop_and_grow, masks, scores, scores, 0.3)
    shared = lambda m, s: jaxsparse.drop_and_grow(m, s, s, 0.3, importance=s)  # noqa: E731
    assert moved == jax.eval_shape(shared, masks, scores)
    for measure in (jaxsparse.density, jaxsparse.sparsity):
        assert jax.eval_shape(measure, masks).dtype == jnp.float32
    assert jax.eval_shape(jaxsparse.overlap, masks, masks).dtype == jnp.float32
    for choose in (
        lambda m, s: jaxsparse.prune(s, 0.9, scope="global"),
        lambda m, s: jaxsparse.prune_iteratively(lambda p: p, s, 0.9),
        lambda m, s: jaxsparse.drop_and_grow(m, s, s, 0.3, scope="global"),
    ):
        with pytest.raises(ValueError, match=TOO_MANY):
            jax.eval_shape(choose, masks, scores)


@pytest.mark.parametrize("net", NETS)
def test_counts_of_the_rules(net):
    """Every leaf keeps a tenth, as Python integers, whatever they sum up to."""
    params = abstract(net)
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    for rule in (jaxsparse.rigl_rule(0.9), jaxsparse.sparse_momentum_rule(0.9)):
        alive = rule.alive(params, 0)
        assert sum(jax.tree.leaves(alive)) == sum((2 * n + 10) // 20 for n in sizes)
    steps = jaxsparse.lottery.ladder(params, 2, 0.5)
    assert [sum(jax.tree.leaves(step)) for step in steps][0] == sum(sizes) > 2**31


split = jax.jit(jaxsparse.redistribute)
LAYERS = 24


@settings(max_examples=100, deadline=None, database=None, derandomize=True)
@given(
    st.lists(st.floats(0, 1e6, width=32), min_size=LAYERS, max_size=LAYERS),
    st.lists(st.integers(0, LARGEST), min_size=LAYERS, max_size=LAYERS),
    st.lists(st.integers(0, LARGEST), min_size=LAYERS, max_size=LAYERS),
    st.booleans(),
)
def test_redistribute_among_more_places_than_an_int32_counts(shares, room, lost, capped):
    """The total is exact, no layer gets more than it has room for, and quotas are followed."""
    total, room = min(sum(lost), sum(room)), np.array(room, np.int32)
    cap = np.float32(0.99) * room.astype(np.float32) if capped else None
    found = np.asarray(split(np.array(lost, np.int32), np.float32(shares), room, cap))
    assert found.dtype == np.int32 and found.astype(np.int64).sum() == total
    assert (found >= 0).all() and (found <= room).all()
    weights = np.array(shares, np.float64)
    quotas = total * (weights / weights.sum() if weights.sum() > 0 else np.full(LAYERS, 1 / LAYERS))
    if (quotas <= (room if cap is None else cap)).all():
        assert (np.abs(found - quotas) <= 1.01 + 1e-6 * total).all()


def test_totals_of_redistribute():
    room, shares = jnp.full(4, LARGEST), jnp.full(4, 0.25)
    for total in (0, 7, 2**32 + 1, 4 * LARGEST, 2**45):
        found = np.asarray(jaxsparse.redistribute(total, shares, room)).astype(np.int64)
        assert found.sum() == min(total, 4 * LARGEST) and np.ptp(found) <= 1
    for total in (-1, jnp.int32(-1), np.array([3, -1])):
        with pytest.raises(ValueError, match="total must be at least 0, got"):
            jaxsparse.redistribute(total, shares, room)
    assert split(jnp.int32(-5), shares, room).tolist() == [0] * 4
    many = jax.vmap(jaxsparse.redistribute)(
        jnp.full((3, 4), LARGEST), jnp.stack([shares] * 3), jnp.stack([room] * 3)
    )
    assert (np.asarray(many) == LARGEST).all()
