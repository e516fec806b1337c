"""A state of another family is found by what it declares, whatever its type."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse

DRAW = np.random.default_rng(0)
PARAMS = {
    "body": {"kernel": jnp.asarray(DRAW.normal(size=(8, 8)), jnp.float32), "bias": jnp.ones(8)},
    "head": {"kernel": jnp.asarray(DRAW.normal(size=(8, 4)), jnp.float32)},
}
OTHER = jaxsparse.random_masks(1, PARAMS, 0.75)


class Twofold(NamedTuple):
    """Masks of a forward and of a backward pass."""

    masks: Any
    backward: Any
    churn: Any
    last_update: Any
    postponed: Any


class WithInner(NamedTuple):
    inner_state: Any
    masks: Any
    churn: Any
    last_update: Any
    postponed: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Storage:
    churn: Any
    masks: Any
    backward: Any
    postponed: Any
    last_update: Any
    sparse: Any = dataclasses.field(default=("body/kernel",), metadata={"static": True})


def fields(params):
    return {
        "masks": jaxsparse.prune_by_magnitude(params, 0.5),
        "churn": jnp.float32(0.25),
        "last_update": jnp.int32(7),
        "postponed": jnp.int32(2),
    }


def twofold(params):
    return Twofold(backward=jax.tree.map(jnp.ones_like, params), **fields(params))


def storage(params):
    return Storage(backward=jax.tree.map(jnp.ones_like, params), **fields(params))


def mapping(params):
    return {"backward": jax.tree.map(jnp.ones_like, params), **fields(params)}


def family(start):
    """A transformation that knows nothing of `sparsify`."""
    return optax.GradientTransformation(start, lambda grads, state, params=None: (grads, state))


def backward(state):
    return state["backward"] if isinstance(state, dict) else state.backward


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("start", [twofold, storage, mapping])
def test_a_foreign_state_inside_a_chain(start):
    tx = optax.chain(optax.clip(1.0), family(start))
    params, state = jaxsparse.init(tx, PARAMS)
    first = jaxsparse.prune_by_magnitude(PARAMS, 0.5)
    same(params, jaxsparse.apply(PARAMS, first))
    same(jaxsparse.get_masks(state, params), first)
    found = jax.jit(lambda p, s: jaxsparse.metrics(s, params=p))(params, state)
    assert {name: float(value) for name, value in found.items()} == {
        "density": 0.5,
        "churn": 0.25,
        "last_update": 7,
        "postponed": 2,
        "off_mask": 0,
    }
    assert "0.5000" in jaxsparse.summary(params, state).splitlines()[-1]

    moved = jaxsparse.set_masks(state, OTHER)
    assert jax.tree.structure(moved) == jax.tree.structure(state)
    assert type(moved[1]) is type(state[1]) is type(start(PARAMS))
    same(jaxsparse.get_masks(moved, params), OTHER)
    assert jaxsparse.density(moved) == 0.25
    same(backward(moved[1]), backward(state[1]))

    again = jaxsparse.reset(tx, moved, params)  # its `init` would draw masks of its own
    assert jax.tree.structure(again) == jax.tree.structure(state)
    same(jaxsparse.get_masks(again, params), OTHER)


def test_the_leaves_that_a_foreign_state_declares_count():
    dense_head = {**OTHER, "head": {"kernel": jnp.ones((8, 4), bool)}}
    state = storage(PARAMS)
    assert jaxsparse.density(jaxsparse.set_masks(state, dense_head)) == 0.25
    plain = jaxsparse.set_masks(twofold(PARAMS), dense_head)
    assert jaxsparse.density(plain) == 0.25  # told from the masks: the head has no dead weight


def test_what_a_function_needs_beyond_the_masks_is_asked_for():
    tx = family(twofold)
    with pytest.raises(TypeError, match="set_masks with tx needs .*'inner_state', but Twofold has"):
        jaxsparse.set_masks(tx.init(PARAMS), OTHER, tx=tx, params=PARAMS)
    with pytest.raises(TypeError, match="take_over needs .*'inner_state', but Twofold has"):
        jaxsparse.take_over(tx, optax.sgd(0.1).init(PARAMS), PARAMS)
    with pytest.raises(TypeError, match="a SparseState, got Twofold; .*another sparse"):
        jaxsparse.rigl(optax.sgd(0.1), 0.5, key=0).update(PARAMS, tx.init(PARAMS), PARAMS)


def test_inner_state_of_a_foreign_state():
    momentum = optax.trace(0.9)
    tx = family(lambda params: WithInner(inner_state=momentum.init(params), **fields(params)))
    run = tx.init(PARAMS)
    trace = jax.tree.map(lambda p: p + 3, PARAMS)
    run = run._replace(inner_state=optax.TraceState(trace))
    moved = jaxsparse.set_masks(run, OTHER, tx=tx, params=PARAMS)
    born = jax.tree.map(lambda new, old: new & ~old, OTHER, run.masks)
    expected = jax.tree.map(lambda t, b: jnp.where(b, 0, t), trace, born)
    assert isinstance(moved, WithInner) and any(b.any() for b in jax.tree.leaves(born))
    same(moved.inner_state.trace, expected)
    _, taken = jaxsparse.take_over(tx, optax.TraceState(trace), PARAMS)
    assert isinstance(taken, WithInner)
    same(taken.inner_state.trace, jaxsparse.apply(trace, taken.masks))


@pytest.mark.parametrize("missing", ["masks", "churn", "last_update", "postponed"])
def test_a_node_without_one_of_the_fields_is_no_sparse_state(missing):
    state = mapping(PARAMS)
    del state[missing]
    with pytest.raises(ValueError, match="opt_state holds no sparse state"):
        jaxsparse.metrics(state)
