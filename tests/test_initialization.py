"""Sparse-aware initialization: the variance of every weight, with fans counted one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxsparse
from jaxsparse import Axes
from tests import reference

LAYOUTS = {
    "flax": ((9, 7), Axes((0,), (1,))),
    "equinox": ((7, 9), Axes((1,), (0,))),
    "convolution": ((3, 2, 4, 5), Axes((2,), (3,))),
    "stacked": ((2, 9, 7), Axes((1,), (2,), (0,))),
    "query, key, value": ((6, 2, 4), Axes((0,), (1, 2))),
    "attention output": ((2, 4, 6), Axes((0, 1), (2,))),
}


def random_mask(shape):
    """Sparse, with one unit that has no weight left."""
    mask = np.random.default_rng(0).random(shape) < 0.3
    mask[..., 1] = False
    return mask


def expected_fan(mask, axes, fan):
    if fan == "dense":
        return reference.fan(np.ones_like(mask), *axes, "fan_in")
    if fan == "fan_avg":
        return (expected_fan(mask, axes, "fan_in") + expected_fan(mask, axes, "fan_out")) / 2
    return reference.fan(mask, *axes, fan)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("fan", ["fan_in", "fan_out", "fan_avg", "layer", "dense"])
def test_every_weight_is_scaled_by_its_own_fan(layout, fan):
    """The same key draws the same normal numbers, so their ratio shows the scales exactly."""
    shape, axes = LAYOUTS[layout]
    mask = random_mask(shape)
    params = {"w": jnp.ones(shape)}

    def draw(mask, scale=2.0):
        masks = {"w": jnp.asarray(mask)}
        options = {"fan": fan, "scale": scale, "axes": axes}
        return np.asarray(jaxsparse.sparse_init(0, params, masks, **options)["w"], np.float64)

    full = np.ones(shape, bool)
    unit = draw(full, 1.0) * np.sqrt(expected_fan(full, axes, fan))
    scale = np.sqrt(2.0 / np.maximum(expected_fan(mask, axes, fan), 1))
    found = draw(mask)
    assert np.array_equal(found != 0, mask)
    assert np.allclose(found, np.where(mask, unit * scale, 0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("distribution", ["normal", "uniform", "truncated_normal"])
def test_the_numbers_come_from_the_named_distribution(distribution):
    """Each of 40 units has its own fan-in, and the variance 1 / fan-in: 9,600 draws in all."""
    alive = np.arange(400)[:, None] < np.arange(40, 440, 10)[None, :]
    params = {"kernel": jnp.zeros((400, 40)), "bias": jnp.full(40, 3.0)}
    masks = {"kernel": jnp.asarray(alive), "bias": jnp.ones(40, bool)}
    options = {"scale": 1.0, "distribution": distribution}
    found = jaxsparse.sparse_init(jax.random.key(1), params, masks, **options)
    assert found["bias"] is params["bias"]
    unit = (np.asarray(found["kernel"]) * np.sqrt(alive.sum(0)))[alive]
    tolerance = 5 / np.sqrt(unit.size)
    assert abs(unit.mean()) < tolerance and abs(unit.var() - 1) < 2 * tolerance
    # Of a normal cut off at two deviations: 2.37 (its fourth moment over its squared variance).
    kurtosis = {"normal": 3.0, "uniform": 1.8, "truncated_normal": 2.37}[distribution]
    assert abs((unit**4).mean() - kurtosis) < 0.4
    largest = {"normal": np.inf, "uniform": np.sqrt(3), "truncated_normal": 2 / 0.8796}
    assert np.abs(unit).max() < largest[distribution] + 1e-4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_types_and_streams(dtype):
    """Types stay; a leaf's draws depend on its path, and half precision rounds float32 draws."""
    jax.config.update("jax_enable_x64", dtype == "float64")
    try:
        shape = (9, 7)
        params = {name: {"kernel": jnp.ones(shape, dtype)} for name in ("a", "b")}
        masks = jaxsparse.random_masks(0, params, 0.5)
        found = jaxsparse.sparse_init(3, params, masks)
        alone = jaxsparse.sparse_init(3, {"b": params["b"]}, {"b": masks["b"]})
    finally:
        jax.config.update("jax_enable_x64", False)
    a, b = (np.asarray(found[name]["kernel"]) for name in ("a", "b"))
    assert a.dtype == jnp.dtype(dtype) and np.isfinite(a.astype(np.float32)).all()
    assert np.array_equal(a != 0, masks["a"]["kernel"])
    assert np.array_equal(b, alone["b"]["kernel"])
    assert not np.array_equal(a, b)


