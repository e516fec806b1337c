"""Products with the Hessian of living weights, and the type of a spectrum."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxsparse import trees
from jaxsparse.checks import check_batches, check_function
from jaxsparse.masks import apply
from jaxsparse.types import Array, Masks, Params

Loss = Callable[[Params, Any], Array]


class Spectrum(NamedTuple):
    """Eigenvalues of a symmetric matrix, or Lanczos estimates of them.

    Attributes:
      eigenvalues: ascending, `(k,)`; with several draws `(draws, k)`.
      weights: of the same shape; the share of the spectrum that each represents, with sum 1.
    """

    eigenvalues: Array
    weights: Array

    @property
    def extremes(self) -> tuple[Array, Array]:
        """The smallest and the largest eigenvalue."""
        return jnp.min(self.eigenvalues), jnp.max(self.eigenvalues)

    @property
    def negative(self) -> Array:
        """The share of the spectrum clearly below zero, in [0, 1].

        Rounding moves zero eigenvalues to either side, so only eigenvalues below -1e-5 times the
        largest magnitude count.
        """
        below = self.eigenvalues < -1e-5 * jnp.max(jnp.abs(self.eigenvalues))
        return jnp.sum(jnp.where(below, self.weights, 0)) / jnp.sum(self.weights)

    def density(self, grid: Array, width: float) -> Array:
        """The spectral density on a grid, with a Gaussian for each eigenvalue.

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
      params: where the Hessian is taken; floating-point leaves; dead weights count as zero.
      batches: a pytree of arrays, batches on the first axis, all of the same size. If that axis is
        sharded, every device goes through its own batches. Do not shard over virtual devices of
        one CPU: under load they can deadlock. On a CPU, batches of about a hundred examples fit
        into the cache.
      masks: concrete boolean arrays; None for all weights.

    Returns:
      The product, and the number n of living weights; vectors are float32 `(n,)`.

    Raises:
      ValueError: the trees differ, or no weight lives.
      TypeError: the masks are not boolean.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = lambda p, x: (x * p["w"] ** 2).sum() / 2
      >>> params = {"w": jnp.array([1.0, 1.0])}
      >>> product, n = hessian_product(loss, params, jnp.array([[2.0, 3.0]]))
      >>> n, product(jnp.array([1.0, 0.0])).tolist()
      (2, [2.0, 0.0])
    """
    along, given, n = product_of(loss, params, batches, masks)
    compiled, everywhere = jax.jit(along), _everywhere(batches)
    if everywhere is None:
        return lambda v: compiled(v, *given), n
    # A vector with another placement would compile the product once more.
    return lambda v: compiled(jax.device_put(v, everywhere), *given), n


def product_of(
    loss: Loss, params: Params, batches: Any, masks: Masks | None
) -> tuple[Callable[..., Array], tuple[Any, ...], int]:
    """`(v, *given) -> H v`, the `given` arguments, and the number of living weights."""
    check_function("loss", loss, "(params, batch) -> scalar")
    check_batches(batches)
    start = params if masks is None else apply(params, masks)
    leaves = jax.tree.leaves(start)
    given, whole = trees.floats(start)
    masked = [None] * len(leaves) if masks is None else trees.check_same(params, masks, "masks")
    used = [i for i, leaf in enumerate(leaves) if trees.is_float(leaf)]
    places = [
        np.arange(leaves[i].size) if masked[i] is None else np.flatnonzero(np.asarray(masked[i]))
        for i in used
    ]
    sizes = [len(place) for place in places]
    n, first = sum(sizes), jax.tree.leaves(batches)[0]
    count = len(first)
    if n == 0:
        raise ValueError("masks have no living weight, so there is no Hessian.")

    def along(v: Array, floats: list[Array], places: list[Array], batches: Any) -> Array:
        gradient = jax.grad(lambda floats, batch: loss(whole(floats), batch))

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

    arrays = given, [jnp.asarray(place) for place in places]
    everywhere = _everywhere(batches)
    if everywhere is None:
        return along, (*arrays, batches), n
    axis, whole_spec = first.sharding.spec[0], everywhere.spec
    spread = jax.shard_map(
        lambda *parts: lax.psum(along(*parts), axis),
        mesh=everywhere.mesh,
        in_specs=(whole_spec, whole_spec, whole_spec, PartitionSpec(axis)),
        out_specs=whole_spec,
        check_vma=False,
    )
    return spread, (*jax.device_put(arrays, everywhere), batches), n


def _everywhere(batches: Any) -> NamedSharding | None:
    """A copy on each of the devices over which batches are sharded; None if they are not."""
    first = jax.tree.leaves(batches)[0]
    sharding = None if isinstance(first, jax.core.Tracer) else getattr(first, "sharding", None)
    if not isinstance(sharding, NamedSharding) or not sharding.spec or sharding.spec[0] is None:
        return None
    return NamedSharding(sharding.mesh, PartitionSpec())
