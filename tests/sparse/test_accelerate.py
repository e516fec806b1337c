"""Functions of compressed kernels against the same functions of the masked dense ones."""

import json

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxsparse
from jaxsparse import sparse
from jaxsparse.sparse import _choice


def close(found, want, rtol=2e-4, atol=1e-5):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


expand = jax.jit(sparse.expand)


def random_masks(params, sparsity=0.7):
    """Of all kernels; drawn by NumPy, which compiles nothing."""
    random = np.random.default_rng(0)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        return None if "bias" in name or leaf.ndim < 2 else random.random(leaf.shape) >= sparsity

    return jax.tree.map_with_path(draw, params)


def compressed(params, axes="flax"):
    small = sparse.compress(params, random_masks(params), axes=axes)
    assert any(
        sparse.is_compressed(x) for x in jax.tree.leaves(small, is_leaf=sparse.is_compressed)
    )
    return small


def agrees(function, small, *args):
    """Values and gradients of a scalar function, compressed and dense."""
    value, grads = jax.jit(jax.value_and_grad(function))(expand(small), *args)
    found, moved = jax.jit(jax.value_and_grad(sparse.accelerate(function)))(small, *args)
    close(found, value)
    alive = expand(jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), small))
    close(expand(moved), masked(grads, alive))


def masked(tree, masks):
    """With zeros where there is no weight."""
    return jax.tree.map(
        lambda leaf, mask: leaf if mask is None else np.where(mask, leaf, 0),
        tree,
        masks,
    )


X = jax.random.normal(jax.random.key(9), (6, 12))
PLANES = jax.random.normal(jax.random.key(8), (2, 6, 5, 3))


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


PRODUCTS = {
    "left": ((12, 8), "flax", lambda w: w.T @ X.T),
    "einsum": ((12, 8), "flax", lambda w: jnp.einsum("io,bi->ob", w, X)),
    "equinox": ((8, 12), "equinox", lambda w: jax.vmap(lambda x: w @ x)(X)),
    "transposed product": ((8, 12), "flax", lambda w: X @ w.T),
    "cast": ((12, 8), "flax", lambda w: X.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)),
    "scaled": ((12, 8), "flax", lambda w: X @ (-w * jnp.float32(3) / 2.0)),
    "reshaped": ((12, 8), "flax", lambda w: jnp.einsum("bi,iho->bho", X, w.reshape(12, 2, 4))),
    "heads": ((12, 2, 4), "qkv", lambda w: jnp.einsum("bi,iho->hbo", X, w)),
    "heads out": (
        (3, 4, 8),
        "attention_out",
        lambda w: jnp.einsum("bhi,hio->bo", X.reshape(6, 3, 4), w),
    ),
    "split and joined": (
        (12, 8),
        "flax",
        lambda w: (
            X @ w.reshape(3, 4, 2, 4).transpose(2, 0, 1, 3).transpose(1, 2, 0, 3).reshape(12, 8)
        ),
    ),
    "one row": ((12, 8), "flax", lambda w: X[0] @ w),
    "a batch of two axes": ((12, 8), "flax", lambda w: X.reshape(2, 3, 12) @ w),
    "penalty": ((12, 8), "flax", lambda w: X @ w + jnp.sum(w**2) + jnp.sum(jnp.abs(w))),
    "layers": (
        (2, 12, 12),
        "flax_stacked",
        lambda w: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), x.sum()), X, w)[0],
    ),
    "layers turned": (
        (2, 12, 12),
        "flax_stacked",
        lambda w: jax.lax.scan(lambda x, w: (x @ w, None), X, 2.0 * w.swapaxes(1, 2))[0],
    ),
    "experts": ((3, 12, 4), "flax_experts", lambda w: jnp.einsum("bi,eio->ebo", X, w)),
    "an expert each": (
        (2, 12, 4),
        "flax_experts",
        lambda w: jnp.einsum("ebi,eio->beo", X.reshape(2, 3, 12), w),
    ),
    "convolution": (
        (3, 3, 2, 4),
        "flax",
        lambda w: jax.lax.conv_general_dilated(
            PLANES, w, (2, 1), "SAME", dimension_numbers=("CHWN", "HWIO", "CHWN")
        ),
    ),
    "torch's convolution": (
        (4, 2, 3, 3),
        "torch",
        lambda w: jax.lax.conv_general_dilated(PLANES.transpose(3, 0, 1, 2), w, (1, 1), "VALID"),
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name):
    shape, axes, function = PRODUCTS[name]
    small = compressed({"kernel": normal(0, *shape)}, axes=axes)

    def loss(params):
        return jnp.sum(jnp.sin(function(params["kernel"]).astype(jnp.float32)))

    tolerance = 2e-2 if name == "cast" else 2e-4

    @jax.jit
    def both(small):
        found = jax.value_and_grad(sparse.accelerate(loss))(small)
        value, grads = jax.value_and_grad(loss)(sparse.expand(small))
        want = jnp.where(small["kernel"].mask, grads["kernel"], 0.0)
        return (found[0], sparse.expand(found[1])["kernel"]), (value, want)

    (value, found), (wanted, grads) = both(small)
    close(value, wanted, rtol=tolerance)
    close(found, grads, rtol=tolerance, atol=10 * tolerance)