def test_dense_leaves_and_traced_scale():
    params = {"kernel": jnp.ones((9, 7)), "bias": jnp.ones(7), "step": jnp.int32(1)}
    masks = {"kernel": jnp.ones((9, 7), bool), "bias": None, "step": None}
    init = jax.jit(lambda key, scale: jaxsparse.sparse_init(key, params, masks, scale=scale))
    doubled, single = init(0, 4.0), init(0, 1.0)
    assert np.allclose(doubled["kernel"], 2 * single["kernel"])
    assert doubled["bias"].tolist() == [1] * 7 and doubled["step"] == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_orthogonal_units_have_the_scale_as_sum_of_squares(layout):
    shape, axes = LAYOUTS[layout]
    mask = random_mask(shape)

    def draw(mask):
        options = {"distribution": "orthogonal", "scale": 2.0, "axes": axes}
        masks = {"w": jnp.asarray(mask)}
        found = jaxsparse.sparse_init(0, {"w": jnp.ones(shape)}, masks, **options)["w"]
        order = [
            *axes.outputs,
            *[a for a in range(len(shape)) if a not in axes.outputs + axes.stacked],
        ]
        moved = np.transpose(found, [*axes.stacked, *order])
        units = int(np.prod([shape[a] for a in axes.outputs]))
        stacks = int(np.prod([shape[a] for a in axes.stacked]))
        return np.asarray(found), moved.reshape(stacks, units, -1)

    found, units = draw(mask)
    assert np.array_equal(found != 0, mask)
    squares = (units**2).sum(-1)
    np.testing.assert_allclose(squares[squares > 0], 2.0, rtol=1e-5)
    assert (squares == 0).sum() == (units == 0).all(-1).sum() >= 1
    _, whole = draw(np.ones(shape, bool))
    if whole.shape[1] <= whole.shape[2]:
        for one in whole:
            np.testing.assert_allclose(one @ one.T, 2 * np.eye(len(one)), atol=1e-4)


def test_an_initializer_of_one_leaf():
    mask = jnp.asarray(random_mask((9, 7)))
    found = jaxsparse.sparse_initializer(mask, scale=1.0)(jax.random.key(3), (9, 7), jnp.bfloat16)
    expected = jaxsparse.sparse_init(
        jax.random.key(3), {"kernel": jnp.zeros((9, 7), jnp.bfloat16)}, {"kernel": mask}, scale=1.0
    )
    assert found.dtype == jnp.bfloat16 and np.array_equal(found, expected["kernel"])
    with pytest.raises(ValueError, match="shape must be the mask's"):
        jaxsparse.sparse_initializer(mask)(jax.random.key(3), (7, 9))


def test_an_initializer_inside_flax_layers():
    """Dense layers, convolutions, and attention, whose kernels Flax asks for as matrices."""
    rngs = nnx.Rngs(0)
    dense, conv, heads = (random_mask(shape) for shape in ((9, 7), (3, 3, 2, 5), (6, 2, 4)))
    made = {
        "dense": (dense, "flax", lambda init: nnx.Linear(9, 7, kernel_init=init, rngs=rngs)),
        "conv": (conv, "flax", lambda init: nnx.Conv(2, 5, (3, 3), kernel_init=init, rngs=rngs)),
        "qkv": (
            heads,
            "qkv",
            lambda init: nnx.LinearGeneral(6, (2, 4), kernel_init=init, rngs=rngs),
        ),
    }
    for mask, axes, build in made.values():
        layer = build(jaxsparse.sparse_initializer(jnp.asarray(mask), axes=axes))
        assert np.array_equal(np.asarray(layer.kernel[...]) != 0, mask)
    traced = jax.jit(jaxsparse.sparse_initializer(jnp.asarray(dense)), static_argnums=1)
    assert np.array_equal(np.asarray(traced(jax.random.key(1), (9, 7))) != 0, dense)


