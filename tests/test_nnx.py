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
