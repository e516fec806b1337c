"""Layers that would become empty: kept with a warning, kept by units, or refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse

SHAPES = {"fc": (40, 30), "head": (30, 4)}


def net(seed=0):
    draw = np.random.default_rng(seed)
    return {
        name: {"kernel": jnp.asarray(draw.normal(size=shape), jnp.float32)}
        for name, shape in SHAPES.items()
    }


def test_one_weight_is_kept_with_a_warning_by_default():
    with pytest.warns(UserWarning, match="leaves 0 in 'head/kernel'; min_alive keeps 1"):
        masks = jaxsparse.prune(jaxsparse.magnitude(net()), 0.999)
    assert masks["head"]["kernel"].sum() == 1


def test_a_layer_that_would_be_empty_can_be_an_error():
    with pytest.raises(ValueError, match="sparsity 0.999 leaves no weight of 'head/kernel'"):
        jaxsparse.random_masks(0, net(), 0.999, min_alive="raise")
    assert jaxsparse.random_masks(0, net(), 0.9, min_alive="raise")["head"]["kernel"].sum() == 12


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_every_unit_can_keep_its_best_weight(scope):
    scores = jaxsparse.magnitude(net())
    masks = jaxsparse.prune(scores, 0.95, scope=scope, min_alive="unit")
    alive = {name: np.asarray(masks[name]["kernel"]) for name in SHAPES}
    total = 0
    for name, mask in alive.items():
        size = np.asarray(scores[name]["kernel"])
        assert (mask.sum(0) >= 1).all()
        assert mask[size.argmax(0), np.arange(size.shape[1])].all()
        total += mask.sum()
    if scope == "layer":
        assert [mask.sum() for mask in alive.values()] == [60, 6]
    else:
        assert total == 66


@pytest.mark.parametrize("method", ["sparse_evolution", "rigl", "sparse_momentum", "gradual"])
def test_units_stay_alive_while_masks_move(method):
    options = {} if method == "gradual" else {"key": 1, "drop_fraction": 0.9}
    when = {"start": 2, "stop": 20} if method == "gradual" else {}
    tx = getattr(jaxsparse, method)(
        optax.sgd(0.1), 0.94, every=2, min_alive="unit", **when, **options
    )
    params, state = jaxsparse.init(tx, net())

    @jax.jit
    def step(params, state, key):
        grads = jax.tree.map(lambda p: jax.random.normal(key, p.shape), params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for i in range(21):
        params, state = step(params, state, jax.random.key(i))
        masks = jaxsparse.get_masks(state, params)
        for name in SHAPES:
            assert (masks[name]["kernel"].sum(0) >= 1).all(), (i, name)
    assert masks["fc"]["kernel"].sum() == 72 or method == "sparse_momentum"


def test_bad_input():
    with pytest.raises(
        ValueError, match='min_alive must be an int, "unit" or "raise", got \'all\''
    ):
        jaxsparse.prune(net(), 0.5, min_alive="all")
    with pytest.raises(ValueError, match='min_alive="unit" needs the unstructured pattern'):
        jaxsparse.prune(net(), 0.5, min_alive="unit", pattern=jaxsparse.channel)
