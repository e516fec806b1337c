"""Structured tickets, tickets with dense layers, and layers that would become empty."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse
from jaxsparse import lottery
from tests.lottery.test_rounds import init, train


@pytest.mark.parametrize(
    ("pattern", "group"),
    [(jaxsparse.channel, (12, 1)), (jaxsparse.block(2, 5), (2, 5)), (jaxsparse.fan_in, None)],
)
def test_structured_tickets(pattern, group):
    params = init(jax.random.key(2))
    rounds = lottery.find_tickets(
        train, params, 0, rounds=2, rates=0.4, pattern=pattern, axes="flax"
    )
    for found in rounds:
        mask = np.asarray(found.masks["fc"]["kernel"])
        if group is None:
            assert len(set(mask.sum(0))) == 1
        else:
            tiles = mask.reshape(12 // group[0], group[0], 10 // group[1], group[1])
            alive = tiles.sum((1, 3))
            assert set(np.unique(alive)) <= {0, group[0] * group[1]}
    assert rounds[2].density < rounds[1].density < 1


def test_n_m_tickets_in_one_round():
    params = init(jax.random.key(2))
    options = {"pattern": jaxsparse.n_m(1, 2), "axes": "flax"}
    rounds = lottery.find_tickets(train, params, 0, rounds=1, **options)
    kernel = np.asarray(rounds[1].masks["fc"]["kernel"])
    assert (kernel.reshape(6, 2, 10).sum(1) == 1).all()
    with pytest.raises(ValueError, match=r"rounds must be 1.*1:2.*got 3"):
        lottery.find_tickets(train, params, 0, rounds=3, **options)


def test_prunable_leaves_others_dense():
    params = init(jax.random.key(2))
    rounds = lottery.find_tickets(
        train, params, 0, rounds=1, prunable=lambda path, leaf: path == "fc/kernel"
    )
    assert rounds[1].masks["head"]["kernel"].all()
    assert rounds[1].density == 96 / 120


def test_a_layer_that_would_be_empty_is_named_and_keeps_a_weight():
    params = {"fc/kernel": jnp.ones((20, 20)), "head/kernel": jnp.ones((2, 2))}
    with pytest.warns(UserWarning, match=r"round [23] .*'head/kernel' empty"):
        counts = lottery.ladder(params, 3, 0.8)
    assert [entry["head/kernel"] for entry in counts] == [4, 1, 1, 1]
