"""The Hessian of living weights as a matrix, for small networks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.analysis.curvature._base import Loss, Spectrum, product_of
from jaxsparse.checks import check_size
from jaxsparse.types import Array, Masks, Params

MEMORY = 2**32  # bytes that an exact Hessian may take unless the caller says otherwise


def exact_hessian(
    loss: Loss,
    params: Params,
    batches: Any,
    masks: Masks | None = None,
    *,
    rows: int = 1,
    memory: int = MEMORY,
) -> Array:
    """The Hessian of living weights as a matrix, `rows` rows at a time.

    Args:
      loss, params, batches, masks: as for `hessian_product`.
      rows: how many to compute together, at least 1. One is fastest on a CPU, since more rows
        overflow its cache; an accelerator may need many.
      memory: bytes that the matrix may take.

    Returns:
      float32 `(n, n)`, symmetric up to rounding; n living weights, leaf after leaf, in flat order.

    Raises:
      ValueError: the matrix is larger than `memory`, the trees differ, or no weight lives.

    References:
      Evci et al. (2020), section 4: the spectrum of LeNet-5, two rows at a time.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = lambda p, x: (x * p["w"] ** 2).sum() / 2
      >>> masks = {"w": jnp.array([True, False, True])}
      >>> exact_hessian(loss, {"w": jnp.ones(3)}, jnp.array([[2.0, 3.0, 4.0]]), masks).tolist()
      [[2.0, 0.0], [0.0, 4.0]]
    """
    check_size("rows", rows)
    check_size("memory", memory)
    along, given, n = product_of(loss, params, batches, masks)
    if 4 * n**2 > memory:
        raise ValueError(
            f"the Hessian of {n:,} living weights takes {4 * n**2 / 2**30:.1f} GiB, more than "
            f"memory = {memory / 2**30:.1f} GiB; use spectrum, whose Lanczos method needs only "
            "products with it."
        )
    block = jax.jit(jax.vmap(along, in_axes=(0, *[None] * len(given))))
    found = np.empty((n, n), np.float32)
    for start in range(0, n, rows):
        places = np.minimum(np.arange(start, start + rows), n - 1)  # the last block may repeat
        units = np.zeros((rows, n), np.float32)
        units[np.arange(rows), places] = 1
        found[places] = block(units, *given)
    return jnp.asarray(found)


def exact_spectrum(
    loss: Loss,
    params: Params,
    batches: Any,
    masks: Masks | None = None,
    *,
    rows: int = 1,
    memory: int = MEMORY,
) -> Spectrum:
    """All eigenvalues of the Hessian of living weights, each with the same weight.

    The eigenvalues are computed by NumPy on the host, in float64.

    Args:
      loss, params, batches, masks, rows, memory: as for `exact_hessian`.

    Returns:
      A `Spectrum` with arrays `(n,)`.

    Raises:
      ValueError: as for `exact_hessian`.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = lambda p, x: (x * p["w"] ** 2).sum() / 2
      >>> found = exact_spectrum(loss, {"w": jnp.ones(4)}, jnp.array([[-2.0, 0.0, 3.0, 4.0]]))
      >>> found.eigenvalues.tolist(), float(found.negative)
      ([-2.0, 0.0, 3.0, 4.0], 0.25)
    """
    matrix = exact_hessian(loss, params, batches, masks, rows=rows, memory=memory)
    values = jnp.asarray(np.linalg.eigvalsh(np.asarray(matrix, np.float64)), jnp.float32)
    return Spectrum(values, jnp.full(len(values), 1 / len(values), jnp.float32))
