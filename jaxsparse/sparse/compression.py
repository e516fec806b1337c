"""Whole trees: kernels to their living values and back, and the part of them that is trained."""

import re
from typing import Any

import jax

from jaxsparse import trees
from jaxsparse.sparse import _layout
from jaxsparse.sparse._block import Block
from jaxsparse.sparse._csr import CSR
from jaxsparse.types import AxesSpec, Masks, Params


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
      The same structure, `CSR` or `Block` in the place of sparse leaves. A function that multiplies
      by them, `x @ kernel`, needs no change.

    Raises:
      ValueError: an unknown format, trees that differ, or a mask that the format cannot hold.
      TypeError: masks that are not boolean, or that are traced.

    Example:
      >>> import jax.numpy as jnp, jaxsparse
      >>> params = {"kernel": jnp.arange(64.0).reshape(8, 8), "bias": jnp.ones(8)}
      >>> masks = jaxsparse.prune_by_magnitude(params, 0.75)
      >>> small = compress(params, masks)
      >>> small["kernel"].values.shape, small["bias"].shape
      ((16,), (8,))
      >>> x = jnp.ones((2, 8))
      >>> bool(jnp.all(x @ small["kernel"] == x @ expand(small)["kernel"]))
      True
    """
    size = _block_size(format)

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
        if size is None:
            return CSR.from_dense(value, mask, axes=axes, path=path)
        return Block.from_dense(value, mask, size=size, axes=axes, path=path)

    return trees.map_arrays(leaf, params, masks, what="masks")


def expand(params: Params) -> Params:
    """The dense parameters again, zero where no weight lives."""
    return jax.tree.map(
        lambda leaf: leaf.to_dense() if _is_compressed(leaf) else leaf,
        params,
        is_leaf=_is_compressed,
    )


def values(params: Params) -> Params:
    """What is trained: the living values in the place of compressed leaves.

    Any optimizer takes this tree, and nothing in it has the size of a dense kernel.

    Example:
      >>> import jax, jax.numpy as jnp, jaxsparse, optax
      >>> dense = {"kernel": jnp.arange(16.0).reshape(4, 4)}
      >>> params = compress(dense, jaxsparse.prune_by_magnitude(dense, 0.75))
      >>> x, tx = jnp.ones((2, 4)), optax.adam(0.1)
      >>> loss = lambda living: jnp.sum((x @ with_values(params, living)["kernel"]) ** 2)
      >>> living = values(params)
      >>> updates, state = tx.update(jax.grad(loss)(living), tx.init(living), living)
      >>> updates["kernel"].shape
      (4,)
    """
    return jax.tree.map(
        lambda leaf: leaf.values if _is_compressed(leaf) else leaf, params, is_leaf=_is_compressed
    )


def with_values(params: Params, values: Params) -> Params:
    """Compressed parameters with other living values, at the same places.

    Args:
      params: what `compress` returned; only the places of its compressed leaves are looked at.
      values: in the structure that the function `values` gives.
    """
    return jax.tree.map(
        lambda leaf, new: type(leaf)(new, leaf.places) if _is_compressed(leaf) else new,
        params,
        values,
        is_leaf=_is_compressed,
    )


def _is_compressed(leaf: Any) -> bool:
    return isinstance(leaf, _layout.Compressed)


def _block_size(format: str) -> tuple[int, int] | None:
    found = re.fullmatch(r"block:(\d+)x(\d+)", format) if isinstance(format, str) else None
    if format != "csr" and found is None:
        raise ValueError(
            f'format must be "csr" or "block:RxC", such as "block:32x32", got {format!r}.'
        )
    return found and (int(found[1]), int(found[2]))
