"""A state knows its prunable leaves, wherever it is kept; weights off the masks are counted."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization

import jaxsparse

# The frameworks lean on implicit promotion.
pytestmark = pytest.mark.standard_promotion

DRAW = np.random.default_rng(0)
PARAMS = {
    "body": {"kernel": jnp.asarray(DRAW.normal(size=(8, 8)), jnp.float32), "bias": jnp.ones(8)},
    "head": {"kernel": jnp.asarray(DRAW.normal(size=(8, 32)), jnp.float32)},
}


def body_only(path, leaf):
    return path == "body/kernel"


def rigl(inner=None, **options):
    options = {"sparsity": 0.75, "key": 0, "every": 2, "prunable": body_only, **options}
    return jaxsparse.rigl(optax.sgd(0.1, 0.9) if inner is None else inner, **options)


def stepper(tx):
    def step(params, state):
        grads = jax.tree.map(lambda p: jnp.cos(3 * p), params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


METHODS = {
    "fixed": lambda inner: jaxsparse.fixed(inner, 0.75, key=0, prunable=body_only),
    "fixed masks": lambda inner: jaxsparse.fixed(
        inner, masks=jaxsparse.prune_by_magnitude(PARAMS, 0.75, prunable=body_only)
    ),
    "gradual": lambda inner: jaxsparse.gradual(
        inner, 0.75, start=0, stop=2, every=1, prunable=body_only
    ),
    "rigl": rigl,
    "sparse_momentum": partial(
        jaxsparse.sparse_momentum, sparsity=0.75, key=0, every=2, prunable=body_only
    ),
}


@pytest.mark.parametrize("method", METHODS)
def test_the_density_is_that_of_the_leaves_that_the_algorithm_prunes(method):
    tx = optax.chain(optax.clip(1.0), METHODS[method](optax.adam(0.1)))
    params, state = jaxsparse.init(tx, PARAMS)
    step = jax.jit(stepper(tx))
    for _ in range(4):
        params, state = step(params, state)
    assert jax.jit(jaxsparse.metrics)(state)["density"] == 0.25
    assert jaxsparse.density(state) == 0.25 and jaxsparse.sparsity(state) == 0.75
    assert jaxsparse.metrics(state, prunable=lambda path, leaf: "head" in path)["density"] == 1
    lines = jaxsparse.summary(params, state).splitlines()
    assert lines[-1].split()[:4] == ["prunable", "16", "64", "0.7500"]
    assert "not prunable" in next(line for line in lines if "head" in line)
    assert state[1].sparse == ("body/kernel",)
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(PARAMS))


def test_a_leaf_that_a_distribution_keeps_whole_counts():
    params = {"a": jnp.ones((100, 100)), "b": jnp.ones((100, 2))}
    state = jaxsparse.fixed(optax.sgd(0.1), 0.5, key=0, distribution=jaxsparse.erk).init(params)
    assert state.masks["b"].all() and state.sparse == ("a", "b")
    np.testing.assert_allclose(jaxsparse.density(state), 0.5, atol=1e-4)


def test_the_paths_are_structure():
    """No array more, no trace more; states of two steps map together, unlike those of others."""
    tx, other = rigl(), rigl(prunable=None)
    state = tx.init(PARAMS)
    assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(state._replace(sparse=None)))
    _, later = stepper(tx)(PARAMS, state)
    assert jax.tree.map(lambda a, b: b - a, state.count, later.count) == 1
    jax.tree.map(lambda a, b: None, state, later)
    density = jax.jit(jaxsparse.density)
    assert density(state) == 0.25 and density(other.init(PARAMS)) == 0.25
    assert density(state._replace(masks=other.init(PARAMS).masks)) == 0.25
    with pytest.raises(ValueError):
        jax.tree.map(lambda a, b: None, state, other.init(PARAMS))
    many = jax.vmap(lambda key: rigl(key=key).init(PARAMS))(jnp.arange(3))
    assert many.sparse == state.sparse and jax.vmap(jaxsparse.density)(many).tolist() == [0.25] * 3


def test_tree_get_and_flax_serialization():
    state = rigl().init(PARAMS)
    masks = optax.tree_utils.tree_get((optax.EmptyState(), state), "masks")
    assert masks["body"]["kernel"] is state.masks["body"]["kernel"]
    blank = jax.tree.map(jnp.zeros_like, state)
    again = serialization.from_bytes(blank, serialization.to_bytes(state))
    assert again.sparse == state.sparse
    jax.tree.map(np.testing.assert_array_equal, again, state)


def test_checkpoints_with_and_without_a_template(tmp_path):
    tx = optax.chain(optax.clip(1.0), rigl(optax.adam(0.1)))
    params, state = stepper(tx)(*jaxsparse.init(tx, PARAMS))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "run", (params, state))
        checkpointer.wait_until_finished()
        like = jax.eval_shape(lambda: jaxsparse.init(tx, PARAMS))
        restored = checkpointer.restore(tmp_path / "run", like)
        loose_params, loose = checkpointer.restore(tmp_path / "run")
    assert jax.tree.structure(restored) == jax.tree.structure((params, state))
    assert restored[1][1].sparse == ("body/kernel",)
    assert not any(isinstance(node, jaxsparse.SparseState) for node in loose)
    masks = jaxsparse.get_masks(loose, loose_params)
    jax.tree.map(np.testing.assert_array_equal, masks, state[1].masks)
    found = jaxsparse.metrics(loose, params=loose_params)
    assert found["density"] == 0.25 and found["off_mask"] == 0 and found["last_update"] == -1
    ticket = jax.tree.map(jnp.ones_like, masks)
    full = jaxsparse.get_masks(jaxsparse.set_masks(loose, ticket), loose_params)
    assert all(mask.all() for mask in jax.tree.leaves(full))
    with pytest.raises(TypeError, match="opt_state must be what tx.init.*restore.*template"):
        rigl().update(PARAMS, loose[1], PARAMS)


def test_a_checkpoint_from_before_the_paths_were_kept(tmp_path):
    """The arrays of the state are those that format 1 always had, under the same names."""
    state = rigl().init(PARAMS)
    old = dict(zip(state._fields[:10], state, strict=False))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "old", old)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "old", jax.eval_shape(rigl().init, PARAMS))
    assert restored.sparse == ("body/kernel",)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


class Net(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.body, self.head = nnx.Linear(8, 8, rngs=rngs), nnx.Linear(8, 32, rngs=rngs)


def test_nnx_states(tmp_path):
    model = Net()
    optimizer = nnx.Optimizer(model, rigl(), wrt=nnx.Param)
    params = nnx.state(model, nnx.Param)
    own = jaxsparse.get_masks(optimizer, params)
    assert jaxsparse.metrics(optimizer)["density"] == 0.25
    nnx.update(model, jaxsparse.apply(params, own))
    params = nnx.state(model, nnx.Param)
    graph, whole = nnx.split((model, optimizer))
    for held in (optimizer, nnx.state(optimizer), whole, (model, optimizer)):
        masks = jaxsparse.get_masks(held, params)
        jax.tree.map(np.testing.assert_array_equal, masks, own)
        found = jaxsparse.metrics(held, params=params)
        assert found["density"] == 0.25 and found["off_mask"] == 0
    assert jaxsparse.metrics(optimizer, params=model)["off_mask"] == 0
    assert jaxsparse.metrics(nnx.merge(graph, whole)[1])["density"] == 0.25

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, jax.tree.map(jnp.cos, nnx.state(model, nnx.Param)))
        return jaxsparse.metrics(optimizer, params=nnx.state(model, nnx.Param))

    for _ in range(4):
        found = step(model, optimizer)
    assert found["density"] == 0.25 and found["off_mask"] == 0 and found["last_update"] == 2

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "nnx", nnx.state((model, optimizer)))
        checkpointer.wait_until_finished()
        loose = checkpointer.restore(tmp_path / "nnx")
    now = jaxsparse.get_masks(optimizer, params)
    for own_params in (params, loose["0"]):
        masks = jaxsparse.get_masks(loose, own_params)
        pairs = zip(jax.tree.leaves(masks), jax.tree.leaves(now), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)
    assert jaxsparse.metrics(loose)["density"] == 0.25


def test_equinox_model_with_a_state_of_its_arrays():
    """`update` takes the whole model, functions and numbers and all, where plain adamw does."""
    net = eqx.nn.Sequential(
        [eqx.nn.Linear(6, 8, key=jax.random.key(0)), eqx.nn.Dropout(0.1), eqx.nn.Lambda(jnp.tanh)]
    )
    arrays = eqx.filter(net, eqx.is_array)
    tx = jaxsparse.rigl(optax.adamw(0.1), sparsity=0.75, key=0, every=2)
    sparse, state = jaxsparse.init(tx, arrays)
    model = eqx.combine(sparse, net)
    start, plain = state, (sparse, state)

    @eqx.filter_jit
    def step(model, state):
        grads = eqx.filter_grad(lambda m: jnp.sum(jnp.sin(m.layers[0].weight)))(model)
        updates, state = tx.update(grads, state, model)
        return eqx.apply_updates(model, updates), state

    for _ in range(4):
        model, state = step(model, state)
        grads = jax.tree.map(jnp.cos, plain[0])
        grads = eqx.tree_at(lambda m: m.layers[0].bias, grads, jnp.zeros(8))
        updates, after = tx.update(grads, plain[1], plain[0])
        plain = eqx.apply_updates(plain[0], updates), after
    assert not np.array_equal(state.masks.layers[0].weight, start.masks.layers[0].weight)
    np.testing.assert_array_equal(state.masks.layers[0].weight, plain[1].masks.layers[0].weight)
    np.testing.assert_allclose(model.layers[0].weight, plain[0].layers[0].weight, rtol=1e-5)
    assert jaxsparse.metrics(state, params=model)["off_mask"] == 0
    assert model.layers[2].fn is jnp.tanh


def test_dead_weights_that_something_moved_are_counted():
    tx = optax.chain(rigl(), optax.add_decayed_weights(0.1), optax.scale(0.5))
    params, state = jaxsparse.init(tx, PARAMS)
    measure = jax.jit(lambda params, state: jaxsparse.metrics(state, params=params))
    assert measure(params, state)["off_mask"] == 0
    for _ in range(3):
        params, state = jax.jit(stepper(tx))(params, state)
    found = measure(params, state)["off_mask"]
    masks = np.asarray(jaxsparse.get_masks(state, params)["body"]["kernel"])
    assert found.dtype == jnp.int32
    assert found == np.count_nonzero(np.asarray(params["body"]["kernel"])[~masks]) > 0
    assert "off_mask" not in jaxsparse.metrics(state)


def test_several_states_are_counted_together():
    tx = optax.partition(
        {"body": rigl(), "head": rigl(sparsity=0.5, prunable=None), "bias": optax.sgd(0.1)},
        {"body": {"kernel": "body", "bias": "bias"}, "head": {"kernel": "head"}},
    )
    params, state = jaxsparse.init(tx, PARAMS)
    found = jaxsparse.metrics(state, params=params)
    assert found["density"] == (16 + 128) / (64 + 256) and found["off_mask"] == 0
    moved = jax.tree.map(lambda p: p + 1, params)
    assert jaxsparse.metrics(state, params=moved)["off_mask"] == 48 + 128


@pytest.mark.parametrize("leaf", [1e-5, jax.nn.relu, "relu"])
def test_a_model_with_more_than_arrays_cannot_start(leaf):
    """An Equinox model that was not filtered failed only in the first update."""
    tx = jaxsparse.rigl(optax.sgd(0.1), 0.5, key=0)
    params = {"kernel": jnp.ones((4, 4)), "rest": leaf}
    with pytest.raises(TypeError, match=r"'rest' must be an array.*eqx.filter"):
        jaxsparse.init(tx, params)


@pytest.mark.parametrize("name", ["indices", "words"])
def test_a_leaf_may_be_named_like_a_part_of_a_stored_mask(name):
    params = {"fc": {name: jnp.ones((4, 4))}}
    state = jaxsparse.rigl(optax.sgd(0.1), 0.5, key=0).init(params)
    assert int(jaxsparse.get_masks(state, params)["fc"][name].sum()) == 8
    assert float(jaxsparse.density(state)) == 0.5
