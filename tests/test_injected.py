"""Under `optax.inject_hyperparams`: what it traces, and what it hands on as it is."""

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxsparse
from tests.test_frameworks import dict_net, rigl, same

# Optax leans on implicit promotion.
pytestmark = pytest.mark.standard_promotion


def test_traced_hyperparameters(count_traces):
    factory = optax.inject_hyperparams(lambda f: rigl(every=1, drop_fraction=f))
    tx = factory(0.5)
    params, state = jaxsparse.init(tx, dict_net()[0])

    @count_traces
    def update(state, params):
        return tx.update(jax.tree.map(jnp.cos, params), state, params)[1]

    step = jax.jit(update)
    moved = step(step(state, params), params)
    assert jaxsparse.metrics(moved)["churn"] > 0
    moved.hyperparams["f"] = jnp.float32(0)
    still = step(moved, params)
    found = jaxsparse.metrics(still)
    assert found["last_update"] == 2 and found["churn"] == 0 and update.traces == 1
    assert same(jaxsparse.get_masks(still, params), jaxsparse.get_masks(moved, params))


@pytest.mark.parametrize("name", ["rigl", "deep_rewiring", "gradual", "fixed"])
def test_injected_options_are_those_of_a_plain_call(name):
    """Optax binds a signature, and hands the shared options on as one keyword."""
    options = {"prunable": lambda path, leaf: "fc1" in path and leaf.ndim > 1, "min_alive": 2}
    if name == "gradual":
        options |= {"start": 0, "stop": 4, "every": 1}
        static = ("sparsity", "start", "stop", "every")
    else:
        options |= {"distribution": jaxsparse.erk}
        static = "sparsity"
    method, params = getattr(jaxsparse, name), dict_net()[0]
    given = {"inner": optax.sgd(0.1), "sparsity": 0.75, "key": 0, **options}
    injected = optax.inject_hyperparams(method, static_args=static)(**given)
    grads = jax.tree.map(jnp.cos, params)
    _, plain = method(**given).update(grads, method(**given).init(params), params)
    _, found = injected.update(grads, injected.init(params), params)
    assert same(found.inner_state.masks, plain.masks)
    with pytest.raises(TypeError, match=rf"{name}\(\) has no option 'min_aliv'.*'min_alive'"):
        optax.inject_hyperparams(method, static_args=static)(**given, min_aliv=1).init(params)
