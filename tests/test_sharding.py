"""Eight host devices: sharded parameters keep sharded masks, and no array is gathered to make them.

The kernel has more elements than a histogram has bins, so that the two can be told apart by size.
"""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxsparse

SHAPES = {"fc1": (384, 512), "fc2": (512, 64)}
SPECS = {"fc1": PartitionSpec("rows", "columns"), "fc2": PartitionSpec(None, "rows")}
BIAS = PartitionSpec("columns")


def devices(shape, names):
    if len(jax.devices()) < 8:
        pytest.skip("needs eight devices")
    return jax.make_mesh(shape, names, axis_types=(jax.sharding.AxisType.Auto,) * len(names))


@pytest.fixture(scope="module")
def mesh():
    return devices((4, 2), ("rows", "columns"))


@pytest.fixture(scope="module")
def params():
    draw = np.random.default_rng(0)
    return {
        name: {
            "kernel": jnp.asarray(draw.normal(size=shape), jnp.float32),
            "bias": jnp.asarray(draw.normal(size=shape[1]), jnp.float32),
        }
        for name, shape in SHAPES.items()
    }


def shardings(mesh):
    return {
        name: {"kernel": NamedSharding(mesh, spec), "bias": NamedSharding(mesh, BIAS)}
        for name, spec in SPECS.items()
    }


def train(tx, params, steps=4):
    """The weights and the state after some steps, and the compiled text of a step."""
    params, state = jaxsparse.init(tx, params)

    @jax.jit
    def step(params, state):
        grads = jax.tree.map(lambda p: jnp.cos(3 * p) + p, params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    # Compiled for the shardings that `init` gave: a step that changed them would not run again.
    step = step.lower(params, state).compile()
    for _ in range(steps):
        params, state = step(params, state)
    return params, state, step.as_text()


def collectives(text):
    """`(operation, elements)` of everything that crosses devices in a compiled program."""
    found = []
    for line in text.splitlines():
        named = re.search(
            r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)"
            r"(-start)?\(",
            line,
        )
        if named:
            sizes = re.findall(r"\w+\[([\d,]*)\]", named[1])
            elements = max(math.prod(int(n) for n in s.split(",") if n) for s in sizes)
            found.append((named[2], elements))
    return found


def check(text):
    """Counts may be summed over devices; nothing of an array's size may cross them."""
    moved = collectives(text)
    assert moved, "nothing crossed devices: was anything sharded?"
    assert all(elements <= 2**16 + 64 for _, elements in moved), moved
    smallest = math.prod(SHAPES["fc2"])
    assert all(name == "all-reduce" or elements < smallest for name, elements in moved), moved


def same_place(leaf, sharding):
    assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim), (leaf.shape, leaf.sharding)


