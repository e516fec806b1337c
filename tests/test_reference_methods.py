"""DSR, DeepR, SET by sign, and sparse momentum's other options, step for step against NumPy."""

import math

import jax
import numpy as np
import optax
import pytest

import jaxsparse
from tests import reference_methods as others
from tests import reference_runs as reference
from tests.test_reference_runs import (
    EVERY,
    KEY,
    NEARLY_FULL,
    SPARSITY,
    STEPS,
    STOP,
    UPDATES,
    changes,
    difference,
    drawn,
    fires,
    initial_masks,
    library_run,
    make_problem,
    momentum_method,
)

WHEN = {"every": EVERY, "stop": STOP}


@pytest.fixture(scope="module")
def problem():
    return make_problem({"fc1": (8, 16), "fc2": (16, 12), "fc3": (12, 5)}, STEPS)


def expected(problem, rule, sparsity=SPARSITY, when=fires, **how):
    net, batches = problem
    masks, optimizer = initial_masks(net, sparsity), reference.Momentum(0.1)
    return reference.train(net, masks, optimizer, batches, when, rule, False, **how)


def test_set_by_sign(problem):
    tx = jaxsparse.sparse_evolution(
        optax.sgd(0.1, 0.9), SPARSITY, key=KEY, drop_fraction=0.25, drop_by="sign", **WHEN
    )
    run, net = library_run(tx, *problem), problem[0]
    for fraction, same in ((0.25, True), (0.2, False)):
        rule = others.evolution_by_sign(fraction, lambda t: drawn(net, t))
        assert (difference(run, expected(problem, rule)) is None) == same
    assert changes(run) == UPDATES


@pytest.mark.parametrize(
    ("min_salient", "keep_units", "keep"),
    [
        (None, None, ()),
        (0.6, (), ()),
        (0.9, "fc3", ("fc3",)),
        (1.0, ["fc1", "3/k"], ("fc1", "fc3")),
    ],
    ids=["none", "all", "one layer stays", "two layers stay"],
)
def test_rigl_with_constant_fan_in(problem, min_salient, keep_units, keep):
    """SRigL, with and without the removal of output units."""
    net, batches = problem
    tx = jaxsparse.rigl(
        optax.sgd(0.1, 0.9),
        SPARSITY,
        key=KEY,
        pattern=jaxsparse.fan_in,
        min_salient=min_salient,
        keep_units=keep_units,
        drop_fraction=0.3,
        **WHEN,
    )
    run = library_run(tx, *problem)
    masks, fans = {}, {}
    for layer, scores in drawn(net).items():
        fans[layer] = fan = math.floor(len(scores) * (1 - SPARSITY[layer]) + 0.5)
        columns = [reference.best(s, fan, np.ones(len(s), bool)) for s in scores.T]
        masks[layer] = np.stack(columns, 1)

    def truth(fraction, share=min_salient, keep=keep):
        rule = others.ConstantFanIn(lambda t: fraction, share, fans, keep)
        optimizer = reference.Momentum(0.1)
        return rule, list(reference.train(net, masks, optimizer, batches, fires, rule.move, True))

    rule, expected = truth(0.3)
    assert difference(run, expected) is None
    assert changes(run) == UPDATES
    if min_salient is not None:
        assert "masks" in difference(run, truth(0.3, 0.5)[1])
        for layer in keep:
            assert all(m[layer]["kernel"].any(0).all() for _, m in run)
    if keep_units == ():
        ways = ("removed", "back", "uneven", "trimmed")
        assert all(rule.log[way] > 0 for way in ways), rule.log  # each was taken
    assert "masks" in difference(run, truth(0.25)[1])


