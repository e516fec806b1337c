"""Training on compressed storage: masks and values of masked storage, and what moves them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import jaxsparse
from jaxsparse import sparse
from tests.test_contracts import initial_params, loss

STEPS = 50
SGD = optax.sgd(1e-2, momentum=0.9)
EVERY = {"key": 3, "every": 4}
METHODS = {
    "fixed": lambda inner, room=None, **how: jaxsparse.fixed(inner, 0.7, key=3, **how),
    "gradual": lambda inner, **how: jaxsparse.gradual(inner, 0.7, start=1, stop=30, every=4, **how),
    "gradual global": lambda inner, **how: jaxsparse.gradual(
        inner, 0.7, start=1, stop=30, every=4, scope="global", skip_update=True, **how
    ),
    "sparse_evolution": lambda inner, **how: jaxsparse.sparse_evolution(inner, 0.7, **EVERY, **how),
    "rigl": lambda inner, **how: jaxsparse.rigl(inner, 0.7, **EVERY, **how),
    "rigl after the step": lambda inner, **how: jaxsparse.rigl(
        inner, 0.7, **EVERY, skip_update=False, **how
    ),
    "rigl accumulate": lambda inner, **how: jaxsparse.rigl(
        inner, 0.7, **EVERY, accumulate=3, **how
    ),
    "rigl removing units": lambda inner, **how: jaxsparse.rigl(
        inner, 0.7, **EVERY, pattern=jaxsparse.fan_in, min_salient=0.6, keep_units=(), **how
    ),
    "rigl from a value": lambda inner, **how: jaxsparse.rigl(
        inner, 0.7, **EVERY, first_value=_hundredth, **how
    ),
    "sparse_momentum": lambda inner, **how: jaxsparse.sparse_momentum(inner, 0.7, **EVERY, **how),
    "sparse_momentum global": lambda inner, **how: jaxsparse.sparse_momentum(
        inner, 0.7, **EVERY, drop_by="global", growth="global", **how
    ),
    "dynamic_reparameterization": lambda inner, **how: jaxsparse.dynamic_reparameterization(
        inner, 0.7, **EVERY, threshold=0.1, target=0.3, **how
    ),
    "deep_rewiring": lambda inner, **how: jaxsparse.deep_rewiring(
        inner, 0.7, key=3, every=2, l1=0.01, noise=0.5, **how
    ),
}
DENSE_TOO = {"gradual", "rigl", "rigl after the step", "sparse_momentum", "deep_rewiring"}
"""Methods that are run with dense parameters and a compressed state as well: every way to move."""
INNERS = {
    "adamw": lambda: optax.adamw(1e-2, weight_decay=0.1),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(1e-2, momentum=0.9)),
}


def _hundredth(key, params):
    return jax.tree.map(lambda p: jnp.full_like(p, 0.01), params)


def begin(tx):
    params, state = jaxsparse.init(tx, initial_params())
    return params, state, jax.jit(sparse.train_step(loss, tx), donate_argnums=(0, 1))


def train(tx, steps=STEPS):
    """The last dense parameters, masks and metrics."""
    params, state, step = begin(tx)
    for _ in range(steps):
        params, state, _ = step(params, state)
    assert step._cache_size() == 1
    found = jaxsparse.metrics(state, params=params)
    return sparse.expand(params), jaxsparse.get_masks(state, params), found


def assert_same(found, wanted):
    for a, b in zip(jax.tree.leaves(found[0]), jax.tree.leaves(wanted[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)
    jax.tree.map(np.testing.assert_array_equal, found[1:], wanted[1:])


@pytest.mark.standard_promotion
@pytest.mark.parametrize("name", METHODS)
def test_every_storage_has_the_masks_and_values_of_masked_storage(name):
    inner = INNERS["clipped" if name in ("rigl", "sparse_momentum") else "adamw"]
    params, state = jaxsparse.init(METHODS[name](inner()), initial_params())
    first, wanted = jaxsparse.get_masks(state, params), train(METHODS[name](inner()))
    if name != "deep_rewiring":
        assert_same(train(METHODS[name](inner(), storage="compressed", room=3.0)), wanted)
    if name in DENSE_TOO:
        assert_same(train(METHODS[name](inner(), storage="compressed_state", room=3.0)), wanted)
    masks = zip(jax.tree.leaves(first), jax.tree.leaves(wanted[1]), strict=True)
    assert all(np.array_equal(*pair) for pair in masks) == (name == "fixed"), "they have moved"


def test_blocks_move():
    make = lambda **how: jaxsparse.rigl(  # noqa: E731
        optax.sgd(1e-2, momentum=0.9),
        0.5,
        **EVERY,
        prunable=lambda path, _: "fc1/kernel" in path,
        pattern=jaxsparse.block(2, 2),
        **how,
    )
    found = train(make(storage="compressed:block:2x2"), 14)
    assert_same(found, train(make(), 14))


def test_strict_promotion_and_a_scan_over_steps():
    tx = METHODS["rigl after the step"](optax.sgd(1e-2), storage="compressed")
    params, state, step = begin(tx)
    one = lambda carry, _: (step(*carry)[:2], None)  # noqa: E731
    params, _ = jax.jit(lambda c: jax.lax.scan(one, c, None, 13))((params, state))[0]
    assert_same((sparse.expand(params),), (train(tx, 13)[0],))


def test_no_dense_array_in_a_step_without_a_mask_update():
    tx = METHODS["sparse_momentum"](SGD, storage="compressed", window=0)
    params, state, _ = begin(tx)
    seen = []

    def spied(params, x):
        seen.append(type(params["fc1"]["kernel"]))
        return loss(params) + 0 * x

    jaxpr = jax.make_jaxpr(sparse.train_step(spied, tx))(params, state, 1.0)
    assert len(seen) == 2  # the values' gradient, and the dense one: traced once each
    dense = [(8, 6), (6, 5)]
    outside = [
        eqn.primitive.name
        for eqn in jaxpr.eqns
        for out in eqn.outvars
        if out.aval.shape in dense and eqn.primitive.name != "cond"
    ]
    assert not outside


def test_the_window_leaves_out_what_was_long_before():
    tx = lambda **how: METHODS["sparse_momentum"](optax.sgd(1e-2), **how)  # noqa: E731
    whole, short = (train(tx(storage="compressed", room=3.0, window=w), 5) for w in (4, 0))
    assert_same(whole, train(tx(), 5))
    rule = jaxsparse.sparse_momentum_rule(0.5, momentum=0.9)
    assert 0.9**rule.window < 0.01 < 0.9 ** (rule.window - 1)
    assert jaxsparse.sparse_momentum_rule(0.5, momentum=0.0).window == 0
    assert short[2]["last_update"] == 4


@pytest.mark.parametrize("method", ["sparse_momentum", "dynamic_reparameterization"])
@pytest.mark.parametrize("storage", ["compressed", "compressed_state"])
def test_what_a_leaf_has_no_room_for_goes_to_the_others(method, storage):
    """Every mask update comes in time, and the total is conserved."""
    alive = {}
    for room in (1.05, 5.0):
        _, masks, found = train(METHODS[method](SGD, storage=storage, room=room), 40)
        assert (found["last_update"], found["postponed"]) == (36, 0)
        alive[room] = [int(masks[name]["kernel"].sum()) for name in ("fc1", "fc2")]
    assert sum(alive[1.05]) == sum(alive[5.0])
    assert alive[1.05] != alive[5.0], "the room is felt"


def test_an_update_without_room_waits_until_fit_makes_some():
    """A global choice takes the best weights wherever they are."""
    tx = METHODS["sparse_momentum global"](SGD, storage="compressed", room=1.0)
    params, state, step = begin(tx)
    for _ in range(5):
        params, state, _ = step(params, state)
    masks = jaxsparse.get_masks(state, params)
    found = jaxsparse.metrics(state, params=params)
    assert (found["last_update"], found["postponed"]) == (-1, 1)
    roomy = METHODS["sparse_momentum global"](SGD, storage="compressed", room=3.0)
    before = sparse.expand(params)
    params, state = sparse.fit(roomy, params, state)
    jax.tree.map(np.testing.assert_array_equal, sparse.expand(params), before)
    jax.tree.map(np.testing.assert_array_equal, jaxsparse.get_masks(state, params), masks)
    params, state, _ = step(params, state)
    assert jaxsparse.metrics(state, params=params)["last_update"] == 5


@pytest.mark.parametrize("storage", ["compressed", "compressed_state"])
def test_gradual_pruning_shrinks_by_fit(storage):
    make = lambda **how: METHODS["gradual"](SGD, **how)  # noqa: E731
    wanted, tx = train(make()), make(storage=storage)
    params, state, step = begin(tx)
    full = sparse.nbytes((params, state))
    for i in range(STEPS):
        if i in (14, 32):
            params, state = sparse.fit(tx, params, state)
        params, state, _ = step(params, state)
    assert step._cache_size() == 3
    found = jaxsparse.get_masks(state, params), jaxsparse.metrics(state, params=params)
    assert_same((sparse.expand(params), *found), wanted)
    assert sparse.nbytes((params, state)) < 0.8 * full


@pytest.mark.parametrize("storage", ["compressed", "compressed_state"])
def test_a_checkpoint_goes_on_bit_for_bit(tmp_path, storage):
    tx = METHODS["rigl"](SGD, storage=storage)
    params, state, step = begin(tx)
    for _ in range(5):
        params, state, _ = step(params, state)
    tree = {"params": params, "state": state}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "run", tree)
        checkpointer.wait_until_finished()
        template = jax.tree.map(jnp.zeros_like, tree)
        read = checkpointer.restore(tmp_path / "run", template)
    for run in (tree, read):
        params, state = run["params"], run["state"]
        for _ in range(5):
            params, state, _ = step(params, state)
        run["last"] = params, state
    jax.tree.map(np.testing.assert_array_equal, read["last"], tree["last"])


def test_state_of_living_weights_only():
    params = {"kernel": jnp.zeros((1000, 1000))}
    make = lambda storage: jaxsparse.rigl(optax.adam(1e-3), 0.9, key=0, storage=storage)  # noqa: E731
    kept, state = jaxsparse.init(make("compressed_state"), params)
    assert kept["kernel"].shape == (1000, 1000) and sparse.nbytes(state) / 1e6 < 1.3
    small, state = jaxsparse.init(make("compressed"), params)
    assert sparse.nbytes((small, state)) / 1e6 < 2.5
    again = jaxsparse.reset(make("compressed"), state, small)
    assert jax.tree.structure(again) == jax.tree.structure(state)


def test_replicates_of_a_compressed_state():
    inner = optax.sgd(1e-2, momentum=0.9)
    tx = METHODS["rigl"](inner, storage="compressed_state")
    params, state = jaxsparse.init(tx, initial_params())
    many = jax.tree.map(lambda a: jnp.stack([a, a]), (params, state))
    step = jax.jit(jax.vmap(sparse.train_step(loss, tx)))
    for _ in range(5):
        *many, _ = step(*many)
    one = jax.tree.map(lambda a: a[1], many[0])
    assert_same((one,), (train(METHODS["rigl"](inner), 5)[0],))


BAD = {
    "unknown": (lambda: METHODS["rigl"](SGD, storage="sparse"), ValueError, "storage must be"),
    "format": (
        lambda: METHODS["rigl"](SGD, storage="compressed:rows"),
        ValueError,
        "format must be",
    ),
    "state of the dead": (
        lambda: METHODS["rigl"](SGD, storage="compressed", regrown_state="keep"),
        ValueError,
        'regrown_state must be "reset"',
    ),
    "noise": (
        lambda: METHODS["deep_rewiring"](SGD, storage="compressed"),
        ValueError,
        'use storage="compressed_state"',
    ),
    "room": (
        lambda: METHODS["rigl"](SGD, storage="compressed", room=0.5),
        ValueError,
        "room must be at least 1",
    ),
    "dense params": (
        lambda: _step(lambda p, s: (initial_params(), s)),
        TypeError,
        "jaxsparse.init",
    ),
    "fixed places": (
        lambda: _step(lambda p, s: (sparse.fix_places(p), s)),
        TypeError,
        "free_places",
    ),
    "no dense gradient": (
        lambda: _without_gradients("rigl"),
        ValueError,
        "dense_grads must be given",
    ),
    "density alone": (
        lambda: jaxsparse.metrics(_begun()[2]),
        ValueError,
        "places of compressed parameters",
    ),
    "set_masks": (lambda: _set_masks(), ValueError, "set_masks is for"),
    "fit of masks": (lambda: sparse.fit(*_begun(storage="masked")), ValueError, "fit is for"),
    "loss": (lambda: sparse.train_step(3, SGD), TypeError, "loss must be a function"),
}


def _begun(method="rigl", storage="compressed"):
    tx = METHODS[method](SGD, storage=storage)
    return tx, *jaxsparse.init(tx, initial_params())


def _step(change):
    tx, params, state = _begun()
    sparse.train_step(loss, tx)(*change(params, state))


def _without_gradients(method, steps=1):
    tx, params, state = _begun(method)
    update = jax.jit(tx.update)
    for _ in range(steps):
        updates, state = update(sparse.values(params), state, params)
        params = sparse.apply_updates(params, updates)
    return jaxsparse.metrics(state, params=params)


def _set_masks():
    _, params, state = _begun()
    jaxsparse.set_masks(state, jaxsparse.get_masks(state, params))


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_work_is_told(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()


def test_a_method_that_needs_no_gradient_goes_without():
    assert _without_gradients("sparse_evolution", 5)["last_update"] == 4


@pytest.mark.parametrize("format", ["csr", "block:2x2"])
def test_a_mask_update_sees_the_gradient_of_all_weights(format):
    """That of the dense network, though products on the way skip what is dead."""
    keys = jax.random.split(jax.random.key(0), 4)
    dense = {
        "conv": jax.random.normal(keys[0], (3, 2, 4, 6)),
        "layers": jax.random.normal(keys[1], (2, 6, 6)),
        "head": jax.random.normal(keys[2], (6, 4)),
    }
    axes = {"layers": "flax_stacked", "": "flax"}
    pattern = jaxsparse.block(2, 2) if ":" in format else jaxsparse.unstructured
    masks = jaxsparse.random_masks(3, dense, 0.5, pattern=pattern, axes=axes)
    dense = jaxsparse.apply(dense, masks)

    def loss(params, images):
        x = jax.lax.conv_general_dilated(
            images, params["conv"], (2, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jnp.mean(jnp.tanh(x), (1, 2))
        x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ (w * 2.0)), None), x, params["layers"])
        return jnp.mean((x @ params["head"]) ** 2) + jnp.sum(params["head"] ** 2)

    images = jax.random.normal(keys[3], (3, 5, 7, 4))
    params = sparse.free_places(sparse.compress(dense, masks, format=format, axes=axes))
    seen = []

    def update(grads, state, params, *, dense_grads):
        seen.append(dense_grads(sparse.expand(params)))
        return params, state

    tx = optax.GradientTransformationExtraArgs(lambda params: (), update)
    sparse.train_step(loss, tx)(params, (), images)
    for path, wanted in jax.grad(loss)(dense, images).items():
        np.testing.assert_allclose(seen[0][path], wanted, rtol=1e-4, atol=1e-6, err_msg=path)
