"""Compressed kernels against masked dense ones: storage, products, gradients, training."""

import dataclasses
import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxsparse
from jaxsparse import compiled, sparse
from jaxsparse.types import Axes
from tests import reference

SIZE = (4, 8)
FORMATS = {
    "csr": (jaxsparse.unstructured, sparse.CSR.from_dense, 0),
    "block": (jaxsparse.block(*SIZE), partial(sparse.Block.from_dense, size=SIZE), 0),
    "condensed": (jaxsparse.fan_in, sparse.Condensed.from_dense, 1),
    "n_m": (jaxsparse.n_m(1, 4), partial(sparse.NM.from_dense, n=1, m=4), 2),
    "channels": (jaxsparse.channel, sparse.Channels.from_dense, 1),
}
"""A pattern, what makes a kernel of its masks, and which axis of the values has a capacity."""
VIA = [
    "xla",
    pytest.param(
        "compiled",
        marks=pytest.mark.skipif(
            not sparse.backends()["csr"].compiled, reason=sparse.backends()["csr"].why
        ),
    ),
]


LOOPS = {"block": {"rows": SIZE[0], "columns": SIZE[1]}, "n_m": {"m": 4}}
AXES = {"flax": Axes((0,), (1,)), "flax_stacked": Axes((1,), (2,), (0,))}


@functools.cache
def masked(name, shape=(16, 24), sparsity=0.75, dtype=jnp.float32, seed=0, axes="flax"):
    """Values and a random mask of the pattern of a format, by loops that nothing compiles."""
    draw = np.random.default_rng(seed)
    values, scores = jnp.asarray(draw.normal(size=shape), dtype), draw.random(shape)
    if name == "csr":
        mask = reference.top_k_mask(scores, reference.target_count(scores.size, sparsity))
    else:
        pattern = {"condensed": "fan_in", "channels": "channel"}.get(name, name)
        rows = reference.groups(shape, pattern, *AXES.get(axes, axes), **LOOPS.get(name, {}))
        mask = reference.best_groups(scores, rows, reference.target_count(len(rows[0]), sparsity))
    return values, jnp.asarray(mask)


