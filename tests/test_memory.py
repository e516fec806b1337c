"""What compiled steps need beside their arguments, read from the programs."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxsparse
from jaxsparse import sparse
from jaxsparse.selection import kernels

pytestmark = pytest.mark.standard_promotion
SHAPES = [(256, 512)] * 8


def program(step, *args):
    return jax.jit(step, donate_argnums=(0, 1)).lower(*args).compile()


@pytest.mark.skipif(not kernels.exist(), reason="no compiled kernel")
@pytest.mark.parametrize(
    ("method", "form", "limit"),
    [
        ("rigl", "bool", 1.7),
        ("rigl", "packed", 1.5),
        ("gradual", "bool", 2.5),
        ("sparse_momentum", "bool", 2.2),
        ("sparse_evolution", "bool", 2.7),
    ],
)
def test_a_mask_update_needs_the_memory_of_few_leaves(method, form, limit):
    """Masks of all leaves, a byte or a bit for every weight, the bits of the old ones where these
    are read beside the new; scores of few leaves at a time, 0.5 bytes per weight for each of eight.
    No step copies a mask."""
    params = {f"layer{i}": jax.ShapeDtypeStruct(s, jnp.float32) for i, s in enumerate(SHAPES)}
    when = {"start": 0, "stop": 90} if method == "gradual" else {"key": 0}
    tx = getattr(jaxsparse, method)(
        optax.adam(1e-3), 0.9, every=10, axes="flax", mask_storage=form, **when
    )

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    compiled = program(step, params, jax.eval_shape(tx.init, params), params)
    found, weights = compiled.memory_analysis(), sum(a * b for a, b in SHAPES)
    # Of packed ones, a mask update grows a copy of a leaf's.
    assert form == "packed" or not re.search(r"pred\[256,512\]\S* copy\(", compiled.as_text())
    assert found.temp_size_in_bytes < limit * weights, found.temp_size_in_bytes / weights


def test_compressed_training_peaks_below_dense_training():
    """Arguments and temporary memory of a step with a mask update, Adam, 95%."""
    keys = jax.random.split(jax.random.key(0), len(SHAPES))
    dense = {
        f"layer{i}": jax.random.normal(keys[i], SHAPES[0][:: 1 - 2 * (i % 2)])
        for i in range(len(SHAPES))
    }
    x = jnp.ones((8, 256))

    def loss(params, x):
        for kernel in params.values():
            x = jnp.tanh(x @ kernel)
        return jnp.mean(x**2)

    inner = optax.adam(1e-3)
    tx = jaxsparse.rigl(inner, 0.95, key=0, every=10, axes="flax", storage="compressed")

    def step(params, state, x):
        updates, state = inner.update(jax.grad(loss)(params, x), state, params)
        return optax.apply_updates(params, updates), state

    programs = [
        program(sparse.train_step(loss, tx), *jaxsparse.init(tx, dense), x),
        program(step, dense, inner.init(dense), x),
    ]
    found = [one.memory_analysis() for one in programs]
    peaks = [m.argument_size_in_bytes + m.temp_size_in_bytes for m in found]
    assert peaks[0] < peaks[1], peaks
