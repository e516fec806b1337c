"""What both kinds of steps consist of: who performs them, what they know, and what comes out."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsparse.mask_update import MaskUpdate
from jaxsparse.sparse._moving import at_kernels, compressed_leaves, kernels_of, moments
from jaxsparse.state_tree import SparseState
from jaxsparse.storage import Storage
from jaxsparse.types import Array, Masks, Params, Rule, Schedule


class Moved(NamedTuple):
    """What a mask update moves, and what it reports.

    Attributes:
      held: the kernels and their gradients, or only their places if values are stored elsewhere.
      state: the optimizer state that belongs to them.
      rule_state: what the rule keeps.
      fired: bool, whether the masks are new.
      churn: the fraction of the living weights that the update brought to life.
      born: which values are new; empty unless the step needs to know.
      first: their first values; empty if none are given.
    """

    held: Any
    state: list[Array]
    rule_state: Any
    fired: Array
    churn: Array
    born: list[Array]
    first: list[Array]


class Living(NamedTuple):
    """What a step knows about the living weights.

    Attributes:
      kernels: the parameters, with kernels at free places.
      grads: the gradients of their values, as the optimizer will see them.
      inner_state: the state of the optimizer of values.
    """

    kernels: Params
    grads: Params
    inner_state: Any

    @property
    def moments(self) -> dict[int, int]:
        """Which leaves of the state belong to kernels, and which kernel each belongs to."""
        return moments(self.inner_state, self.kernels, self.grads)


class Method(NamedTuple):
    """What performs a step: a rule, an optimizer of values, and how the values are stored."""

    rule: Rule
    optimizer: optax.GradientTransformation
    storage: Storage

    def asks_born(self) -> bool:
        """Whether a step needs to know which values are new."""
        if self.rule.fires is None or not self.rule.grows:
            return False
        return self.storage.first_value is not None or not self.storage.skip_update


Outcome = tuple[Params, MaskUpdate, Any]
"""The updates, the decision about the masks, and the optimizer's state."""


def fires(rule: Rule) -> Schedule:
    """When the masks change; never for a static rule."""
    return rule.fires or (lambda count: jnp.zeros(count.shape, bool))


def wanted_now(rule: Rule, state: SparseState) -> Array:
    """Whether this step is to change the masks."""
    return fires(rule)(state.count) | state.pending


def decided(state: SparseState, moved: Moved, masks: Masks, wanted: Array) -> MaskUpdate:
    """The decision about the masks, with these masks."""
    return MaskUpdate(
        masks=masks,
        before=(),
        rule_state=moved.rule_state,
        fired=moved.fired,
        pending=wanted & ~moved.fired,
        churn=jnp.where(moved.fired, moved.churn, state.churn),
    )


def pairs(params: Params, tree: Any) -> list[tuple[Any, Array]]:
    """Every kernel with its leaf of a tree of values."""
    return list(zip(kernels_of(params), at_kernels(params, tree), strict=True))


def put(params: Params, tree: Any, found: list[Any]) -> Any:
    """A tree of values with the leaves of kernels replaced."""
    others = iter(found)
    leaves, treedef = jax.tree.flatten(tree)
    flags = compressed_leaves(params)
    return treedef.unflatten(
        next(others) if mine else leaf for mine, leaf in zip(flags, leaves, strict=True)
    )
