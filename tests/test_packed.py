"""`mask_storage="packed"`: bits in the state, and everything else as with booleans.

`tests/test_contracts.py` runs every algorithm in both forms.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

import jaxsparse
from jaxsparse import sparse
from tests.test_meshes import initial, placed, step_of
from tests.test_sharding import collectives

pytestmark = pytest.mark.standard_promotion

PARAMS = {
    "fc1": {"kernel": jax.random.normal(jax.random.key(0), (24, 20)), "bias": jnp.zeros(20)},
    "fc2": {"kernel": jax.random.normal(jax.random.key(1), (20, 5)), "bias": jnp.zeros(5)},
}
FORMS = ("bool", "packed")


def rigl(form, **options):
    return jaxsparse.rigl(optax.adam(0.1), 0.8, key=0, every=3, mask_storage=form, **options)


def train(tx, steps=8):
    @jax.jit
    def step(params, state, key):
        leaves, treedef = jax.tree.flatten(params)
        keys = jax.random.split(key, len(leaves))
        drawn = [jax.random.normal(k, p.shape) for k, p in zip(keys, leaves, strict=True)]
        updates, state = tx.update(treedef.unflatten(drawn), state, params)
        return optax.apply_updates(params, updates), state

    params, state = jaxsparse.init(tx, PARAMS)
    for i in range(steps):
        params, state = step(params, state, jax.random.fold_in(jax.random.key(2), i))
    return params, state


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@settings(max_examples=30, deadline=None)
@given(nps.arrays(bool, nps.array_shapes(min_dims=1, max_dims=4, max_side=19)), st.booleans())
def test_any_mask_comes_back(mask, compiled):
    params = {"kernel": jnp.ones(mask.shape)}
    every = {"prunable": lambda path, leaf: True}
    tx = jaxsparse.fixed(
        optax.sgd(0.1), masks={"kernel": jnp.asarray(mask)}, mask_storage="packed", **every
    )
    with sparse.kernels("auto" if compiled else "xla"):
        state = tx.init(params)
        np.testing.assert_array_equal(jaxsparse.get_masks(state, params)["kernel"], mask)
        np.testing.assert_allclose(jaxsparse.metrics(state)["density"], mask.mean(), rtol=1e-6)


def close(a, b):
    """To rounding: XLA fuses other operations in either form."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), a, b)


def test_training_is_the_same():
    runs = [train(rigl(form)) for form in FORMS]
    close(runs[0][0], runs[1][0])
    masks = [jaxsparse.get_masks(state, params) for params, state in runs]
    same(*masks)
    found = [jaxsparse.metrics(state, params=params) for params, state in runs]
    same(*found)
    assert found[0]["last_update"] == 6 and found[0]["off_mask"] == 0


@pytest.mark.parametrize("pattern", [jaxsparse.block(4, 5), jaxsparse.fan_in])
def test_patterns(pattern):
    runs = [train(rigl(form, pattern=pattern, axes="flax")) for form in FORMS]
    close(runs[0][0], runs[1][0])
    same(*(jaxsparse.get_masks(state, params) for params, state in runs))


