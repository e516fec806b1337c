"""The compiled kernels beside each other, where every core is a device of its own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxsparse import compiled, sparse
from jaxsparse.selection import top_k_mask


def test_products_of_all_devices_at_once():
    """They share one pool of threads: none may wait for a helper that is queued behind another."""
    devices = jax.devices()[:2]
    mask = jax.random.uniform(jax.random.key(0), (64, 64)) < 0.5
    kernel = sparse.CSR.from_dense(jnp.ones((64, 64)), mask)
    x = jnp.ones((2 * 64, 64))

    @jax.jit
    @functools.partial(
        jax.shard_map,
        mesh=Mesh(np.array(devices), "d"),
        in_specs=PartitionSpec("d"),
        out_specs=PartitionSpec("d"),
        check_vma=False,
    )
    def many(x):
        return jax.lax.fori_loop(0, 200, lambda _, x: jnp.tanh(x @ kernel), x)

    np.testing.assert_allclose(many(x)[:64], many(x)[64:])


def test_kernels_that_are_built_once_more(monkeypatch, tmp_path):
    """XLA keeps those that it knows: it refuses others of the same name."""
    for folder in (None, tmp_path):
        if folder is not None:
            monkeypatch.setenv("JAXSPARSE_CACHE", str(folder))
        compiled.library.cache_clear()
        try:
            assert top_k_mask(jnp.array([1.0, 3.0, 2.0]), 2).tolist() == [False, True, True]
        finally:
            compiled.library.cache_clear()
