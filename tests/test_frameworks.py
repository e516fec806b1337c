"""The same small net in every container that JAX users train in, and under what Optax wraps with.

Where the leaves have the same paths, the masks must come out the same: random streams are folded
by path, and nothing else may depend on the container.
"""

import dataclasses
from collections import namedtuple
from functools import partial

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxsparse

# Optax and the frameworks themselves lean on implicit promotion.
pytestmark = pytest.mark.standard_promotion

DRAW = np.random.default_rng(0)
VALUES = {
    name: {
        "kernel": DRAW.normal(size=shape).astype(np.float32),
        "bias": DRAW.normal(size=shape[1]).astype(np.float32),
    }
    for name, shape in {"fc1": (6, 8), "fc2": (8, 4)}.items()
}
ALIVE = {"fc1": 12, "fc2": 8}
X = DRAW.normal(size=(16, 6)).astype(np.float32)
Y = DRAW.normal(size=(16, 4)).astype(np.float32)


def rigl(inner=None, **options):
    options = {"sparsity": 0.75, "key": 0, "every": 2, **options}
    return jaxsparse.rigl(optax.sgd(0.1, 0.9) if inner is None else inner, **options)


def forward(fc1, fc2, x):
    return jnp.tanh(x @ fc1["kernel"] + fc1["bias"]) @ fc2["kernel"] + fc2["bias"]


def dict_net():
    """Parameters, and the output as a function of them."""
    return jax.tree.map(jnp.asarray, VALUES), lambda p, x: forward(p["fc1"], p["fc2"], x)


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="fc2")(jnp.tanh(nn.Dense(8, name="fc1")(x)))


def linen_net():
    model, params = LinenNet(), jax.tree.map(jnp.asarray, VALUES)
    shapes = jax.eval_shape(model.init, jax.random.key(0), X)["params"]
    assert jax.tree.structure(shapes) == jax.tree.structure(params)
    return params, lambda p, x: model.apply({"params": p}, x)


class NnxNet(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.fc1, self.fc2 = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)
        for name, layer in (("fc1", self.fc1), ("fc2", self.fc2)):
            layer.kernel[...] = jnp.asarray(VALUES[name]["kernel"])
            layer.bias[...] = jnp.asarray(VALUES[name]["bias"])

    def __call__(self, x):
        return self.fc2(jnp.tanh(self.fc1(x)))


def nnx_net():
    graph, params = nnx.split(NnxNet(), nnx.Param)
    return params, lambda p, x: nnx.merge(graph, p)(x)


Layer = namedtuple("Layer", "kernel bias")
TupleNet = namedtuple("TupleNet", "fc1 fc2")


def named_tuple_net():
    params = TupleNet(*(Layer(**jax.tree.map(jnp.asarray, leaves)) for leaves in VALUES.values()))
    return params, lambda p, x: forward(p.fc1._asdict(), p.fc2._asdict(), x)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class DataNet:
    fc2: dict
    fc1: dict
    name: str = dataclasses.field(metadata={"static": True}, default="net")


def dataclass_net():
    params = DataNet(**jax.tree.map(jnp.asarray, VALUES))
    return params, lambda p, x: forward(p.fc1, p.fc2, x)


def by_path(tree):
    return {jaxsparse.trees.name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def check(params, masks, alive=ALIVE):
    """Exactly sparse on masks in the structure of the parameters, with exact counts."""
    assert jax.tree.structure(masks) == jax.tree.structure(params)
    for (path, p), mask in zip(by_path(params).items(), jax.tree.leaves(masks), strict=True):
        assert mask.dtype == bool and mask.shape == p.shape, path
        assert not np.any(np.asarray(p)[~np.asarray(mask)]), path
        layer, leaf = path.rsplit("/", 1)
        assert mask.sum() == (mask.size if leaf == "bias" else alive[layer]), path


def train(tx, net=dict_net, steps=5, check=check, **extra):
    params, output = net()
    params, state = jaxsparse.init(tx, params)
    check(params, jaxsparse.get_masks(state, params))

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: jnp.mean((output(p, X) - Y) ** 2))(params)
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
        check(params, jaxsparse.get_masks(state, params))
    return params, state


@pytest.fixture(scope="module")
def plain():
    """The run in dicts: the masks at its start and end, the weights, the state."""
    tx, (start, _) = rigl(), dict_net()
    params, state = train(tx)
    return tx, jaxsparse.get_masks(tx.init(start), start), params, state


def same(tree, other, equal=np.array_equal):
    a, b = by_path(tree), by_path(other)
    return a.keys() == b.keys() and all(equal(a[path], b[path]) for path in a)


close = partial(same, equal=partial(np.allclose, rtol=1e-5, atol=1e-6))


@pytest.mark.parametrize("net", [linen_net, nnx_net, named_tuple_net, dataclass_net])
def test_containers_agree(plain, net):
    params, state = train(rigl(), net)
    _, before, weights, reference = plain
    masks = jaxsparse.get_masks(state, params)
    assert same(masks, reference.masks) and not same(masks, before)
    assert close(params, weights)


