"""Compaction of modules of Flax and Equinox, and of what structured training leaves; bad input."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import jaxsparse
from tests.test_compaction import X, compacted, full, kernel, mlp, mlp_params, shapes


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 6, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(6, use_running_average=True, rngs=rngs)
        self.fc = nnx.Linear(6, 9, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(3, 9, 12, decode=False, rngs=rngs)
        self.head = nnx.Linear(9, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.avg_pool(nnx.relu(self.norm(self.conv(x))), (2, 2), (2, 2))
        x = nnx.relu(self.fc(x.reshape(x.shape[0], -1, x.shape[-1])))
        return self.head(x + self.attention(x))


@pytest.mark.standard_promotion  # its pooling needs it
def test_flax_nnx():
    """A module takes the smaller leaves; that of attention fixes its heads, and keeps them."""
    graph, params = nnx.split(Net(nnx.Rngs(0)))
    masks = full(params)
    masks["fc"]["kernel"][...][[1, 2]] = False
    masks["attention"]["out"]["kernel"][...][1] = False

    def fn(params, x):
        return nnx.merge(graph, params)(x)

    small = compacted(fn, params, masks, kernel(1, 2, 4, 4, 2))
    assert small.params["conv"]["kernel"].shape == (3, 3, 2, 4)
    assert small.params["norm"]["mean"].shape == (4,)
    assert len(small.notes) == 1 and "rebuild=" in small.notes[0]


def test_flax_linen_is_built_again():
    class Mlp(linen.Module):
        width: int

        @linen.compact
        def __call__(self, x):
            x = linen.relu(linen.Dense(self.width)(x))
            return linen.Dense(3)(x)

    params = Mlp(8).init(jax.random.key(0), X)
    masks = full(params)
    masks["params"]["Dense_1"]["kernel"][:3] = False
    stays = compacted(Mlp(8).apply, params, masks, X)
    assert shapes(stays)["params/Dense_0/kernel"] == (6, 8) and "rebuild=" in stays.notes[0]

    def rebuild(params):
        return Mlp(params["params"]["Dense_0"]["bias"].shape[0]).apply

    small = compacted(Mlp(8).apply, params, masks, X, rebuild=rebuild)
    assert shapes(small)["params/Dense_0/kernel"] == (6, 5)


def test_equinox():
    """A module is a tree: the smaller one is a module that works."""
    model = eqx.nn.MLP(6, 3, 8, 2, key=jax.random.key(0))
    masks = jax.tree.map(
        lambda leaf: np.ones(leaf.shape, bool) if eqx.is_array(leaf) else leaf, model
    )
    masks.layers[1].weight[:, :2] = False
    masks.layers[1].weight[4] = False

    def fn(model, x):
        return jax.vmap(model)(x)

    before = jaxsparse.apply(model, masks)
    small = jaxsparse.compact(fn, model, masks, X, fold_constants=True)
    np.testing.assert_allclose(jax.vmap(small.params)(X), fn(before, X), rtol=1e-4, atol=1e-5)
    assert [layer.weight.shape for layer in small.params.layers] == [(6, 6), (7, 6), (3, 7)]


@pytest.mark.parametrize("method", ["channel", "min_salient"])
def test_structured_training(method):
    """What channels and SRigL leave is a smaller dense network, at a fraction of the FLOPs."""
    params = mlp_params([6, 24, 24, 4])
    options = {"prunable": lambda path, leaf: path in ("w0", "w1"), "axes": "flax"}
    inner = optax.sgd(0.05)
    if method == "channel":
        tx = jaxsparse.fixed(inner, 0.75, key=0, pattern=jaxsparse.channel, **options)
    else:
        tx = jaxsparse.rigl(
            inner,
            0.9,
            key=0,
            every=2,
            pattern=jaxsparse.fan_in,
            min_salient=0.95,
            keep_units=(),
            **options,
        )

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: jnp.mean((mlp(p, X) - jnp.flip(X[:, :4], 0)) ** 2))(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params, state = jaxsparse.init(tx, params)
    for _ in range(8):
        params, state = step(params, state)
    masks = jaxsparse.get_masks(state, params)
    small = compacted(mlp, params, masks, X, fold_constants=True)
    before = jaxsparse.analysis.flops(mlp, params, None, X).dense
    after = jaxsparse.analysis.flops(mlp, small.params, None, X).dense
    assert after < before * {"channel": 0.2, "min_salient": 0.75}[method]


def test_bad_input():
    params = mlp_params([6, 8, 4])
    with pytest.raises(TypeError, match="boolean"):
        jaxsparse.compact(mlp, params, params, X)
    with pytest.raises(ValueError, match="structure"):
        jaxsparse.compact(mlp, params, {"w0": full(params)["w0"]}, X)
    with pytest.raises(TypeError, match="traced"):
        jax.jit(lambda p: jaxsparse.compact(mlp, p, full(params), X).params)(params)
    with pytest.raises(ValueError, match="zeros"):
        jaxsparse.compact(mlp, params, full(params), X, fold_constants=True, zeros=False)
    with pytest.raises(TypeError, match="rebuild"):
        jaxsparse.compact(mlp, params, full(params), X, rebuild=3)
