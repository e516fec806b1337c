"""The inner optimizer's state of a weight that comes to life is that of a weight's first step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import jaxsparse

EVERY = 5
PARAMS = {"kernel": jax.random.normal(jax.random.key(0), (12, 10)), "bias": jnp.zeros(10)}
INNERS = {
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "adam": lambda: optax.adam(0.01),
    # Its initial state is not zero, and decays where gradients are.
    "rmsprop": lambda: optax.rmsprop(0.01, initial_scale=1.0, momentum=0.9),
}
METHODS = {
    "rigl": lambda inner, **o: jaxsparse.rigl(inner, 0.7, key=0, every=EVERY, **o),
    "sparse_evolution": lambda inner, **o: jaxsparse.sparse_evolution(
        inner, 0.7, key=0, every=EVERY, **o
    ),
}

# Optax's own bias correction leans on implicit promotion.
pytestmark = pytest.mark.standard_promotion


def gradients(t):
    return jax.tree.map(lambda p: 3 * jax.random.normal(jax.random.key(t), p.shape), PARAMS)


def run(inner, tx, steps, change=None):
    """`(state that a first step gives, inner state, born, old masks)` of each mask update."""
    params, state = jaxsparse.init(tx, PARAMS)
    update = jax.jit(tx.update)
    for t in range(steps):
        if change is not None and t in change:
            state = jaxsparse.set_masks(state, change[t])
            params = jaxsparse.apply(params, state.masks)
        grads, before = gradients(t), state.masks
        updates, state = update(grads, state, params)
        if int(state.last_update) == t:
            masks = state.masks
            fresh = inner.init(params)
            living = jaxsparse.apply(params, masks)
            _, fresh = inner.update(jaxsparse.apply(grads, masks), fresh, living)
            yield fresh, state.inner_state, masks["kernel"] & ~before["kernel"], masks["kernel"]
        params = optax.apply_updates(params, updates)


def assert_clean(run, updates):
    seen = 0
    for fresh, found, born, masks in run:
        assert born.sum() > 0
        for first, now in zip(jax.tree.leaves(fresh), jax.tree.leaves(found), strict=True):
            if now.shape == born.shape:
                np.testing.assert_allclose(now[born], first[born], rtol=1e-6)
                np.testing.assert_allclose(now[~masks], first[~masks], rtol=1e-6)
                seen += 1
    assert seen >= updates


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", INNERS)
def test_a_grown_weight_starts_with_a_fresh_state(name, method):
    inner = INNERS[name]()
    assert_clean(run(inner, METHODS[method](inner), 4 * EVERY), updates=3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", INNERS)
def test_what_set_masks_killed_is_grown_with_a_fresh_state(name, method):
    """Its state was left alone then, so the next update has to clear it."""
    inner = INNERS[name]()
    change = {t: jaxsparse.random_masks(t, PARAMS, 0.7) for t in (EVERY - 1, 2 * EVERY)}
    assert_clean(run(inner, METHODS[method](inner), 3 * EVERY, change), updates=2)


def test_keep_leaves_the_state_of_dead_weights_alone():
    inner = INNERS["rmsprop"]()
    for fresh, found, born, _ in run(inner, METHODS["rigl"](inner, regrown_state="keep"), 6):
        first, now = jax.tree.leaves(fresh), jax.tree.leaves(found)
        pairs = [(a, b) for a, b in zip(first, now, strict=True) if a.shape == born.shape]
        assert pairs and not all(np.allclose(a[born], b[born]) for a, b in pairs)


def test_what_set_masks_revives_is_fresh_where_it_is_told_the_transformation():
    params = {"kernel": jnp.arange(1.0, 17).reshape(4, 4)}
    tx = jaxsparse.fixed(optax.rmsprop(0.1, initial_scale=1.0, momentum=0.9), 0.5, key=0)
    params, state = jaxsparse.init(tx, params)
    for _ in range(3):
        updates, state = tx.update(params, state, params)
        params = optax.apply_updates(params, updates)
    before = jaxsparse.get_masks(state, params)["kernel"]
    masks = {"kernel": ~before}
    alone = jaxsparse.set_masks(state, masks)
    told = jaxsparse.set_masks(state, masks, tx=tx, params=params)
    np.testing.assert_array_equal(jaxsparse.get_masks(told, params)["kernel"], ~before)
    nu, trace = told.inner_state[0].nu["kernel"], told.inner_state[-1].trace["kernel"]
    np.testing.assert_array_equal(nu[~before], 1.0)
    np.testing.assert_array_equal(nu[before], alone.inner_state[0].nu["kernel"][before])
    assert (alone.inner_state[0].nu["kernel"][~before] < 0.9).all()  # a decay on zeros
    np.testing.assert_array_equal(trace[~before], 0.0)
    assert (trace[before] != 0).all()
    with pytest.raises(ValueError, match="tx and params go together"):
        jaxsparse.set_masks(state, masks, tx=tx)


def test_reset_begins_with_the_state_of_the_masks_that_it_keeps():
    """Also where the state holds parameters, which are zero where other masks were drawn."""
    params = {"kernel": jnp.arange(1.0, 17).reshape(4, 4), "bias": jnp.ones(4)}
    inner = optax.contrib.schedule_free(optax.sgd(0.1), 0.1, b1=0.9)
    tx = optax.chain(jaxsparse.rigl(inner, 0.5, key=0, every=10))
    masks = jaxsparse.random_masks(1, params, 0.5)
    state = jaxsparse.set_masks(tx.init(params), masks)
    (fresh,) = jaxsparse.reset(tx, state, params)
    np.testing.assert_array_equal(fresh.masks["kernel"], masks["kernel"])
    expected = jnp.where(masks["kernel"], params["kernel"], 0)
    np.testing.assert_array_equal(fresh.inner_state.z["kernel"], expected)
