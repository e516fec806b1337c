"""The deep networks: sizes counted by hand, their formulas, both forms of convolution, dropout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from experiments.common.models.network import VARIABLES
from experiments.common.models.registry import build
from experiments.common.models.residual import ResNet, WideResNet
from experiments.common.models.vgg_alexnet import Stack

VGG_16 = 27 * 64 + 9 * (64**2 + 64 * 128 + 128**2 + 128 * 256 + 256 * 512)
THIN = 27 * 8 + 9 * (8**2 + 8 * 16 + 16**2 + 16 * 32 + 2 * 32**2 + 32 * 64 + 5 * 64**2)
ALEXNET = 121 * 3 * 96 + 25 * 96 * 256 + 9 * (256 * 384 + 384 * 384 + 384 * 256)


def wide(widen, per_stage):
    """The weights of a wide residual network: 2 * per_stage convolutions a stage, and shortcuts."""
    total, features = 27 * 16 + 640 * widen, 16
    for out in (16 * widen, 32 * widen, 64 * widen):
        total += 9 * features * out + 9 * out**2 * (2 * per_stage - 1) + features * out
        features = out
    return total


# By the papers 5.1, 8.5, 10.5, 15.2, 15.0, 11.0, 17.1, 17.2, 1.5 and 25.5 million.
WEIGHTS = {
    "alexnet_s": ALEXNET + 256 * 1024 + 1024**2 + 10240,
    "alexnet_b": ALEXNET + 256 * 2048 + 2048**2 + 20480,
    "vgg_16_c": VGG_16 + 9 * (256**2 + 4 * 512**2 - 512**2) + 256**2 + 4 * 512**2 + 5120,
    "vgg_16_d": VGG_16 + 9 * (2 * 256**2 + 5 * 512**2) + 2 * 512**2 + 5120,
    "vgg_16_like": VGG_16 + 9 * (2 * 256**2 + 5 * 512**2) + 512**2 + 5120,
    "vgg_16_thin": THIN + 64**2 + 640,
    "vgg_16_thin_plain": THIN + 64**2 + 640,
    "wrn_16_8": wide(8, 2),
    "wrn_16_10": wide(10, 2),
    "wrn_22_8": wide(8, 3),
    "wrn_28_2": wide(2, 4),
    "resnet_50": 25_502_912,
}


def params_of(name, classes=10):
    shape = (224, 224, 3) if name == "resnet_50" else (32, 32, 3)
    make = functools.partial(build, name, input_shape=shape, num_classes=classes)
    return nnx.state(nnx.eval_shape(lambda: make(key_or_seed=0)), nnx.Param)


def paths(params):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value"): leaf
        for path, leaf in jax.tree.leaves_with_path(params)
    }


@pytest.mark.parametrize("name", WEIGHTS)
def test_numbers_of_weights(name):
    found = paths(params_of(name, 1000 if name == "resnet_50" else 10))
    assert sum(p.size for path, p in found.items() if path.endswith("/kernel")) == WEIGHTS[name]


@pytest.mark.parametrize(
    ("name", "classes", "count"), [("wrn_16_8", 10, 10_961_370), ("resnet_50", 1000, 25_557_032)]
)
def test_all_parameters_are_as_many_as_in_the_published_networks(name, classes, count):
    assert sum(p.size for p in jax.tree.leaves(params_of(name, classes))) == count


def test_without_normalization_every_layer_has_a_bias_instead():
    make = functools.partial(build, input_shape=(32, 32, 3), num_classes=10, key_or_seed=0)
    plain, normal = (
        nnx.eval_shape(lambda name=name: make(name))
        for name in ("vgg_16_thin_plain", "vgg_16_thin")
    )
    assert not jax.tree.leaves(nnx.state(plain, nnx.BatchStat))
    assert len(jax.tree.leaves(nnx.state(normal, nnx.BatchStat))) == 2 * 14
    biases = {path: p.shape for path, p in paths(nnx.state(plain, nnx.Param)).items()}
    assert sum(path.endswith("/bias") for path in biases) == 13 + 1 + 1
    assert not any("norm" in path for path in biases)


def test_paths_and_shapes():
    found = paths(params_of("vgg_16_c"))
    convolutions = {path: p.shape for path, p in found.items() if path.endswith("/conv/kernel")}
    small = {f"conv{index}/conv/kernel" for index in (7, 10, 13)}
    assert len(convolutions) == 13
    assert {path for path, shape in convolutions.items() if shape[:2] == (1, 1)} == small
    assert found["fc1/linear/kernel"].shape == (512, 512)
    found = paths(params_of("wrn_22_8"))
    strided = [f"block{index}/shortcut/kernel" in found for index in range(1, 10)]
    assert strided == [True, False, False] * 3
    found = paths(params_of("resnet_50", 1000))
    assert found["conv/conv/kernel"].shape == (7, 7, 3, 64)
    assert found["block16/conv3/conv/kernel"].shape == (1, 1, 512, 2048)
    assert sum("shortcut" in path and path.endswith("kernel") for path in found) == 4


SMALL = {
    "stack": functools.partial(Stack, stages=(((4, 5, 2), (5, 1, 1)), (6, 7), ()), dense=(8, 9)),
    "imagenet": functools.partial(ResNet, blocks=(1, 2), features=(8, 12), imagenet=True),
    "wide": functools.partial(WideResNet, depth=10, widen=2, dropout=0.0),
}


def small(kind, form, **options):
    init, rngs = nnx.initializers.he_normal(), nnx.Rngs(0)
    model = SMALL[kind]((17, 16, 3), 5, form=form, kernel_init=init, rngs=rngs, **options)
    return nnx.split(model, VARIABLES, ...)


IMAGES = np.random.default_rng(0).normal(size=(6, 17, 16, 3)).astype(np.float32)
LABELS = np.arange(6) % 5


def evaluated(graphdef, params, rest):
    return jax.jit(lambda params: nnx.merge(graphdef, params, rest)(IMAGES))(params)


@pytest.mark.parametrize("kind", SMALL)
def test_every_layer_learns(kind):
    graphdef, params, rest = small(kind, "conv")

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def trained(params):
        model = nnx.merge(graphdef, params, rest)
        losses = optax.softmax_cross_entropy_with_integer_labels(model(IMAGES, train=True), LABELS)
        return losses.mean(), nnx.state(model, VARIABLES)

    (value, after), grads = trained(params)
    for path, leaf in paths(grads).items():
        assert np.any(leaf) != path.endswith(("/mean", "/var")), path
    for path, leaf in paths(after).items():
        same = np.array_equal(leaf, paths(params)[path])
        assert same != path.endswith(("/mean", "/var")), path
    stepped = jax.tree.map(lambda p, g: p - 0.02 * g, params, grads)
    assert trained(stepped)[0][0] < value


@pytest.mark.parametrize("kind", SMALL)
def test_the_form_changes_neither_parameters_nor_results(kind):
    found = []
    for form in ("patches", "conv"):
        graphdef, params, rest = small(kind, form)
        found.append((params, evaluated(graphdef, params, rest)))
    (params, logits), (others, other_logits) = found
    jax.tree.map(np.testing.assert_array_equal, params, others)
    np.testing.assert_allclose(logits, other_logits, rtol=1e-3, atol=1e-4)


def norm(images, state):
    """Batch normalization as it evaluates."""
    scaled = (images - state["mean"][...]) / np.sqrt(np.asarray(state["var"][...]) + 1e-5)
    return scaled * state["scale"][...] + state["bias"][...]


def conv(images, state, stride=1):
    axes = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        images, state["kernel"][...], (stride, stride), "SAME", dimension_numbers=axes
    )


def relu(images):
    return np.maximum(images, 0)


def moved(params):
    """The same parameters with other statistics and scales than the ones they start with."""
    generator = np.random.default_rng(1)
    return jax.tree.map(
        lambda p: jnp.asarray(np.abs(p + 0.3 * generator.normal(size=p.shape)), p.dtype), params
    )


def test_the_wide_network_is_its_formula():
    graphdef, params, rest = small("wide", "conv")
    params = moved(params)
    images = conv(IMAGES, params["conv"])
    for index, stride in ((1, 1), (2, 2), (3, 2)):
        block = params[f"block{index}"]
        ready = relu(norm(images, block["norm1"]))
        out = relu(norm(conv(ready, block["conv1"], stride), block["norm2"]))
        images = conv(out, block["conv2"]) + conv(ready, block["shortcut"], stride)
    features = relu(norm(images, params["norm"])).mean((1, 2))
    expected = features @ params["head"]["kernel"][...] + params["head"]["bias"][...]
    found = evaluated(graphdef, params, rest)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())


def test_the_network_of_imagenet_is_its_formula():
    graphdef, params, rest = small("imagenet", "conv")
    params = moved(params)

    def normalized(images, state, stride=1):
        return norm(conv(images, state["conv"], stride), state["norm"])

    images = relu(normalized(IMAGES, params["conv"], 2))  # 17 x 16 pixels become 9 x 8, then 5 x 4
    padded = np.pad(images, ((0, 0), (1, 1), (0, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    images = windows[:, ::2, ::2].max((-2, -1))
    for index, stride, joined in ((1, 1, True), (2, 2, True), (3, 1, False)):
        block = params[f"block{index}"]
        out = relu(normalized(images, block["conv1"]))
        out = normalized(relu(normalized(out, block["conv2"], stride)), block["conv3"])
        images = relu(out + (normalized(images, block["shortcut"], stride) if joined else images))
    head = params["head"]
    expected = images.mean((1, 2)) @ head["kernel"][...] + head["bias"][...]
    found = evaluated(graphdef, params, rest)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())


def test_the_stack_is_its_formula():
    graphdef, params, rest = small("stack", "conv")
    params, images = moved(params), IMAGES
    for index, stride, pool in ((1, 2, False), (2, 1, True), (3, 1, False), (4, 1, True)):
        layer = params[f"conv{index}"]
        images = np.asarray(relu(norm(conv(images, layer["conv"], stride), layer["norm"])))
        if pool:
            images = images[:, : images.shape[1] // 2 * 2, : images.shape[2] // 2 * 2]
            images = np.maximum(images[:, ::2], images[:, 1::2])
            images = np.maximum(images[:, :, ::2], images[:, :, 1::2])
    features = images.reshape(6, -1)
    for index in (1, 2):
        layer = params[f"fc{index}"]
        features = relu(norm(features @ layer["linear"]["kernel"][...], layer["norm"]))
    expected = features @ params["head"]["kernel"][...] + params["head"]["bias"][...]
    found = evaluated(graphdef, params, rest)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())


def test_dropout_lies_inside_the_blocks_of_the_wide_network_alone():
    graphdef, params, rest = small("wide", "conv", dropout=0.5)

    @jax.jit
    def logits(params, key):
        model = nnx.merge(graphdef, params, rest)
        return model(IMAGES, train=True, rngs=nnx.Rngs(dropout=key))

    one, other, again = (logits(params, jax.random.key(seed)) for seed in (1, 2, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other)
    options = {"key_or_seed": 0, "input_shape": (32, 32, 3), "num_classes": 10, "dropout": 0.3}
    for name in ("vgg_16_d", "alexnet_s", "resnet_50"):
        with pytest.raises(ValueError, match=f"dropout is 0.3; {name} has no layers for it"):
            build(name, **options)