def mlp(params, x):
    h = jax.nn.relu(x @ params["fc1"]["kernel"] + params["fc1"]["bias"])
    return jnp.mean((h @ params["fc2"]["kernel"]) ** 2)


MLP = {
    "fc1": {"kernel": normal(1, 12, 16), "bias": normal(2, 16)},
    "fc2": {"kernel": normal(3, 16, 4)},
}


def test_inside_checkpoint_jit_cond_and_while():
    def loss(params, x):
        inner = jax.checkpoint(jax.jit(mlp))
        once = jax.lax.cond(x[0, 0] > 0, lambda p: inner(p, x), lambda p: 2 * inner(p, x), params)
        turns = jax.lax.scan(lambda c, x: (c + mlp(params, x), c), once, jnp.stack([x, 2 * x]))[0]
        return turns

    agrees(loss, compressed(MLP), X)

    def until(params, x):
        body = lambda c: (c[0] + 1, jnp.tanh(c[1] @ params["kernel"]))  # noqa: E731
        return jax.lax.while_loop(lambda c: c[0] < 3, body, (0, x))[1]

    small = compressed({"kernel": normal(1, 12, 12)})
    close(jax.jit(sparse.accelerate(until))(small, X), jax.jit(until)(expand(small), X))


def test_vmap_and_scan_around_and_forward_mode():
    small = compressed(MLP)
    along = jax.tree.map(jnp.ones_like, small)

    def both(function, params, along):
        each = jax.vmap(function, (None, 0))(params, X[:, None])
        _, scanned = jax.lax.scan(lambda c, x: (c, function(params, x)), 0, X[:, None])
        return each, scanned, jax.jvp(lambda p: function(p, X), (params,), (along,))

    found = jax.jit(lambda *args: both(sparse.accelerate(mlp), *args))(small, along)
    close(found, jax.jit(lambda *args: both(mlp, *args))(expand(small), expand(along)))


def test_linen():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.LayerNorm()(nn.Dense(16)(x)))
            x = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=8)(x[None])[0]
            return jnp.mean(nn.Dense(3, dtype=jnp.bfloat16)(x).astype(jnp.float32) ** 2)

    model = Model()
    params = jax.jit(model.init)(jax.random.key(0), X)["params"]
    masks = random_masks(params, 0.6)
    small = sparse.compress(params, masks)

    def loss(params, x):
        return model.apply({"params": params}, x)

    with jax.numpy_dtype_promotion("standard"):
        value, grads = jax.jit(jax.value_and_grad(sparse.accelerate(loss)))(small, X)
        dense = jax.jit(jax.value_and_grad(loss))(expand(small), X)
    close(value, dense[0], rtol=2e-2)
    close(expand(grads), masked(dense[1], masks), rtol=2e-2, atol=2e-3)


def test_nnx_with_batch_norm_and_dropout():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.fc1 = nnx.Linear(12, 16, rngs=rngs)
            self.norm = nnx.BatchNorm(16, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)
            self.fc2 = nnx.Linear(16, 4, rngs=rngs)

        def __call__(self, x):
            return self.fc2(self.dropout(nnx.relu(self.norm(self.fc1(x)))))

    graph, params, rest = nnx.split(Model(nnx.Rngs(0)), nnx.Param, ...)
    params = nnx.to_pure_dict(params)
    masks = random_masks(params)
    small = sparse.compress(params, masks)

    def loss(params, rest, x):
        model = nnx.merge(graph, params, rest)
        value = jnp.mean(model(x) ** 2)
        return value, nnx.split(model, nnx.Param, ...)[2]

    fast = jax.jit(jax.value_and_grad(sparse.accelerate(loss), has_aux=True))
    with jax.numpy_dtype_promotion("standard"):
        (value, after), grads = fast(small, rest, X)
        (want, state), full = jax.jit(jax.value_and_grad(jax.jit(loss), has_aux=True))(
            expand(small), rest, X
        )
    close(value, want)
    close(nnx.to_pure_dict(after)["norm"], nnx.to_pure_dict(state)["norm"])
    close(expand(grads), masked(full, masks))


def test_equinox_modules():
    model = eqx.nn.MLP(12, 4, 16, 2, key=jax.random.key(0))
    arrays, static = eqx.partition(model, eqx.is_array)
    masks = random_masks(arrays)
    small = eqx.combine(
        sparse.compress(arrays, masks, axes="equinox"), static, is_leaf=sparse.is_compressed
    )

    def loss(model, x):
        return jnp.mean(jax.vmap(model)(x) ** 2)

    want = eqx.filter_jit(loss)(eqx.combine(masked(arrays, masks), static), X)
    close(sparse.accelerate(loss)(small, X), want)
    close(eqx.filter_jit(sparse.accelerate(loss))(small, X), want)


