"""Curvature: the Hessian of the loss restricted to living weights, by Lanczos or exactly.

Losses are means over the examples of a batch; over several batches of equal size the Hessian is
the mean of theirs, computed batch after batch in one compiled program.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsparse import trees
from jaxsparse.types import Array, Key, Masks, Params

Loss = Callable[[Params, Any], Array]
MEMORY = 2**32  # bytes that an exact Hessian may take unless the caller says otherwise


class Spectrum(NamedTuple):
    """Eigenvalues of a symmetric matrix, or what Lanczos knows of them.

    Attributes:
      eigenvalues: ascending, `(k,)`; with several draws `(draws, k)`.
      weights: of the same shape; the share of the spectrum that each stands for, with sum 1.
    """

    eigenvalues: Array
    weights: Array

    @property
    def extremes(self) -> tuple[Array, Array]:
        """The smallest and the largest eigenvalue."""
        return jnp.min(self.eigenvalues), jnp.max(self.eigenvalues)

    @property
    def negative(self) -> Array:
        """The share of the spectrum below zero, in [0, 1]."""
        total = jnp.sum(self.weights)
        return jnp.sum(jnp.where(self.eigenvalues < 0, self.weights, 0)) / total

    def density(self, grid: Array, width: float) -> Array:
        """The spectral density on a grid, each eigenvalue a Gaussian.

        Args:
          grid: `(points,)`.
          width: standard deviation of the Gaussians, above 0.

        Returns:
          `(points,)`; its integral over the real line is 1.
        """
        values, weights = self.eigenvalues.ravel(), self.weights.ravel()
        bells = jnp.exp(-0.5 * ((grid[:, None] - values) / width) ** 2)
        return bells @ (weights / jnp.sum(weights)) / (width * math.sqrt(2 * math.pi))


def hessian_product(
    loss: Loss, params: Params, batches: Any, masks: Masks | None = None
) -> tuple[Callable[[Array], Array], int]:
    """The Hessian as a function `v -> H v` on vectors of living weights.

    Args:
      loss: `(params, batch) -> scalar`, a mean over the batch.
      params: where the Hessian is taken; floating leaves, dead weights count as zero.
      batches: a pytree of arrays, batches on the first axis, all of one size.
      masks: concrete boolean arrays; None takes all weights.

    Returns:
      The product, and the number n of living weights; vectors are float32 `(n,)`.

    Raises:
      ValueError: trees that differ, or no living weight.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = lambda p, x: (x * p["w"] ** 2).sum() / 2
      >>> params = {"w": jnp.array([1.0, 1.0])}
      >>> product, n = hessian_product(loss, params, jnp.array([[2.0, 3.0]]))
      >>> n, product(jnp.array([1.0, 0.0])).tolist()
      (2, [2.0, 0.0])
    """
    along, given, n = _product(loss, params, batches, masks)
    compiled = jax.jit(along)
    return lambda v: compiled(v, *given), n


def lanczos(product: Callable[[Array], Array], n: int, steps: int, key: Key) -> tuple[Array, Array]:
    """The tridiagonal matrix of Lanczos's method with full reorthogonalization.

    Args:
      product: `v -> A v`, A symmetric.
      n: length of the vectors.
      steps: at most n, at least 1.
      key: draws the first vector.

    Returns:
      `(diagonal, off-diagonal)`, float32 `(steps,)` and `(steps - 1,)`. Where the method ends
      early, because it has found all of A that the first vector sees, what follows is zero.

    Raises:
      ValueError: `steps` out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> matrix = jnp.diag(jnp.array([1.0, 2.0, 5.0]))
      >>> diagonal, off = lanczos(lambda v: matrix @ v, 3, 3, key=0)
      >>> values = jnp.linalg.eigvalsh(jnp.diag(diagonal) + jnp.diag(off, 1) + jnp.diag(off, -1))
      >>> [round(float(value), 3) for value in values]
      [1.0, 2.0, 5.0]
    """
    if not 1 <= steps <= n:
        raise ValueError(f"steps must be in [1, {n}], the living weights, got {steps}.")
    first = jax.random.normal(trees.as_key(key), (n,), jnp.float32)
    basis = jnp.zeros((steps, n), jnp.float32).at[0].set(first / jnp.linalg.norm(first))
    diagonal, off = [], []
    for i in range(steps):
        w = product(basis[i])
        diagonal.append(jnp.vdot(basis[i], w))
        for _ in range(2):  # twice is enough (Kahan and Parlett)
            w = w - basis.T @ (basis @ w)
        size = jnp.linalg.norm(w)
        if i + 1 < steps:
            scale = jnp.maximum(jnp.max(jnp.abs(jnp.stack(diagonal))), 1e-30)
            alive = size > 1e-6 * scale
            off.append(jnp.where(alive, size, 0.0))
            basis = basis.at[i + 1].set(jnp.where(alive, w / jnp.maximum(size, 1e-30), 0.0))
    return jnp.stack(diagonal), jnp.stack(off) if off else jnp.zeros(0, jnp.float32)


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
      steps: Hessian-vector products a draw, at least 1; at most the living weights are used.
      draws: random first vectors, at least 1.
      key: an int, a typed key or raw key data.

    Returns:
      A `Spectrum` with arrays `(draws, steps)`.

    Raises:
      ValueError: `steps` or `draws` below 1, trees that differ, or no living weight.

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
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    product, n = hessian_product(loss, params, batches, masks)
    found = []
    for draw in range(draws):
        own = jax.random.fold_in(trees.as_key(key), draw)
        diagonal, off = lanczos(product, n, min(steps, n), own)
        values, vectors = jnp.linalg.eigh(jnp.diag(diagonal) + jnp.diag(off, 1) + jnp.diag(off, -1))
        found.append((values, vectors[0] ** 2 / draws))
    return Spectrum(*(jnp.stack(parts) for parts in zip(*found, strict=True)))


def exact_hessian(
    loss: Loss,
    params: Params,
    batches: Any,
    masks: Masks | None = None,
    *,
    rows: int = 16,
    memory: int = MEMORY,
) -> Array:
    """The Hessian of living weights as a matrix, `rows` rows at a time.

    Args:
      loss, params, batches, masks: as for `hessian_product`.
      rows: computed together, at least 1.
      memory: bytes that the matrix may take.

    Returns:
      float32 `(n, n)`, symmetric up to rounding; n living weights, leaf after leaf, in flat order.

    Raises:
      ValueError: a matrix larger than `memory`, trees that differ, or no living weight.

    References:
      Evci et al. (2020), section 4: the spectrum of LeNet-5, two rows at a time.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = lambda p, x: (x * p["w"] ** 2).sum() / 2
      >>> masks = {"w": jnp.array([True, False, True])}
      >>> exact_hessian(loss, {"w": jnp.ones(3)}, jnp.array([[2.0, 3.0, 4.0]]), masks).tolist()
      [[2.0, 0.0], [0.0, 4.0]]
    """
    along, given, n = _product(loss, params, batches, masks)
    if 4 * n**2 > memory:
        raise ValueError(
            f"the Hessian of {n:,} living weights takes {4 * n**2 / 2**30:.1f} GiB, more than "
            f"memory = {memory / 2**30:.1f} GiB; use spectrum, which needs only products with it."
        )
    if rows < 1:
        raise ValueError(f"rows must be at least 1, got {rows}.")
    block = jax.jit(jax.vmap(along, in_axes=(0, *[None] * len(given))))
    found = np.empty((n, n), np.float32)
    for start in range(0, n, rows):
        places = np.minimum(np.arange(start, start + rows), n - 1)  # the last block may repeat
        units = np.zeros((rows, n), np.float32)
        units[np.arange(rows), places] = 1
        found[places] = block(units, *given)
    return jnp.asarray(found)


def _product(
    loss: Loss, params: Params, batches: Any, masks: Masks | None
) -> tuple[Callable[..., Array], tuple[Any, ...], int]:
    """`(v, *given) -> H v`, what is given, and the number of living weights."""
    start = params if masks is None else trees.apply(params, masks)
    leaves, treedef = jax.tree.flatten(start)
    masked = [None] * len(leaves) if masks is None else trees.check_same(params, masks, "masks")
    used = [i for i, leaf in enumerate(leaves) if trees.is_float(leaf)]
    places = [
        np.arange(leaves[i].size) if masked[i] is None else np.flatnonzero(np.asarray(masked[i]))
        for i in used
    ]
    sizes = [len(place) for place in places]
    n, count = sum(sizes), len(jax.tree.leaves(batches)[0])
    if n == 0:
        raise ValueError("masks leave no living weight: there is no Hessian to look at.")

    def along(v: Array, floats: list[Array], places: list[Array], batches: Any) -> Array:
        def gradient(floats: list[Array], batch: Any) -> list[Array]:
            def whole(floats: list[Array]) -> Array:
                full = list(leaves)
                for i, leaf in zip(used, floats, strict=True):
                    full[i] = leaf
                return loss(treedef.unflatten(full), batch)

            return jax.grad(whole)(floats)

        def whole_leaf(leaf: Array, place: Array, part: Array) -> Array:
            flat = jnp.zeros(leaf.size, leaf.dtype).at[place].set(part.astype(leaf.dtype))
            return flat.reshape(leaf.shape)

        parts = jnp.split(v, np.cumsum(sizes)[:-1])
        tangents = [whole_leaf(*each) for each in zip(floats, places, parts, strict=True)]

        def one(total: Array, batch: Any) -> tuple[Array, None]:
            _, moved = jax.jvp(lambda floats: gradient(floats, batch), (floats,), (tangents,))
            found = [
                leaf.reshape(-1)[place].astype(jnp.float32)
                for leaf, place in zip(moved, places, strict=True)
            ]
            return total + jnp.concatenate(found), None

        total, _ = lax.scan(one, jnp.zeros_like(v), batches)
        return total / count

    floats = [leaves[i] for i in used]
    return along, (floats, [jnp.asarray(place) for place in places], batches), n
