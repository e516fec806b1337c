"""Kernels with stacked axes (scanned layers, experts), and places that come from outside."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxsparse
from jaxsparse import sparse
from jaxsparse.types import Axes
from tests.sparse.test_formats import FORMATS, masked

STACKED = [
    ((3, 16, 24), Axes((1,), (2,), (0,))),
    ((16, 2, 24, 3), Axes((0,), (2,), (3, 1))),  # as no framework stacks them, in another order
]


def layered(leaf, axes):
    """`(*stacked, inputs, outputs)`."""
    return jnp.transpose(leaf, (*axes.stacked, *axes.inputs, *axes.outputs))


@pytest.mark.parametrize(
    "name, shape, axes",
    [(name, *STACKED[0]) for name in FORMATS] + [(name, *STACKED[1]) for name in ("csr", "n_m")],
)
def test_stacked_axes(name, shape, axes):
    """Layers of different numbers of weights, of which what is to spare is zero and stays so."""
    values, mask = masked(name, shape, axes=axes)
    if name in ("condensed", "channels"):  # fewer in one of them: a unit, an input
        mask = mask & (jnp.arange(24).reshape(-1, *(1,) * (mask.ndim - 1 - axes.outputs[0])) > 3)
    kernel = FORMATS[name][1](values, mask, axes=axes)
    kernel.check()
    np.testing.assert_array_equal(kernel.mask, mask)
    np.testing.assert_array_equal(kernel.to_dense(), jnp.where(mask, values, 0.0))
    stacked = tuple(shape[axis] for axis in axes.stacked)
    assert all(leaf.shape[: len(stacked)] == stacked for leaf in jax.tree.leaves(kernel.free()))
    assert kernel.layers().shape == (16, 24)

    x = jax.random.normal(jax.random.key(1), (*stacked, 5, 16))
    g = jax.random.normal(jax.random.key(2), (*stacked, 5, 24))
    want, pull = jax.vjp(lambda x, w: x @ layered(jnp.where(mask, w, 0.0), axes), x, values)
    run = jax.jit(lambda x, v: x @ dataclasses.replace(kernel, values=v))
    found, back = jax.vjp(run, x, kernel.values)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
    (of_x, of_living), (want_x, want_w) = back(g), pull(g)
    np.testing.assert_allclose(of_x, want_x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(kernel.spread(of_living), want_w, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(kernel.gather(kernel.spread(of_living)), of_living)
    np.testing.assert_allclose(kernel.product_transposed(g), want_x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["block", "condensed"])
def test_layers_under_scan(name):
    """What a scanned network does: every turn takes the kernel of one layer."""
    values, mask = masked(name, (3, 16, 16), axes="flax_stacked")
    kernel = FORMATS[name][1](values, mask, axes="flax_stacked")
    x = jax.random.normal(jax.random.key(1), (5, 16))

    def run(living):
        layers = dataclasses.replace(kernel, values=living).layers()
        return jax.lax.scan(lambda h, layer: (jnp.tanh(h @ layer), None), x, layers)[0]

    def dense(living):
        layers = kernel.spread(living)
        return jax.lax.scan(lambda h, layer: (jnp.tanh(h @ layer), None), x, layers)[0]

    for f in (run, dense):
        assert f(kernel.values).shape == (5, 16)
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
    np.testing.assert_array_equal(make(values, mask), jnp.where(mask, values, 0.0))


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_places_from_outside_are_checked(name, data):
    """One wrong number in any array of places is found: out of range, double, or unsorted."""
    values = jnp.ones((2, 8, 8))
    if name == "n_m":
        mask = jnp.broadcast_to((jnp.arange(8) % 4 > 0)[:, None], values.shape)
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
    values = jax.random.normal(jax.random.key(0), (6, 5))
    x = jax.random.normal(jax.random.key(1), (4, 6))
    inputs, outputs = jnp.array([1, 0, 1, 1, 0, 1]) > 0, jnp.array([0, 1, 0, 1, 1]) > 0
    for mask in (inputs[:, None] & outputs, jnp.zeros((6, 5), bool)):
        for make in (sparse.Condensed.from_dense, sparse.Channels.from_dense):
            kernel = make(values, mask)
            kernel.check()
            assert kernel.values.size == mask.sum()
            want = x @ jnp.where(mask, values, 0.0)
            np.testing.assert_allclose(x @ kernel, want, rtol=1e-5, atol=1e-6)
            back = kernel.product_transposed(want)
            np.testing.assert_allclose(
                back, want @ jnp.where(mask, values, 0.0).T, rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("axes", ["flax", "equinox"])
def test_channels_convolve(axes):
    """The smaller convolution is the masked one, strides and padding included."""
    shape = (3, 3, 6, 8) if axes == "flax" else (8, 6, 3, 3)
    named = {"flax": Axes((2,), (3,)), "equinox": Axes((1,), (0,))}[axes]
    values = jax.random.normal(jax.random.key(0), shape)
    mask = jaxsparse.random_masks(0, {"w": values}, 0.5, pattern=jaxsparse.channel, axes=named)["w"]
    kernel = sparse.Channels.from_dense(values, mask, axes=named)
    x = jax.random.normal(jax.random.key(1), (2, 7, 7, 6))
    dims = ("NHWC", "HWIO" if axes == "flax" else "OIHW", "NHWC")
    want = jax.lax.conv_general_dilated(
        x, kernel.to_dense(), (2, 2), [(1, 1), (0, 1)], dimension_numbers=dims
    )
    found = kernel.convolve(x, strides=(2, 2), padding=[(1, 1), (0, 1)])
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="spatial axes, 6 inputs"):
        kernel.convolve(x[..., :5])
    with pytest.raises(ValueError, match="one entry for each"):
        kernel.convolve(x, strides=(2,))


def test_bytes_of_each_format():
    """Packed 2:4 takes five bytes where dense takes eight, condensed three integers a weight."""
    values = jax.random.normal(jax.random.key(0), (64, 32))
    masks = jaxsparse.random_masks(0, {"w": values}, 0.5, pattern=jaxsparse.n_m(2, 4), axes="flax")[
        "w"
    ]
    kernel = sparse.NM.from_dense(values, masks, n=2, m=4)
    assert kernel.nbytes == 64 * 32 // 2 * (4 + 1)
    few = jaxsparse.random_masks(0, {"w": values}, 0.9, pattern=jaxsparse.fan_in, axes="flax")["w"]
    kernel = sparse.Condensed.from_dense(values, few)
    assert kernel.nbytes == 4 * (3 * int(few.sum()) + 32 + 65)
    some = jaxsparse.random_masks(0, {"w": values}, 0.75, pattern=jaxsparse.channel, axes="flax")
    assert sparse.Channels.from_dense(values, some["w"]).nbytes == 4 * (64 * 8 + 64 + 8)
