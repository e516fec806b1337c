"""Every method that conserves counts starts from masks of the user's own, as `fixed` does."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse
from tests import test_contracts as contracts

DRAW = np.random.default_rng(0)
PARAMS = {
    "fc1": {"kernel": jnp.asarray(DRAW.normal(size=(8, 12)), jnp.float32), "bias": jnp.ones(12)},
    "fc2": {"kernel": jnp.asarray(DRAW.normal(size=(12, 4)), jnp.float32)},
}
TICKET = jaxsparse.prune_by_magnitude(PARAMS, {"fc1": 0.75, "fc2": 0.5})
SGD = optax.sgd(0.05, momentum=0.9)
METHODS = {
    "fixed": partial(jaxsparse.fixed, SGD),
    "rigl": partial(jaxsparse.rigl, SGD, key=0, every=2),
    "rigl accumulate": partial(jaxsparse.rigl, SGD, key=0, every=2, accumulate=2),
    "sparse_evolution": partial(jaxsparse.sparse_evolution, SGD, key=0, every=2),
    "sparse_momentum": partial(jaxsparse.sparse_momentum, SGD, key=0, every=2),
    "dynamic_reparameterization": partial(
        jaxsparse.dynamic_reparameterization, SGD, key=0, every=2, threshold=0.3, target=0.3
    ),
    "deep_rewiring": partial(jaxsparse.deep_rewiring, SGD, key=0, noise=20.0),
}


def counts(masks):
    return jax.tree.map(lambda mask: int(mask.sum()), masks)


def train(tx, params, state, steps=5):
    @jax.jit
    def step(params, state):
        grads = jax.tree.map(lambda p: jnp.cos(3 * p) + 0.1, params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, state


@pytest.mark.parametrize("method", METHODS)
def test_starts_from_the_masks_and_keeps_their_counts(method):
    tx = METHODS[method](masks=TICKET)
    params, state = jaxsparse.init(tx, PARAMS)
    jax.tree.map(np.testing.assert_array_equal, state.masks, TICKET)
    jax.tree.map(np.testing.assert_array_equal, params, jaxsparse.apply(PARAMS, TICKET))
    params, state = train(tx, params, state)
    masks = jaxsparse.get_masks(state, params)
    found = jaxsparse.metrics(state, params=params)
    assert found["off_mask"] == 0 and found["density"] == np.float32(48 / 144)
    assert (found["last_update"] < 0) == (method == "fixed")
    alone = method in ("sparse_momentum", "dynamic_reparameterization")
    assert sum(jax.tree.leaves(counts(masks))) == 24 + 24 + 12
    assert alone or counts(masks) == counts(TICKET)
    moved = any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (masks, TICKET)), strict=True))
    assert moved == (method != "fixed")


@pytest.mark.parametrize("method", ["fixed", "rigl", "dynamic_reparameterization"])
def test_the_rule_says_the_counts_of_the_masks(method):
    rule = getattr(jaxsparse, f"{method}_rule")(masks=TICKET)
    expected = {"fc1": {"kernel": 24, "bias": 12}, "fc2": {"kernel": 24}}
    total = sum(jax.tree.leaves(expected))
    found = rule.alive(PARAMS, 0)
    assert found == (total if method == "dynamic_reparameterization" else expected)


def test_a_leaf_without_a_mask_is_dense():
    masks = {"fc1": {"kernel": TICKET["fc1"]["kernel"], "bias": None}, "fc2": {"kernel": None}}
    params, state = jaxsparse.init(METHODS["rigl"](masks=masks), PARAMS)
    assert jaxsparse.metrics(state)["density"] == 0.25
    assert state.masks["fc2"]["kernel"].all() and state.masks["fc1"]["bias"].all()
    dense = jaxsparse.fixed(SGD, masks=jax.tree.map(lambda _: None, PARAMS)).init(PARAMS)
    assert jaxsparse.metrics(dense)["density"] == 1


def test_traced_masks_give_every_replicate_its_own():
    tickets = jax.tree.map(lambda m: jnp.stack([m, ~m | (m.ndim == 1)]), TICKET)
    make = lambda masks: METHODS["rigl"](masks=masks).init(PARAMS)  # noqa: E731
    state = jax.vmap(make)(tickets)
    jax.tree.map(np.testing.assert_array_equal, state.masks, tickets)


def test_in_a_part_of_the_parameters():
    kinds = lambda p: jax.tree.map_with_path(lambda path, _: path[-1].key, p)  # noqa: E731
    tx = optax.partition({"kernel": METHODS["rigl"](masks=TICKET), "bias": optax.sgd(0.1)}, kinds)
    params, state = jaxsparse.init(tx, PARAMS)
    params, state = train(tx, params, state)
    assert counts(jaxsparse.get_masks(state, params)) == counts(TICKET)
    assert jaxsparse.metrics(state)["density"] == np.float32(48 / 144)


@pytest.mark.parametrize(
    ("pattern", "sparsity"),
    [
        (jaxsparse.n_m(2, 4), 0.5),
        (jaxsparse.fan_in, 0.5),
        (jaxsparse.block(4, 4), 0.5),
        (jaxsparse.channel, 0.5),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_masks_must_fit_the_pattern(pattern, sparsity):
    given = {"pattern": pattern, "axes": "flax"}
    fitting = jaxsparse.prune_by_magnitude(PARAMS, sparsity, **given)
    tx = jaxsparse.rigl(SGD, masks=fitting, key=0, every=2, **given)
    params, state = train(tx, *jaxsparse.init(tx, PARAMS))
    assert counts(state.masks) == counts(fitting)
    for masks in (TICKET, jax.tree.map(lambda m: m.at[0].set(m.ndim == 1), fitting)):
        with pytest.raises(ValueError, match=f"masks at 'fc./kernel' do not fit.*{pattern.name}"):
            jaxsparse.rigl(SGD, masks=masks, key=0, **given).init(PARAMS)


@pytest.mark.parametrize("method", METHODS)
def test_raises(method):
    make = METHODS[method]
    own = method.split()[0]
    with pytest.raises(ValueError, match=f"{own} needs either sparsity= or masks=.*both"):
        make(0.5, masks=TICKET)
    with pytest.raises(ValueError, match=f"{own} needs either sparsity= or masks=.*neither"):
        make()
    with pytest.raises(TypeError, match="masks at 'fc1/bias' must be boolean, got float32"):
        make(masks=PARAMS)
    with pytest.raises(ValueError, match="masks must hold boolean arrays, got none in dict {}"):
        make(masks={})
    with pytest.raises(TypeError, match=f"sparsity of {own} must be a number.*pass masks="):
        make(TICKET)
    with pytest.raises(ValueError, match="distribution: with masks="):
        make(masks=TICKET, distribution=jaxsparse.erk)
    with pytest.raises(ValueError, match="masks.*first path that differs is 'fc2/kernel'"):
        make(masks=TICKET).init({"fc1": PARAMS["fc1"], "tail": PARAMS["fc2"]})
    with pytest.raises(ValueError, match="masks.*'fc2/kernel' has shape"):
        make(masks=TICKET).init(PARAMS | {"fc2": {"kernel": jnp.ones((4, 12))}})
    with pytest.raises(ValueError, match="dead weights at 'fc2/kernel', but prunable"):
        make(masks=TICKET, prunable=lambda path, leaf: "fc1/kernel" == path).init(PARAMS)


CONTRACTS = {
    "fixed": {},
    "sparse_evolution": {"every": 2, "drop_fraction": 0.5},
    "rigl": {"every": 2, "drop_fraction": 0.5},
    "sparse_momentum": {"every": 2, "drop_fraction": 0.5},
    "dynamic_reparameterization": {"every": 2, "threshold": 0.1, "target": 0.3},
    "deep_rewiring": {"l1": 0.01, "noise": 0.5},
}


@pytest.mark.parametrize("name", CONTRACTS)
def test_the_contracts_hold_from_given_masks(name):
    params, inner = contracts.initial_params(), contracts.INNERS["sgd"]()
    given = {"masks": jaxsparse.prune_by_magnitude(params, 0.7)} | CONTRACTS[name]
    method = getattr(jaxsparse, name)
    make = lambda inner, key: method(inner, key=key, **given)  # noqa: E731
    _, flags, alive, metrics = contracts.run(make, inner, contracts.KEY)
    contracts.assert_flags(flags)
    assert (metrics["last_update"][-1] >= 0) == (name != "fixed")
    np.testing.assert_array_equal(metrics["density"], np.float32(23 / 78))
    for count in range(contracts.STEPS):
        now = jax.tree.map(lambda a, t=count: int(a[t]), alive)
        want = getattr(jaxsparse, f"{name}_rule")(**given).alive(params, count)
        assert (sum(jax.tree.leaves(now)) if isinstance(want, int) else now) == want
