"""The Lanczos method with full reorthogonalization, and the spectrum that it estimates."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse import prng, trees
from jaxsparse.analysis.curvature._base import Loss, Spectrum, hessian_product
from jaxsparse.checks import check_function, check_size
from jaxsparse.masks import apply, check_masks
from jaxsparse.types import Array, Key, Masks, Params


def lanczos(product: Callable[[Array], Array], n: int, steps: int, key: Key) -> tuple[Array, Array]:
    """The tridiagonal matrix of the Lanczos method with full reorthogonalization.

    Args:
      product: `v -> A v`, A symmetric.
      n: length of the vectors.
      steps: at most n, at least 1.
      key: draws the first vector.

    Returns:
      `(diagonal, off-diagonal)`, float32 `(steps,)` and `(steps - 1,)`. If the method ends early,
      because it has found all of A that the first vector reaches, the remaining entries are zero.

    Raises:
      ValueError: `steps` is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> matrix = jnp.diag(jnp.array([1.0, 2.0, 5.0]))
      >>> diagonal, off = lanczos(lambda v: matrix @ v, 3, 3, key=0)
      >>> values = jnp.linalg.eigvalsh(jnp.diag(diagonal) + jnp.diag(off, 1) + jnp.diag(off, -1))
      >>> [round(float(value), 3) for value in values]
      [1.0, 2.0, 5.0]
    """
    check_function("product", product, "v -> A v")
    check_size("n", n)
    check_size("steps", steps)
    if steps > n:
        raise ValueError(f"steps must be in [1, {n}], the living weights, got {steps}.")
    vector = jax.random.normal(prng.as_key(key), (n,), jnp.float32)
    basis, scale = jnp.zeros((steps, n), jnp.float32), jnp.float32(1e-30)
    vector = vector / jnp.linalg.norm(vector)
    diagonal, off = [], []
    for i in range(steps):
        basis, scale, vector, *found = _advance(basis, jnp.int32(i), vector, product(vector), scale)
        diagonal.append(found[0])
        off.append(found[1])
    return jnp.stack(diagonal), jnp.stack(off)[:-1]


@functools.partial(jax.jit, donate_argnums=0)
def _advance(basis: Array, i: Array, vector: Array, w: Array, scale: Array) -> tuple[Array, ...]:
    """Adds vector i to the basis, and returns the next one; compiled once for all steps."""
    basis = basis.at[i].set(vector)
    diagonal = jnp.vdot(vector, w)
    for _ in range(2):  # twice is enough (Kahan and Parlett)
        w = w - basis.T @ (basis @ w)
    size, scale = jnp.linalg.norm(w), jnp.maximum(scale, jnp.abs(diagonal))
    alive = size > 1e-6 * scale
    following = jnp.where(alive, w / jnp.maximum(size, 1e-30), 0.0)
    return basis, scale, following, diagonal, jnp.where(alive, size, 0.0)


def spectrum(
    loss: Loss,
    params: Params,
    batches: Any,
    masks: Masks | None = None,
    *,
    steps: int = 80,
    draws: int = 1,
    key: Key,
) -> Spectrum:
    """The spectrum of the Hessian of living weights by stochastic Lanczos quadrature.

    Extreme eigenvalues are found first and exactly; the bulk is a quadrature of the density.

    Args:
      loss, params, batches, masks: as for `hessian_product`.
      steps: Hessian-vector products per draw, at least 1; capped at the number of living weights.
      draws: random first vectors, at least 1.
      key: an int, a typed key or raw key data.

    Returns:
      A `Spectrum` with arrays `(draws, steps)`.

    Raises:
      ValueError: `steps` or `draws` is below 1, the trees differ, or no weight lives.

    References:
      Ghorbani et al., "An Investigation into Neural Net Optimization via Hessian Eigenvalue
      Density" (2019), algorithms 1 and 2.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = lambda p, x: (x * p["w"] ** 2).sum() / 2
      >>> params = {"w": jnp.ones(3)}
      >>> found = spectrum(loss, params, jnp.array([[-1.0, 2.0, 5.0]]), steps=3, key=0)
      >>> [round(float(value), 3) for value in found.extremes]
      [-1.0, 5.0]
    """
    for name, value in (("steps", steps), ("draws", draws)):
        check_size(name, value)
    product, n = hessian_product(loss, params, batches, masks)
    found = []
    for draw in range(draws):
        own = jax.random.fold_in(prng.as_key(key), draw)
        diagonal, off = lanczos(product, n, min(steps, n), own)
        values, vectors = jnp.linalg.eigh(jnp.diag(diagonal) + jnp.diag(off, 1) + jnp.diag(off, -1))
        found.append((values, vectors[0] ** 2 / draws))
    return Spectrum(*(jnp.stack(parts) for parts in zip(*found, strict=True)))


def spectrum_across_update(
    loss: Loss,
    params: Params,
    batches: Any,
    before: Masks,
    after: Masks,
    *,
    steps: int = 80,
    draws: int = 1,
    key: Key,
) -> tuple[Spectrum, Spectrum]:
    """The spectrum before and after a mask update, for the same loss.

    Args:
      loss, params, batches: as for `hessian_product`.
      before: the masks before the update.
      after: those after it; grown weights start at zero.
      steps, draws, key: as for `spectrum`; the first vectors are the same if both masks have the
        same number of weights.

    Returns:
      `(before, after)`; their `negative` is the share of negative eigenvalues.

    Raises:
      ValueError: as for `spectrum`.

    References:
      Evci et al. (2020), section 4: mask updates create new negative eigenvalues.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = lambda p, x: (x * p["w"] ** 2).sum() / 2
      >>> masks = [{"w": jnp.array(mask)} for mask in ([True, False], [True, True])]
      >>> args = loss, {"w": jnp.ones(2)}, jnp.array([[2.0, -1.0]]), *masks
      >>> [found.extremes[0].round(3).item() for found in spectrum_across_update(*args, key=0)]
      [2.0, -1.0]
    """
    for what, masks in (("before", before), ("after", after)):
        check_masks(masks, what)
        trees.check_same(params, masks, what)
    start = apply(params, before)
    moved = apply(start, after)
    return (
        spectrum(loss, start, batches, before, steps=steps, draws=draws, key=key),
        spectrum(loss, moved, batches, after, steps=steps, draws=draws, key=key),
    )
