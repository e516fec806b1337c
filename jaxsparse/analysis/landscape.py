"""The loss between two solutions: linear interpolation, barriers, instability."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse import trees
from jaxsparse.types import Array, Params


def interpolation(
    function: Callable[[Params], Any], start: Params, end: Params, alphas: Array
) -> Any:
    """A function along the line `(1 - alpha) * start + alpha * end`.

    All points are computed in one compiled loop; at alpha 0 and 1 the parameters are `start` and
    `end` bit for bit.

    Args:
      function: `(params) -> pytree of arrays`, such as the loss on a data set.
      start: parameters; leaves that are not floating arrays are taken from here.
      end: parameters of the same structure.
      alphas: `(points,)`, such as `jnp.linspace(0, 1, 30)`; may leave [0, 1].

    Returns:
      What `function` returns, stacked over the points.

    Raises:
      ValueError: trees that differ, or `alphas` that are not a vector.

    Example:
      >>> import jax.numpy as jnp
      >>> start, end = {"w": jnp.array([-1.0])}, {"w": jnp.array([1.0])}
      >>> loss = lambda params: (params["w"][0] ** 2 - 1) ** 2
      >>> interpolation(loss, start, end, jnp.array([0.0, 0.5, 1.0])).tolist()
      [0.0, 1.0, 0.0]
    """
    alphas = jnp.asarray(alphas)
    if alphas.ndim != 1 or alphas.size == 0:
        raise ValueError(f"alphas must be a vector, got shape {alphas.shape}.")
    trees.check_same(start, end, "end")

    def between(alpha: Array) -> Params:
        def leaf(_: str, a: Array, b: Array) -> Array:
            if not trees.is_float(a):
                return a
            wide = trees.wide(a)
            mixed = ((1 - alpha) * a.astype(wide) + alpha * b.astype(wide)).astype(a.dtype)
            return jnp.where(alpha == 0, a, jnp.where(alpha == 1, b, mixed))

        return trees.map_arrays(leaf, start, end, what="end")

    return jax.lax.map(lambda alpha: function(between(alpha)), alphas)


def instability(
    function: Callable[[Params], Array], start: Params, end: Params, points: int = 30
) -> Array:
    """How much worse the worst point between two children of one network is than they are.

    `max over alpha in [0, 1] of function((1 - alpha) * start + alpha * end)`, less the mean of both
    ends. Two trainings of one ticket with different orders of the examples whose instability is
    near 0 lie in one linearly connected valley.

    Args:
      function: `(params) -> scalar`, an error or a loss.
      start: one child.
      end: the other.
      points: on the line, both ends included, at least 3.

    Raises:
      ValueError: fewer points, or trees that differ.

    References:
      Frankle et al., "Linear Mode Connectivity and the Lottery Ticket Hypothesis" (2020), section
      2: error, 30 points; below 2 percentage points counts as stable.

    Example:
      >>> import jax.numpy as jnp
      >>> start, end = {"w": jnp.array([-1.0])}, {"w": jnp.array([1.0])}
      >>> loss = lambda params: (params["w"][0] ** 2 - 1) ** 2
      >>> float(instability(loss, start, end, points=3))
      1.0
    """
    if points < 3:
        raise ValueError(f"points must be at least 3, got {points}.")
    values = interpolation(function, start, end, jnp.linspace(0.0, 1.0, points))
    return jnp.max(values) - (values[0] + values[-1]) / 2
