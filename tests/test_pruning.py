"""Scores to masks against a stable sort: by layer, globally, within masks, in rounds, at random."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxsparse
from tests import reference

SHAPES = {"a": (8, 12), "b": (12, 5), "c": (5, 3)}


def random_net(seed=0, ties=True):
    """Kernels of whole numbers, with many ties, and a bias each that stays dense."""
    draw = np.random.default_rng(seed)
    kernels = {
        n: draw.integers(-9, 10, s) if ties else draw.normal(size=s) for n, s in SHAPES.items()
    }
    return {
        name: {"kernel": kernel.astype(np.float32), "bias": np.zeros(kernel.shape[1], np.float32)}
        for name, kernel in kernels.items()
    }


def to_jax(tree):
    return jax.tree.map(jnp.asarray, tree)


def kernels(tree):
    return {name: np.asarray(layer["kernel"]) for name, layer in tree.items()}


def assert_masks(masks, expected):
    for name, mask in kernels(masks).items():
        assert np.array_equal(mask, expected[name]), name
    assert all(bool(layer["bias"].all()) for layer in masks.values())


@pytest.mark.parametrize("sparsity", [0.0, 0.35, 0.9, 0.999])
def test_per_layer(sparsity):
    """Exact counts with at least one weight a layer; the lowest index wins a tie."""
    scores = random_net()
    masks = jaxsparse.prune(to_jax(scores), sparsity, signed=True)
    expected = {
        name: reference.top_k_mask(s, max(reference.target_count(s.size, sparsity), 1))
        for name, s in kernels(scores).items()
    }
    assert_masks(masks, expected)


def test_one_helper_counts_in_python():
    for size in (1, 5, 266_200, 25_502_912, 2**31 - 1):
        for sparsity in (0.0, 0.5, 0.9, 0.95, 0.999):
            found = jaxsparse.target_count(size, sparsity)
            assert type(found) is int and found == reference.target_count(size, sparsity)
    assert jaxsparse.target_count(3, 0.5) == 2 and jaxsparse.target_count(4, 0.9) == 0
    traced = jax.jit(lambda s: jaxsparse.target_count(1000, s))(jnp.float32(0.9))
    assert traced == 100 and traced.dtype == jnp.int32


def within(seed):
    draw = np.random.default_rng(seed)
    masks = {name: draw.random(shape) < 0.5 for name, shape in SHAPES.items()}
    tree = {n: {"kernel": m, "bias": np.ones(m.shape[1], bool)} for n, m in masks.items()}
    return masks, tree


def test_per_layer_within_masks():
    """Dead weights stay dead; where fewer live than are asked for, all of them do."""
    scores, (alive, tree) = random_net(1), within(2)
    alive["c"][:] = tree["c"]["kernel"][:] = False
    tree["c"]["kernel"][1, 1] = alive["c"][1, 1] = True
    masks = jaxsparse.prune(to_jax(scores), 0.7, within=to_jax(tree), signed=True)
    expected = {
        name: reference.top_k_mask(s, reference.target_count(s.size, 0.7), alive[name])
        for name, s in kernels(scores).items()
    }
    assert_masks(masks, expected)
    assert int(masks["c"]["kernel"].sum()) == 1


def test_nan_ranks_lowest():
    scores = random_net()
    scores["a"]["kernel"][:] = np.nan
    for name, count in (("a", 0), ("b", 60), ("c", 15)):
        masks = jaxsparse.prune(
            to_jax(scores), 1 - 75 / 171, scope="global", min_alive=0, signed=True
        )
        assert int(masks[name]["kernel"].sum()) == count
    scores["a"]["kernel"][3, 4] = -np.inf
    assert jaxsparse.prune(to_jax(scores), 0.99, signed=True)["a"]["kernel"][3, 4]


@pytest.mark.parametrize("min_alive", [0, 1, 4])
@pytest.mark.parametrize("limited", [False, True], ids=["all", "within"])
def test_globally(min_alive, limited):
    """Every layer keeps its own best `min_alive` first; all others compete; the total is exact."""
    scores, (alive, tree) = random_net(3), within(4)
    scores["c"]["kernel"] -= 100
    alive = alive if limited else {name: np.ones(s, bool) for name, s in SHAPES.items()}
    names = list(SHAPES)
    total = reference.target_count(sum(math.prod(s) for s in SHAPES.values()), 0.8)
    s = kernels(scores)
    safe = {n: reference.top_k_mask(s[n], min_alive, alive[n]) for n in names}
    more = reference.global_top_k_masks(
        [s[n] for n in names],
        total - sum(int(m.sum()) for m in safe.values()),
        [alive[n] & ~safe[n] for n in names],
    )
    expected = {n: safe[n] | m for n, m in zip(names, more, strict=True)}
    masks = jaxsparse.prune(
        to_jax(scores),
        0.8,
        scope="global",
        min_alive=min_alive,
        within=to_jax(tree) if limited else None,
        signed=True,
    )
    assert_masks(masks, expected)
    assert sum(int(m.sum()) for m in kernels(masks).values()) == total
    assert int(masks["c"]["kernel"].sum()) == min_alive


def test_globally_in_channels():
    """Channels of equal size share one count; each scores its mean."""
    scores = {n: np.float32(np.random.default_rng(5).integers(0, 99, (4, 6))) for n in "ab"}
    masks = jaxsparse.prune(
        {n: {"kernel": jnp.asarray(s)} for n, s in scores.items()},
        0.75,
        scope="global",
        pattern=jaxsparse.channel,
    )
    safe = [reference.top_k_mask(s.mean(0), 1) for s in scores.values()]
    more = reference.global_top_k_masks([s.mean(0) for s in scores.values()], 1, [~m for m in safe])
    for name, first, rest in zip("ab", safe, more, strict=True):
        expected = np.broadcast_to(first | rest, (4, 6))
        assert np.array_equal(masks[name]["kernel"], expected)


def test_traced_scores_and_sparsity():
    scores = to_jax(random_net())
    eager = jaxsparse.prune(scores, 0.7, signed=True)
    jitted = jax.jit(jaxsparse.prune)(scores, 0.7)
    assert jax.tree.all(jax.tree.map(np.array_equal, eager, jitted))


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_iterative_pruning(scope):
    """SynFlow's rounds on a linear net of whole numbers, whose scores are exact."""
    rounds, sparsity = 4, 0.9
    params = {
        name: {"kernel": np.abs(layer["kernel"]) % 4 + 1, "bias": layer["bias"]}
        for name, layer in random_net(6).items()
    }

    def forward(p, x):
        return x @ p["a"]["kernel"] @ p["b"]["kernel"] @ p["c"]["kernel"]

    masks = jaxsparse.prune_iteratively(
        lambda p: jaxsparse.synflow(forward, p, jnp.zeros((1, 8))),
        to_jax(params),
        sparsity,
        rounds=rounds,
        scope=scope,
    )
    names, alive = list(SHAPES), {name: np.ones(shape, bool) for name, shape in SHAPES.items()}
    for r in range(1, rounds + 1):
        a, b, c = (kernels(params)[name] * alive[name] for name in names)
        scores = [
            a * (b @ c).sum(1)[None, :],
            b * a.sum(0)[:, None] * c.sum(1)[None, :],
            c * (a @ b).sum(0)[:, None],
        ]
        density = (1 - sparsity) ** (r / rounds)
        if scope == "layer":
            counts = [max(reference.target_count(s.size, 1 - density), 1) for s in scores]
            chosen = [
                reference.top_k_mask(s, k, alive[n])
                for n, s, k in zip(names, scores, counts, strict=True)
            ]
        else:
            total = reference.target_count(sum(s.size for s in scores), 1 - density)
            safe = [
                reference.top_k_mask(s, 1, alive[n]) for n, s in zip(names, scores, strict=True)
            ]
            free = [alive[n] & ~m for n, m in zip(names, safe, strict=True)]
            more = reference.global_top_k_masks(scores, total - len(safe), free)
            chosen = [m | rest for m, rest in zip(safe, more, strict=True)]
        alive = dict(zip(names, chosen, strict=True))
    assert_masks(masks, alive)