@pytest.mark.parametrize("fan", ["fan_in", "fan_out", "fan_avg"])
@pytest.mark.parametrize("groups", [2, 3])
def test_grouped_kernels(fan, groups):
    """Fans by looking at every pair of weights; the groups have different densities."""
    mask = np.random.default_rng(3).random((2, 2, 3, 6)) < np.linspace(0.1, 0.9, 6)
    kinds = ["fan_in", "fan_out"] if fan == "fan_avg" else [fan]
    counts = np.mean([reference.grouped_fan(mask, groups, kind) for kind in kinds], 0)
    params, masks = {"kernel": jnp.zeros(mask.shape)}, {"kernel": jnp.asarray(mask)}
    found = jaxsparse.sparse_init(0, params, masks, fan=fan, groups={"kernel": groups})["kernel"]
    one = jaxsparse.sparse_init(0, params, masks, fan="dense", scale=12.0)["kernel"]  # fan 12
    expected = np.where(mask, np.asarray(one) * np.sqrt(2 / np.maximum(counts, 1)), 0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_orthogonal_groups_are_orthogonal_each_for_itself():
    """Twelve outputs of four inputs: only three by three can their columns be orthogonal."""
    params, masks = {"kernel": jnp.zeros((4, 12))}, {"kernel": jnp.ones((4, 12), bool)}
    options = {"distribution": "orthogonal", "scale": 1.0, "groups": 4}
    found = np.asarray(jaxsparse.sparse_init(0, params, masks, **options)["kernel"])
    for group in np.split(found, 4, 1):
        np.testing.assert_allclose(group.T @ group, np.eye(3), atol=1e-5)


def test_a_unit_without_inputs_gives_its_bias_and_an_empty_layer_is_an_error():
    params = {"kernel": jnp.ones((9, 7)), "bias": jnp.full(7, 0.5)}
    masks = {"kernel": jnp.asarray(random_mask((9, 7))), "bias": jnp.ones(7, bool)}
    found = jaxsparse.sparse_init(0, params, masks)
    outputs = jnp.ones((2, 9)) @ found["kernel"] + found["bias"]
    assert np.isfinite(outputs).all() and outputs[:, 1].tolist() == [0.5, 0.5]
    empty = masks | {"kernel": jnp.zeros((9, 7), bool)}
    with pytest.raises(ValueError, match="masks leave no weight of 'kernel'"):
        jaxsparse.sparse_init(0, params, empty)
    assert not jax.jit(lambda m: jaxsparse.sparse_init(0, params, m))(empty)["kernel"].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distribution": "orthogonal", "fan": "fan_out"}, "needs fan="),
        ({"groups": 2}, "groups: 2 does not divide the 7 outputs of 'kernel'"),
        ({"groups": 0}, "groups must be ints of at least 1, got 0"),
        ({"groups": {"conv": 7}}, "groups: 'conv' matches none of kernel"),
        ({"axes": Axes((0,), (2,))}, "does not fit 'kernel'"),
    ],
)
def test_bad_options(options, message):
    mask = jnp.ones((9, 7), bool)
    with pytest.raises(ValueError, match=message):
        jaxsparse.sparse_init(0, {"kernel": jnp.ones((9, 7))}, {"kernel": mask}, **options)


def test_an_initializer_checks_its_options_when_it_is_made():
    for options in ({"fan": "fanin"}, {"scale": -1.0}, {"axes": Axes((0,), (2,))}):
        with pytest.raises(ValueError, match="fan must|scale must|does not fit"):
            jaxsparse.sparse_initializer(jnp.ones((9, 7), bool), **options)
