"""How much XLA compiles for a step, read from the programs: counts, not seconds."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxsparse
from jaxsparse.selection import kernels

pytestmark = pytest.mark.standard_promotion
METHODS = {
    "rigl": {"key": 0, "every": 10},
    "sparse_evolution": {"key": 0, "every": 10},
    "sparse_momentum": {"key": 0, "every": 10},
    "gradual": {"start": 0, "stop": 100},
}


def distinct(text):
    """The computations of a compiled program, without their names: XLA compiles equal ones once."""
    text = re.sub(r", (metadata|frontend_attributes)=\{[^}]*\}", "", text)
    bodies = dict(re.findall(r"^(%\S+) .*? \{\n(.*?)^\}", text, re.M | re.S))
    called = re.findall(r" fusion\(.*? calls=(%[^,\s]+)", text)
    return len({re.sub(r"%[\w.\-]+", "%", bodies[name]) for name in called})


@pytest.mark.skipif(not kernels.exist(), reason="no compiled kernel")
@pytest.mark.parametrize("method", METHODS)
def test_more_leaves_of_a_shape_are_no_more_programs(method):
    tx = getattr(jaxsparse, method)(optax.adam(1e-3), 0.9, **METHODS[method])

    def programs(leaves):
        params = {f"layer{i}/kernel": jnp.ones((64, 96)) for i in range(leaves)}
        step = jax.jit(tx.update).lower(params, jax.eval_shape(tx.init, params), params)
        return distinct(step.compile().as_text())

    few = programs(4)
    assert few > 5
    assert programs(9) <= few
