"""FLOPs, training FLOPs and bytes against numbers worked out by hand."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxsparse.analysis import LeafCost, flops, memory, training_flops

BATCH = 4


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def alive(count, *sizes):
    """A mask with exactly `count` living weights."""
    return jnp.arange(int(np.prod(sizes))).reshape(sizes) < count


def test_lenet_300_100():
    sizes = [784, 300, 100, 10]
    params = {
        f"fc{i}": {"kernel": shape(*sizes[i : i + 2]), "bias": shape(sizes[i + 1])}
        for i in range(3)
    }
    masks = jax.tree.map(lambda p: jnp.ones(p.shape, bool), params)
    masks["fc0"]["kernel"] = alive(2_352, 784, 300)
    masks["fc1"]["kernel"] = alive(3_300, 300, 100)

    def forward(params, x):
        for i in range(3):
            x = x @ params[f"fc{i}"]["kernel"] + params[f"fc{i}"]["bias"]
            x = jax.nn.relu(x) if i < 2 else jax.nn.log_softmax(x)
        return x

    cost = flops(forward, params, masks, shape(BATCH, 784), batch_size=BATCH)
    assert cost.dense == 2 * 266_200
    assert cost.sparse == 2 * (2_352 + 3_300 + 1_000)
    assert cost.leaves["fc1/kernel"] == LeafCost(60_000, 6_600)
    assert set(cost.leaves) == {"fc0/kernel", "fc1/kernel", "fc2/kernel"}
    assert cost.other == 0 and cost.notes == ()


def convolve(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def convolve_as_patches(x, kernel):
    """The same as one matrix product: every tap a slice, side by side along the channels."""
    rows, columns, _, outputs = kernel.shape
    height, width = x.shape[1] - rows + 1, x.shape[2] - columns + 1
    taps = [x[:, i : i + height, j : j + width] for i in range(rows) for j in range(columns)]
    return jnp.concatenate(taps, axis=-1) @ kernel.reshape(-1, outputs)


@pytest.mark.parametrize("conv", [convolve, convolve_as_patches])
def test_lenet_5_caffe(conv):
    params = {
        "conv1": shape(5, 5, 1, 20),
        "conv2": shape(5, 5, 20, 50),
        "fc1": shape(800, 500),
        "fc2": shape(500, 10),
    }
    masks = {
        "conv1": jnp.ones((5, 5, 1, 20), bool),
        "conv2": alive(2_500, 5, 5, 20, 50),
        "fc1": alive(4_000, 800, 500),
        "fc2": None,
    }

    def pool(x):
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    def forward(params, x):
        x = pool(conv(x, params["conv1"]))
        x = pool(conv(x, params["conv2"]))
        x = jax.nn.relu(x.reshape(x.shape[0], -1) @ params["fc1"])
        return x @ params["fc2"]

    cost = flops(forward, params, masks, shape(BATCH, 28, 28, 1), batch_size=BATCH)
    conv1, conv2, fc1, fc2 = 2 * 24 * 24 * 500, 2 * 8 * 8 * 25_000, 2 * 400_000, 2 * 5_000
    assert cost.dense == conv1 + conv2 + fc1 + fc2 == 4_586_000
    assert cost.sparse == conv1 + conv2 / 10 + fc1 / 100 + fc2
    assert cost.leaves["conv2"] == LeafCost(conv2, conv2 / 10)


def test_patches_equal_the_convolution():
    keys = jax.random.split(jax.random.key(0), 2)
    x, kernel = jax.random.normal(keys[0], (2, 8, 8, 3)), jax.random.normal(keys[1], (5, 5, 3, 4))
    np.testing.assert_allclose(convolve(x, kernel), convolve_as_patches(x, kernel), atol=1e-4)


@pytest.mark.parametrize(
    ("kernel", "options", "expected"),
    [
        # Stride 2, padded: 4 x 4 outputs of 3 x 3 taps over 6 channels.
        ((3, 3, 6, 5), dict(window_strides=(2, 2), padding="SAME"), 4 * 4 * 5 * 9 * 6),
        # Depthwise: every output channel reads one input channel.
        (
            (3, 3, 1, 6),
            dict(window_strides=(1, 1), padding="SAME", feature_group_count=6),
            8 * 8 * 6 * 9,
        ),
        # Transposed: every one of the 8 x 8 inputs meets every tap of every output channel.
        (
            (2, 2, 6, 5),
            dict(window_strides=(1, 1), padding=((1, 1), (1, 1)), lhs_dilation=(2, 2)),
            8 * 8 * 6 * 2 * 2 * 5,
        ),
    ],
)
def test_convolutions(kernel, options, expected):
    def forward(kernel, x):
        return jax.lax.conv_general_dilated(
            x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
        )

    cost = flops(forward, shape(*kernel), None, shape(BATCH, 8, 8, 6), batch_size=BATCH)
    assert cost.dense == cost.sparse == 2 * expected


def test_convolution_under_vmap_counts_the_same():
    def forward(kernel, x):
        return jax.vmap(lambda one: convolve(one[None], kernel)[0])(x)

    args = shape(3, 3, 2, 5), None, shape(BATCH, 8, 8, 2)
    cost = flops(forward, *args, batch_size=BATCH)
    assert cost == flops(lambda kernel, x: convolve(x, kernel), *args, batch_size=BATCH)


WIDTH, TIME, HEADS = 8, 6, 2


def attention(queries_keys_values, out, x):
    q, k, v = (y.reshape(BATCH, TIME, HEADS, -1) for y in queries_keys_values(x))
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / np.float32(2)
    mixed = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), v)
    return x + mixed.reshape(x.shape) @ out


def test_attention_counts_products_of_activations_in_full():
    params = {"qkv": shape(WIDTH, 3 * WIDTH), "bias": shape(3 * WIDTH), "out": shape(WIDTH, WIDTH)}
    masks = {"qkv": alive(48, WIDTH, 3 * WIDTH), "bias": None, "out": alive(32, WIDTH, WIDTH)}

    def forward(p, x):
        return attention(lambda x: jnp.split(x @ p["qkv"] + p["bias"], 3, axis=-1), p["out"], x)

    cost = flops(forward, params, masks, shape(BATCH, TIME, WIDTH), batch_size=BATCH)
    assert cost.leaves["qkv"] == LeafCost(2 * TIME * WIDTH * 3 * WIDTH, 2 * TIME * 48)
    assert cost.leaves["out"] == LeafCost(2 * TIME * WIDTH * WIDTH, 2 * TIME * 32)
    assert cost.other == 2 * (2 * TIME * TIME * WIDTH)
    assert cost.dense == 2_304 + 768 + 1_152
    assert cost.sparse == 576 + 384 + 1_152


def test_weights_side_by_side_in_one_product():
    params = {name: shape(WIDTH, WIDTH) for name in "qkv"} | {"out": shape(WIDTH, WIDTH)}
    masks = {name: alive(16, WIDTH, WIDTH) for name in "qk"} | {"v": None, "out": None}

    def forward(p, x):
        fused = jnp.concatenate([p["q"], p["k"], p["v"]], axis=1)
        return attention(lambda x: jnp.split(x @ fused, 3, axis=-1), p["out"], x)

    cost = flops(forward, params, masks, shape(BATCH, TIME, WIDTH), batch_size=BATCH)
    one = 2 * TIME * WIDTH * WIDTH
    for name, dense, sparse in (("q", one, one / 4), ("k", one, one / 4), ("v", one, one)):
        assert cost.leaves[name] == pytest.approx((dense, sparse))
    assert cost.other == pytest.approx(2 * (2 * TIME * TIME * WIDTH))


def test_equinox_model_as_it_is():
    model = eqx.nn.MLP(4, 3, 16, 2, key=jax.random.key(0))
    masks = jax.tree.map(lambda p: jnp.ones(p.shape, bool) if eqx.is_array(p) else p, model)
    masks = eqx.tree_at(lambda m: m.layers[1].weight, masks, alive(64, 16, 16))
    cost = flops(lambda m, x: jax.vmap(m)(x), model, masks, shape(BATCH, 4), batch_size=BATCH)
    assert cost.dense == 2 * (4 * 16 + 16 * 16 + 16 * 3)
    assert cost.sparse == 2 * (4 * 16 + 64 + 16 * 3)
    assert cost.leaves["layers/1/weight"] == LeafCost(512, 128)


def test_flax_nnx_state():
    graph, params = nnx.split(nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.Param)
    masks = jax.tree.map(lambda p: alive(p.size // 2, *p.shape), params)
    cost = flops(
        lambda p, x: nnx.merge(graph, p)(x), params, masks, shape(BATCH, 4), batch_size=BATCH
    )
    assert cost.leaves == {"kernel": LeafCost(64, 32)}


def test_bad_arguments():

    def forward(p, x):
        return x @ p["w"]

    params, x = {"w": shape(8, 8)}, shape(BATCH, 8)
    with pytest.raises(ValueError, match="batch_size .* got 0"):
        flops(forward, params, None, x, batch_size=0)
    with pytest.raises(ValueError, match="'w'.*shape"):
        flops(forward, params, {"w": alive(3, 8, 4)}, x)
    with pytest.raises(ValueError, match="masks"):
        memory(params, {"v": alive(3, 8, 8)})


def test_training_flops_of_every_method():
    dense, sparse = 1_000.0, 100.0
    assert training_flops(dense, sparse, "dense") == 3_000
    assert training_flops(dense, sparse, "fixed") == 300
    assert training_flops(dense, sparse, "sparse_evolution") == 300
    assert training_flops(dense, sparse, "sparse_momentum") == 1_200
    assert training_flops(dense, sparse, "rigl", every=100) == (300 * 100 + 200 + 1_000) / 101
    assert training_flops(dense, sparse, "gradual", sparsities=[0, 0.5, 0.9]) == pytest.approx(
        3_000 * (1 + 0.5 + 0.1) / 3
    )


def test_rigl_paper_table():
    """Evci et al., figure 2: training FLOPs over dense, from those of inference, ERK networks."""
    for inference, rigl, momentum in ((0.42, 0.42, 0.61), (0.24, 0.25, 0.50)):
        found = training_flops(1, inference, "rigl", every=100) / 3
        assert found == pytest.approx(rigl, abs=0.01)
        found = training_flops(1, inference, "sparse_momentum") / 3
        assert found == pytest.approx(momentum, abs=0.01)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("adam", {}, "method must be one of dense, fixed"),
        ("rigl", {}, "every must be at least 1"),
        ("rigl", {"every": 0}, "every must be at least 1"),
        ("gradual", {}, "sparsities must hold"),
        ("gradual", {"sparsities": [1.5]}, r"sparsities must all be in \[0, 1\]"),
    ],
)
def test_training_flops_rejects(method, options, message):
    with pytest.raises(ValueError, match=message):
        training_flops(2.0, 1.0, method, **options)


def test_memory():
    params = {"kernel": jnp.ones((20, 12)), "bias": jnp.ones(12, jnp.bfloat16), "name": None}
    masks = {"kernel": alive(24, 20, 12), "bias": jnp.ones(12, bool), "name": None}
    state = {"m": jnp.zeros((20, 12)), "count": jnp.int32(0), "key": jax.random.key(0)}
    found = memory(params, masks, state)
    assert found.weights == 240 * 4 + 12 * 2
    assert found.masks == 240 + 12
    assert found.packed_masks == 20 * 2 + 2
    assert found.living_weights == 24 * 8 + 12 * 2
    assert found.optimizer == 240 * 4 + 4 + 8
    assert memory(params, None) == (984, 0, 0, 984, 0)
