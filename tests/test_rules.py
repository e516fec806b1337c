"""Rules of one's own: what a rule leaves out has a default."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse
from jaxsparse import rules

PARAMS = {
    "fc": {"kernel": jnp.ones((20, 10)), "bias": jnp.ones(10)},
    "head": {"kernel": jnp.ones((10, 4))},
}
SPARSE = {"fc": {"kernel": True, "bias": False}, "head": {"kernel": True}}


def start(key, params):
    return jaxsparse.random_masks(key, params, 0.9), ()


def move(key, count, masks, params, grads, state):
    return jaxsparse.drop_and_grow(
        masks, jaxsparse.magnitude(params), jaxsparse.random_scores(key, params), 0.5
    ), state


LEAST = jaxsparse.Rule(init=start, update=move, fires=jaxsparse.schedules.periodic(every=2))
SPELLED_OUT = LEAST._replace(
    observe=lambda state, grads, masks, params, count: state,
    alive=lambda params, count: {"fc": {"kernel": 20, "bias": 10}, "head": {"kernel": 4}},
    sparse=lambda params: SPARSE,
    adjust=lambda key, count, masks, params, grads, state: grads,
    prunable=lambda params: SPARSE,
)


def train(rule, steps=6, **options):
    tx = jaxsparse.sparsify(optax.sgd(0.1, 0.9), rule, key=0, **options)
    params, state = jaxsparse.init(tx, PARAMS)
    update = jax.jit(tx.update)
    for step in range(steps):
        grads = jax.tree.map(lambda p, t=float(step): jnp.cos(3 * p + t), params)
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        yield params, state


@pytest.mark.parametrize("skip_update", [False, True])
def test_init_update_and_fires_are_enough(skip_update):
    for count, (params, state) in enumerate(train(LEAST, skip_update=skip_update)):
        masks = jaxsparse.get_masks(state, params)
        alive = jax.tree.map(lambda mask: int(mask.sum()), masks)
        assert alive == rules.alive(LEAST, PARAMS, count)
        assert jaxsparse.metrics(state, params=params)["off_mask"] == 0
    assert alive == {"fc": {"kernel": 20, "bias": 10}, "head": {"kernel": 4}}
    found = jaxsparse.metrics(state)
    assert found["last_update"] == 4 and found["churn"] > 0
    assert state.sparse == ("fc/kernel", "head/kernel")


def test_defaults_are_what_they_say():
    for short, long in zip(train(LEAST), train(SPELLED_OUT), strict=True):
        jax.tree.map(np.testing.assert_array_equal, short, long)
    assert rules.alive(LEAST, PARAMS, 3) == rules.alive(SPELLED_OUT, PARAMS, 3)


def test_a_rule_without_update_and_fires_is_static():
    rule = jaxsparse.Rule(init=start)
    *_, (params, state) = train(rule)
    masks = jaxsparse.random_masks(jax.random.key(0), PARAMS, 0.9)
    jax.tree.map(np.testing.assert_array_equal, jaxsparse.get_masks(state, params), masks)
    moved = jax.tree.map(lambda p, mask: bool(jnp.all((p != 0) == mask)), params, masks)
    assert all(jax.tree.leaves(moved)) and jaxsparse.metrics(state)["last_update"] == -1


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"update": move}, ValueError, r"rule\.update needs rule\.fires"),
        ({"fires": lambda count: count > 0}, ValueError, r"rule\.fires needs rule\.update"),
        ({"init": None}, TypeError, r"rule\.init must be a function .*got None"),
        ({"observe": 3}, TypeError, r"rule\.observe must be a function .*got 3"),
        ({"grows": None}, TypeError, r"rule\.grows must be True or False, got None"),
        ({"sparse": SPARSE}, TypeError, r"rule\.sparse must be a function"),
    ],
)
def test_a_rule_that_cannot_work_is_told(fields, error, message):
    rule = jaxsparse.Rule(**{"init": start, **fields})
    with pytest.raises(error, match=message):
        jaxsparse.sparsify(optax.sgd(0.1), rule, key=0)


def test_where_the_default_filter_lets_nothing_through():
    params = {"embedding": jnp.ones((8, 8))}
    ones = lambda key, params: (jax.tree.map(lambda p: p > 0, params), ())  # noqa: E731
    rule = jaxsparse.Rule(init=ones)
    with pytest.raises(ValueError, match=r"rule\.sparse must be given.*accepts no leaf"):
        jaxsparse.sparsify(optax.sgd(0.1), rule, key=0).init(params)
    rule = rule._replace(sparse=lambda params: {"embedding": True})
    assert jaxsparse.sparsify(optax.sgd(0.1), rule, key=0).init(params).sparse == ("embedding",)
