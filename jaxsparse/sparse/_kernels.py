"""The compiled products of compressed kernels: which are available here, and how to call one."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse import compiled
from jaxsparse.compiled import Backend
from jaxsparse.types import Array

_TARGETS = (
    "csr_forward",
    "csr_transposed",
    "csr_values",
    "block_product",
    "block_values",
    "window_values",
)


def products() -> Backend:
    """Whether compiled products are available here; builds them."""
    return compiled.library("products.cc", _TARGETS)


def backends() -> dict[str, Backend]:
    """What computes the products of each format here.

    Example:
      >>> sorted(backends())
      ['block', 'channels', 'condensed', 'csr', 'masked', 'n_m']
    """
    dense = {
        "channels": "a dense product of what is left",
        "masked": "a dense product beside a mask",
        "n_m": "dense products of one tile of the kernel at a time",
    }
    found = dict.fromkeys(("block", "condensed", "csr"), products())
    return found | {format: Backend(False, what) for format, what in dense.items()}


def choose(kernel: str) -> bool:
    """Whether a product takes the compiled kernel; see `compiled.choose`."""
    return compiled.choose(kernel, products)


def call(target: str, shape: Any, *operands: Array, batched: Sequence[int], **given: Any) -> Array:
    """The result of a kernel.

    Args:
      target: its name.
      shape: of the result.
      operands: in the kernel's order.
      batched: the operands whose first axis numbers examples; it is the fastest axis in memory. -1
        stands for the result.
      given: the kernel's attributes.
    """

    def order(ndim: int, last: bool) -> tuple[int, ...]:
        return (ndim - 1, *range(1, ndim - 1), 0) if last else tuple(range(ndim))

    function = jax.ffi.ffi_call(
        f"jaxsparse_{target}",
        shape,
        vmap_method="sequential",
        input_layouts=[order(x.ndim, i in batched) for i, x in enumerate(operands)],
        output_layouts=order(len(shape.shape), -1 in batched),
    )
    return function(*operands, **given)


def accumulator(dtype: Any) -> Any:
    """The type in which products of this type are computed."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)
