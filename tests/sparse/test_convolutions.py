"""Convolutions with compressed kernels against XLA's dense ones with masked kernels."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsparse import compiled, sparse

COMPILED = pytest.mark.skipif(
    not sparse.backends()["csr"].compiled, reason=sparse.backends()["csr"].why
)
VIA = ["xla", pytest.param("compiled", marks=COMPILED)]
FLAX, EQUINOX = ("NHWC", "HWIO", "NHWC"), ("NHWC", "OIHW", "NHWC")


def case(window, channels, image, batch, sparsity=0.7, axes="flax", seed=0):
    """A kernel, its mask, images."""
    random = np.random.default_rng(seed)
    inputs, outputs = channels
    shape = (*window, inputs, outputs) if axes == "flax" else (outputs, inputs, *window)
    values = random.normal(size=shape).astype(np.float32)
    x = random.normal(size=(batch, *image, inputs)).astype(np.float32)
    return jnp.asarray(values), random.random(shape) >= sparsity, jnp.asarray(x)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def reference(x, values, mask, strides, padding, axes="flax"):
    kernel = jnp.where(mask, values, jnp.zeros((), values.dtype))
    numbers = FLAX if axes == "flax" else EQUINOX
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers)


def close(found, want):
    scale = 1e-4 * (1 + float(np.max(np.abs(want), initial=0)))
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=scale)


def check(values, mask, x, strides, padding, axes, via):
    """The convolution and both gradients."""
    kernel = sparse.CSR.from_dense(values, mask, axes=axes)

    def convolve(x, living):
        small = dataclasses.replace(kernel, values=living)
        return small.convolve(x, strides=strides, padding=padding, via=via)

    def dense(x, values):
        return reference(x, values, mask, strides, padding, axes)

    @jax.jit
    def both(x, living, values):
        found, pull = jax.vjp(convolve, x, living)
        want, back = jax.vjp(dense, x, values)
        grads = jnp.sin(jnp.arange(found.size, dtype=jnp.float32)).reshape(found.shape)
        of_x, of_living = pull(grads)
        return (found, of_x, kernel.spread(of_living)), (want, *back(grads))

    jax.tree.map(close, *both(x, kernel.values, values))


CASES = {  # window, channels, image, batch, strides, padding, axes, sparsity
    "same": ((3, 3), (5, 6), (6, 6), 64, (1, 1), (1, 1, 1, 1), "flax", 0.7),
    "strides 2": ((3, 3), (3, 4), (7, 9), 130, (2, 2), (1, 1, 0, 1), "equinox", 0.7),
    "5x5": ((5, 5), (3, 2), (8, 8), 7, (1, 1), (2, 2, 2, 2), "equinox", 0.5),
    "1x1, strides 2": ((1, 1), (16, 8), (5, 5), 64, (2, 2), (0, 0, 0, 0), "flax", 0.9),
    "1x1": ((1, 1), (4, 3), (5, 4), 20, (1, 1), (0, 0, 0, 0), "equinox", 0.5),
    "more padding than image": ((3, 2), (4, 3), (1, 1), 1, (3, 2), (2, 1, 1, 1), "flax", 0.5),
    "dead": ((3, 3), (3, 2), (4, 13), 64, (2, 3), (1, 1, 1, 1), "flax", 1.0),
    "empty rows": ((2, 2), (70, 20), (2, 2), 300, (1, 1), (0, 1, 0, 1), "flax", 0.99),
    "a slice of the batch": ((3, 3), (256, 6), (3, 7), 136, (1, 1), (1, 1, 1, 1), "flax", 0.95),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("via", VIA)
def test_of_any_geometry(via, name):
    *_, strides, pads, axes, sparsity = found = CASES[name]
    values, mask, x = case(*found[:4], sparsity, axes)
    check(values, mask, x, strides, (pads[:2], pads[2:]), axes, via)


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_of_dead_weights(name):
    """What a mask update looks at, through the step of training."""
    *_, strides, pads, axes, sparsity = found = CASES[name]
    values, mask, x = case(*found[:4], sparsity, axes)
    values, numbers = jnp.where(mask, values, 0), FLAX if axes == "flax" else EQUINOX
    fits = (pads[:2], pads[2:])

    def loss(params, x):
        found = jax.lax.conv_general_dilated(x, params, strides, fits, dimension_numbers=numbers)
        return jnp.sum(jnp.sin(found) * jnp.cos(jnp.arange(found.size)).reshape(found.shape))

    def update(grads, state, params, *, dense_grads):
        return params, dense_grads(sparse.expand(params))

    tx = optax.GradientTransformationExtraArgs(lambda params: (), update)
    params = sparse.free_places(sparse.compress(values, mask, format="csr", axes=axes))
    _, seen, _ = jax.jit(sparse.train_step(loss, tx))(params, (), x)
    close(seen, jax.jit(jax.grad(loss))(values, x))


@COMPILED
@settings(max_examples=4, deadline=None)
@given(
    window=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    image=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    batch=st.sampled_from([1, 7, 16, 64, 130]),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pads=st.tuples(*[st.integers(0, 3)] * 4),
    axes=st.sampled_from(["flax", "equinox"]),
)
def test_of_geometries_that_nobody_thought_of(window, image, batch, strides, pads, axes):
    values, mask, x = case(window, (3, 2), image, batch, 0.5, axes)
    check(values, mask, x, strides, (pads[:2], pads[2:]), axes, "compiled")


@pytest.mark.parametrize("via", VIA)
def test_one_spatial_axis(via):
    values, mask, x = case((3,), (4, 5), (11,), 20)
    kernel = sparse.CSR.from_dense(values, mask)
    found = jax.jit(lambda x: kernel.convolve(x, strides=[2], padding=[(1, 0)], via=via))(x)
    want = reference(x[:, None], values[None], mask[None], (1, 2), ((0, 0), (1, 0)))
    close(found, want[:, 0])


@pytest.mark.parametrize("via", VIA)
def test_transforms(via):
    """`vmap` over images and over values, `jvp`, and a second derivative."""
    values, mask, x = case((3, 3), (4, 6), (5, 5), 6)
    kernel = sparse.CSR.from_dense(values, mask)
    padding = ((1, 1), (1, 1))

    def convolve(x, living):
        return dataclasses.replace(kernel, values=living).convolve(x, padding=padding, via=via)

    def dense(x, living):
        return reference(x, kernel.spread(living), mask, (1, 1), padding)

    @jax.jit
    def run(x, living, along):
        many, twice = jnp.stack([x, 2 * x]), jnp.stack([living, jnp.cos(living)])
        over = [
            (
                jax.vmap(convolve, (0, None))(many, living),
                jnp.stack([dense(x, living), dense(2 * x, living)]),
            ),
            (
                jax.vmap(convolve, (None, 0))(x, twice),
                jnp.stack([dense(x, v) for v in twice]),
            ),
        ]
        of = [lambda *a, f=f: jnp.sum(jnp.tanh(f(*a))) for f in (convolve, dense)]
        return *over, tuple(jax.jvp(jax.grad(f, (0, 1)), (x, living), along) for f in of)

    along = np.cos(x), np.sin(kernel.values)
    for found, want in run(x, kernel.values, along):
        jax.tree.map(close, found, want)


@pytest.mark.parametrize("via", VIA)
def test_types_and_free_places(via):
    """Below float32 it is computed in float32; places that are traced, with room to spare."""
    values, mask, x = case((3, 3), (4, 6), (5, 5), 20)
    want = reference(x, values, mask, (1, 1), ((0, 0), (0, 0)))
    half = sparse.CSR.from_dense(values.astype(jnp.bfloat16), mask)
    found = jax.jit(lambda x: half.convolve(x, via=via))(x.astype(jnp.bfloat16))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float32), want, rtol=0.05, atol=0.2)
    room = int(mask.sum()) + 5

    @jax.jit
    def gradient(x, values, mask):
        kernel = sparse.CSR.from_dense(values, mask, capacity=room)
        of = jax.grad(lambda v: jnp.sum(dataclasses.replace(kernel, values=v).convolve(x, via=via)))
        return kernel.convolve(x, via=via), of(kernel.values)

    found, of_values = gradient(x, values, mask)
    close(found, want)
    assert not of_values[-5:].any() and of_values[:-5].all()


FORMS = {
    "blocks": lambda v, m, axes: sparse.Block.from_dense(v, m, size=(4, 2), axes=axes),
    "blocks, free": lambda v, m, axes: sparse.Block.from_dense(
        v, m, size=(4, 2), axes=axes, capacity=50
    ),
    "no block": lambda v, m, axes: sparse.Block.from_dense(v, m & False, size=(4, 2), axes=axes),
    "condensed": lambda v, m, axes: sparse.Condensed.from_dense(v, m, axes=axes),
}


@pytest.mark.parametrize("axes", ["flax", "equinox"])
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("via", VIA)
def test_other_formats_read_images_in_place(via, name, axes):
    """They are multiplied as rows, and their gradients come back in their own order."""
    values, _, x = case((3, 3), (8, 6), (5, 6), 64, axes=axes)
    random, count = np.random.default_rng(1), 18 * 3
    chosen = random.permuted(np.arange(count) < 20).reshape(18, 3)
    if name == "condensed":
        chosen = random.permuted(np.broadcast_to(np.arange(18)[:, None] < 5, (18, 3)), axis=0)
    matrix = np.kron(chosen, np.ones((4, 2), bool))
    mask = matrix.reshape(3, 3, 8, 6) if axes == "flax" else matrix.T.reshape(6, 8, 3, 3)
    kernel = FORMS[name](values, mask, axes)
    strides, padding = (2, 1), ((1, 1), (0, 1))

    def convolve(x, living):
        small = dataclasses.replace(kernel, values=living)
        return small.convolve(x, strides=strides, padding=padding, via=via)

    @jax.jit
    def both(x, living, values):
        found, pull = jax.vjp(convolve, x, living)
        dense = functools.partial(reference, mask=kernel.mask, strides=strides, padding=padding)
        want, back = jax.vjp(lambda x, values: dense(x, values, axes=axes), x, values)
        of_x, of_living = pull(jnp.sin(found))
        return (found, of_x, kernel.spread(of_living)), (want, *back(jnp.sin(want)))

    jax.tree.map(close, *both(x, kernel.values, values))
    in_place = "jaxsparse_csr_forward" in both.lower(x, kernel.values, values).as_text()
    assert in_place == (via == "compiled" and name != "no block")


@COMPILED
def test_layouts_are_carried_from_convolution_to_convolution():
    """Forward and back, through bias, batch norm without reductions, and ReLU: the images are
    turned round at the two ends alone."""
    values, mask, x = case((3, 3), (8, 8), (9, 9), 32)
    kernel = sparse.CSR.from_dense(values, mask)

    def loss(living, scale, x):
        for _ in range(4):
            x = dataclasses.replace(kernel, values=living).convolve(x, padding=((1, 1), (1, 1)))
            x = jax.nn.relu(x * scale + 1.0)
        return jnp.sum(x[0, 0, 0])

    step = jax.jit(jax.value_and_grad(loss, (0,)))
    text = step.lower(kernel.values, jnp.ones(8), x).compile().as_text()
    entry = text[text.index("ENTRY") :]
    turned = re.findall(r"= f32\[32,9,9,8\]\S* (?:copy|transpose)\(|%\S*copy\S* = f32\[32,9", entry)
    assert len(turned) <= 2, turned


WRONG = [
    (lambda k, x: k.convolve(x[..., :2]), "4 inputs"),
    (lambda k, x: k.convolve(x[0]), "batch, 2 spatial"),
    (lambda k, x: k.convolve(x, strides=(1,)), "strides"),
    (lambda k, x: k.convolve(x, strides=(0, 1)), "strides"),
    (lambda k, x: k.convolve(x, padding=((-1, 0), (0, 0))), "padding"),
    (lambda k, x: k.convolve(x[:, :2]), "does not fit"),
    (lambda k, x: k.convolve(x, via="cuda"), "via"),
    (
        lambda k, x: sparse.CSR.from_dense(jnp.ones((4, 4)), jnp.ones((4, 4)) > 0).convolve(x),
        "spatial",
    ),
]


@pytest.mark.parametrize("call, words", WRONG)
def test_what_cannot_be_is_refused(call, words):
    values, mask, x = case((3, 3), (4, 6), (5, 5), 3)
    with pytest.raises(ValueError, match=words):
        call(sparse.CSR.from_dense(values, mask), x)


def test_without_a_compiler(monkeypatch):
    values, mask, x = case((3, 3), (4, 6), (5, 5), 3)
    kernel = sparse.CSR.from_dense(values, mask)
    monkeypatch.setenv("JAXSPARSE_CXX", "")
    compiled.library.cache_clear()
    try:
        close(kernel.convolve(x), reference(x, values, mask, (1, 1), ((0, 0), (0, 0))))
        with pytest.raises(sparse.KernelError, match="switched off"):
            kernel.convolve(x, via="compiled")
    finally:
        compiled.library.cache_clear()