def test_removal_of_units_settles():
    """The threshold comes from the first fan-in; by the present one, six dense units are left."""
    net = {"fc": {"kernel": jax.random.normal(jax.random.key(1), (64, 64)) / 8}}
    tx = jaxsparse.rigl(
        optax.sgd(0.1, 0.9),
        0.9,
        key=0,
        every=2,
        pattern=jaxsparse.fan_in,
        min_salient=0.95,
        keep_units=(),
    )
    params, state = jaxsparse.init(tx, net)
    fans = {"fc": int(state.masks["fc"]["kernel"].sum(0)[0])}
    rule = others.ConstantFanIn(lambda t: 0.3, 0.95, fans)

    @jax.jit
    def step(params, state, key):
        grads = jax.tree.map(lambda w: w + jax.random.normal(key, w.shape), params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, grads

    units = []
    for t in range(40):
        before = jax.tree.map(np.asarray, (params, state.masks))
        params, state, grads = step(params, state, jax.random.key(100 + t))
        mask = np.asarray(state.masks["fc"]["kernel"])
        if t > 0 and t % 2 == 0:
            masks = {"fc": before[1]["fc"]["kernel"]}
            expected = rule.move(t, masks, before[0], jax.tree.map(np.asarray, grads))
            np.testing.assert_array_equal(mask, expected["fc"], err_msg=str(t))
        units.append(int(mask.any(0).sum()))
    assert min(units) > 32 and max(units[20:]) - min(units[20:]) <= 4, units
    assert rule.log["lowered"] == 0


def test_removal_leaves_one_unit_more_than_the_weights_fill():
    """Where only a few units have salient weights the threshold falls, so no others die out."""
    kernel = np.full((8, 10), 0.1, np.float32)
    kernel[:, :3] = np.linspace(1, 2, 24).reshape(8, 3)  # their weights are salient both ways
    tx = jaxsparse.rigl(
        optax.sgd(0.1),
        0.5,
        key=0,
        every=1,
        pattern=jaxsparse.fan_in,
        min_salient=1.0,
        keep_units=(),
        drop_fraction=0.9,
    )
    params, state = jaxsparse.init(tx, {"fc": {"kernel": kernel}})
    grads, mask = {"fc": {"kernel": kernel}}, np.asarray(state.masks["fc"]["kernel"])
    _, state = tx.update(params, state, params)
    rule = others.ConstantFanIn(lambda t: 0.9, 1.0, {"fc": 4})
    masks = {"fc": np.asarray(state.masks["fc"]["kernel"])}
    expected = rule.move(1, masks, jax.tree.map(np.asarray, params), grads)
    _, state = tx.update(grads, state, params)
    np.testing.assert_array_equal(state.masks["fc"]["kernel"], expected["fc"])
    assert rule.log["lowered"] == 1 and mask.sum() == expected["fc"].sum() == 40
    assert expected["fc"].any(0).sum() >= 6


@pytest.mark.parametrize("sparsity", [SPARSITY, NEARLY_FULL], ids=["sparse", "nearly full"])
def test_dynamic_reparameterization(problem, sparsity):
    tx = jaxsparse.dynamic_reparameterization(
        optax.sgd(0.1, 0.9), sparsity, key=KEY, threshold=0.3, target=0.1, **WHEN
    )
    run, net = library_run(tx, *problem), problem[0]
    rule = others.Reparameterization(0.3, 0.1, lambda t: drawn(net, t))
    assert difference(run, expected(problem, rule.move, sparsity)) is None
    assert len(set(rule.thresholds)) > 1 and len(changes(run)) >= 6
    other = others.Reparameterization(0.15, 0.1, lambda t: drawn(net, t))
    assert "masks" in difference(run, expected(problem, other.move, sparsity))


@pytest.mark.parametrize("sign", ["fixed", "free"])
def test_deep_rewiring(problem, sign):
    net, steps = {layer: dict(leaves) for layer, leaves in problem[0].items()}, 12
    for leaves in net.values():  # what is zero at the start has no sign of its own
        leaves["kernel"] = np.where(np.arange(leaves["kernel"].shape[1]) % 4, leaves["kernel"], 0)
    l1, sigma = 0.01, 0.2
    tx = jaxsparse.deep_rewiring(
        optax.sgd(0.1, 0.9),
        SPARSITY,
        key=KEY,
        l1=l1,
        noise=lambda t: sigma / (1 + 0.1 * t),
        sign=sign,
    )
    short = net, problem[1][:steps]
    run = library_run(tx, *short, promotion="standard")
    key = jax.random.key(KEY)
    signs = reference.kernels(np.sign, net)
    if sign == "fixed":
        fresh = jax.random.fold_in(key, 1)
        coins = reference.kernels(np.asarray, jaxsparse.random_scores(fresh, net))
        signs = {
            layer: np.where(s == 0, np.where(coins[layer] < 0.5, 1, -1), s).astype(np.float32)
            for layer, s in signs.items()
        }

    def noise(t):
        step = jax.random.fold_in(jax.random.fold_in(key, t), 2)
        size = np.float32(sigma / (1 + 0.1 * np.float32(t)))
        return {
            layer: size
            * np.asarray(
                jax.random.normal(
                    jaxsparse.prng.leaf_key(step, f"{layer}/kernel"), net[layer]["kernel"].shape
                )
            )
            for layer in net
        }

    def truth(l1, free=sign == "free"):
        rule = others.DeepRewiring(signs, l1, noise, lambda t: drawn(net, t), free)
        run = expected(short, rule.move, when=lambda t: t >= 1, adjust=rule.adjust)
        return rule, list(run)

    rule, right = truth(l1)
    assert difference(run, right) is None
    assert rule.moved > 20
    if sign == "fixed":
        assert 0.3 < rule.stillborn / rule.grown < 0.7
    else:
        assert rule.stillborn == 0 < rule.grown
    assert difference(run, truth(0.05)[1]) is not None
    assert difference(run, truth(l1, sign != "free")[1]) is not None


def test_deep_rewiring_of_a_ticket_keeps_its_signs():
    """`reset` brings masks of its own: weights that do not move must not die."""
    params = {"fc": {"kernel": jax.random.normal(jax.random.key(0), (20, 10))}}
    still = jax.tree.map(np.zeros_like, params)
    for sign in ("fixed", "free"):
        tx = jaxsparse.deep_rewiring(optax.sgd(0.1), 0.7, key=1, l1=0, noise=0, sign=sign)
        ticket = jaxsparse.random_masks(2, params, 0.7)
        state = jaxsparse.reset(tx, jaxsparse.set_masks(tx.init(params), ticket), params)
        for _ in range(3):
            _, state = tx.update(still, state, jaxsparse.apply(params, ticket))
        assert jaxsparse.metrics(state)["last_update"] == 2
        np.testing.assert_array_equal(state.masks["fc"]["kernel"], ticket["fc"]["kernel"])


@pytest.mark.parametrize(
    ("drop_by", "growth"), [("global", "momentum"), ("magnitude", "global"), ("global", "global")]
)
def test_sparse_momentum_across_layers(problem, drop_by, growth):
    run = library_run(momentum_method(SPARSITY, drop_by=drop_by, growth=growth), *problem)

    def truth(start):
        rate = reference.cosine(start, STOP, 0.005)
        rule = others.GlobalMomentum(problem[0], rate, growth, "momentum", drop_by=drop_by)
        return expected(problem, rule.move, observe=rule.observe)

    assert difference(run, truth(0.2)) is None
    assert changes(run) == UPDATES
    assert "masks" in difference(run, truth(0.25))


def test_sparse_momentum_by_adams_signal(problem):
    run = library_run(momentum_method(SPARSITY, second_moment=0.99), *problem)

    def truth(second_moment):
        rate = reference.cosine(0.2, STOP, 0.005)
        rule = others.NormalisedMomentum(
            problem[0], rate, "momentum", "momentum", second_moment=second_moment
        )
        return expected(problem, rule.move, observe=rule.observe)

    assert difference(run, truth(0.99)) is None
    assert "masks" in difference(run, truth(0.5))


def test_snfs_as_rigl_reads_it(problem):
    """An average of dense gradients with decay 0.9, no weight moves between layers."""
    tx = jaxsparse.sparse_momentum(
        optax.sgd(0.1, 0.9), SPARSITY, key=KEY, redistribution="none", **WHEN
    )
    run = library_run(tx, *problem)
    rule = jaxsparse.sparse_momentum_rule(SPARSITY, redistribution="none", **WHEN)
    counts = rule.alive(problem[0], 0)
    for _, masks in run:
        for layer in SPARSITY:
            assert masks[layer]["kernel"].sum() == counts[layer]["kernel"]
