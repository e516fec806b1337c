"""Gradient flow: how large the gradients of living weights are, and what a step gains by them.

Names say what is squared: a `norm` is an L2 norm, a `flow` its square.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsparse import trees
from jaxsparse.initialization import sparse_init
from jaxsparse.pruning import random_masks
from jaxsparse.types import Array, Key, Masks, Params


class Flow(NamedTuple):
    """Gradient norms, float scalars.

    Attributes:
      norm: the L2 norm of all gradients of living weights and of dense leaves together.
      layers: the same of every leaf, by its path.
    """

    norm: Array
    layers: dict[str, Array]

    @property
    def flow(self) -> Array:
        """The squared norm: what one small gradient step gains, per learning rate."""
        return self.norm**2


def gradient_flow(grads: Params, masks: Masks | None = None) -> Flow:
    """The L2 norm of the masked gradient, `||m * g||`.

    Args:
      grads: gradients of the loss, without penalty terms.
      masks: boolean arrays in the structure of the gradients; None takes all as they are.

    Returns:
      A `Flow`.

    Raises:
      ValueError: trees that differ.

    References:
      Evci et al., "Gradient Flow in Sparse Neural Networks and How Lottery Tickets Win" (2020),
      section 3: a step of size eta lowers the loss by `eta * ||m * g||^2` to first order.

    Example:
      >>> import jax.numpy as jnp
      >>> found = gradient_flow(
      ...     {"w": jnp.array([3.0, 4.0, 9.0])}, {"w": jnp.array([True, True, False])}
      ... )
      >>> float(found.norm), float(found.flow)
      (5.0, 25.0)
    """
    if masks is not None:
        grads = trees.apply(grads, masks)
    squares = {}
    for path, leaf in jax.tree.leaves_with_path(grads):
        if trees.is_float(leaf):
            squares[trees.name(path)] = jnp.sum(leaf.astype(trees.wide(leaf)) ** 2)
    total = sum((s.astype(jnp.float32) for s in squares.values()), jnp.float32(0))
    return Flow(jnp.sqrt(total), {name: jnp.sqrt(value) for name, value in squares.items()})


def first_order_change(grads: Params, updates: Params) -> Array:
    """The change of the loss that a step makes to first order: `sum g * u`, negative for descent.

    Args:
      grads: gradients of the loss at the parameters.
      updates: what the optimizer adds to them.

    Raises:
      ValueError: trees that differ.

    Example:
      >>> import jax.numpy as jnp
      >>> float(first_order_change({"w": jnp.array([2.0, 1.0])}, {"w": jnp.array([-0.1, 0.0])}))
      -0.20000000298023224
    """
    others = trees.check_same(grads, updates, "updates")
    total = jnp.float32(0)
    for g, u in zip(jax.tree.leaves(grads), others, strict=True):
        if trees.is_float(g):
            wide = trees.wide(g)
            total += jnp.sum(g.astype(wide) * u.astype(wide)).astype(jnp.float32)
    return total


def effective_flow(grads: Params, masks: Masks) -> Array:
    """The mean over layers of `||m * g|| / living weights`, so that layers and sparsities compare.

    Args:
      grads: gradients of the loss.
      masks: boolean arrays in the structure of the gradients.

    Returns:
      A float32 scalar. Layers without a living weight count as 0.

    Raises:
      ValueError: trees that differ.

    References:
      Tessera et al., "Keep the Gradients Flowing" (2021), equation 2, with p = 2.

    Example:
      >>> import jax.numpy as jnp
      >>> float(effective_flow({"w": jnp.array([3.0, 4.0])}, {"w": jnp.array([True, True])}))
      2.5
    """
    norms = gradient_flow(grads, masks).layers
    paths = jax.tree.leaves_with_path(grads)
    leaves = trees.check_same(grads, masks, "masks")
    found = []
    for (path, leaf), mask in zip(paths, leaves, strict=True):
        if not trees.is_float(leaf):
            continue
        alive = jnp.float32(leaf.size)
        if mask is not None:
            alive = jnp.sum(mask, dtype=jnp.int32).astype(jnp.float32)
        found.append(norms[trees.name(path)].astype(jnp.float32) / jnp.maximum(alive, 1))
    return jnp.mean(jnp.stack(found))


def flow_across_update(
    loss: Callable[[Params], Array], params: Params, before: Masks, after: Masks
) -> tuple[Array, Array]:
    """The gradient norm before and after a mask update, on one loss.

    Args:
      loss: `(params) -> scalar`, on a fixed batch.
      params: the parameters; off either mask they count as zero.
      before: the masks before the update.
      after: those after it; grown weights start at zero.

    Returns:
      `(norm before, norm after)`.

    References:
      Evci et al. (2020), figure 4: dynamic sparse training raises the flow at mask updates.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = lambda p: p["w"][0] * 3 + p["w"][1] * 4
      >>> masks = [{"w": jnp.array(mask)} for mask in ([True, False], [False, True])]
      >>> [float(norm) for norm in flow_across_update(loss, {"w": jnp.ones(2)}, *masks)]
      [3.0, 4.0]
    """
    grad = jax.grad(loss)
    start = trees.apply(params, before)
    moved = trees.apply(start, after)
    return gradient_flow(grad(start), before).norm, gradient_flow(grad(moved), after).norm


def signal_propagation(
    forward: Callable[[Params], Array],
    params: Params,
    sparsities: Sequence[float],
    *,
    key: Key,
    init: str = "sparse",
    **options: Any,
) -> Array:
    """The standard deviation of a network's output at initialization against its sparsity.

    With weights that ignore their masks the signal vanishes as the sparsity grows; with
    `sparse_init` it stays.

    Args:
      forward: `(params) -> outputs` before the softmax, on a batch.
      params: a dense initialization; shapes, and for "dense" the values themselves.
      sparsities: of the random masks, each in [0, 1).
      key: draws masks and weights.
      init: "sparse", `jaxsparse.sparse_init`; "layer", the same with one factor for each layer; or
        "dense", the given values under the mask.
      **options: `distribution`, `prunable`, `pattern`, `axes`, `min_alive` of
        `jaxsparse.random_masks`.

    Returns:
      float32 `(len(sparsities),)`.

    Raises:
      ValueError: an argument out of range.

    References:
      Evci et al. (2020), figure 3.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> kernel = jax.random.normal(jax.random.key(0), (400, 50)) * (2 / 400) ** 0.5
      >>> x = jax.random.normal(jax.random.key(1), (64, 400))
      >>> forward = lambda p: x @ p["kernel"]
      >>> dense = signal_propagation(forward, {"kernel": kernel}, [0.0, 0.9], key=2, init="dense")
      >>> sparse = signal_propagation(forward, {"kernel": kernel}, [0.0, 0.9], key=2)
      >>> bool(dense[1] < 0.5 * dense[0]), bool(abs(sparse[1] / sparse[0] - 1) < 0.2)
      (True, True)
    """
    if init not in ("sparse", "layer", "dense"):
        raise ValueError(f"init must be one of sparse, layer, dense, got {init!r}.")
    key = trees.as_key(key)
    shared = {name: options[name] for name in ("prunable", "axes") if name in options}
    found = []
    for number, sparsity in enumerate(sparsities):
        mask_key, weight_key = jax.random.split(jax.random.fold_in(key, number))
        masks = random_masks(mask_key, params, sparsity, **options)
        start = trees.apply(params, masks)
        if init != "dense":
            fan = "fan_in" if init == "sparse" else "layer"
            start = sparse_init(weight_key, start, masks, fan=fan, **shared)
        found.append(jnp.std(forward(start).astype(jnp.float32)))
    return jnp.stack(found)


class RecordedFlow(NamedTuple):
    """State of `record_flow`.

    Attributes:
      norm: the L2 norm of the gradients of the last step.
      layers: of every leaf, by its path.
    """

    norm: Array
    layers: dict[str, Array]


def record_flow() -> optax.GradientTransformation:
    """Passes gradients on as they are and keeps their norms in its state, for logging.

    Inside a sparse optimizer, as the first of a chain, it sees the gradients of living weights:
    `jaxsparse.rigl(optax.chain(record_flow(), optax.sgd(0.1)), ...)`. No second gradient is
    computed. `optax.tree.get(opt_state, "RecordedFlow")` finds the state.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> tx = optax.chain(record_flow(), optax.sgd(0.1))
      >>> params = {"w": jnp.zeros(2)}
      >>> _, state = tx.update({"w": jnp.array([3.0, 4.0])}, tx.init(params))
      >>> float(state[0].norm)
      5.0
    """

    def init(params: Params) -> RecordedFlow:
        return RecordedFlow(*gradient_flow(jax.tree.map(_zeros, params)))

    def update(updates: Any, state: RecordedFlow, params: Any = None) -> tuple[Any, RecordedFlow]:
        return updates, RecordedFlow(*gradient_flow(updates))

    return optax.GradientTransformation(init, update)


def _zeros(leaf: Any) -> Any:
    return jnp.zeros_like(leaf) if trees.is_array(leaf) else leaf
