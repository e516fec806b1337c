"""Gradient flow while masks move: across a single update, and in the state of an optimizer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsparse import trees
from jaxsparse.analysis.flow._norms import Flow, effective_flow, first_order_change, gradient_flow
from jaxsparse.checks import check_function
from jaxsparse.masks import apply, check_masks
from jaxsparse.state_tree import find
from jaxsparse.states import get_masks
from jaxsparse.types import Array, Masks, Params


def flow_across_update(
    loss: Callable[[Params], Array], params: Params, before: Masks, after: Masks
) -> tuple[Array, Array]:
    """The gradient norm before and after a mask update, for the same loss.

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

    def grad(params: Params) -> Params:
        floats, whole = trees.floats(params)
        return whole(jax.grad(lambda floats: loss(whole(floats)))(floats))

    check_function("loss", loss, "(params) -> scalar")
    for what, masks in (("before", before), ("after", after)):
        check_masks(masks, what)
        trees.check_same(params, masks, what)
    start = apply(params, before)
    moved = apply(start, after)
    return gradient_flow(grad(start), before).norm, gradient_flow(grad(moved), after).norm


class RecordedFlow(NamedTuple):
    """State of `record_flow`: measures of its last step, zero before the first.

    Attributes:
      flow: of the weights that live after the step, a `Flow`.
      norm_before: the norm of the weights that lived before it; differs from `flow.norm` only at a
        mask update.
      effective: `effective_flow`.
      change: `first_order_change` by the updates that the step emits, float32.
      inner_state: the state of the wrapped optimizer.
    """

    flow: Flow
    norm_before: Array
    effective: Array
    change: Array
    inner_state: Any


def record_flow(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Keeps the gradient flow of every step in the optimizer's state, for logging.

    Steps are those of `inner`, bit for bit; the flow is computed from the gradients that it gets
    anyway. At a mask update, `norm_before` and `flow.norm` use the same gradient, the one at the
    old weights; `flow_across_update` computes a second one at the new weights.

    Args:
      inner: a sparse optimizer, whose masks are found in its state, or any other optimizer, all of
        whose weights count as living.

    Returns:
      An optimizer; `optax.tree.get(opt_state, "RecordedFlow")` finds its record.

    Example:
      >>> import jax.numpy as jnp, jaxsparse, optax
      >>> tx = record_flow(jaxsparse.fixed(optax.sgd(0.1), 0.5, key=0))
      >>> params, state = jaxsparse.init(tx, {"kernel": jnp.ones((2, 2))})
      >>> _, state = tx.update({"kernel": jnp.full((2, 2), 3.0)}, state, params)
      >>> round(float(state.flow.squared_norm), 3), round(float(state.change), 3)
      (18.0, -1.8)
    """
    if not isinstance(inner, optax.GradientTransformation):
        raise TypeError(f"inner must be an Optax gradient transformation, got {inner!r}.")
    inner = optax.with_extra_args_support(inner)

    def measured(grads: Params, state: Any) -> tuple[Flow, Array]:
        masks = get_masks(state, grads) if find(state) else jax.tree.map(lambda _: None, grads)
        return gradient_flow(grads, masks), effective_flow(grads, masks)

    def init(params: Params) -> RecordedFlow:
        state = inner.init(params)
        flow, effective = measured(jax.tree.map(_zeros, params), state)
        return RecordedFlow(flow, flow.norm, effective, jnp.float32(0), state)

    def update(
        grads: Params, state: RecordedFlow, params: Params | None = None, **extra: Any
    ) -> tuple[Params, RecordedFlow]:
        before, _ = measured(grads, state.inner_state)
        updates, inner_state = inner.update(grads, state.inner_state, params, **extra)
        flow, effective = measured(grads, inner_state)
        change = first_order_change(grads, updates)
        return updates, RecordedFlow(flow, before.norm, effective, change, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _zeros(leaf: Any) -> Any:
    return jnp.zeros_like(leaf) if trees.is_array(leaf) else leaf
