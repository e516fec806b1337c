"""Rounds of pruning and rewinding, against the paper's numbers and plain NumPy."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse
from jaxsparse import lottery

LENET = {
    "fc1": {"kernel": jax.ShapeDtypeStruct((784, 300), jnp.float32)},
    "fc2": {"kernel": jax.ShapeDtypeStruct((300, 100), jnp.float32)},
    "head": {"kernel": jax.ShapeDtypeStruct((100, 10), jnp.float32)},
}
RATES = {"head": 0.1, "": 0.2}


def init(key):
    keys = jax.random.split(key, 3)
    return {
        "fc": {"kernel": jax.random.normal(keys[0], (12, 10)), "bias": jnp.zeros(10)},
        "head": {"kernel": jax.random.normal(keys[1], (10, 5))},
    }


def train(key, params, masks):
    """Moves every living weight by noise: the ranks change, and nothing is learned."""

    def leaf(path, p, mask):
        noise = jax.random.normal(jax.random.fold_in(key, len(str(path))), p.shape)
        return jnp.where(mask, p + noise, 0)

    return jax.tree.map_with_path(leaf, params, masks)


def same(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def pruned(scores, within, alive):
    """The `alive` largest scores of the living weights; ties to the lowest index."""
    flat = np.where(within, scores, -np.inf).reshape(-1)
    mask = np.zeros(flat.size, bool)
    mask[np.argsort(-flat, kind="stable")[:alive]] = True
    return mask.reshape(within.shape)


def test_the_densities_of_lenet_are_the_papers():
    published = [100, 80.0, 64.1, 51.3, 41.1, 32.9, 26.3, 21.1, 16.9, 13.5, 10.8, 8.7, 7.0, 5.6]
    published += [4.5, 3.6, 2.9, 2.3, 1.9]
    found = lottery.densities(LENET, 18, RATES)
    np.testing.assert_allclose(100 * np.array(found), published, atol=0.051)


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5, 0.9])
def test_the_ladder_against_a_loop(rate):
    params = init(jax.random.key(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = lottery.ladder(params, 12, rate)
        total = lottery.ladder(params, 12, rate, scope="global")
    alive, whole = {"fc": 120, "head": 50}, 170
    for entry, count in zip(found, total, strict=True):
        assert {name: entry[name]["kernel"] for name in alive} == alive
        assert entry["fc"]["bias"] == 10
        assert count == whole
        alive = {name: max(1, int(n * (1 - rate) + 0.5)) for name, n in alive.items()}
        whole = max(2, int(whole * (1 - rate) + 0.5))


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_iterative_pruning_against_numpy(scope):
    params = init(jax.random.key(1))
    rounds = lottery.find_tickets(train, params, 3, rounds=4, rates=0.3, scope=scope)
    counts = lottery.ladder(params, 4, 0.3, scope=scope)
    assert len(rounds) == 5
    names = ("fc", "head")
    masks = {name: np.ones(params[name]["kernel"].shape, bool) for name in names}
    for number, found in enumerate(rounds):
        for name in names:
            assert np.array_equal(found.masks[name]["kernel"], masks[name])
            start = np.where(masks[name], params[name]["kernel"], 0)
            assert np.array_equal(found.params[name]["kernel"], start)
        assert found.masks["fc"]["bias"].all()
        alive = sum(mask.sum() for mask in masks.values())
        assert found.density == alive / 170
        if number == 4:
            break
        scores = {name: np.abs(found.result[name]["kernel"]) for name in names}
        if scope == "layer":
            for name in names:
                left = counts[number + 1][name]["kernel"]
                masks[name] = pruned(scores[name], masks[name], left)
        else:
            flat, within = (
                np.concatenate([tree[name].reshape(-1) for name in names])
                for tree in (scores, masks)
            )
            mask = pruned(flat, within, counts[number + 1])
            masks = {"fc": mask[:120].reshape(12, 10), "head": mask[120:].reshape(10, 5)}


def test_one_shot_is_pruning_the_dense_network_at_once():
    params = init(jax.random.key(1))
    dense = train(jax.random.key(5), params, jax.tree.map(jnp.ones_like, params))
    counts = lottery.ladder(params, 3, 0.4)
    masks = lottery.prune_to(jaxsparse.magnitude(dense), counts[3])
    for name in ("fc", "head"):
        kernel = np.abs(dense[name]["kernel"])
        expected = pruned(kernel, np.ones(kernel.shape, bool), counts[3][name]["kernel"])
        assert np.array_equal(masks[name]["kernel"], expected)


def test_counts_may_be_traced():
    params = init(jax.random.key(1))
    counts = lottery.ladder(params, 3, RATES)
    traces = []

    @jax.jit
    def prune(scores, alive):
        traces.append(1)
        return lottery.prune_to(scores, alive)

    for alive in counts:
        masks = prune(jaxsparse.magnitude(params), alive)
        for name in ("fc", "head"):
            assert masks[name]["kernel"].sum() == alive[name]["kernel"]
    assert len(traces) == 1


def test_replicates_under_vmap_are_those_alone_from_one_trace():
    keys = jax.random.split(jax.random.key(0), 3)
    traces = []

    @jax.jit
    def counted(key, params, masks):
        traces.append(1)
        return train(key, params, masks)

    def study(key):
        return lottery.find_tickets(counted, init(key), key, rounds=3, rates=RATES)

    together = jax.vmap(study)(keys)
    assert len(traces) == 1
    for i, key in enumerate(keys):
        alone = study(key)
        for one, many in zip(alone, together, strict=True):
            one = one._replace(density=np.float32(one.density))
            assert same(one, jax.tree.map(lambda leaf: leaf[i], many))  # noqa: B023


def test_ways_of_rewinding():
    params, options = init(jax.random.key(2)), {"rounds": 3, "rates": 0.3}
    calls = []

    def logged(key, params, masks, **when):
        calls.append((when, params, masks))
        return train(key, params, masks)

    found = {
        rewind: lottery.find_tickets(logged, params, 0, rewind=rewind, **options)
        for rewind in ("init", "continue", "learning_rate")
    }
    assert all(when == {} for when, _, _ in calls)
    for rounds in found.values():
        assert same(rounds[0].params, params)
    for number in (1, 2, 3):
        for rewind, rounds in found.items():
            before, now = rounds[number - 1], rounds[number]
            goes_on = rewind == "learning_rate" or (rewind == "continue" and number < 3)
            origin = before.result if goes_on else params
            assert same(now.params, jaxsparse.apply(origin, now.masks))


def test_rewinding_to_a_step():
    params, calls = init(jax.random.key(2)), []

    def logged(key, params, masks, *, start, stop):
        calls.append((start, stop))
        return train(key, params, masks), "anything"

    rounds = lottery.find_tickets(logged, params, 0, rounds=2, rewind=10, steps=100)
    assert calls == [(0, 10), (10, 100), (10, 100), (10, 100)]
    early = rounds[0].params
    assert not same(early, params)
    assert same(rounds[2].params, jaxsparse.apply(early, rounds[2].masks))


@pytest.mark.parametrize("name", ["movement", "magnitude_increase", "initial_magnitude", "chance"])
def test_criteria(name):
    params = init(jax.random.key(2))
    criterion = getattr(lottery, name)
    rounds = lottery.find_tickets(train, params, 0, rounds=1, rates=0.5, criterion=criterion)
    initial, trained = (
        np.asarray(tree["fc"]["kernel"]) for tree in (rounds[0].params, rounds[0].result)
    )
    scores = {
        "movement": np.abs(trained - initial),
        "magnitude_increase": np.abs(trained) - np.abs(initial),
        "initial_magnitude": np.abs(initial),
    }
    mask = np.asarray(rounds[1].masks["fc"]["kernel"])
    assert mask.sum() == 60
    if name in scores:
        assert np.array_equal(mask, pruned(scores[name], np.ones((12, 10), bool), 60))


def test_least_magnitude_keeps_what_the_paper_removes():
    params = init(jax.random.key(2))
    large = lottery.find_tickets(train, params, 0, rounds=1, rates=0.5)[1].masks
    small = lottery.find_tickets(
        train, params, 0, rounds=1, rates=0.5, criterion=lottery.least_magnitude
    )[1].masks
    assert not (large["fc"]["kernel"] & small["fc"]["kernel"]).any()


def test_any_score_of_the_library_is_a_criterion():
    params, x = init(jax.random.key(2)), jnp.ones((4, 12))

    def loss(params, batch):
        return ((batch @ params["fc"]["kernel"]) @ params["head"]["kernel"]).mean()

    def criterion(key, initial, trained):
        return jaxsparse.snip(loss, trained, [x])

    rounds = lottery.find_tickets(train, params, 0, rounds=2, criterion=criterion, scope="global")
    assert sum(m.sum() for m in jax.tree.leaves(rounds[2].masks)) == 10 + 109


BAD = [
    ({"rounds": 0}, ValueError, "rounds must be at least 1, got 0"),
    ({"rounds": 1.5}, TypeError, "rounds must be an int"),
    ({"rates": 0.0}, ValueError, r"rates must be in \(0, 1\).*got 0.0"),
    ({"rates": 1.0}, ValueError, r"rates must be in \(0, 1\)"),
    ({"rates": {"fc": 1.2}}, ValueError, r"rates must be in \(0, 1\)"),
    ({"rates": "much"}, TypeError, "rates must be a number"),
    (
        {"rates": {"nowhere": 0.2}},
        ValueError,
        "rates: 'nowhere' is the first match of no prunable leaf",
    ),
    ({"rates": {"fc": 0.2}, "scope": "global"}, TypeError, "rates must be a number"),
    ({"rewind": "start"}, ValueError, "rewind must be one of init, continue, learning_rate"),
    ({"rewind": 5}, TypeError, "needs steps="),
    ({"rewind": 100, "steps": 100}, ValueError, r"rewind must be a step in \[1, 100\)"),
    ({"rewind": 0, "steps": 100}, ValueError, r"rewind must be a step in \[1, 100\)"),
    ({"scope": "all"}, ValueError, "scope must be"),
]


@pytest.mark.parametrize(("given", "error", "message"), BAD)
def test_bad_input(given, error, message):
    def never(*_):
        raise AssertionError("trained before the arguments were checked")

    with pytest.raises(error, match=message):
        lottery.find_tickets(never, init(jax.random.key(0)), 0, **{"rounds": 2} | given)


def test_train_must_return_parameters():
    with pytest.raises(TypeError, match="train must return the trained parameters"):
        lottery.find_tickets(lambda *_: 0.5, init(jax.random.key(0)), 0, rounds=1)


def test_masks_of_another_tree():
    params = init(jax.random.key(0))
    with pytest.raises(ValueError, match="within must have the structure"):
        lottery.prune_to(params, lottery.ladder(params, 1)[1], within={"fc": 1})