def test_a_state_keeps_a_bit_for_a_weight_and_a_byte_for_a_dense_leaf():
    _, state = jaxsparse.init(rigl("packed"), PARAMS)
    sizes = [words.nbytes for words in jax.tree.leaves(state.masks)]
    assert sizes == [1, 24 * 20 // 8, 1, 20 * 1]


def test_replacing_masks():
    params, state = train(rigl("packed"))
    new = jaxsparse.random_masks(5, params, 0.5)
    _, plain = train(rigl("bool"))
    for found in (
        jaxsparse.set_masks(state, new),
        jaxsparse.set_masks(state, new, tx=rigl("packed"), params=params),
        jaxsparse.reset(rigl("packed"), jaxsparse.set_masks(state, new), params),
    ):
        same(jaxsparse.get_masks(found, params), new)
        assert jax.tree.structure(found) == jax.tree.structure(state)
    fresh = [
        jaxsparse.set_masks(s, new, tx=rigl(form), params=params).inner_state
        for s, form in ((plain, "bool"), (state, "packed"))
    ]
    close(*fresh)


def test_a_dense_run_is_taken_over():
    adam = optax.adam(0.1)
    found = [jaxsparse.take_over(rigl(form), adam.init(PARAMS), PARAMS) for form in FORMS]
    same(found[0][0], found[1][0])
    same(found[0][1].inner_state, found[1][1].inner_state)


def test_a_rule_of_ones_own_sees_booleans():
    def update(key, count, masks, params, grads, state):
        assert masks["fc1"]["kernel"].dtype == bool
        return jax.tree.map(lambda mask: mask[::-1], masks), state

    rule = jaxsparse.Rule(
        init=lambda key, params: (jaxsparse.random_masks(key, params, 0.8), ()),
        update=update,
        fires=lambda count: count % 2 == 1,
    )
    runs = [train(jaxsparse.sparsify(optax.sgd(0.1), rule, key=0, mask_storage=f)) for f in FORMS]
    same(runs[0][0], runs[1][0])


def test_a_checkpoint_without_a_template_tells_its_masks_with_the_parameters():
    params, state = train(rigl("packed"))
    restored = dict(zip(state._fields, state, strict=True)) | {
        "masks": jax.tree.map(
            lambda kept: {"words": kept.words},
            state.masks,
            is_leaf=lambda node: hasattr(node, "words"),
        )
    }
    del restored["sparse"]
    same(jaxsparse.get_masks(restored, params), jaxsparse.get_masks(state, params))
    assert jaxsparse.metrics(restored, params=params)["density"] == 0.2
    with pytest.raises(ValueError, match="lost their shapes"):
        jaxsparse.metrics(restored)


def test_replicates():
    def start(key):
        tx = jaxsparse.rigl(optax.adam(0.1), 0.8, key=key, every=3, mask_storage="packed")
        return jaxsparse.init(tx, PARAMS)

    params, state = jax.vmap(start)(jnp.arange(3))
    masks = jaxsparse.get_masks(state, params)
    assert masks["fc1"]["kernel"].shape == (3, 24, 20) and masks["fc1"]["bias"].all()
    for i in range(3):
        alone = jaxsparse.get_masks(*start(i)[::-1])
        same(jax.tree.map(lambda leaf, i=i: leaf[i], masks), alone)


@pytest.mark.skipif(len(jax.devices()) < 8, reason="needs eight devices")
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_bits_lie_beside_the_parameters(kind):
    """No array of a parameter's size crosses devices, and the masks are those of one device."""
    places, everywhere = placed("tensor", kind)
    tx = jaxsparse.rigl(optax.sgd(0.1, 0.9), 0.75, key=0, every=2, mask_storage="packed")
    alone = jaxsparse.init(tx, initial())
    step = jax.jit(step_of(tx))
    for _ in range(4):
        alone = step(*alone)
    with jax.set_mesh(everywhere.mesh):
        many = jaxsparse.init(tx, jax.device_put(initial(), places))
        spread = jax.jit(step_of(tx)).lower(*many).compile()
        for _ in range(4):
            many = spread(*many)
    same(many[1].masks, alone[1].masks)
    for name in ("layers", "experts"):
        kernel = many[1].masks[name]["kernel"]
        assert kernel.words.sharding.spec == places[name]["kernel"].spec
    smallest = min(leaf.size for leaf in jax.tree.leaves(many[0]) if leaf.ndim == 3)
    moved = collectives(spread.as_text())
    assert moved and all(elements <= smallest // 8 for _, elements in moved), moved


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"mask_storage": "bits"}, "mask_storage"),
        ({"mask_storage": "packed", "storage": "compressed"}, "no masks"),
        ({"mask_storage": "packed", "storage": "compressed_state"}, "no masks"),
    ],
)
def test_what_cannot_be(options, match):
    with pytest.raises(ValueError, match=match):
        jaxsparse.rigl(optax.adam(0.1), 0.8, key=0, **options)


@pytest.mark.parametrize("shape", [(8, 10), (3, 8), (4, 8, 5), (8,), (8, 1)])
def test_a_dense_leaf_as_long_as_a_byte(shape):
    """Its one byte is not taken for the bits of a packed axis."""
    params = {"fc": jnp.ones((16, 16)), "head": jnp.ones(shape)}
    tx = rigl("packed", prunable=lambda path, leaf: path == "fc")
    params, state = jaxsparse.init(tx, params)
    _, state = tx.update(params, state, params)
    assert np.array_equal(jaxsparse.get_masks(state, params)["head"], np.ones(shape))
