"""Norms of masked gradients, and what a step gains from them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse import trees
from jaxsparse.masks import apply
from jaxsparse.types import Array, Masks, Params


class Flow(NamedTuple):
    """Gradient norms, float scalars.

    Attributes:
      norm: the L2 norm of all gradients of living weights and of dense leaves together.
      layers: the same for each leaf, by its path.
    """

    norm: Array
    layers: dict[str, Array]

    @property
    def squared_norm(self) -> Array:
        """What one small gradient step gains, per unit of learning rate."""
        return self.norm**2

    @property
    def squared_layers(self) -> dict[str, Array]:
        """The share of each leaf in `squared_norm`, which is their sum."""
        return {name: norm**2 for name, norm in self.layers.items()}


def gradient_flow(grads: Params, masks: Masks | None = None) -> Flow:
    """The L2 norm of the masked gradient, `||m * g||`.

    Args:
      grads: gradients of the loss, without penalty terms.
      masks: boolean arrays in the structure of the gradients; None for all gradients.

    Returns:
      A `Flow`.

    Raises:
      ValueError: the trees differ.

    References:
      Evci et al., "Gradient Flow in Sparse Neural Networks and How Lottery Tickets Win" (2020),
      section 3: a step of size eta lowers the loss by `eta * ||m * g||^2` to first order.

    Example:
      >>> import jax.numpy as jnp
      >>> found = gradient_flow(
      ...     {"w": jnp.array([3.0, 4.0, 9.0])}, {"w": jnp.array([True, True, False])}
      ... )
      >>> float(found.norm), float(found.squared_norm)
      (5.0, 25.0)
    """
    trees.check_tree(grads, "grads")
    if masks is not None:
        grads = apply(grads, masks)
    squares = {}
    for path, leaf in jax.tree.leaves_with_path(grads):
        if trees.is_float(leaf):
            squares[trees.name(path)] = jnp.sum(leaf.astype(trees.wide(leaf)) ** 2)
    total = sum((s.astype(jnp.float32) for s in squares.values()), jnp.float32(0))
    return Flow(jnp.sqrt(total), {name: jnp.sqrt(value) for name, value in squares.items()})


def first_order_change(grads: Params, updates: Params) -> Array:
    """The first-order change of the loss by a step: `sum g * u`, negative for descent.

    Args:
      grads: gradients of the loss at the parameters.
      updates: what the optimizer adds to them.

    Raises:
      ValueError: the trees differ.

    Example:
      >>> import jax.numpy as jnp
      >>> float(first_order_change({"w": jnp.array([2.0, 1.0])}, {"w": jnp.array([-0.1, 0.0])}))
      -0.20000000298023224
    """
    others = trees.check_same(grads, updates, "updates", first="grads")
    total = jnp.float32(0)
    for g, u in zip(jax.tree.leaves(grads), others, strict=True):
        if trees.is_float(g):
            wide = trees.wide(g)
            total += jnp.sum(g.astype(wide) * u.astype(wide)).astype(jnp.float32)
    return total


def effective_flow(grads: Params, masks: Masks) -> Array:
    """The mean over layers of `||m * g|| / living weights`, to compare layers and sparsities.

    Args:
      grads: gradients of the loss.
      masks: boolean arrays in the structure of the gradients.

    Returns:
      A float32 scalar. Layers without a living weight count as 0.

    Raises:
      ValueError: the trees differ.

    References:
      Tessera et al., "Keep the Gradients Flowing" (2021), with p = 2.

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
