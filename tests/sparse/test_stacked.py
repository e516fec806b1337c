"""Kernels with stacked axes (scanned layers, experts), and places that come from outside."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsparse import sparse
from jaxsparse.types import Axes
from tests.sparse.test_formats import FORMATS, masked, normal

STACKED = [
    ((3, 16, 24), Axes((1,), (2,), (0,))),
    ((16, 2, 24, 3), Axes((0,), (2,), (3, 1))),  # as no framework stacks them, in another order
]


def layered(leaf, axes):
    """`(*stacked, inputs, outputs)`."""
    return leaf.transpose((*axes.stacked, *axes.inputs, *axes.outputs))


@pytest.mark.parametrize(
    "name, shape, axes",
    [(name, *STACKED[0]) for name in FORMATS] + [(name, *STACKED[1]) for name in ("csr", "n_m")],
)
def test_stacked_axes(name, shape, axes):
    """Layers of different numbers of weights, of which what is to spare is zero and stays so."""
    values, mask = masked(name, shape, axes=axes)
    if name in ("condensed", "channels"):  # fewer in one of them: a unit, an input
        mask = mask & (np.arange(24).reshape(-1, *(1,) * (mask.ndim - 1 - axes.outputs[0])) > 3)
    kernel = FORMATS[name][1](values, mask, axes=axes)
    kernel.check()
    np.testing.assert_array_equal(kernel.mask, mask)
    np.testing.assert_array_equal(kernel.to_dense(), np.where(mask, values, 0))
    stacked = tuple(shape[axis] for axis in axes.stacked)
    assert all(leaf.shape[: len(stacked)] == stacked for leaf in jax.tree.leaves(kernel.free()))
    assert kernel.layers().shape == (16, 24)

    x, g = normal(1, *stacked, 5, 16), normal(2, *stacked, 5, 24)

    @jax.jit
    def run(x, living, g):
        found, pull = jax.vjp(lambda x, v: x @ dataclasses.replace(kernel, values=v), x, living)
        of_x, of_living = pull(g)
        spread = kernel.spread(of_living)
        return found, of_x, of_living, spread, kernel.gather(spread), kernel.product_transposed(g)

    @jax.jit
    def dense(x, values, g):
        want, pull = jax.vjp(lambda x, w: x @ layered(jnp.where(mask, w, 0.0), axes), x, values)
        return want, *pull(g)

    found, of_x, of_living, spread, gathered, again = run(x, kernel.values, g)
    want, want_x, want_w = dense(x, values, g)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(of_x, want_x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(spread, want_w, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(gathered, of_living)
    np.testing.assert_allclose(again, want_x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["block", "condensed"])
def test_layers_under_scan(name):
    """What a scanned network does: every turn takes the kernel of one layer."""
    values, mask = masked(name, (3, 16, 16), axes="flax_stacked")
    kernel = FORMATS[name][1](values, mask, axes="flax_stacked")
    x = normal(1, 5, 16)

    def run(living):
        layers = dataclasses.replace(kernel, values=living).layers()
        return jax.lax.scan(lambda h, layer: (jnp.tanh(h @ layer), None), x, layers)[0]

    def dense(living):
        layers = kernel.spread(living)
        return jax.lax.scan(lambda h, layer: (jnp.tanh(h @ layer), None), x, layers)[0]

    found, want = (
        jax.jit(jax.value_and_grad(lambda v, f=f: jnp.sum(f(v) ** 2)))(kernel.values)
        for f in (run, dense)
    )
    np.testing.assert_allclose(found[0], want[0], rtol=1e-4)
    np.testing.assert_allclose(found[1], want[1], rtol=1e-3, atol=1e-4)


def test_stacked_and_traced():
    """With a capacity the mask of a stack may be traced, as that of one layer."""
    values, mask = masked("csr", (3, 16, 24), axes="flax_stacked")
    make = jax.jit(
        lambda w, m: sparse.CSR.from_dense(w, m, axes="flax_stacked", capacity=120).to_dense()
    )
    np.testing.assert_array_equal(make(values, mask), np.where(mask, values, 0))


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_places_from_outside_are_checked(name, data):
    """One wrong number in any array of places is found: out of range, double, or unsorted."""
    values = np.ones((2, 8, 8), np.float32)
    if name == "n_m":
        mask = np.broadcast_to((np.arange(8) % 4 > 0)[:, None], values.shape)
        kernel = sparse.NM.from_dense(values, mask, n=3, m=4, axes="flax_stacked")
        free = int(jnp.iinfo(jnp.uint8).max)
    else:
        kernel = FORMATS[name][1](values, values > 0, axes="flax_stacked")
        free = -1
    kernel.check()
    arrays = [key for key, value in vars(kernel.places).items() if isinstance(value, np.ndarray)]
    key = data.draw(st.sampled_from(arrays))
    array = getattr(kernel.places, key).copy()
    at = data.draw(st.integers(0, array.size - 1))
    others = {int(other) for other in array.flat} | {free, 100}
    if name == "n_m":  # a double, or out of range
        others = {int(other) for other in array.reshape(-1, 3)[at // 3]} | {free, 100}
    array.flat[at] = data.draw(st.sampled_from(sorted(others - {int(array.flat[at])})))
    loaded = dataclasses.replace(kernel, places=dataclasses.replace(kernel.places, **{key: array}))
    with pytest.raises(ValueError, match=r"places\.\w+ must be"):
        loaded.check()


def test_checks_name_shapes_and_tracers():
    kernel = sparse.CSR.from_dense(*masked("csr"))
    short = dataclasses.replace(kernel.places, order=kernel.places.order[:3])
    with pytest.raises(ValueError, match=r"places.order must be int32\[96\], got int32\[3\]"):
        dataclasses.replace(kernel, places=short).check()
    with pytest.raises(ValueError, match=r"values must be \(96,\)"):
        dataclasses.replace(kernel, values=kernel.values[:3]).check()
    with pytest.raises(TypeError, match="traced"):
        jax.jit(lambda kernel: kernel.check())(kernel.free())


def test_units_that_are_gone():
    """Condensed without output units, channels without input units, one and all of them."""
    values, x = np.asarray(normal(0, 6, 5)), np.asarray(normal(1, 4, 6))
    inputs, outputs = np.array([1, 0, 1, 1, 0, 1]) > 0, np.array([0, 1, 0, 1, 1]) > 0
    products = jax.jit(lambda kernel, x, g: (x @ kernel, kernel.product_transposed(g)))
    for mask in (inputs[:, None] & outputs, np.zeros((6, 5), bool)):
        for make in (sparse.Condensed.from_dense, sparse.Channels.from_dense):
            kernel = make(values, mask)
            kernel.check()
            assert kernel.values.size == mask.sum()
            weights = np.where(mask, values, 0)
            want = x @ weights
            found, back = products(kernel, x, want)
            np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(back, want @ weights.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axes", ["flax", "equinox"])
def test_channels_convolve(axes):
    """The smaller convolution is the masked one, strides and padding included."""
    shape = (3, 3, 6, 8) if axes == "flax" else (8, 6, 3, 3)
    named = {"flax": Axes((2,), (3,)), "equinox": Axes((1,), (0,))}[axes]
    values, mask = masked("channels", shape, 0.5, axes=named)
    kernel = sparse.Channels.from_dense(values, mask, axes=named)
    x = normal(1, 2, 7, 7, 6)
    dims = ("NHWC", "HWIO" if axes == "flax" else "OIHW", "NHWC")

    @jax.jit
    def both(x):
        padding = [(1, 1), (0, 1)]
        want = jax.lax.conv_general_dilated(
            x, kernel.to_dense(), (2, 2), padding, dimension_numbers=dims
        )
        return kernel.convolve(x, strides=(2, 2), padding=padding), want

    found, want = both(x)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="spatial axes, 6 inputs"):
        kernel.convolve(x[..., :5])
    with pytest.raises(ValueError, match="one entry for each"):
        kernel.convolve(x, strides=(2,))


def test_bytes_of_each_format():
    """Packed 2:4 takes five bytes where dense takes eight, condensed three integers a weight."""
    values, mask = normal(0, 64, 32), np.tile([[True], [False]], (32, 32))
    kernel = sparse.NM.from_dense(values, mask, n=2, m=4)
    assert kernel.nbytes == 64 * 32 // 2 * (4 + 1)
    values, few = masked("condensed", (64, 32), 0.9)
    kernel = sparse.Condensed.from_dense(values, few)
    assert kernel.nbytes == 4 * (3 * int(np.sum(few)) + 32 + 65)
    values, some = masked("channels", (64, 32))
    assert sparse.Channels.from_dense(values, some).nbytes == 4 * (64 * 8 + 64 + 8)
