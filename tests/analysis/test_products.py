"""Which leaf a product reads, through control flow and through what is done to a weight first."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.analysis import LeafCost, flops

BATCH = 4


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def alive(count, *sizes):
    """A mask with exactly `count` living weights."""
    return jnp.arange(int(np.prod(sizes))).reshape(sizes) < count


def test_scan_over_stacked_layers():
    layers = shape(3, 8, 8)
    masks = jnp.stack([alive(count, 8, 8) for count in (8, 16, 40)])

    def scanned(layers, x):
        return jax.lax.scan(jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None)), x, layers)[0]

    cost = flops(scanned, layers, masks, shape(BATCH, 8), batch_size=BATCH)
    assert (cost.dense, cost.sparse) == (2 * 3 * 64, 2 * (8 + 16 + 40))

    def unrolled(layers, x):
        for i in range(3):
            x = jnp.tanh(x @ layers[i])
        return x

    def by_index(layers, x):
        return jax.lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ layers[i]), x)

    for other in (unrolled, by_index):
        assert flops(other, layers, masks, shape(BATCH, 8), batch_size=BATCH) == cost


def test_recurrent_weights_count_once_per_step():
    params = {"w": shape(8, 8), "start": shape(8)}
    masks = {"w": alive(16, 8, 8), "start": None}

    def forward(p, inputs):
        start = jnp.broadcast_to(p["start"], (BATCH, 8))
        return jax.lax.scan(lambda h, x: (jnp.tanh(h @ p["w"] + x), None), start, inputs)[0]

    cost = flops(forward, params, masks, shape(5, BATCH, 8), batch_size=BATCH)
    assert cost.leaves == {"w": LeafCost(5 * 2 * 64, 5 * 2 * 16)}


def test_cond_counts_its_dearest_branch_and_while_one_turn():
    params, masks, x = shape(8, 8), alive(16, 8, 8), shape(BATCH, 8)

    def either(w, x):
        return jax.lax.cond(x.sum() > 0, lambda x: x @ w, lambda x: x @ w @ w, x)

    def repeat(w, x):
        return jax.lax.while_loop(lambda x: x.sum() > 0, lambda x: x @ w, x)

    cost = flops(either, params, masks, x, batch_size=BATCH)
    assert (cost.dense, cost.sparse, cost.notes) == (256, 64, ())
    cost = flops(repeat, params, masks, x, batch_size=BATCH)
    assert (cost.dense, cost.sparse, cost.notes) == (128, 32, ("while: one turn counted",))


def transposed(w, x):
    return jnp.einsum("oi,bi->bo", w.astype(jnp.bfloat16).T, x.astype(jnp.bfloat16))


def masked_inside(w, x):
    return x @ jnp.where(alive(16, 8, 8), w, 0)


def standardized(w, x):
    return x @ ((w - w.mean()) / (w.std() + np.float32(1e-6)))


def padded(w, x):
    return jnp.pad(x, ((0, 0), (0, 8))) @ jnp.concatenate([w, jnp.zeros_like(w)])


@jax.custom_vjp
def straight_through(w):
    return jnp.sign(w)


straight_through.defvjp(lambda w: (jnp.sign(w), None), lambda _, g: (g,))


@pytest.mark.parametrize(
    ("forward", "other"),
    [
        (transposed, 0),
        (masked_inside, 0),
        (standardized, 0),
        (padded, 128),
        (lambda w, x: x @ straight_through(w), 0),
        (lambda w, x: jax.jit(lambda v: x @ v)(w), 0),
        (lambda w, x: jax.vmap(lambda row: w @ row)(x), 0),
        (lambda w, x: (x * x) @ w.reshape(2, 4, 8).swapaxes(0, 1).reshape(8, 8), 0),
    ],
)
def test_a_rearranged_weight_is_still_that_weight(forward, other):
    cost = flops(forward, shape(8, 8), alive(16, 8, 8), shape(BATCH, 8), batch_size=BATCH)
    assert (cost.dense, cost.sparse, cost.other) == (128 + other, 32 + other, other)


def test_low_rank_addition_leaves_the_weight_its_owner():
    params = {"w": shape(8, 8), "a": shape(8, 2), "b": shape(2, 8)}
    masks = {"w": alive(16, 8, 8), "a": None, "b": None}
    cost = flops(lambda p, x: x @ (p["w"] + p["a"] @ p["b"]), params, masks, shape(BATCH, 8))
    assert cost.leaves["w"] == LeafCost(128 * BATCH, 32 * BATCH)


def test_tied_embedding_costs_where_it_is_a_product():
    params, masks = {"table": shape(10, 4)}, {"table": alive(20, 10, 4)}

    def forward(p, tokens):
        return p["table"][tokens] @ p["table"].T

    cost = flops(forward, params, masks, shape(BATCH, dtype=jnp.int32), batch_size=BATCH)
    assert cost.leaves == {"table": LeafCost(80, 40)} and cost.other == 0


def test_what_cannot_be_counted_is_noted():
    def forward(w, x):
        out = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(lambda x: x, out, x) @ w

    cost = flops(forward, shape(8, 8), None, shape(BATCH, 8), batch_size=BATCH)
    assert cost.dense == 128 and cost.notes == ("pure_callback: not counted",)


def test_other_arguments_pass_through():
    def forward(w, x, depth, flag=None):
        assert flag is None
        for _ in range(depth):
            x = x @ w
        return {"out": x, "name": "text"}

    assert flops(forward, shape(8, 8), None, shape(1, 8), 3, None).dense == 3 * 128
