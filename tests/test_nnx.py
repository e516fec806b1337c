"""A model of Flax NNX starts sparse by one call."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxsparse
from jaxsparse.nnx import start_sparse

pytestmark = pytest.mark.standard_promotion  # Flax leans on it


class Net(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.norm, self.fc = nnx.BatchNorm(6, rngs=rngs), nnx.Linear(6, 8, rngs=rngs)


def tx():
    return jaxsparse.fixed(optax.adam(0.1), 0.75, key=0)


def off_mask(model, optimizer):
    return jaxsparse.metrics(optimizer, params=nnx.state(model, nnx.Param))["off_mask"]


@pytest.mark.parametrize("given", ["optimizer", "transformation"])
def test_only_living_weights_are_left(given):
    model, before = Net(), nnx.to_pure_dict(nnx.state(Net()))
    optimizer = nnx.Optimizer(model, tx(), wrt=nnx.Param)
    assert off_mask(model, optimizer) == 36
    start_sparse(model, optimizer if given == "optimizer" else tx())
    assert off_mask(model, optimizer) == 0
    kernel = model.fc.kernel[...]
    assert int(jnp.sum(kernel != 0)) == 12
    np.testing.assert_array_equal(kernel, jnp.where(kernel != 0, before["fc"]["kernel"], 0))
    jax.tree.map(
        np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(model.norm)), before["norm"]
    )


def test_summary_warns_of_a_dense_start():
    model = Net()
    optimizer = nnx.Optimizer(model, tx(), wrt=nnx.Param)
    with pytest.warns(UserWarning, match="36 weights off the masks are not zero.*start_sparse"):
        jaxsparse.summary(nnx.state(model, nnx.Param), optimizer)
    start_sparse(model, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jaxsparse.summary(nnx.state(model, nnx.Param), optimizer)


def test_what_is_not_sparse_is_refused():
    model = Net()
    for dense in (optax.adam(0.1), nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)):
        with pytest.raises(ValueError, match="holds no sparse"):
            start_sparse(model, dense)
    with pytest.raises(TypeError, match="tx must be"):
        start_sparse(model, None)


STORED = {
    "bits": {"mask_storage": "packed"},
    "places": {"storage": "compressed_state"},
}


@pytest.mark.parametrize("name", STORED)
def test_the_optimizer_may_take_apart_what_it_stores(name):
    """`nnx.Optimizer` keeps a mapping where the state had a node: masks are the same, and so are
    weights, metrics and summaries."""

    class Layers(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.fc, self.head = nnx.Linear(12, 16, rngs=rngs), nnx.Linear(16, 3, rngs=rngs)

        def __call__(self, x):
            return self.head(nnx.relu(self.fc(x)))

    def train(**how):
        model = Layers()
        tx = jaxsparse.rigl(optax.adam(0.01), 0.8, key=0, every=2, **how)
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        start_sparse(model, optimizer)

        @nnx.jit
        def step(model, optimizer, x):
            grads = nnx.grad(lambda model: jnp.mean(model(x) ** 2))(model)
            optimizer.update(model, grads)

        for i in range(5):
            step(model, optimizer, jax.random.normal(jax.random.key(i), (8, 12)))
        params = nnx.state(model, nnx.Param)
        found = params, jaxsparse.get_masks(optimizer, params)
        logged = jaxsparse.metrics(optimizer, params=params)
        return jax.tree.leaves(found), logged, jaxsparse.summary(params, optimizer)

    (wanted, logged, table), (found, own, same) = train(), train(**STORED[name])
    for a, b in zip(wanted, found, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-7)
    assert {k: float(v) for k, v in own.items()} == {k: float(v) for k, v in logged.items()}
    assert own["off_mask"] == 0 and own["churn"] > 0 and same == table