def normal(seed, *shape, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", FORMATS)
def test_there_and_back(name, dtype):
    values, mask = masked(name, dtype=dtype)
    kernel = FORMATS[name][1](values, mask)
    assert kernel.dtype == dtype and kernel.shape == values.shape
    np.testing.assert_array_equal(kernel.to_dense(), np.where(mask, values, 0))
    np.testing.assert_array_equal(kernel.mask, mask)
    assert kernel.values.size == np.sum(mask)


@pytest.mark.parametrize(
    "name, batch, capacity",
    [(name, (3, 9), capacity) for name in FORMATS for capacity in (None, 1.7)]
    + [("csr", batch, None) for batch in ((), (7,), (130,))]
    + [("block", (), 1.7), ("n_m", (130,), None), ("condensed", (7,), None)],
)
def test_product_and_gradients(name, batch, capacity):
    """Of any batch, with and without room to spare."""
    values, mask = masked(name)
    if capacity is not None:
        size = FORMATS[name][1](values, mask).values.shape[FORMATS[name][2]]
        capacity = int(capacity * size) + 1
    kernel = FORMATS[name][1](values, mask, capacity=capacity)
    x, grads = normal(1, *batch, 16), normal(2, *batch, 24)

    @jax.jit
    def run(x, living, grads):
        found, pull = jax.vjp(lambda x, v: x @ dataclasses.replace(kernel, values=v), x, living)
        of_x, of_living = pull(grads)
        spread = dataclasses.replace(kernel, values=of_living).to_dense()
        again = kernel.product_transposed(grads)
        return found, of_x, again, spread, of_living, kernel.gather(spread)

    weights, (x, grads) = np.where(mask, values, 0), (np.asarray(x), np.asarray(grads))
    found, of_x, again, spread, of_living, gathered = run(x, kernel.values, grads)
    np.testing.assert_allclose(found, x @ weights, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(of_x, grads @ weights.T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(again, grads @ weights.T, rtol=1e-4, atol=1e-5)
    of_weights = x.reshape(-1, 16).T @ grads.reshape(-1, 24)
    np.testing.assert_allclose(spread, np.where(mask, of_weights, 0), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(gathered, of_living)  # nothing in what is to spare


@pytest.mark.parametrize("via", VIA)
@settings(max_examples=5, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 40),
    st.floats(0, 0.99),
    st.integers(0, 99),
)
def test_csr_of_any_shape(via, inputs, outputs, batch, sparsity, seed):
    """Rows without a weight, columns without one, no weight at all; NaN and infinities pass."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(inputs, outputs)).astype(np.float32)
    mask = generator.random((inputs, outputs)) >= sparsity
    x = generator.normal(size=(batch, inputs)).astype(np.float32)
    kernel = sparse.CSR.from_dense(values, mask)
    grads = generator.normal(size=(batch, outputs)).astype(np.float32)

    @jax.jit
    def run(x, living, grads):
        of = lambda x, v: sparse.CSR(v, kernel.places).product(x, via=via)  # noqa: E731
        found, pull = jax.vjp(of, x, living)
        return found, *pull(grads)

    found, of_x, of_living = run(x, kernel.values, grads)
    np.testing.assert_allclose(found, x @ np.where(mask, values, 0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(of_x, grads @ np.where(mask, values, 0).T, rtol=1e-3, atol=1e-4)
    rows, columns = np.nonzero(mask.T)
    np.testing.assert_allclose(of_living, (x.T @ grads)[columns, rows], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", FORMATS)
def test_from_either_side(name):
    """`g @ kernel.T`, `kernel @ g.T` and the gradient of the values."""
    values, mask = masked(name)
    kernel, weights = FORMATS[name][1](values, mask), np.where(mask, values, 0)
    x, g = normal(1, 19, 16), normal(2, 19, 24)

    @jax.jit
    def products(x, g, living):
        small = dataclasses.replace(kernel, values=living)
        _, pull = jax.vjp(lambda v: x @ dataclasses.replace(kernel, values=v), living)
        return small.product_transposed(g), small @ g.T, small.spread(*pull(g))

    found = products(x, g, kernel.values)
    x, g = np.asarray(x), np.asarray(g)
    want = g @ weights.T, weights @ g.T, np.where(mask, x.T @ g, 0)
    for one, other in zip(found, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("via", VIA)
def test_what_is_not_finite_stays_so(via):
    kernel = sparse.CSR.from_dense(
        np.ones((3, 2), np.float32), np.array([[True, False], [True, True]] + [[False] * 2])
    )
    x = np.array([[np.inf, 1.0, np.nan]] * 17, np.float32)

    def of(living):
        found = sparse.CSR(living, kernel.places).product(x, via=via)
        return found[:, 1].sum(), found

    grads, found = jax.jit(jax.grad(of, has_aux=True))(kernel.values)
    assert np.all(found[:, 0] == np.inf) and np.all(found[:, 1] == 1)
    assert grads[-1] == 17


@pytest.mark.parametrize("name", FORMATS)
def test_transforms(name):
    """`vmap` over inputs and over stacked values, `scan`, and a pattern that is traced."""
    values, mask = masked(name)
    kernel = FORMATS[name][1](values, mask)
    x = normal(1, 3, 5, 16)
    want = np.asarray(x) @ np.where(mask, values, 0)

    @jax.jit
    def run(x, twice):
        mapped = jax.vmap(lambda x: x @ kernel)(x)
        stacked = jax.vmap(lambda v: x[0] @ dataclasses.replace(kernel, values=v))(twice)
        return mapped, stacked, jax.lax.scan(lambda carry, x: (carry, x @ kernel), 0, x)[1]

    mapped, stacked, each = run(x, np.stack([kernel.values, 2 * kernel.values]))
    np.testing.assert_allclose(mapped, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stacked, [want[0], 2 * want[0]], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(each, want, rtol=1e-4, atol=1e-5)
    x, capacity = x[0], kernel.values.shape[FORMATS[name][2]] + 1
    made = jax.jit(lambda w, m: x @ FORMATS[name][1](w, m, capacity=capacity))
    for seed in (0, 3):
        again, other = masked(name, seed=seed)
        wanted = np.asarray(x) @ np.where(other, again, 0)
        np.testing.assert_allclose(made(again, other), wanted, rtol=1e-4, atol=1e-5)
    assert made._cache_size() == 1


@pytest.mark.parametrize("axes", ["flax", "equinox"])
@pytest.mark.parametrize("name", FORMATS)
def test_axes_and_convolutions(name, axes):
    """Spatial axes are among the inputs, in the order of patches."""
    shape = (3, 3, 8, 16) if axes == "flax" else (16, 8, 3, 3)
    values = np.asarray(normal(0, *shape))
    named = {"flax": Axes((2,), (3,)), "equinox": Axes((1,), (0,))}[axes]
    matrix = values.reshape(-1, 16) if axes == "flax" else values.reshape(16, -1).T
    if name == "block":
        alive = np.kron(np.random.default_rng(0).random((72 // 4, 2)) < 0.3, np.ones(SIZE)) > 0
        mask = (alive if axes == "flax" else alive.T).reshape(shape)
    else:
        mask = np.asarray(masked(name, shape, axes=named)[1])
        alive = mask.reshape(-1, 16) if axes == "flax" else mask.reshape(16, -1).T
    kernel = FORMATS[name][1](values, mask, axes=named)
    x = normal(1, 5, 72)
    found, spread = jax.jit(lambda x, kernel: (x @ kernel, kernel.to_dense()))(x, kernel)
    np.testing.assert_array_equal(spread, np.where(mask, values, 0))
    want = np.asarray(x) @ np.where(alive, matrix, 0)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


def mlp(params, x):
    hidden = jax.nn.relu(x @ params["fc"]["kernel"] + params["fc"]["bias"])
    return hidden @ params["head"]["kernel"] + params["head"]["bias"]


@pytest.mark.standard_promotion  # Optax's Adam needs it
@pytest.mark.parametrize("format", ["csr", "block:4x8", "channels"])
def test_training_as_with_masks(format):
    """Fifty steps of Adam on the values are fifty steps of static sparse training."""
    params = {
        "fc": {"kernel": normal(0, 16, 32) / 4, "bias": jnp.zeros(32)},
        "head": {"kernel": normal(1, 32, 8) / 6, "bias": jnp.zeros(8)},
    }
    x, y = normal(2, 20, 16), normal(3, 20, 8)
    pattern = FORMATS[format.split(":")[0]][0]
    prune = partial(jaxsparse.prune_by_magnitude, sparsity=0.75, pattern=pattern, axes="flax")
    masks = jax.jit(prune)(params)

    def loss(params):
        return jnp.mean((mlp(params, x) - y) ** 2)

    def train(loss, tx, params):
        @jax.jit
        def step(params, state):
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state, value

        state, values = jax.jit(tx.init)(params), []
        for _ in range(50):
            params, state, value = step(params, state)
            values.append(float(value))
        return params, state, values

    tx = jaxsparse.fixed(optax.adam(1e-2), masks=masks)
    want, _, losses = train(loss, tx, jaxsparse.apply(params, masks))
    small = sparse.compress(params, masks, format=format)
    living, state, found = train(
        lambda living: loss(sparse.with_values(small, living)),
        optax.adam(1e-2),
        sparse.values(small),
    )
    np.testing.assert_allclose(found, losses, rtol=1e-3)
    assert found[-1] < 0.8 * found[0]
    got = jax.jit(sparse.expand)(sparse.with_values(small, living))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), got, want)
    kept = sum(leaf.size for leaf in jax.tree.leaves((living, state)) if leaf.ndim)
    assert kept == 3 * (16 * 32 // 4 + 32 * 8 // 4 + 32 + 8), "nothing dense is kept"


@pytest.mark.parametrize(
    "name, dtype", [("csr", jnp.float16), *((name, jnp.bfloat16) for name in FORMATS)]
)
def test_half_precision(name, dtype):
    """Out comes the type of the operands; a kernel without it computes in float32."""
    values, mask = masked(name)
    x = normal(1, 5, 16, dtype=dtype)
    kernel = FORMATS[name][1](np.asarray(values).astype(dtype), mask)

    @jax.jit
    def run(x, living):
        found, pull = jax.vjp(lambda x, v: x @ dataclasses.replace(kernel, values=v), x, living)
        return found, pull(found)

    found, pulled = run(x, kernel.values)
    assert found.dtype == dtype and {leaf.dtype for leaf in pulled} == {jnp.dtype(dtype)}
    x, weights = (np.asarray(a).astype(np.float32) for a in (x, kernel.to_dense()))
    np.testing.assert_allclose(np.asarray(found, np.float32), x @ weights, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("name", ["csr", "block", "condensed"])
def test_double_precision(name):
    with jax.enable_x64(True):
        values, mask = masked(name, dtype=jnp.float64)
        x = normal(1, 5, 16, dtype=np.float64)
        kernel = FORMATS[name][1](values, mask)

        @jax.jit
        def run(x, living):
            found, pull = jax.vjp(lambda x, v: x @ dataclasses.replace(kernel, values=v), x, living)
            return found, kernel.spread(pull(found)[1])

        found, spread = run(x, kernel.values)
        x, weights = np.asarray(x), np.where(mask, values, 0)
        np.testing.assert_allclose(found, x @ weights, rtol=1e-12)
        want = np.where(mask, x.T @ np.asarray(found), 0)
        np.testing.assert_allclose(spread, want, rtol=1e-12, atol=1e-12)


def test_formats_by_path():
    params, masks = ({key: masked(key)[i] for key in FORMATS} for i in (0, 1))
    format = {"block": "block:4x8", "n_m": "n_m:1:4", "^con": "condensed", "chan": "channels"}
    small = sparse.compress(params, masks, format=format | {".*": "csr"})
    kinds = [type(small[key]) for key in FORMATS]
    assert kinds == [sparse.CSR, sparse.Block, sparse.Condensed, sparse.NM, sparse.Channels]
    for key, found in jax.jit(sparse.expand)(small).items():
        np.testing.assert_array_equal(found, np.where(masks[key], params[key], 0))


def test_bytes():
    values, mask = (np.asarray(a) for a in masked("csr", shape=(256, 512), sparsity=0.95))
    small = sparse.compress({"kernel": values}, {"kernel": mask})
    alive = int(mask.sum())
    assert sparse.nbytes(small) == 4 * (4 * alive + 256 + 512 + 2) < values.nbytes


WRONG = [
    (lambda w, m: sparse.CSR.from_dense(w, m.astype(jnp.float32)), TypeError, "mask.*boolean"),
    (lambda w, m: sparse.CSR.from_dense(w, m[:3]), ValueError, "mask.*shape"),
    (lambda w, m: sparse.CSR.from_dense(w, m, capacity=3), ValueError, "capacity must be at least"),
    (lambda w, m: jax.jit(sparse.CSR.from_dense)(w, m), TypeError, "capacity"),
    (lambda w, m: sparse.Block.from_dense(w, m, size=SIZE), ValueError, "in part"),
    (lambda w, m: sparse.Block.from_dense(w, m, size=(5, 5)), ValueError, "does not divide"),
    (lambda w, m: jnp.ones((2, 3)) @ sparse.CSR.from_dense(w, m), ValueError, "16 inputs"),
    (
        lambda w, m: sparse.CSR.from_dense(w, m).product(jnp.ones(16), via="gpu"),
        ValueError,
        "via",
    ),
    (lambda w, m: sparse.compress(w, m, format="coo"), ValueError, "format"),
    (lambda w, m: sparse.compress(w, m, format="n_m:2"), ValueError, "one of csr, block:RxC"),
    (lambda w, m: sparse.compress({"a": w}, {"a": m}, format={"b": "csr"}), ValueError, "none of"),
    (
        lambda w, m: sparse.compress({"a": w, "b": w}, {"a": m, "b": m}, format={"b": "csr"}),
        ValueError,
        "no expression matches 'a'",
    ),
    (
        lambda w, m: sparse.Condensed.from_dense(w, m, path="fc"),
        ValueError,
        "Condensed cannot hold that at 'fc': every output unit",
    ),
    (lambda w, m: sparse.Channels.from_dense(w, m), ValueError, "units must live or die as a"),
    (lambda w, m: sparse.NM.from_dense(w, m, n=1, m=4), ValueError, "more than N living"),
    (lambda w, m: sparse.NM.from_dense(w, m, n=1, m=5), ValueError, "5 does not divide"),
    (lambda w, m: sparse.NM.from_dense(w, m, n=4, m=4), ValueError, "smaller than m"),
    (lambda w, m: sparse.NM.from_dense(w, m, n=2, m=256), ValueError, "m must be at most 255"),
    (lambda w, m: sparse.Block.from_dense(w, m | True, size=SIZE, capacity=3), ValueError, "12"),
    (lambda w, m: sparse.Condensed.from_dense(w, m | True, capacity=3), ValueError, "at least 16"),
    (lambda w, m: sparse.Channels.from_dense(w, m | True, capacity=3), ValueError, "at least 24"),
    (lambda w, m: sparse.CSR.from_dense(w.astype(jnp.int32), m), TypeError, "must be floating"),
    (
        lambda w, m: sparse.CSR.from_dense(w, m).product_transposed(jnp.ones((2, 3))),
        ValueError,
        "24 outputs",
    ),
    (
        lambda w, m: (
            jnp.ones((2, 16)) @ sparse.CSR.from_dense(w[None], m[None], axes="flax_stacked")
        ),
        ValueError,
        r"begin with the layers \(1,\)",
    ),
    (lambda w, m: sparse.compress({"a": w}, {"b": m}), ValueError, "masks"),
    (lambda w, m: jax.jit(sparse.compress)(w, m), TypeError, "traced"),
]


@pytest.mark.parametrize(
    "call, kind, words", WRONG, ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_cannot_be_is_refused(call, kind, words):
    with pytest.raises(kind, match=words):
        call(*masked("csr"))


def test_a_kernel_that_is_not_there(monkeypatch, tmp_path):
    """Without a compiler XLA computes the product; asked for by name it says why there is none."""
    monkeypatch.setenv("JAXSPARSE_CACHE", str(tmp_path))
    kernel = sparse.CSR.from_dense(*masked("csr"))
    for compiler, words in (
        ("", "switched off"),
        ("no-such-compiler", "no C"),
        ("false", "failed"),
    ):
        monkeypatch.setenv("JAXSPARSE_CXX", compiler)
        compiled.library.cache_clear()
        try:
            assert not sparse.backends()["csr"].compiled
            assert (jnp.ones((2, 16)) @ kernel).shape == (2, 24)
            with pytest.raises(sparse.KernelError, match=words):
                kernel.product(jnp.ones((2, 16)), via="compiled")
        finally:
            compiled.library.cache_clear()
    assert not list(tmp_path.glob("*.so"))


@pytest.mark.parametrize("name", FORMATS)
def test_forward_mode_and_second_derivatives(name):
    """Of a loss with both operands: Hessian-vector products, forward over reverse and back."""
    values, mask = masked(name)
    kernel = FORMATS[name][1](values, mask)
    x = normal(1, 5, 16)

    def of(living, x):
        return jnp.sum(jnp.tanh(x @ dataclasses.replace(kernel, values=living)) ** 2)

    def reference(living, x):
        return jnp.sum(jnp.tanh(x @ kernel.spread(living)) ** 2)

    at = kernel.values, x
    along = jax.tree.map(lambda leaf: np.cos(np.asarray(leaf) + 1), at)

    @jax.jit
    def twice(at, along):
        def both(f):
            yield jax.jvp(jax.grad(f, (0, 1)), at, along)
            yield jax.grad(lambda *a: jax.jvp(f, a, along)[1], (0, 1))(*at)

        return list(both(of)), list(both(reference))

    for found, want in zip(*map(jax.tree.leaves, twice(at, along)), strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", FORMATS)
def test_fixed_places_leave_values_alone_to_the_optimizer(name):
    values, mask = masked(name)
    params = {"kernel": FORMATS[name][1](values, mask), "bias": jnp.zeros(24)}
    x = jnp.ones((3, 16))

    def loss(params):
        return jnp.sum((x @ params["kernel"] + params["bias"]) ** 2)

    tx = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))

    @jax.jit
    def step(params):
        updates, _ = tx.update(jax.grad(loss)(params), tx.init(params), params)
        after = optax.apply_updates(params, updates)
        return after, after["kernel"].to_dense()

    after, spread = step(params)
    assert jax.tree.structure(after) == jax.tree.structure(params)
    assert not np.any(np.where(mask, 0, spread))
    free = sparse.free_places(params)
    assert len(jax.tree.leaves(free)) > len(jax.tree.leaves(params))
    assert jax.tree.structure(sparse.fix_places(free)) == jax.tree.structure(params)
    other = {"kernel": FORMATS[name][1](values, masked(name, seed=3)[1]), "bias": jnp.zeros(24)}
    assert jax.tree.structure(other) != jax.tree.structure(params)
    with pytest.raises(TypeError, match="traced"):
        jax.jit(sparse.fix_places)(free)
