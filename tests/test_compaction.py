"""Compacted networks compute what the masked ones do, with fewer units."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxsparse


def kernel(seed, *shape):
    values = np.random.default_rng(seed).normal(size=shape) / np.sqrt(np.prod(shape[:-1]))
    return jax.device_put(np.asarray(values, np.float32))


def full(params):
    return jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), params)


def compacted(fn, params, masks, x, **options):
    """The smaller network, and that it computes the same and learns the same."""
    small = jaxsparse.compact(fn, params, masks, x, **options)
    params = jaxsparse.apply(params, masks)

    def learned(fn, params):
        of = jax.jit(
            jax.value_and_grad(
                lambda p: (lambda y: (jnp.sum(jnp.sin(y)), y))(fn(p, x)), has_aux=True
            )
        )
        (_, y), grads = of(params)
        return y, grads

    y, grads = learned(fn, params)
    again, found = learned(options.get("rebuild", lambda _: fn)(small.params), small.params)
    np.testing.assert_allclose(again, y, rtol=1e-4, atol=1e-5)
    if not options.get("fold_constants"):
        jax.tree.map(np.testing.assert_array_equal, small.params, small.take(params))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(small.take(grads)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    return small


def shapes(small):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree.leaves_with_path(small.params)
    }


def mlp(params, x):
    """With ReLU, in operators alone, so that it runs in NumPy as well and needs no compilation."""
    for i in range(len(params) // 2 - 1):
        x = x @ params[f"w{i}"] + params[f"b{i}"]
        x = (x + abs(x)) * 0.5
    last = len(params) // 2 - 1
    return x @ params[f"w{last}"] + params[f"b{last}"]


def mlp_params(sizes, bias=0.5):
    found = {f"w{i}": kernel(i, *pair) for i, pair in enumerate(itertools.pairwise(sizes))}
    return found | {f"b{i}": kernel(9 + i, n) * bias for i, n in enumerate(sizes[1:])}


X = kernel(77, 5, 6) * 3


def test_units_that_nothing_reads():
    """They go whatever they compute, and those that only they read go with them."""
    params = mlp_params([6, 8, 8, 4])
    masks = full(params)
    masks["w2"][[1, 5]] = False
    masks["w1"][3, [0, 2, 3, 4, 6, 7]] = False  # unit 3 is read by 1 and 5 alone
    small = compacted(mlp, params, masks, X)
    assert shapes(small) == {
        "w0": (6, 7), "b0": (7,), "w1": (7, 6), "b1": (6,), "w2": (6, 4), "b2": (4,)
    }  # fmt: skip
    assert small.keep["w1"][1].tolist() == [0, 2, 3, 4, 6, 7]
    assert small.masks["w1"].shape == (7, 6) and not small.notes


def test_units_that_carry_zero_or_a_constant():
    params = mlp_params([6, 8, 8, 4])
    params["b0"] = jnp.abs(params["b0"])
    masks = full(params)
    masks["w0"][:, [0, 3]] = False
    assert shapes(compacted(mlp, params, masks, X))["w0"] == (6, 8)
    folded = compacted(mlp, params, masks, X, fold_constants=True)
    assert shapes(folded)["w0"] == (6, 6)
    params["b0"] = params["b0"].at[jnp.array([0, 3])].set(jnp.array([0.0, -1.0]))
    # relu(-1) is zero as well
    assert shapes(compacted(mlp, params, masks, X))["w1"] == (6, 8)
    assert shapes(compacted(mlp, params, masks, X, zeros=False))["w1"] == (7, 8)


def test_constants_all_the_way():
    """A layer that is cut off as a whole leaves one unit, and its constants in the last bias."""
    params = mlp_params([6, 8, 8, 4])
    masks = full(params)
    masks["w0"][:] = False
    small = compacted(mlp, params, masks, X, fold_constants=True)
    assert shapes(small)["w0"] == (6, 1)
    masks["w1"][:] = False
    small = compacted(mlp, params, masks, X, fold_constants=True)
    assert shapes(small)["w1"] == (1, 1)


def test_nothing_to_take_out():
    params = mlp_params([6, 8, 4])
    masks = jaxsparse.random_masks(
        0,
        params,
        0.5,
        prunable=lambda path, leaf: leaf.ndim > 1,
        pattern=jaxsparse.fan_in,
        axes="equinox",
    )
    small = compacted(mlp, params, masks, X, fold_constants=True)
    assert shapes(small) == {path: leaf.shape for path, leaf in params.items()}
    none = compacted(mlp, params, jax.tree.map(lambda _: None, params), X)
    assert shapes(none) == shapes(small)


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.integers(1, 7), min_size=2, max_size=4),
    st.floats(0.3, 0.95),
    st.integers(0, 99),
    st.booleans(),
    st.sampled_from([0.0, 0.5]),
)
def test_any_masks(sizes, sparsity, seed, fold, bias):
    params = mlp_params([6, *sizes], bias)
    generator = np.random.default_rng(seed)
    masks = {k: generator.random(v.shape) >= sparsity for k, v in params.items()}
    x, before = np.asarray(X), {k: np.where(masks[k], v, 0) for k, v in params.items()}
    small = jaxsparse.compact(mlp, params, masks, X, fold_constants=fold)
    after = jax.tree.map(np.asarray, small.params)
    np.testing.assert_allclose(mlp(after, x), mlp(before, x), rtol=1e-4, atol=1e-5)
    again = jaxsparse.compact(mlp, small.params, small.masks, X, fold_constants=fold)
    assert shapes(again) == shapes(small)


def lenet(params, x):
    for name in ("c1", "c2"):
        x = jax.lax.conv_general_dilated(
            x, params[name], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + params[f"{name}_bias"])
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    x = jnp.tanh(x.reshape(len(x), -1) @ params["fc"])
    return x @ params["head"]


def test_convolutions_and_flatten():
    params = {
        "c1": kernel(0, 3, 3, 2, 6), "c1_bias": kernel(1, 6), "c2": kernel(2, 3, 3, 6, 8),
        "c2_bias": jnp.zeros(8), "fc": kernel(3, 2 * 2 * 8, 10), "head": kernel(4, 10, 3),
    }  # fmt: skip
    masks = full(params)
    masks["c2"][:, :, 4] = False  # channel 4 of the first is not read
    masks["c2"][..., 1] = False  # channel 1 of the second is zero, that is four features
    masks["fc"].reshape(4, 8, 10)[:, 6] = False  # channel 6 is not read
    masks["fc"].reshape(4, 8, 10)[:3, 5] = False  # but 5 is, at one place
    masks["head"][[0, 9]] = False
    x = kernel(5, 2, 8, 8, 2)
    found = shapes(compacted(lenet, params, masks, x))
    assert found["c1"] == (3, 3, 2, 5) and found["c1_bias"] == (5,)
    assert found["c2"] == (3, 3, 5, 6) and found["fc"] == (24, 8) and found["head"] == (8, 3)


def test_constants_stop_at_padding():
    """At the border a constant channel is not constant; without padding it goes into the bias."""
    params = {"c1": kernel(0, 1, 1, 2, 6), "b1": kernel(1, 6), "c2": kernel(2, 3, 3, 6, 4)}
    params |= {"b2": kernel(3, 4)}
    masks = full(params)
    masks["c1"][..., 2] = False

    def network(padding):
        def fn(params, x):
            order = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
            x = jax.lax.conv_general_dilated(x, params["c1"], (1, 1), "SAME", **order)
            x = jnp.tanh(x + params["b1"] + 2.0)
            return (
                jax.lax.conv_general_dilated(x, params["c2"], (1, 1), padding, **order)
                + params["b2"]
            )

        return fn

    x = kernel(5, 2, 5, 5, 2)
    for padding, left in (("SAME", 6), ("VALID", 5)):
        small = compacted(network(padding), params, masks, x, fold_constants=True)
        assert shapes(small)["c1"] == (1, 1, 2, left)


def residual(tree, x):
    """Two blocks of a residual network with batch norm and stored statistics."""
    params, stats = tree["params"], tree["stats"]

    def norm(x, name):
        mean, var = stats[name]["mean"], stats[name]["var"]
        scale = params[name]["scale"] * jax.lax.rsqrt(var + 1e-5)
        return (x - mean) * scale + params[name]["bias"]

    x = x @ params["stem"]
    for block in ("block1", "block2"):
        inner = jax.nn.relu(norm(x @ params[block]["in"], f"{block}_norm"))
        x = jax.nn.relu(x + inner @ params[block]["out"])
    return jnp.mean(x, 1) @ params["head"]


def test_residual_network():
    """Added branches lose a channel together or not at all; statistics go with it."""

    def norm(seed, n):
        return {"scale": kernel(seed, n), "bias": kernel(seed + 1, n)}

    stats = {"mean": kernel(1, 8), "var": kernel(2, 8) ** 2}
    params = {
        "stem": kernel(3, 6, 8), "head": kernel(4, 8, 3),
        "block1": {"in": kernel(5, 8, 8), "out": kernel(6, 8, 8)}, "block1_norm": norm(7, 8),
        "block2": {"in": kernel(8, 8, 8), "out": kernel(9, 8, 8)}, "block2_norm": norm(10, 8),
    }  # fmt: skip
    tree = {"params": params, "stats": {"block1_norm": stats, "block2_norm": stats}}
    masks = full(tree)
    masks["params"]["block1"]["out"][[2, 3]] = False  # inner units
    for name in ("block1", "block2"):
        masks["params"][name]["in"][5] = False
    masks["params"]["head"][[5, 6]] = False  # the stream's channel 5 is read nowhere, 6 is
    small = compacted(residual, tree, masks, kernel(11, 2, 4, 6))
    assert shapes(small)["params/stem"] == (6, 7) and shapes(small)["params/head"] == (7, 3)
    assert shapes(small)["params/block1/in"] == (7, 6)
    assert shapes(small)["params/block2/in"] == (7, 8)
    assert shapes(small)["stats/block1_norm/mean"] == (6,)
    state = small.take(optax.adam(0.1).init(tree))
    assert state[0].nu["params"]["block1"]["out"].shape == (6, 7)


def attention(params, x):
    """A transformer block, whose kernels may have an axis of heads."""

    def project(name):
        y = normed @ params[name].reshape(12, -1)
        return y.reshape(*x.shape[:2], -1, 4)

    normed = (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + 1e-5)
    q, k, v = map(project, ("query", "key", "value"))
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(4), -1)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
    x = x + mixed.reshape(*x.shape[:2], -1) @ params["out"].reshape(-1, 12)
    return x + jax.nn.gelu(x @ params["up"]) @ params["down"]


@pytest.mark.parametrize("split", [False, True])
def test_heads(split):
    """Of three heads one is not read; of features of a head none can go alone."""
    params = {name: kernel(i, 12, 12) for i, name in enumerate(("query", "key", "value"))}
    params |= {"out": kernel(3, 12, 12), "up": kernel(4, 12, 20), "down": kernel(5, 20, 12)}
    masks = full(params)
    masks["out"][[0, 4, 5, 6, 7]] = False
    masks["down"][:7] = False
    if split:
        for tree in (params, masks):
            for name in ("query", "key", "value"):
                tree[name] = tree[name].reshape(12, 3, 4)
            tree["out"] = tree["out"].reshape(3, 4, 12)
    small = compacted(attention, params, masks, kernel(6, 2, 5, 12))
    found = shapes(small)
    assert found["up"] == (12, 13) and found["down"] == (13, 12)
    assert found["query"] == found["value"] == ((12, 2, 4) if split else (12, 8))
    assert found["out"] == ((2, 4, 12) if split else (8, 12))


def test_joined_and_cut():
    """Concatenated features keep their order; a gate goes with its unit."""

    def fn(params, x):
        x = jnp.concatenate([x, jnp.tanh(x @ params["first"])], -1)
        x = jnp.concatenate([x, jnp.tanh(x @ params["second"])], -1)
        value, gate = jnp.split(x @ params["gated"], 2, -1)
        return (value * jax.nn.sigmoid(gate)) @ params["head"]

    params = {"first": kernel(0, 6, 5), "second": kernel(1, 11, 4), "gated": kernel(2, 15, 16)}
    params |= {"head": kernel(3, 8, 3)}
    masks = full(params)
    masks["second"][8] = False
    masks["gated"][[8, 12]] = False
    masks["head"][[1, 7]] = False
    found = shapes(compacted(fn, params, masks, X))
    assert found == {"first": (6, 4), "second": (10, 3), "gated": (13, 12), "head": (6, 3)}


def test_scanned_layers():
    """A unit of stacked layers goes where it is dead in all of them."""

    def fn(params, x):
        def layer(x, weights):
            return x + jnp.tanh(x @ weights["up"]) @ weights["down"], None

        return jax.lax.scan(jax.checkpoint(layer), x, params)[0]

    params = {"up": kernel(0, 3, 6, 8), "down": kernel(1, 3, 8, 6)}
    masks = full(params)
    masks["down"][:, 2] = False
    masks["down"][1:, 4] = False
    assert shapes(compacted(fn, params, masks, X)) == {"up": (3, 6, 7), "down": (3, 7, 6)}


@pytest.mark.parametrize("what", ["norm", "softmax", "scale", "size", "number"])
def test_what_keeps_its_units(what):
    def fn(params, x):
        x = x @ params["a"]
        if what == "norm":
            x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
        elif what == "softmax":
            x = jax.nn.softmax(x, -1)
        elif what == "scale":
            x = x / x.shape[-1]
        elif what == "size":
            x = x.reshape(5, 4, 2).reshape(5, 8)
        else:
            x = x * jnp.arange(x.shape[-1], dtype=x.dtype)
        return x @ params["b"]

    params = {"a": kernel(0, 6, 8), "b": kernel(1, 8, 3)}
    masks = full(params)
    masks["b"][[2, 3]] = False
    small = compacted(fn, params, masks, X)
    assert shapes(small)["a"] == (6, 8)
    assert len(small.notes) == (what in ("scale", "size"))
