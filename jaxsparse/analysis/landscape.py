"""The loss between two solutions: lines, trained Bezier curves, barriers, instability."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsparse import prng, trees
from jaxsparse.checks import check_array, check_batches, check_function, check_size
from jaxsparse.masks import apply
from jaxsparse.types import Array, Key, Masks, Params


def interpolation(
    function: Callable[[Params], Any],
    start: Params,
    end: Params,
    alphas: Array | None = None,
    *,
    masks: Masks | None = None,
) -> Any:
    """A function along the line `(1 - alpha) * start + alpha * end`.

    All points are computed in one compiled loop. At alpha 0 and 1 (within 1e-6, for grids that
    rounding shifts slightly) the parameters are `start` and `end` bit for bit.

    Args:
      function: `(params) -> pytree of arrays`, such as the loss on a data set.
      start: parameters; leaves that are not floating-point arrays are taken from here.
      end: parameters of the same structure.
      alphas: `(points,)`, such as `jnp.linspace(0, 1, 30)`; values outside [0, 1] are allowed. None
        is the grid of the paper, 29 points on [-0.2, 1.2].
      masks: of either end: every point, including the ends, is set to zero off them. None leaves
        the points unchanged: a weight is alive where it is alive at either end.

    Returns:
      What `function` returns, stacked over the points.

    Raises:
      ValueError: the trees differ, or `alphas` is not a vector.

    References:
      Evci et al., "Gradient Flow in Sparse Neural Networks and How Lottery Tickets Win" (2020),
      section 5.

    Example:
      >>> import jax.numpy as jnp
      >>> start, end = {"w": jnp.array([-1.0])}, {"w": jnp.array([1.0])}
      >>> loss = lambda params: (params["w"][0] ** 2 - 1) ** 2
      >>> interpolation(loss, start, end, jnp.array([0.0, 0.5, 1.0])).tolist()
      [0.0, 1.0, 0.0]
    """
    check_function("function", function, "(params) -> arrays")
    alphas = jnp.arange(-4.0, 25.0) / 20 if alphas is None else check_array("alphas", alphas)
    if alphas.ndim != 1 or alphas.size == 0:
        raise ValueError(f"alphas must be a vector, got shape {alphas.shape}.")
    trees.check_same(start, end, "end", first="start")
    if masks is not None:
        start, end = apply(start, masks), apply(end, masks)

    def between(alpha: Array) -> Params:
        def leaf(_: str, a: Array, b: Array) -> Array:
            if not trees.is_float(a):
                return a
            wide = trees.wide(a)
            mixed = ((1 - alpha) * a.astype(wide) + alpha * b.astype(wide)).astype(a.dtype)
            mixed = jnp.where(jnp.abs(alpha - 1) < 1e-6, b, mixed)
            return jnp.where(jnp.abs(alpha) < 1e-6, a, mixed)

        return trees.map_arrays(leaf, start, end, what="end")

    return jax.lax.map(lambda alpha: function(between(alpha)), alphas)


def instability(
    function: Callable[[Params], Array], start: Params, end: Params, points: int = 30
) -> Array:
    """How much worse the worst point between two children of one network is than the children.

    `max over alpha in [0, 1] of function((1 - alpha) * start + alpha * end)`, minus the mean of
    both ends. If two runs train the same ticket with different orders of the examples and their
    instability is near 0, they lie in one linearly connected valley.

    Args:
      function: `(params) -> scalar`, an error or a loss.
      start: one child.
      end: the other.
      points: on the line, both ends included, at least 3.

    Raises:
      ValueError: `points` is too small, or the trees differ.

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
    check_size("points", points, 3)
    values = interpolation(function, start, end, jnp.linspace(0.0, 1.0, points))
    return jnp.max(values) - (values[0] + values[-1]) / 2


def barrier(losses: Array) -> Array:
    """How much higher the highest point of a path is than the higher of its ends.

    Args:
      losses: `(points,)`, the ends first and last.

    Returns:
      At least 0; 0 means that the path never rises above its ends.

    Example:
      >>> import jax.numpy as jnp
      >>> float(barrier(jnp.array([1.0, 5.0, 2.0])))
      3.0
    """
    losses = check_array("losses", losses)
    if losses.ndim != 1 or losses.size < 2:
        raise ValueError(f"losses must be a vector of two or more, got shape {losses.shape}.")
    return jnp.max(losses) - jnp.maximum(losses[0], losses[-1])


