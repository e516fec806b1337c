"""Whole trees: kernels to their living values and back, and the part of them that is trained."""

import re
from typing import Any

import jax

from jaxsparse import trees
from jaxsparse.sparse._block import Block
from jaxsparse.sparse._csr import CSR
from jaxsparse.sparse._layout import map_compressed
from jaxsparse.types import Array, AxesSpec, Masks, Params


def compress(
    params: Params, masks: Masks, *, format: str = "csr", axes: AxesSpec = "flax"
) -> Params:
    """Parameters in which every leaf with dead weights is kept as its living values.

    Args:
      params: any pytree.
      masks: boolean arrays in its structure; leaves that are whole stay arrays.
      format: "csr", for any mask; or "block:RxC" for masks of the pattern `block(R, C)`.
      axes: what the axes of the kernels mean.

    Returns:
      The same structure, `CSR` or `Block` at fixed places where a leaf is sparse: `jax.grad`, Optax
      and `jax.tree.map` meet the living values alone. A function that multiplies by the kernels,
      `x @ kernel`, needs no change.

    Raises:
      ValueError: an unknown format, trees that differ, or a mask that the format cannot hold.
      TypeError: masks that are not boolean, or that are traced.

    Example:
      >>> import jax, jax.numpy as jnp, jaxsparse, optax
      >>> params = {"kernel": jnp.arange(64.0).reshape(8, 8), "bias": jnp.ones(8)}
      >>> masks = jaxsparse.prune_by_magnitude(params, 0.75)
      >>> small = compress(params, masks)
      >>> small["kernel"].values.shape, small["bias"].shape
      ((16,), (8,))
      >>> loss = lambda params: jnp.sum((jnp.ones((2, 8)) @ params["kernel"]) ** 2)
      >>> tx = optax.adam(0.1)
      >>> updates, state = tx.update(jax.grad(loss)(small), tx.init(small), small)
      >>> optax.apply_updates(small, updates)["kernel"].shape
      (8, 8)
    """
    check_format(format)

    def leaf(path: str, value: Any, mask: Any) -> Any:
        trees.boolean(path, mask)
        if not trees.is_float(value) or mask is None:
            return value
        if isinstance(mask, jax.core.Tracer):
            raise TypeError(
                "masks must not be traced: how many weights live decides the shapes. Inside jit "
                "use CSR.from_dense or Block.from_dense with a capacity."
            )
        if bool(mask.all()):
            return value
        return kernel_of(value, mask, format=format, axes=axes, path=path)

    return trees.map_arrays(leaf, params, masks, what="masks")


def kernel_of(
    value: Array,
    mask: Array,
    *,
    format: str,
    axes: AxesSpec,
    path: str,
    weights: int | None = None,
) -> Any:
    """One compressed kernel: at fixed places, or at free ones with room for so many weights."""
    size = _block_size(format)
    if size is None:
        return CSR.from_dense(value, mask, axes=axes, capacity=weights, path=path)
    blocks = None if weights is None else -(-weights // (size[0] * size[1]))
    return Block.from_dense(value, mask, size=size, axes=axes, capacity=blocks, path=path)


def fix_places(params: Params) -> Params:
    """Compressed parameters with fixed places: part of the structure of the tree, as `compress`
    makes them.

    Raises:
      TypeError: places are traced.
    """
    return map_compressed(lambda kernel: kernel.fix(), params)


def free_places(params: Params) -> Params:
    """Compressed parameters with free places: arrays, leaves of the tree.

    For saving whole kernels in a checkpoint, for arguments of a compiled function that is to take
    other places without compiling again, and for parameters stacked under `scan` or `vmap`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxsparse
      >>> dense = {"kernel": jnp.arange(16.0).reshape(4, 4)}
      >>> params = compress(dense, jaxsparse.prune_by_magnitude(dense, 0.75))
      >>> len(jax.tree.leaves(params)), len(jax.tree.leaves(free_places(params)))
      (1, 6)
    """
    return map_compressed(lambda kernel: kernel.free(), params)


def check_format(format: str) -> None:
    """Raises for what is no format.

    Raises:
      ValueError: an unknown one.
    """
    _block_size(format)


def _block_size(format: str) -> tuple[int, int] | None:
    found = re.fullmatch(r"block:(\d+)x(\d+)", format) if isinstance(format, str) else None
    if format != "csr" and found is None:
        raise ValueError(
            f'format must be "csr" or "block:RxC", such as "block:32x32", got {format!r}.'
        )
    return found and (int(found[1]), int(found[2]))