def test_trains_with_any_optimizer():
    small, tx = compressed(MLP), optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, 0.9))
    dense, masks = expand(small), random_masks(MLP)

    def run(loss, params, tx):
        @jax.jit
        def step(params, state):
            updates, state = tx.update(jax.grad(loss)(params, X), state, params)
            return optax.apply_updates(params, updates), state

        state = tx.init(params)
        for _ in range(5):
            params, state = step(params, state)
        return params

    found = run(sparse.accelerate(mlp), small, tx)
    want = run(mlp, dense, jaxsparse.fixed(tx, masks=masks, key=0))
    close(expand(found), want)


def test_what_no_kernel_has_is_an_error_that_names_the_leaf():
    small = compressed(MLP)

    def loss(params, x):
        return mlp(params, x) + jnp.max(params["fc2"]["kernel"])

    with pytest.raises(ValueError, match=r"reduce_max of \(16, 4\).*'fc2/kernel'"):
        sparse.accelerate(loss)(small, X)
    dense = sparse.accelerate(loss, fallback="dense")
    close(dense(small, X), loss(expand(small), X))
    with pytest.raises(ValueError, match="'fc2/kernel'"):
        sparse.accelerate(lambda p: p["fc2"]["kernel"].T)(small)
    with pytest.raises(ValueError, match="fallback"):
        sparse.accelerate(loss, fallback="quiet")


@pytest.mark.skipif(
    not sparse.backends()["csr"].compiled, reason="XLA makes the gradient of a csr kernel dense"
)
def test_nothing_dense_is_made():
    """No array of a kernel's size is in the compiled step."""
    small = {
        "kernel": sparse.compress({"k": normal(0, 300, 700)}, {"k": normal(1, 300, 700) > 2})["k"]
    }

    def loss(params, x):
        return jnp.sum((x @ params["kernel"]) ** 2)

    grad = jax.jit(jax.grad(sparse.accelerate(loss)))
    text = grad.lower(small, jnp.ones((2, 300))).compile().as_text()
    assert "300,700" not in text and "700,300" not in text


def test_returned_parameters_and_python_arguments():
    small = compressed(MLP)

    def step(params, x, times, name="a"):
        return params, mlp(params, x) * float(times) if name == "a" else 0

    params, value = sparse.accelerate(step)(small, X, 3, name="a")
    assert jax.tree.structure(params) == jax.tree.structure(small)
    close(value, 3 * mlp(expand(small), X))


def test_code_that_is_not_accelerated_says_what_to_do():
    kernel = compressed(MLP)["fc1"]["kernel"]
    with pytest.raises(AttributeError, match="accelerate"):
        _ = kernel.T
    with pytest.raises(TypeError, match="accelerate"):
        jnp.asarray(kernel)


def test_the_fastest_format_is_chosen_by_the_table_of_costs(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSPARSE_CACHE", str(tmp_path))
    params = {"kernel": normal(0, 64, 64)}
    any_mask = {"kernel": normal(1, 64, 64) > 1.5}
    blocks = jaxsparse.random_masks(0, params, 0.75, pattern=jaxsparse.block(16, 16), axes="flax")

    def chosen(masks, **rates):
        table = {f"{form.replace('_', ':')} 128": (1.0, rate) for form, rate in rates.items()}
        sparse.costs_file().write_text(json.dumps({sparse.machine(): table}))
        _choice.costs.cache_clear()
        return sparse.compress(params, masks, format="auto", batch=100)["kernel"]

    try:
        assert chosen(any_mask, masked=1.0, csr=0.5).format == "csr"
        assert chosen(blocks, masked=1.0, csr=0.5, block_16x16=0.9).format == "block:16x16"
        dense = chosen(any_mask, masked=9.0, csr=0.5)
        assert dense.format == "masked"
        close(
            X @ dense.to_dense()[:12], X @ jnp.where(any_mask["kernel"], params["kernel"], 0.0)[:12]
        )
        small = {"kernel": chosen(any_mask, masked=1.0, csr=0.5)}
    finally:
        sparse.costs_file().unlink()
        _choice.costs.cache_clear()
    (row,) = sparse.explain(
        lambda p, x: x @ p["kernel"], small, jnp.ones((2, 64)), measure=True
    ).rows
    assert (row.leaf, row.format, row.shape) == ("kernel", "csr", (64, 64)) and row.measured > 0
    assert row.sparsity == 1 - float(any_mask["kernel"].mean()) and "kernel" in str(
        sparse.explain(lambda p: jnp.max(p["kernel"]), small)
    )