def test_large_kernels(mesh, params):
    tx, placed = jaxsparse.rigl(optax.sgd(0.1, 0.9), 0.9, key=0, every=2), shardings(mesh)
    alone, alone_state, _ = train(tx, params)
    sharded = jax.device_put(params, placed)
    start = jaxsparse.init(tx, sharded)
    jax.tree.map(same_place, start[1].masks, placed)
    assert all(leaf.sharding.mesh == mesh for leaf in jax.tree.leaves(start))
    weights, state, text = train(tx, sharded)

    jax.tree.map(same_place, weights, placed)
    jax.tree.map(same_place, state.masks, placed)
    jax.tree.map(same_place, state.inner_state[0].trace, placed)
    jax.tree.map(np.testing.assert_array_equal, state.masks, alone_state.masks)
    for mine, theirs in zip(jax.tree.leaves(weights), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    check(text)


def test_a_gather_would_be_seen(mesh, params):
    kernel = jax.device_put(params["fc1"]["kernel"], shardings(mesh)["fc1"]["kernel"])
    text = jax.jit(lambda x: jnp.sort(x.ravel())).lower(kernel).compile().as_text()
    assert max(n for _, n in collectives(text)) >= kernel.size


def test_init_under_jit(mesh, params):
    placed = shardings(mesh)
    tx = jaxsparse.rigl(optax.sgd(0.1), 0.9, key=0)
    start = jax.jit(partial(jaxsparse.init, tx)).lower(jax.device_put(params, placed)).compile()
    weights, state = start(jax.device_put(params, placed))
    _, alone = jaxsparse.init(tx, params)
    jax.tree.map(np.testing.assert_array_equal, state.masks, alone.masks)
    jax.tree.map(same_place, weights, placed)
    kernels = [{name: leaf["kernel"] for name, leaf in t.items()} for t in (state.masks, placed)]
    jax.tree.map(same_place, *kernels)
    check(start.as_text())


def test_shards_inside_shard_map():
    """Masks are chosen among all weights of a leaf: what to do is said where only shards are known,
    or gradients of which every device has its own."""
    mesh, rows, whole = devices((8,), ("batch",)), PartitionSpec("batch"), PartitionSpec()
    tx = jaxsparse.rigl(optax.sgd(0.1), 0.75, key=0, every=2)
    params, state = jaxsparse.init(tx, {"kernel": jnp.ones((16, 8))})
    over = jax.tree.map(lambda leaf: rows if leaf.ndim == 2 else whole, state)

    def shards(params, state):
        return tx.update(params, state, params)

    def own_gradients(params, state):
        own = jax.tree.map(lambda p: p * jax.lax.axis_index("batch").astype(p.dtype), params)
        return tx.update(own, state, params)

    for step, specs, error in (
        (
            shards,
            (rows, over),
            r"params at 'kernel' vary over \('batch',\).*End the shard_map before",
        ),
        (
            own_gradients,
            (whole, whole),
            r"grads at 'kernel' vary .* jax.lax.pmean\(grads, \('batch",
        ),
    ):
        spread = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=specs)
        with pytest.raises(ValueError, match=error):
            jax.eval_shape(spread, params, state)


def test_data_parallel(params):
    """With averaged gradients every device comes to the masks of a single one, by itself."""
    mesh, batch, whole = devices((8,), ("batch",)), PartitionSpec("batch"), PartitionSpec()
    params = {"kernel": params["fc1"]["kernel"][:16, :8], "bias": params["fc1"]["bias"][:8]}
    x = np.random.default_rng(1).normal(size=(64, 16)).astype(np.float32)
    tx = jaxsparse.rigl(optax.sgd(0.1, 0.9), 0.75, key=0, every=2)

    def nothing(tree):
        return tree

    def average(tree):
        return jax.lax.pmean(tree, "batch")

    def step(params, state, x, of_loss=nothing, of_grads=nothing):
        def loss(params):
            return of_loss(jnp.mean(jnp.tanh(x @ params["kernel"] + params["bias"]) ** 2))

        updates, state = tx.update(of_grads(jax.grad(loss)(params)), state, params)
        return optax.apply_updates(params, updates), state

    def own_step(params, state, x):
        new = step(*jax.tree.map(lambda a: a[0], (params, state)), x, of_grads=average)
        return jax.tree.map(lambda a: a[None], new)

    def spread(step, ours, check=True):
        specs = {"in_specs": (ours, ours, batch), "out_specs": ours}
        return jax.jit(jax.shard_map(step, mesh=mesh, check_vma=check, **specs))

    start = jaxsparse.init(tx, params)
    # As under pmap, the copies are parameters of their own: nothing says that they are equal.
    copies = jax.tree.map(lambda a: jnp.stack([a] * 8), start)
    runs = [
        (jax.jit(step), start),
        (spread(partial(step, of_loss=average), whole), start),
        (spread(own_step, batch), copies),
        (spread(own_step, batch, check=False), copies),
    ]
    for _ in range(5):
        runs = [(run, run(*at, x)) for run, at in runs]
    (single, state), *others = (at for _, at in runs)
    assert not np.array_equal(state.masks["kernel"], start[1].masks["kernel"])
    for many, their_state in others:
        kernels, masks = many["kernel"], their_state.masks["kernel"]
        assert len(kernels.addressable_shards) == 8
        for kernel, mask in zip(kernels.addressable_shards, masks.addressable_shards, strict=True):
            np.testing.assert_array_equal(np.squeeze(mask.data), state.masks["kernel"])
            np.testing.assert_array_equal(kernel.data, kernels.addressable_shards[0].data)
            np.testing.assert_allclose(
                np.squeeze(kernel.data), single["kernel"], rtol=1e-5, atol=1e-6
            )
