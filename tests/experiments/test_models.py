"""Networks: the papers' sizes, both forms of a convolution, seeds, and shapes that do not fit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from experiments.common.models.network import VARIABLES
from experiments.common.models.registry import MODELS, Model, build
from experiments.common.training.execution import Execution, execution

IMAGES = {name for name in MODELS if name != "character_transformer"}
CONVOLUTIONAL = IMAGES - {"lenet_300_100"}
NORMALIZED = {name for name in MODELS if name.startswith(("alexnet", "resnet", "vgg", "wrn"))}


def shape_for(name, size=None):
    if name == "character_transformer":
        return (128,)
    colour = name.startswith("conv") or name in NORMALIZED
    return (size or 32, size or 32, 3) if colour else (size or 28, size or 28, 1)


def split(name, key=0, shape=None, classes=10, **options):
    model = build(
        name, key_or_seed=key, input_shape=shape or shape_for(name), num_classes=classes, **options
    )
    return nnx.graphdef(model), nnx.state(model, VARIABLES)


def shapes(name, **options):
    return jax.eval_shape(lambda: split(name, **options)[1])


def fit(graphdef, params, inputs, labels, learning_rate, steps):
    """The loss of every step of a few, and the gradients of the first."""
    tx = optax.adam(learning_rate)

    def loss(params):
        logits = nnx.merge(graphdef, params)(inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def run(params):
        def step(carry, _):
            params, state, first = carry
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = tx.update(grads, state, params)
            first = jax.tree.map(lambda a, b: jnp.where(state[0].count == 1, b, a), first, grads)
            return (optax.apply_updates(params, updates), state, first), value

        carry = params, tx.init(params), params
        (_, _, first), losses = jax.lax.scan(step, carry, length=steps)
        return losses, first

    return run(params)


def paths(params):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value"): leaf
        for path, leaf in jax.tree.leaves_with_path(params)
    }


def kernels(params):
    return {path: leaf for path, leaf in paths(params).items() if path.endswith("kernel")}


# The numbers of weights that the papers print, or that follow from their layers (papers.md 1.2:
# LeNet 784*300 + 300*100 + 100*10; Conv-2, 4, 6 with SAME padding; 2.2: LeNet-5-Caffe).
@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("lenet_300_100", 266_200),
        ("lenet_5", 25 * 6 + 25 * 6 * 16 + 256 * 120 + 120 * 84 + 84 * 10),
        ("lenet_5_caffe", 430_500),
        ("conv_2", 4_300_992),
        ("conv_4", 2_425_024),
        ("conv_6", 2_261_184),
        ("resnet_18", 267_696 + 2560 + 640),
        ("vgg_19", 20_018_880 + 5120),
        ("character_transformer", 4 * 12 * 128**2 + 128 * 65),
    ],
)
def test_numbers_of_weights(name, weights):
    shape, classes = shape_for(name), 65 if name == "character_transformer" else 10

    found = kernels(shapes(name, shape=shape, classes=classes))
    assert sum(leaf.size for leaf in found.values()) == weights


def test_paths_are_readable():
    params = shapes("lenet_5")
    names = ["conv1", "conv2", "fc1", "fc2", "head"]
    assert set(paths(params)) == {
        f"{layer}/{leaf}" for layer in names for leaf in ("bias", "kernel")
    }
    assert paths(params)["conv2/kernel"].shape == (5, 5, 6, 16)
    params = shapes("conv_6")
    assert {path.split("/")[0] for path in paths(params)} == {
        *(f"conv{index}" for index in range(1, 7)),
        "fc1",
        "fc2",
        "head",
    }
    found = kernels(shapes("character_transformer"))
    assert {"head/kernel", "block1/query/kernel", "block4/down/kernel"} <= set(found)
    assert len(found) == 4 * 6 + 1 and all(leaf.ndim == 2 for leaf in found.values())


@pytest.mark.parametrize("name", sorted(IMAGES - NORMALIZED))
def test_image_networks_learn_in_every_layer(name):
    shape = shape_for(name, size=8 if name.startswith("conv") else 16)
    graphdef, params = split(name, shape=shape)
    images = jax.random.uniform(jax.random.key(1), (6, *shape))
    rate = 1e-2 if name in ("lenet_5_small", "mlp_8_8") else 2e-3  # a narrow network learns slowly
    losses, grads = fit(graphdef, params, images, jnp.arange(6), rate, 25)
    assert abs(losses[0] - np.log(10)) < 0.7 and losses[-1] < losses[0] - 0.4
    assert all(
        np.isfinite(leaf).all() and np.any(leaf) for leaf in map(np.asarray, jax.tree.leaves(grads))
    )


def test_the_transformer_sees_only_the_past_and_learns(monkeypatch):
    half = Model(functools.partial(MODELS["character_transformer"].make, layers=2))
    monkeypatch.setitem(MODELS, "character_transformer", half)  # half the compilation
    graphdef, params = split("character_transformer", shape=(24,), classes=9)
    tokens = jax.random.randint(jax.random.key(0), (2, 24), 0, 9)

    @jax.jit
    def logits(params, tokens):
        return nnx.merge(graphdef, params)(tokens)

    whole = logits(params, tokens)
    assert whole.shape == (2, 24, 9)
    changed = logits(params, tokens.at[:, 15].add(1) % 9)
    same = np.isclose(whole, changed, atol=1e-5).all((0, 2))
    assert same[:15].all() and not same[15:].any()
    np.testing.assert_allclose(logits(params, tokens[:, :10]), whole[:, :10], atol=1e-5)
    moved = logits(params, jnp.roll(tokens, 1, axis=1))
    assert not np.allclose(moved[:, 1:], whole[:, :-1], atol=1e-2), "positions matter"

    losses, _ = fit(graphdef, params, tokens[:, :-1], tokens[:, 1:], 3e-3, 30)
    assert losses[-1] < 0.7 < 1.5 < losses[0]


@pytest.mark.parametrize("name", ["lenet_5"])
def test_the_form_changes_neither_parameters_nor_results(name):
    shape = shape_for(name, size=16)
    images = jax.random.uniform(jax.random.key(1), (3, *shape))
    results = {}
    for form in ("patches", "conv"):
        graphdef, params = split(name, shape=shape, convolution=form)

        def loss(params, graphdef=graphdef):
            return (nnx.merge(graphdef, params)(images) ** 2).sum()

        results[form] = params, jax.jit(jax.value_and_grad(loss))(params)
        text = str(jax.make_jaxpr(loss)(params))
        assert ("conv_general_dilated" in text) == (form == "conv")
    (params, (value, grads)), (others, (other_value, other_grads)) = results.values()
    assert jax.tree.structure(params) == jax.tree.structure(others)
    jax.tree.map(np.testing.assert_array_equal, params, others)
    np.testing.assert_allclose(value, other_value, rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * abs(b).max()),
        grads,
        other_grads,
    )


def test_auto_is_what_execution_says(monkeypatch):
    model = build("lenet_5", key_or_seed=0, input_shape=(28, 28, 1), num_classes=10)
    assert model.conv1.form == execution("lenet_5", jax.default_backend()).convolution
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    model = build("lenet_5", key_or_seed=0, input_shape=(28, 28, 1), num_classes=10)
    assert model.conv1.form == "conv"


def test_execution_knows_every_model_and_never_loops_over_convolutions_on_a_cpu():
    for name in MODELS:
        small = name.startswith(("lenet", "mlp"))
        assert execution(name, "gpu") == Execution("conv", "vmap" if small else "map")
    for name in CONVOLUTIONAL:
        assert execution(name, "cpu").convolution == "patches"
    with pytest.raises(ValueError, match="lenet_6"):
        execution("lenet_6", "cpu")


def test_keys_seeds_and_replicates_agree():
    def params(key):
        return split("lenet_5", key)[1]

    seed, typed, raw = params(3), params(jax.random.key(3)), params(jax.random.PRNGKey(3))
    jax.tree.map(np.testing.assert_array_equal, seed, typed)
    jax.tree.map(np.testing.assert_array_equal, seed, raw)
    assert (paths(seed)["fc1/kernel"][...] != paths(params(4))["fc1/kernel"][...]).any()
    keys = jax.random.split(jax.random.key(0), 3)
    stacked = jax.jit(jax.vmap(params))(keys)
    for index, key in enumerate(keys):
        jax.tree.map(
            lambda all_, one, index=index: np.testing.assert_array_equal(all_[index], one),
            stacked,
            params(key),
        )


def test_the_default_initializer_is_gaussian_glorot():
    _, params = split("conv_2", shape=(8, 8, 3))
    found = {path: np.asarray(leaf[...]) for path, leaf in paths(params).items()}
    for path, fan_in, fan_out in (
        ("conv2/kernel", 9 * 64, 9 * 64),
        ("fc1/kernel", 4 * 4 * 64, 256),
        ("fc2/kernel", 256, 256),
    ):
        kernel = found[path]
        assert abs(kernel.std() / np.sqrt(2 / (fan_in + fan_out)) - 1) < 0.05
        assert abs(np.mean(kernel**4) / np.mean(kernel**2) ** 2 - 3) < 1, "not a uniform draw"
    assert all((leaf == 0).all() for path, leaf in found.items() if path.endswith("bias"))
    _, params = split("conv_2", shape=(8, 8, 3), kernel_init=nnx.initializers.constant(0.5))
    assert all((leaf[...] == 0.5).all() for leaf in kernels(params).values())


@pytest.mark.parametrize("name", sorted(IMAGES))
def test_the_smallest_image_is_exactly_what_the_error_says(name):
    known = {
        "lenet_5": 16,
        "lenet_5_small": 16,
        "lenet_5_caffe": 16,
        "conv_2": 2,
        "conv_4": 4,
        "conv_6": 8,
    }
    known |= {deep: 32 if deep.startswith("vgg_16") else 16 for deep in NORMALIZED}
    smallest = known.get(name, 1)
    images = jnp.zeros((2, smallest, smallest, 1))

    def logits():
        return nnx.merge(*split(name, shape=images.shape[1:]))(images)

    assert jax.eval_shape(logits).shape == (2, 10)
    for shape in ((smallest - 1, 40, 1), (40, smallest - 1, 1)):
        with pytest.raises(
            ValueError, match=f"at least (1|{smallest}x{smallest} pixels)"
        ) as caught:
            split(name, shape=shape)
        assert "\n" not in str(caught.value)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="'lenet'.*lenet_300_100"):
        split("lenet")
    with pytest.raises(ValueError, match="takes images"):
        split("conv_2", shape=(128,))
    with pytest.raises(ValueError, match="takes tokens"):
        split("character_transformer", shape=(28, 28, 1))
    with pytest.raises(ValueError, match="num_classes is 0"):
        split("lenet_5", classes=0)
    with pytest.raises(ValueError, match="convolution is 'fft'"):
        split("lenet_5", convolution="fft")
