"""Every algorithm and pattern on eight devices: the masks of a single one, and nothing is gathered.

Scanned layers and experts, fully sharded, tensor and expert parallel, on meshes of either kind. The
kernels are small, so that scores are counted bit by bit; `test_sharding.py` has large ones.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxsparse
from jaxsparse import Axes, block, channel, fan_in, n_m
from tests.test_sharding import collectives, same_place

SHAPES = {"layers": {"kernel": (4, 32, 16), "bias": (4, 16)}, "experts": {"kernel": (8, 16, 16)}}
AXES = Axes((1,), (2,), (0,))
LAYOUTS = {
    "rows": {"layers": (None, ("rows", "columns")), "experts": (None, ("rows", "columns"))},
    "tensor": {"layers": (None, "rows", "columns"), "experts": ("rows", None, "columns")},
    "experts": {"layers": ("rows", "columns"), "experts": (("rows", "columns"),)},
    "copies": {"layers": (), "experts": ()},
}
SGD, WHEN = optax.sgd(0.1, 0.9), {"key": 0, "every": 2}
RAMP = {"start": 0, "stop": 4, "every": 1}
rigl = partial(jaxsparse.rigl, SGD, 0.75, **WHEN)
momentum = partial(jaxsparse.sparse_momentum, SGD, 0.75, **WHEN)
CASES = {
    "fixed": ("copies", "Auto", jaxsparse.fixed(SGD, 0.75, key=0)),
    "gradual": ("rows", "Explicit", jaxsparse.gradual(SGD, 0.75, scope="global", **RAMP)),
    "sparse_evolution": ("tensor", "Explicit", jaxsparse.sparse_evolution(SGD, 0.75, **WHEN)),
    "rigl": ("tensor", "Auto", rigl(accumulate=2)),
    "rigl units": ("tensor", "Explicit", rigl(min_alive="unit", axes=AXES)),
    "rigl removing units": (
        "tensor",
        "Auto",
        rigl(pattern=fan_in, min_salient=0.6, keep_units=(), axes=AXES),
    ),
    "rigl channel": ("rows", "Auto", rigl(pattern=channel, axes=AXES)),
    "rigl block": ("rows", "Explicit", rigl(pattern=block(4, 4), axes=AXES)),
    "rigl n:m": ("rows", "Explicit", rigl(pattern=n_m(1, 4), axes=AXES)),
    "sparse_momentum by neuron": (
        "tensor",
        "Auto",
        momentum(growth="momentum_neuron", redistribution="magnitude", axes=AXES),
    ),
    "sparse_momentum global": ("experts", "Auto", momentum(drop_by="global", growth="global")),
    "dynamic_reparameterization": (
        "experts",
        "Explicit",
        jaxsparse.dynamic_reparameterization(SGD, 0.75, threshold=0.1, target=0.3, **WHEN),
    ),
    "deep_rewiring": (
        "rows",
        "Explicit",
        jaxsparse.deep_rewiring(SGD, 0.75, l1=0.01, noise=0.5, sign="free", key=0),
    ),
}
STEPS = 3


def initial(shapes=SHAPES):
    draw = np.random.default_rng(0)
    return jax.tree.map(
        lambda shape: jnp.asarray(draw.normal(size=shape), jnp.float32),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def step_of(tx):
    def step(params, state):
        grads = jax.tree.map(lambda p: jnp.cos(3 * p) + p, params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def placed(layout, kind):
    """The shardings of the parameters, and that of what every device has."""
    mesh = jax.make_mesh((4, 2), ("rows", "columns"), axis_types=(AxisType[kind],) * 2)
    at = partial(NamedSharding, mesh)
    found = {name: {"kernel": at(PartitionSpec(*spec))} for name, spec in LAYOUTS[layout].items()}
    everywhere = at(PartitionSpec())
    found["layers"]["bias"] = everywhere
    return found, everywhere


@pytest.mark.skipif(len(jax.devices()) < 8, reason="needs eight devices")
@pytest.mark.parametrize("case", CASES)
def test_the_masks_of_one_device(case):
    layout, kind, tx = CASES[case]
    start = jaxsparse.init(tx, initial())
    places, everywhere = placed(layout, kind)
    over = optax.tree_utils.tree_map_params(
        tx, lambda _, at: at, start[1], places, transform_non_params=lambda _: everywhere
    )
    alone, many = start, jax.device_put(start, (places, over))
    step = jax.jit(step_of(tx))
    with jax.set_mesh(everywhere.mesh):
        spread = jax.jit(step_of(tx), out_shardings=(places, over)).lower(*many).compile()
        for _ in range(STEPS):
            many = spread(*many)
    for _ in range(STEPS):
        alone = step(*alone)
    jax.tree.map(np.testing.assert_array_equal, many[1].masks, alone[1].masks)
    jax.tree.map(same_place, many[1].masks, places)
    moved = collectives(spread.as_text())
    smallest = min(leaf.size for leaf in jax.tree.leaves(many[0]) if leaf.ndim == 3)
    assert all(elements <= smallest // 8 for _, elements in moved), moved
    assert bool(moved) == (layout != "copies")
    assert (alone[1].last_update >= 0) == (case != "fixed")


@pytest.mark.parametrize(("layout", "kind"), [("rows", "Auto"), ("tensor", "Explicit")])
def test_init_puts_the_state_beside_the_parameters(layout, kind):
    """Channels above all: their masks are made of fewer numbers than a parameter has."""
    places, everywhere = placed(layout, kind)
    tx = CASES["rigl channel"][2]
    with jax.set_mesh(everywhere.mesh):
        params, state = jaxsparse.init(tx, jax.device_put(initial(), places))
    for tree in (params, state.masks, state.inner_state[0].trace):
        jax.tree.map(same_place, tree, places)
    assert all(leaf.sharding.mesh == everywhere.mesh for leaf in jax.tree.leaves(state))
    jax.tree.map(np.testing.assert_array_equal, state.masks, tx.init(initial()).masks)


SMALL = {"layers": {"kernel": (2, 8, 8)}, "experts": {"kernel": (2, 8, 8)}}


@pytest.mark.skipif(len(jax.devices()) < 8, reason="needs eight devices")
@pytest.mark.parametrize("case", CASES)
def test_every_step_inside_shard_map(case):
    """With parameters that all devices share, and with runs of which every device has its own."""
    tx = CASES[case][2]
    mesh, step = jax.make_mesh((8,), ("devices",), axis_types=(AxisType.Auto,)), step_of(tx)
    start = jax.eval_shape(partial(jaxsparse.init, tx), initial(SMALL))
    own = jax.tree.map(lambda a: jax.ShapeDtypeStruct((8, *a.shape), a.dtype), start)

    def alone(*start):
        new = step(*jax.tree.map(lambda a: a[0], start))
        return jax.tree.map(lambda a: a[None], new)

    for function, given, spec in (
        (step, start, PartitionSpec()),
        (alone, own, PartitionSpec("devices")),
    ):
        spread = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec)
        found = jax.eval_shape(spread, *given)
        shapes = jax.tree.map(lambda a: (a.shape, a.dtype), (found, given))
        assert shapes[0] == shapes[1]


@pytest.mark.parametrize("case", CASES)
def test_every_step_lowers_for_every_platform(case):
    tx = CASES[case][2]
    start = jax.eval_shape(partial(jaxsparse.init, tx), initial(SMALL))
    platforms = ("cpu", "cuda", "tpu")
    exported = jax.export.export(jax.jit(step_of(tx)), platforms=platforms)(*start)
    assert exported.platforms == platforms
    assert exported.out_avals == exported.in_avals