class Bezier(NamedTuple):
    """A quadratic Bezier curve between two solutions.

    Attributes:
      start: parameters at t = 0.
      control: parameters that bend the curve; it does not pass through them.
      end: parameters at t = 1.
    """

    start: Params
    control: Params
    end: Params

    def at(self, t: Array) -> Params:
        """The parameters at t in [0, 1]: `(1 - t)^2 start + 2 t (1 - t) control + t^2 end`;
        exact at the ends, bit for bit."""

        def leaf(_: str, a: Array, c: Array, b: Array) -> Array:
            if not trees.is_float(a):
                return a
            wide = trees.wide(a)
            parts = zip(((1 - t) ** 2, 2 * t * (1 - t), t**2), (a, c, b), strict=True)
            moved = (weight * part.astype(wide) for weight, part in parts)
            mixed = sum(moved, jnp.zeros((), wide)).astype(a.dtype)
            return jnp.where(t == 0, a, jnp.where(t == 1, b, mixed))

        return trees.map_arrays(leaf, *self, what="control")

    def values(self, function: Callable[[Params], Any], ts: Array) -> Any:
        """A function along the curve, in one compiled loop, stacked over the points."""
        return jax.lax.map(lambda t: function(self.at(t)), jnp.asarray(ts))


def train_bezier(
    loss: Callable[[Params, Any], Array],
    start: Params,
    end: Params,
    batches: Any,
    optimizer: optax.GradientTransformation,
    *,
    key: Key,
    masks: Masks | None = None,
) -> Bezier:
    """Trains the control point of a quadratic Bezier curve for a low loss along the whole curve.

    A step draws t uniformly from [0, 1] and follows the gradient of the loss at that point of the
    curve. The control point starts halfway between the ends.

    Args:
      loss: `(params, batch) -> scalar`.
      start: one solution, of floating-point arrays.
      end: the other.
      batches: a pytree of arrays, one batch per step on the first axis.
      optimizer: moves the control point.
      key: draws the points.
      masks: where the control point may be nonzero: the union of the ends' masks keeps it in the
        sparse subspace, None allows the dense space.

    Returns:
      A `Bezier`.

    Raises:
      ValueError: the trees differ.

    References:
      Garipov et al., "Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs" (2018),
      section 3; Evci et al., "Rigging the Lottery" (2020), section 4.4, for sparse networks.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> start, end = {"w": jnp.array([-1.0, 0.0])}, {"w": jnp.array([1.0, 0.1])}
      >>> loss = lambda p, _: (jnp.sum(p["w"] ** 2) - 1) ** 2  # a ring of minima
      >>> curve = train_bezier(loss, start, end, jnp.zeros(500), optax.adam(0.05), key=0)
      >>> bool(loss(curve.at(0.5), 0) < 0.2 < loss({"w": jnp.zeros(2)}, 0))
      True
    """
    check_function("loss", loss, "(params, batch) -> scalar")
    check_batches(batches)
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(f"optimizer must be an Optax gradient transformation, got {optimizer!r}.")
    trees.check_same(start, end, "end", first="start")
    half = interpolation(lambda p: p, start, end, jnp.array([0.5]))
    control = jax.tree.map(lambda leaf: leaf[0] if trees.is_array(leaf) else leaf, half)

    def within(tree: Params) -> Params:
        return tree if masks is None else apply(tree, masks)

    def step(carry: Any, inputs: Any) -> tuple[Any, None]:
        (control, state), (batch, key) = carry, inputs
        t = jax.random.uniform(key)
        grads = jax.grad(lambda c: loss(Bezier(start, c, end).at(t), batch), allow_int=True)(
            control
        )
        updates, state = optimizer.update(within(grads), state, control)
        return (within(optax.apply_updates(control, updates)), state), None

    control = within(control)
    keys = jax.random.split(prng.as_key(key), len(jax.tree.leaves(batches)[0]))
    (control, _), _ = jax.lax.scan(step, (control, optimizer.init(control)), (batches, keys))
    return Bezier(start, control, end)
