"""Scores against gradients and Hessians worked out by hand or by `jax.hessian`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxsparse
from jaxsparse.scores import drawn
from tests import reference


def net(seed=0):
    draw = np.random.default_rng(seed)
    return {
        "fc1": {
            "kernel": jnp.asarray(draw.normal(size=(4, 3)), jnp.float32),
            "bias": jnp.asarray(draw.normal(size=3), jnp.float32),
        },
        "fc2": {"kernel": jnp.asarray(draw.normal(size=(3, 2)), jnp.float32)},
    }


def forward(p, x):
    hidden = jnp.tanh(x @ p["fc1"]["kernel"] + p["fc1"]["bias"])
    return hidden @ p["fc2"]["kernel"]


def loss(p, batch):
    x, y = batch
    return jnp.mean((forward(p, x) - y) ** 2)


def batches(count):
    draw = np.random.default_rng(1)
    make = lambda *shape: jnp.asarray(draw.normal(size=shape), jnp.float32)  # noqa: E731
    return [(make(5, 4), make(5, 2)) for _ in range(count)]


def assert_close(found, expected, **tolerance):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.allclose(a, b, **(tolerance or {"rtol": 1e-4, "atol": 1e-6}))


def normalised(scores):
    total = abs(sum(float(np.sum(s)) for s in jax.tree.leaves(scores)))
    return jax.tree.map(lambda s: s / total, scores)


def numpy_tree(function, *trees):
    return jax.tree.map(lambda *x: function(*(np.asarray(a, np.float64) for a in x)), *trees)


def test_magnitude_gradient_and_saliency():
    params = net()
    grads = jax.grad(loss)(params, batches(1)[0])
    assert_close(jaxsparse.magnitude(params), numpy_tree(np.abs, params), rtol=0)
    assert_close(jaxsparse.scores.gradient(grads), numpy_tree(np.abs, grads), rtol=0)
    expected = numpy_tree(lambda p, g: np.abs(p * g), params, grads)
    assert_close(jaxsparse.saliency(params, grads), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_scores_keep_types_and_pass_other_leaves_through(dtype):
    tree = {"w": jnp.array([-2, 1], dtype), "n": jnp.array([3, 4]), "none": None, "text": "x"}
    for found in (
        jaxsparse.magnitude(tree),
        jaxsparse.scores.gradient(tree),
        jaxsparse.saliency(tree, tree),
        jaxsparse.random_scores(0, tree),
    ):
        assert jnp.issubdtype(found["w"].dtype, jnp.floating)
        assert found["n"] is tree["n"] and found["none"] is None and found["text"] == "x"
    assert jaxsparse.magnitude(tree)["w"].dtype == dtype
    assert jaxsparse.saliency(tree, tree)["w"].astype(jnp.float32).tolist() == [4, 1]


@pytest.mark.parametrize("count", [1, 3])
def test_snip_sums_signed_gradients_over_batches(count):
    params, data = net(), batches(count)
    grads = [jax.grad(loss)(params, batch) for batch in data]
    total = numpy_tree(lambda *g: sum(g), *grads)
    expected = normalised(numpy_tree(lambda p, g: np.abs(p * g), params, total))
    found = jaxsparse.snip(loss, params, data)
    assert_close(found, expected)
    assert_close(jaxsparse.snip(loss, params, iter(data)), found)
    assert float(sum(jnp.sum(s) for s in jax.tree.leaves(found))) == pytest.approx(1)


def test_grasp_is_the_weight_times_hessian_times_gradient():
    """Against the full Hessian; the gradient of dense leaves does not count in the flow."""
    params, data = net(), batches(2)
    flat, unravel = ravel_pytree(params)
    total = lambda v: sum(loss(unravel(v), batch) for batch in data)  # noqa: E731
    sparse = jax.tree.map(lambda p: jnp.full(p.shape, p.ndim == 2), params)
    flow = np.where(ravel_pytree(sparse)[0], jax.grad(total)(flat), 0)
    scores = np.asarray(flat, np.float64) * (np.asarray(jax.hessian(total)(flat)) @ flow)
    expected = unravel(jnp.asarray(scores / abs(scores.sum()), jnp.float32))
    assert_close(jaxsparse.grasp(loss, params, data), expected)


@pytest.mark.parametrize("score", [jaxsparse.snip, jaxsparse.grasp])
def test_scores_over_data_pass_other_leaves_through(score):
    """A whole model may hold counters and functions: only its floats are differentiated."""
    extra = {"step": jnp.int32(3), "act": jnp.tanh, "none": None}
    params, data = net(), batches(2)
    found = score(lambda p, batch: loss(p["net"], batch), {"net": params} | extra, data)
    assert {name: found[name] for name in extra} == extra
    assert_close(found["net"], score(loss, params, data))


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("name", ["snip", "grasp"])
def test_pruning_at_initialization_keeps_the_best_scores(name, scope):
    """One-shot masks of several batches, by layer and across layers, against a stable sort."""
    params, data = net(), batches(3)
    scores = getattr(jaxsparse, name)(loss, params, data)
    masks = jaxsparse.prune(scores, 0.5, scope=scope, signed=True)
    kernels = [np.asarray(scores[layer]["kernel"]) for layer in ("fc1", "fc2")]
    if scope == "global":
        expected = reference.global_top_k_masks(kernels, 9)
    else:
        expected = [reference.top_k_mask(kernel, kernel.size // 2) for kernel in kernels]
    for layer, mask in zip(("fc1", "fc2"), expected, strict=True):
        assert np.array_equal(masks[layer]["kernel"], mask)
    assert bool(masks["fc1"]["bias"].all())


def test_synflow_is_the_flow_through_absolute_weights():
    """On a linear net: every path's product of |weights|, summed over the paths of a weight."""
    params = {name: {"kernel": layer["kernel"]} for name, layer in net(3).items()}
    linear = lambda p, x: x @ p["fc1"]["kernel"] @ p["fc2"]["kernel"]  # noqa: E731
    a, b = (np.abs(np.asarray(params[name]["kernel"])) for name in ("fc1", "fc2"))
    found = jaxsparse.synflow(linear, params, jnp.full((1, 4), -7.0))
    assert np.allclose(found["fc1"]["kernel"], a * b.sum(1)[None, :], rtol=1e-5)
    assert np.allclose(found["fc2"]["kernel"], a.sum(0)[:, None] * b, rtol=1e-5)
    flows = [float(jnp.sum(layer["kernel"])) for layer in found.values()]
    assert flows[0] == pytest.approx(flows[1], rel=1e-5)


