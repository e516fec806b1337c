"""A decoder with scanned layers: what it computes, its masks, and how it lies on a mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxsparse
from experiments.common.training import loop
from experiments.common.training.execution import Execution, replicate_keys
from experiments.language_model import layout
from experiments.language_model.decoder import Architecture, Block, make_decoder, rotate, smaller
from experiments.language_model.settings import PRESETS, SMALL, Cell, Settings

SMALLEST = Architecture(layers=2, width=16, heads=4, groups=2, hidden=24)
TINY = Settings(
    *(SMALLEST, 16, 4, 16, 1e-2), text="tiny_shakespeare", every=2, validate=4, weight_decay=0.1
)
TOKENS = jax.random.randint(jax.random.key(7), (4, 16), 0, 256)


def decoder(**changes):
    apply, init_params = make_decoder(dataclasses.replace(SMALLEST, **changes))
    return jax.jit(apply), jax.jit(init_params)(jax.random.key(0))


def test_a_later_byte_changes_no_earlier_logit():
    apply, params = decoder()
    before, after = apply(params, TOKENS), apply(params, TOKENS.at[:, 9].set(TOKENS[:, 9] ^ 1))
    np.testing.assert_array_equal(before[:, :9], after[:, :9])
    assert jnp.all(jnp.any(before[:, 9:] != after[:, 9:], axis=(0, 2)))


def test_rotary_products_depend_on_the_distance_alone():
    one, other = jax.random.normal(jax.random.key(0), (2, 1, 8))
    turned = rotate(jnp.broadcast_to(one, (12, 1, 8))), rotate(jnp.broadcast_to(other, (12, 1, 8)))
    products = jnp.einsum("ihd,jhd->ij", *turned)
    for distance in range(-5, 6):
        along = jnp.diagonal(products, distance)
        np.testing.assert_allclose(along, along[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(products[0, 0], (one * other).sum(), rtol=1e-5)
    assert jnp.ptp(products[0]) > 0.1


def test_grouped_queries_are_full_attention_where_groups_repeat():
    grouped = Block(SMALLEST, nnx.Rngs(0))
    full = Block(dataclasses.replace(SMALLEST, groups=4), nnx.Rngs(0))
    for name in ("query", "out", "gate", "up", "down"):
        getattr(full, name).kernel[...] = getattr(grouped, name).kernel[...]
    for name in ("key", "value"):
        kernel = getattr(grouped, name).kernel[...].reshape(16, 2, 4)
        getattr(full, name).kernel[...] = jnp.repeat(kernel, 2, axis=1).reshape(16, 16)
    stream = jax.random.normal(jax.random.key(1), (2, 5, 16))
    expected = jax.jit(grouped)(stream)
    np.testing.assert_allclose(jax.jit(full)(stream), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["1m", "10m", "100m", "1b"])
def test_a_preset_has_the_weights_of_its_name(name):
    shape = PRESETS[name].architecture
    PRESETS[name].check()
    _, init_params = make_decoder(shape)
    kinds = jax.eval_shape(init_params, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(kinds)) == shape.weights
    wanted = {"1m": 1e6, "10m": 1e7, "100m": 1e8, "1b": 1e9}[name]
    assert 0.95 * wanted < shape.weights < 1.05 * wanted


def test_a_small_decoder_has_as_many_weights_as_live_in_a_sparse_one():
    whole = PRESETS["1m"].architecture
    for sparsity in (0.75, 0.9):
        small = PRESETS["1m"].shape(Cell(SMALL, sparsity, 0))
        alive = whole.weights - sparsity * whole.sparse_weights
        assert small.width < whole.width and 0.99 * alive < small.weights <= alive
    with pytest.raises(ValueError, match="choose a lower sparsity"):
        smaller(whole, 100)


def test_masters_are_float32_and_checkpoints_change_nothing():
    apply, params = decoder()
    half, again = decoder(compute="bfloat16")[0], decoder(checkpoint=True)[0]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    logits = apply(params, TOKENS)
    assert half(params, TOKENS).dtype == jnp.float32
    np.testing.assert_allclose(half(params, TOKENS), logits, atol=0.1)

    def loss(apply):
        return lambda params: jnp.mean(apply(params, TOKENS) ** 2)

    grads, same = jax.grad(loss(apply))(params), jax.grad(loss(again))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), grads, same)


def trainer_of(method, mesh=None):
    cell = Cell(method, 0.75, 0)
    apply, init_params = make_decoder(SMALLEST, layout.over_batch(mesh))
    trainer = loop.make_trainer(
        apply,
        init_params,
        lambda key: TINY.method(cell, key),
        TOKENS,
        jnp.roll(TOKENS, -1, axis=1),
        batch_size=4,
        execution=Execution("conv", "map"),
        start=jaxsparse.init,
    )
    return layout.spread(trainer, replicate_keys(0, 1), mesh)


def test_scanned_kernels_are_sparse_and_nothing_else():
    trainer = trainer_of("rigl")
    state = trainer.advance(trainer.init(replicate_keys(0, 1)), 0, 6)
    params, opt_state = jax.tree.map(lambda leaf: leaf[0], (state.params, state.opt_state))
    found = jaxsparse.metrics(opt_state, params=params)
    assert found["off_mask"] == 0 and found["last_update"] == 4
    masks = jaxsparse.get_masks(opt_state, params)
    for path, mask in jax.tree.leaves_with_path(masks):
        kernel = "kernel" in jax.tree_util.keystr(path)
        assert mask.mean() == (0.25 if kernel else 1.0)
    assert masks["blocks"]["gate"]["kernel"][...].shape == (2, 16, 24)


def test_a_mesh_gives_the_same_losses_and_masks():
    found = []
    for mesh in (None, layout.make_mesh("data:2,model:2")):
        trainer = trainer_of("rigl", mesh)
        state = trainer.init(replicate_keys(0, 1))
        if mesh is not None:
            gate = state.params["blocks"]["gate"]["kernel"][...]
            assert gate.sharding.shard_shape(gate.shape) == (1, 2, 8, 12)
            masks = jaxsparse.get_masks(state.opt_state, state.params)
            mask = masks["blocks"]["gate"]["kernel"][...]
            assert mask.sharding.is_equivalent_to(gate.sharding, 4)
        state = trainer.advance(trainer.advance(state, 0, 3), 3, 6)
        found.append(jax.device_get((state.loss_sum, state.opt_state.masks)))
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, found[1][1], found[0][1])