def test_nnx_optimizer(plain):
    tx, _, weights, reference = plain
    model = NnxNet()
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    params = nnx.state(model, nnx.Param)
    nnx.update(model, jaxsparse.apply(params, jaxsparse.get_masks(optimizer, params)))

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(lambda m: jnp.mean((m(X) - Y) ** 2))(model))

    def state():
        params = nnx.state(model, nnx.Param)
        return params, jaxsparse.get_masks(optimizer, params)

    for _ in range(5):
        step(model, optimizer)
        check(*state())
    assert same(state()[1], reference.masks)
    assert jaxsparse.metrics(optimizer)["last_update"] == 4
    assert close(state()[0], weights)

    # Rewinding to a ticket: a fresh optimizer, the masks set in it.
    ticket = jaxsparse.random_masks(7, params, 0.75)
    optimizer = jaxsparse.set_masks(nnx.Optimizer(model, tx, wrt=nnx.Param), ticket)
    assert same(jaxsparse.get_masks(optimizer, params), ticket)
    nnx.update(model, jaxsparse.apply(params, ticket))
    step(model, optimizer)
    check(*state())
    assert same(state()[1], ticket)


def test_equinox():
    net = eqx.nn.MLP(6, 4, 8, 1, activation=jnp.tanh, key=jax.random.key(0))
    params, rest = eqx.partition(net, eqx.is_array)
    first = {"prunable": lambda path, leaf: path == "layers/0/weight", "axes": "equinox"}
    tx = rigl(sparsity=0.5, pattern=jaxsparse.fan_in, **first)

    def rows(params, masks):
        check(params, masks, alive={"layers/0": 24, "layers/1": 32})
        assert {int(n) for n in masks.layers[0].weight.sum(1)} == {3}
        assert masks.activation is None

    def output(params, x):
        return jax.vmap(eqx.combine(params, rest))(x)

    params, state = train(tx, lambda: (params, output), check=rows)
    # A whole model, functions and all, takes the masks of its arrays.
    masks = jaxsparse.get_masks(state, params)
    model = jaxsparse.apply(net, masks)
    rows(eqx.filter(model, eqx.is_array), masks)
    assert model.activation is jnp.tanh and model(X[0]).shape == (4,)


def kinds(params, kind):
    return jax.tree.map_with_path(lambda path, _: path[-1].key == kind, params)


WRAPPED = {
    "chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), rigl()),
    "partition": lambda: optax.partition(
        {True: rigl(), False: optax.adam(0.01)}, lambda p: kinds(p, "kernel")
    ),
    "masked": lambda: optax.chain(
        optax.masked(rigl(), lambda p: kinds(p, "kernel")),
        optax.masked(optax.sgd(0.1), lambda p: kinds(p, "bias")),
    ),
    "multi_steps_outside": lambda: optax.MultiSteps(rigl(every=1), 2),
    "multi_steps_inside": lambda: rigl(
        optax.MultiSteps(optax.adam(0.01), 2).gradient_transformation()
    ),
    "inject_static": lambda: optax.inject_hyperparams(jaxsparse.rigl, static_args="accumulate")(
        optax.sgd(0.1), sparsity=0.75, key=0, every=2, drop_fraction=0.3, accumulate=2
    ),
    "inject_shared": lambda: optax.inject_hyperparams(jaxsparse.rigl)(
        optax.sgd(0.1),
        sparsity=0.75,
        key=0,
        every=2,
        distribution=jaxsparse.distributions.uniform,
        prunable=lambda path, leaf: path.endswith("kernel"),
        min_alive=2,
        first_value=lambda key, params: jax.tree.map(jnp.zeros_like, params),
    ),
    "inject_factory": lambda: optax.inject_hyperparams(
        lambda rate, every: rigl(optax.sgd(rate), every=every)
    )(rate=0.1, every=2),
    "inject_inside": lambda: rigl(optax.inject_hyperparams(optax.adam)(learning_rate=0.01)),
    "flatten_inside": lambda: rigl(optax.flatten(optax.adam(0.01))),
}


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_wrapped(plain, wrapped):
    params, state = train(WRAPPED[wrapped]())
    assert not same(jaxsparse.get_masks(state, params), plain[1])
    masks = jaxsparse.random_masks(5, params, 0.75)
    assert same(jaxsparse.get_masks(jaxsparse.set_masks(state, masks), params), masks)


def test_reset_keeps_the_masks(plain):
    tx, before, params, state = plain
    fresh = jaxsparse.reset(tx, state, params)
    assert same(fresh.masks, state.masks) and not same(fresh.masks, before)
    assert fresh.count == 0 and not any(map(np.any, jax.tree.leaves(fresh.inner_state)))
    assert jax.tree.structure(fresh) == jax.tree.structure(state)


def test_apply_if_finite_outside():
    """A rejected step leaves no trace: not in the count, not in what is postponed."""
    tx = optax.apply_if_finite(rigl(every=1), 3)
    params, state = jaxsparse.init(tx, dict_net()[0])
    step = jax.jit(lambda grads, state: tx.update(grads, state, params))
    good = jax.tree.map(jnp.cos, params)
    _, state = step(good, state)
    updates, after = step(jax.tree.map(lambda g: g.at[0].set(jnp.nan), good), state)
    assert after.inner_state.count == 1 and not any(map(np.any, jax.tree.leaves(updates)))
    assert same(after.inner_state, state.inner_state) and after.total_notfinite == 1
    _, after = step(good, after)
    assert after.inner_state.last_update == 1 and after.inner_state.postponed == 0


@pytest.mark.parametrize("method", [jaxsparse.rigl, jaxsparse.sparse_evolution])
def test_extra_arguments_reach_the_inner_optimizer(method):
    def update(grads, state, params, *, value, **extra):
        return jax.tree.map(lambda g: -value * g, grads), value

    inner = optax.GradientTransformationExtraArgs(lambda params: jnp.float32(0), update)
    extra = {"value": jnp.float32(0.25), "unused": jnp.ones(3)}
    _, state = train(method(inner, 0.75, key=0, every=2), **extra)
    assert state.inner_state == 0.25 and state.last_update == 4