def test_random_scores_have_a_stream_for_each_path():
    tree = {name: jnp.zeros((40, 50)) for name in ("a", "b")}
    found = jaxsparse.random_scores(5, tree)
    alone = jaxsparse.random_scores(jax.random.key(5), {"b": tree["b"], "other": jnp.zeros(3)})
    assert np.array_equal(found["b"], alone["b"])
    assert not np.array_equal(found["a"], found["b"])
    values = np.concatenate([np.asarray(x).ravel() for x in found.values()])
    assert (values >= 0).all() and (values < 1).all()
    assert abs(values.mean() - 0.5) < 0.03 and abs(values.var() - 1 / 12) < 0.01
    jitted = jax.jit(lambda key: jaxsparse.random_scores(key, tree))(5)
    assert np.array_equal(jitted["a"], found["a"])
    assert not np.array_equal(jaxsparse.random_scores(6, tree)["a"], found["a"])


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
@pytest.mark.parametrize("shape", [(), (1,), (8191,), (3, 2731), (100_003,)])
def test_random_scores_are_uniform_numbers_of_jax(impl, shape):
    """A compiled kernel, where there is one, draws the same ones, in pieces."""
    key, leaf = jax.random.key(len(shape), impl=impl), jnp.zeros(shape, jnp.bfloat16)
    keys = jax.random.split(key, 3)
    found = jax.vmap(lambda key: drawn(key, leaf))(keys)
    assert np.array_equal(found, jax.vmap(lambda key: jax.random.uniform(key, shape))(keys))
    assert np.array_equal(drawn(key, leaf), jax.random.uniform(key, shape))


def test_random_scores_follow_the_settings_of_jax():
    key, leaf = jax.random.key(3), jnp.zeros(7)
    for name, value in (("jax_enable_x64", True), ("jax_threefry_partitionable", False)):
        before = getattr(jax.config, name)
        jax.config.update(name, value)
        try:
            assert np.array_equal(drawn(key, leaf), jax.random.uniform(key, (7,)))
        finally:
            jax.config.update(name, before)
