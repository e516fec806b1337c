"""Which leaves may be sparse, and what their axes mean, on the layers of every framework."""

import functools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import jaxsparse
from jaxsparse import Axes, trees
from jaxsparse.axes import all_axes, leaf_axes
from jaxsparse.recognition import why_dense

KEY = jax.random.key(0)
MATRIX, TURNED = Axes((0,), (1,)), Axes((1,), (0,))
CONVOLUTION, TURNED_CONVOLUTION = Axes((2,), (3,)), Axes((1,), (0,))
QKV, OUT = Axes((0,), (1, 2)), Axes((0, 1), (2,))
ASKS = None


def shapes_of(make):
    """The layers as shapes: nothing is computed."""
    return functools.partial(jax.eval_shape, make)


def shaped(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@shapes_of
def nnx_layers():
    rngs = nnx.Rngs(0)
    layers = {
        "linear": nnx.Linear(4, 6, rngs=rngs),
        "conv": nnx.Conv(3, 8, (3, 3), rngs=rngs),
        "conv1d": nnx.Conv(3, 8, (3,), rngs=rngs),
        "depthwise": nnx.Conv(32, 32, (7, 7), feature_group_count=32, rngs=rngs),
        "patches": nnx.Conv(3, 8, (16, 16), rngs=rngs),
        "tokens": nnx.Embed(10, 4, rngs=rngs),
        "ln": nnx.LayerNorm(4, rngs=rngs),
        "bn": nnx.BatchNorm(4, rngs=rngs),
        "attention": nnx.MultiHeadAttention(4, 16, decode=False, rngs=rngs),
        "lstm": nnx.LSTMCell(4, 6, rngs=rngs),
    }
    return {name: nnx.state(layer, nnx.Param) for name, layer in layers.items()}


@shapes_of
def nnx_stack():
    @nnx.vmap
    def stack(key):
        rngs = nnx.Rngs(key)
        return nnx.List([nnx.Linear(8, 8, rngs=rngs), nnx.LayerNorm(8, rngs=rngs)])

    return nnx.state(stack(jax.random.split(KEY, 3)), nnx.Param)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        x = nn.LayerNorm()(x)
        x = nn.MultiHeadDotProductAttention(4, name="attention")(x, x)
        return nn.Dense(16, name="dense")(x), None


class Linen(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x, _ = Block(name="block")(nn.Embed(10, 16)(tokens))
        scanned = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=5)
        x, _ = scanned(name="scan")(x, None)
        return nn.Conv(8, (3, 3))(x[..., None])


@shapes_of
def linen_layers():
    return Linen().init(KEY, jnp.zeros((2, 7), int))["params"]


@shapes_of
def equinox_layers():
    return {
        "linear": eqx.nn.Linear(4, 6, key=KEY),
        "conv": eqx.nn.Conv2d(3, 8, 3, key=KEY),
        "tok_emb": eqx.nn.Embedding(10, 4, key=KEY),
        "ln": eqx.nn.LayerNorm((5, 4)),
        "attention": eqx.nn.MultiheadAttention(4, 16, key=KEY),
        "cell": eqx.nn.GRUCell(4, 6, key=KEY),
    }


def haiku_layers():
    return {
        "mlp/~/linear_0": {"w": shaped(4, 6), "b": shaped(6)},
        "layer_norm": {"scale": shaped(3, 6), "offset": shaped(3, 6)},
        "embed": {"embeddings": shaped(10, 4)},
        "stack/linear": {"w": shaped(3, 4, 6), "b": shaped(3, 6)},
    }


def torch_layers():
    """A flat dict with the names of a text encoder and an image encoder."""
    shapes = {
        "embeddings.word_embeddings.weight": (10, 4),
        "embeddings.position_embeddings.weight": (7, 4),
        "embeddings.LayerNorm.weight": (3, 4),
        "encoder.layer.0.attention.self.query.weight": (4, 4),
        "encoder.layer.0.attention.self.query.bias": (2, 4),
        "encoder.embed_tokens.weight": (10, 4),
        "transformer.wpe.weight": (7, 4),
        "transformer.h.0.ln_1.weight": (3, 4),
        "vision.class_embedding": (1, 4, 2),
        "vision.patch_embedding.weight": (8, 3, 16, 16),
        "vision.patch_embed.proj.weight": (8, 12),
        "rnn.weight_ih_l0": (8, 4),
        "rnn.bias_ih_l0": (2, 8),
        "mha.in_proj_weight": (12, 4),
    }
    return {name: shaped(*shape) for name, shape in shapes.items()}


def own_layers():
    """Names of hand-written models, of Tunix, and of vision transformers."""
    shapes = {
        "blocks/gamma": (12, 8),
        "blocks/ln1": (12, 8),
        "blocks/b1": (12, 8),
        "blocks/w1": (12, 8, 16),
        "embedder/input_embedding": (10, 8),
        "Transformer/posembed_input/pos_embedding": (2, 7, 8),
        "positional_embedding": (7, 8),
        "pos_embed": (1, 7, 8),
        "register_tokens": (1, 4, 8),
        "embedding/kernel": (4, 4, 3, 8),
        "patch_embedding/linear/kernel": (12, 8),
        "norm/linear/kernel": (8, 16),
        "unembed/weight": (10, 8),
        "embed_proj/weight": (4, 8),
        "lora/lora_b": (4, 8),
        "narrow/kernel": (1, 32),
        "moe/experts/kernel": (4, 8, 16),
        "moe/stack/kernel": (12, 8, 512, 2048),
    }
    return {name: shaped(*shape) for name, shape in shapes.items()}


# For every tree, the leaves that may be sparse, with their axes; all others are dense.
TREES = {
    "nnx": (
        nnx_layers,
        {
            "linear/kernel": MATRIX,
            "conv/kernel": CONVOLUTION,
            "conv1d/kernel": ASKS,
            "depthwise/kernel": CONVOLUTION,
            "patches/kernel": CONVOLUTION,
            **{f"attention/{name}/kernel": QKV for name in ("query", "key", "value")},
            "attention/out/kernel": OUT,
            **{f"lstm/{a}{b}/kernel": MATRIX for a in "hi" for b in ("i", "g", "o")},
            "lstm/hf/kernel": MATRIX,
            "lstm/if_/kernel": MATRIX,
        },
    ),
    "nnx stack": (nnx_stack, {"0/kernel": ASKS}),
    "linen": (
        linen_layers,
        {
            "Conv_0/kernel": CONVOLUTION,
            "block/dense/kernel": MATRIX,
            **{f"block/attention/{name}/kernel": QKV for name in ("query", "key", "value")},
            "block/attention/out/kernel": OUT,
            "scan/dense/kernel": ASKS,
            **{
                f"scan/attention/{name}/kernel": Axes((1,), (2, 3), (0,))
                for name in ("query", "key", "value")
            },
            "scan/attention/out/kernel": Axes((1, 2), (3,), (0,)),
        },
    ),
    "equinox": (
        equinox_layers,
        {
            "linear/weight": TURNED,
            "conv/weight": TURNED_CONVOLUTION,
            **{f"attention/{n}_proj/weight": TURNED for n in ("query", "key", "value", "output")},
            "cell/weight_ih": TURNED,
            "cell/weight_hh": TURNED,
        },
    ),
    "haiku": (haiku_layers, {"mlp/~/linear_0/w": ASKS, "stack/linear/w": ASKS}),
    "torch": (
        torch_layers,
        {
            "encoder.layer.0.attention.self.query.weight": TURNED,
            "vision.patch_embedding.weight": TURNED_CONVOLUTION,
            "vision.patch_embed.proj.weight": TURNED,
            "rnn.weight_ih_l0": TURNED,
            "mha.in_proj_weight": TURNED,
        },
    ),
    "own": (
        own_layers,
        {
            "blocks/w1": ASKS,
            "embedding/kernel": CONVOLUTION,
            "patch_embedding/linear/kernel": MATRIX,
            "norm/linear/kernel": MATRIX,
            "unembed/weight": TURNED,
            "embed_proj/weight": TURNED,
            "lora/lora_b": ASKS,
            "moe/experts/kernel": ASKS,
            "moe/stack/kernel": ASKS,
        },
    ),
}


def arrays(tree):
    found = jax.tree.leaves_with_path(tree)
    return {trees.name(path): leaf for path, leaf in found if trees.is_array(leaf)}


@pytest.mark.standard_promotion
@pytest.mark.parametrize("name", TREES)
def test_real_layers(name):
    """Sparse by default are the layers; the axes of each are read or asked for, never guessed."""
    make, expected = TREES[name]
    leaves = arrays(make())
    assert {path for path, leaf in leaves.items() if why_dense(path, leaf) is None} == set(expected)
    known = {path: leaves[path] for path, axes in expected.items() if axes is not ASKS}
    assert all_axes(None, known) == {path: expected[path] for path in known}
    for path in expected.keys() - known.keys():
        with pytest.raises(ValueError, match="cannot tell"):
            leaf_axes(None, path, leaves[path])
    # Where axes do not matter, nothing asks.
    sparsities = jaxsparse.distributions.uniform(leaves, 0.5)
    assert {path for path, value in sparsities.items() if value} == set(expected)


@pytest.mark.parametrize(
    ("path", "shape", "expected"),
    [
        ("kernel", (3, 5, 64, 64), CONVOLUTION),
        ("kernel", (1, 7, 64, 64), CONVOLUTION),
        ("kernel", (4, 4, 64, 128), CONVOLUTION),
        ("kernel", (7, 7, 64, 64), CONVOLUTION),
        ("kernel", (8, 8, 4, 32), CONVOLUTION),
        ("kernel", (9, 9, 64, 3), CONVOLUTION),
        ("kernel", (8, 8, 512, 2048), ASKS),
        ("kernel", (2, 8, 512, 2048), ASKS),
        ("kernel", (12, 8, 512, 2048), ASKS),
        ("kernel", (13, 13, 64, 64), ASKS),
        ("weight", (512, 3, 16, 16), TURNED_CONVOLUTION),
        ("weight", (12, 8, 2048, 512), ASKS),
        ("out/kernel", (3, 3, 64, 32), CONVOLUTION),
        ("out/kernel", (1, 1, 64, 64), CONVOLUTION),
        ("out/kernel", (3, 3, 16, 64), ASKS),  # a convolution, or three layers of three heads
        ("out/kernel", (12, 64, 64), ASKS),  # a stack of layers
        ("query/kernel", (12, 64, 64), ASKS),
        ("query/kernel", (3, 64, 64), ASKS),
        ("attn.query.kernel", (64, 4, 8), QKV),  # fewer features inside
    ],
)
def test_shapes_decide(path, shape, expected):
    if expected is ASKS:
        with pytest.raises(ValueError, match="cannot tell"):
            leaf_axes(None, path, shaped(*shape))
    else:
        assert leaf_axes(None, path, shaped(*shape)) == expected


@pytest.mark.parametrize("order", ["flax", "equinox", "torch"])
def test_presets_of_stacks(order):
    ends = (lambda a, b: ((a,), (b,))) if order == "flax" else (lambda a, b: ((b,), (a,)))
    one, two = Axes(*ends(1, 2), (0,)), Axes(*ends(2, 3), (0, 1))
    assert leaf_axes(f"{order}_stacked", "w", shaped(7, 4, 3)) == one
    assert leaf_axes(f"{order}_experts", "w", shaped(7, 4, 3)) == one
    assert leaf_axes(f"{order}_stacked_experts", "w", shaped(2, 7, 4, 3)) == two
    with pytest.raises(ValueError, match="_experts' does not fit 'w' with 4 axes"):
        leaf_axes(f"{order}_experts", "w", shaped(2, 7, 4, 3))
