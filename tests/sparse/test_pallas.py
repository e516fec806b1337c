"""Pallas kernels of blocks: numbers in the interpreter, and lowering for devices not at hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from jaxsparse import sparse
from jaxsparse.sparse import _pallas


def kernel_of(size, shape, capacity=None, dtype=jnp.float32):
    random = np.random.default_rng(0)
    values = jnp.asarray(random.normal(size=shape), dtype)
    tiles = [side // one for side, one in zip(shape, size, strict=True)]
    mask = np.kron(random.random(tiles) >= 0.6, np.ones(size)) > 0
    return sparse.Block.from_dense(values, mask, size=size, capacity=capacity)


def three(kernel, via):
    """A product and both of its gradients, of free places."""

    def run(x, g, kernel):
        def product(x, living):
            return dataclasses.replace(kernel, values=living).product(x, via=via)

        y, pull = jax.vjp(product, x, kernel.values)
        return y, *pull(g)

    return run


def operands(kernel, batch):
    random = np.random.default_rng(2)
    return tuple(
        jnp.asarray(random.normal(size=(batch, side)), kernel.dtype) for side in kernel.shape
    )


@pytest.mark.parametrize("device", ["tpu", "cuda"])
@pytest.mark.parametrize("batch, capacity", [(5, None), (140, 9)])
def test_numbers_in_the_interpreter(monkeypatch, device, batch, capacity):
    """Rows and columns without a block, room to spare, and batches that no tile divides."""
    if device == "cuda":
        monkeypatch.setattr(_pallas, "_product_tpu", _pallas._product_gpu)
        monkeypatch.setattr(_pallas, "_values_tpu", _pallas._values_gpu)
    kernel = kernel_of((16, 16), (48, 64), capacity)
    x, g = operands(kernel, batch)
    found, wanted = (jax.jit(three(kernel, via))(x, g, kernel) for via in ("pallas", "xla"))
    for got, want in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", ["tpu", "cuda"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_lowers_for_a_device_that_is_not_here(device, dtype):
    kernel = kernel_of((32, 64), (128, 256), dtype=dtype).free()
    run = jax.jit(three(kernel, "pallas"))
    args = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (*operands(kernel, 8), kernel)
    )
    call = {"tpu": "tpu_custom_call", "cuda": "__gpu$xla.gpu.triton"}[device]
    # From JAX 0.12 on, Triton wants to know the device that it compiles for.
    h100 = AbstractDevice("NVIDIA H100 80GB HBM3", 132, "gpu") if device == "cuda" else None
    stable = [jax.export.DisabledSafetyCheck.custom_call(call)]  # Triton's is not promised to be
    with use_abstract_mesh(AbstractMesh((), (), abstract_device=h100)):
        exported = jax.export.export(run, platforms=[device], disabled_checks=stable)(*args)
    assert exported.mlir_module().count(f"custom_call @{call}") == 3


def test_what_the_kernels_cannot_hold_is_told(monkeypatch):
    kernel = kernel_of((4, 8), (16, 24))
    x = jnp.ones((2, 16))
    with pytest.raises(ValueError, match="via must be one of auto, compiled, xla"):
        kernel.product(x, via="cuda")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(ValueError, match="powers of two"):
        kernel.product(x, via="pallas")
    assert not _pallas.choose("auto", (4, 8), jnp.float32), "falls back to gathered tiles"
    assert _pallas.choose("auto", (16, 32), jnp.bfloat16)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    with pytest.raises(ValueError, match="fast memory"):
        _pallas.choose("pallas", (2048, 2048), jnp.float32)
    with pytest.raises(ValueError, match="lack float64"):
        _pallas.choose("pallas", (32, 32), jnp.dtype("float64"))