def test_one_round_is_one_shot():
    params = to_jax(random_net(7))
    for scope in ("global", "layer"):
        rounds = jaxsparse.prune_iteratively(
            jaxsparse.magnitude, params, 0.6, rounds=1, scope=scope
        )
        once = jaxsparse.prune(jaxsparse.magnitude(params), 0.6, scope=scope)
        assert jax.tree.all(jax.tree.map(np.array_equal, rounds, once))


def test_random_masks_have_exact_counts_and_differ():
    params = to_jax(random_net())
    sparsity = {"a": 0.25, "[bc]": 0.6}
    draws = [jaxsparse.random_masks(seed, params, sparsity) for seed in (0, 1)]
    for masks in draws:
        counts = {name: int(mask.sum()) for name, mask in kernels(masks).items()}
        assert counts == {"a": 72, "b": 24, "c": 6}
    assert float(jaxsparse.overlap(*draws)) < 0.8
    same_shape = {name: {"kernel": jnp.zeros((8, 12))} for name in "ab"}
    masks = jaxsparse.random_masks(0, same_shape, 0.5)
    assert not np.array_equal(masks["a"]["kernel"], masks["b"]["kernel"])


def test_random_masks_depend_on_paths_and_not_on_neighbours():
    params = to_jax(random_net())
    masks = jaxsparse.random_masks(3, params, 0.5)
    fewer = {"c": params["c"], "0": {"kernel": params["a"]["kernel"]}, "b": params["b"]}
    again = jaxsparse.random_masks(jax.random.key(3), fewer, 0.5)
    for name in ("b", "c"):
        assert np.array_equal(masks[name]["kernel"], again[name]["kernel"])
    raw = jaxsparse.random_masks(jax.random.PRNGKey(3), params, 0.5)
    assert jax.tree.all(jax.tree.map(np.array_equal, masks, raw))
    mapped = jax.vmap(lambda seed: jaxsparse.random_masks(seed, params, 0.5))(jnp.arange(2, 4))
    for name in SHAPES:
        assert np.array_equal(mapped[name]["kernel"][1], masks[name]["kernel"])


def test_random_masks_are_uniform():
    """Over 400 draws every weight lives in about half of them: within five standard deviations."""
    params = {"kernel": jnp.zeros((8, 12))}
    masks = jax.vmap(lambda seed: jaxsparse.random_masks(seed, params, 0.5))(jnp.arange(400))
    share = np.asarray(masks["kernel"]).mean(0)
    assert np.abs(share - 0.5).max() < 5 * 0.5 / math.sqrt(400)


def test_random_masks_are_sharded_like_their_parameters():
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("x", "y"))
    kernel = jnp.zeros((8, 12))
    alone = jaxsparse.random_masks(0, {"kernel": kernel}, 0.5)
    sharding = NamedSharding(mesh, PartitionSpec("x", "y"))
    masks = jaxsparse.random_masks(0, {"kernel": jax.device_put(kernel, sharding)}, 0.5)
    assert masks["kernel"].sharding.is_equivalent_to(sharding, 2)
    assert np.array_equal(masks["kernel"], alone["kernel"])
