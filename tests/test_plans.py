"""The plan of a net is made once by every rule, and never holds what belongs to a trace."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse

SGD = optax.sgd(0.1)
PARAMS = {
    "fc": {"kernel": jnp.linspace(-1.0, 1.0, 96).reshape(8, 12), "bias": jnp.zeros(12)},
    "head": {"kernel": jnp.linspace(1.0, -2.0, 48).reshape(12, 4)},
}
LEAVES = {"fc/kernel", "fc/bias", "head/kernel"}
RAMP = {"start": 0, "stop": 4, "every": 1}
METHODS = {
    "fixed": (jaxsparse.fixed, {"key": 0}),
    "gradual": (jaxsparse.gradual, RAMP),
    "rigl": (jaxsparse.rigl, {"key": 0, "every": 2, "accumulate": 2}),
    "sparse_evolution": (jaxsparse.sparse_evolution, {"key": 0}),
    "sparse_momentum": (jaxsparse.sparse_momentum, {"key": 0}),
    "dynamic_reparameterization": (jaxsparse.dynamic_reparameterization, {"key": 0}),
    "deep_rewiring": (jaxsparse.deep_rewiring, {"key": 0}),
}
TARGETS = {
    "uniform": (0.5, {}),
    "erk": (0.5, {"distribution": jaxsparse.erk, "axes": "flax"}),
    "by path": ({"fc": 0.5, "head": 0.25}, {}),
}


def asking(questions):
    """A filter that counts how often it is asked about each leaf."""

    def prunable(path, leaf):
        questions[path] += 1
        return jaxsparse.default_prunable(path, leaf)

    return prunable


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("method", METHODS)
def test_the_filter_is_asked_once_in_a_trace(method, target):
    """A filter of the user's may be slow, and what it says is structure: nothing to ask again."""
    (make, options), (sparsity, how) = METHODS[method], TARGETS[target]
    once = dict.fromkeys(LEAVES, 1)

    def build():
        questions = collections.Counter()
        return make(SGD, sparsity, prunable=asking(questions), **options, **how), questions

    tx, questions = build()
    state = jax.eval_shape(tx.init, PARAMS)
    assert questions == once
    jax.eval_shape(tx.update, PARAMS, state, PARAMS)
    assert questions == once  # the rule remembers

    tx, questions = build()
    jax.eval_shape(tx.update, PARAMS, state, PARAMS)
    assert questions == once
    wider = {**PARAMS, "head": {"kernel": jnp.ones((12, 8))}}
    jax.eval_shape(tx.init, wider)
    assert questions == dict.fromkeys(LEAVES, 2)  # other shapes are another plan


def test_one_rule_goes_from_trace_to_trace():
    """A distribution that computes gives tracers: they must not be remembered for the next one."""

    def computed(params, sparsity):
        share = jnp.asarray(sparsity) * jnp.ones(())
        return jax.tree.map(lambda p: share if p.ndim == 2 else 0.0, params)

    grads = jax.tree.map(jnp.ones_like, PARAMS)
    tx = jaxsparse.gradual(SGD, 0.5, distribution=computed, **RAMP)
    state = jax.jit(tx.init)(PARAMS)
    for step in (jax.jit(tx.update), jax.jit(lambda *args: tx.update(*args)), tx.update):
        for _ in range(2):
            _, state = step(grads, state, PARAMS)
    alive = jax.tree.map(np.sum, jaxsparse.get_masks(state, PARAMS))
    assert (alive["fc"]["kernel"], alive["head"]["kernel"]) == (48, 24)


def test_a_rule_serves_nets_of_other_shapes_in_turn():
    tx = jaxsparse.sparse_evolution(SGD, 0.75, key=0, every=1, start=0)
    for width in (4, 8, 4):
        params = {"kernel": jnp.ones((16, width))}
        _, state = tx.update(params, tx.init(params), params)
        assert jaxsparse.get_masks(state, params)["kernel"].sum() == 4 * width
