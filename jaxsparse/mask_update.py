"""The mask update of `sparsify`: new masks when the rule fires and its inputs are finite."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsparse import counts, rules, trees
from jaxsparse.masks import check_boolean, living_each
from jaxsparse.meshes import automatic, on_one_device
from jaxsparse.packed import pack_leaves
from jaxsparse.selection import kernels
from jaxsparse.state_tree import SparseState, as_masks, kept_like, tells_mask
from jaxsparse.types import Array, Masks, Params, Rule, RuleUpdate


class Step(NamedTuple):
    """What all parts of one call of `update` read.

    Attributes:
      regrown_state: as for `sparsify`.
      skips: whether a mask update replaces the weight step.
      grows: whether weights may come to life.
      sparse: which leaves may be sparse.
      key: the random key of this step.
      state: the state before the step.
      params: the parameters.
      grads: the dense gradients.
      adjusted: the gradients for the inner optimizer, as `rule.adjust` leaves them.
      observed: the rule state, as `rule.observe` leaves it.
    """

    regrown_state: str
    skips: bool
    grows: bool
    sparse: list[bool]
    key: Array
    state: SparseState
    params: Params
    grads: Params
    adjusted: Params
    observed: Any

    @property
    def masks(self) -> Masks:
        """The masks before the step; made on access, if the state stores bits."""
        return as_masks(self.state.masks)

    @property
    def grows_while_moving(self) -> bool:
        """Whether weights may come to life in a step that moves those that lived before."""
        return self.grows and not self.skips


class Decision(NamedTuple):
    """What a rule decides at a step, before it is known whether the decision takes effect.

    Attributes:
      masks: the new masks, in the form that the state stores.
      rule_state: the new state of the rule.
      fired: bool, whether they take effect.
      churn: the fraction of their living weights that were dead before.
    """

    masks: Masks
    rule_state: Any
    fired: Array
    churn: Array


class MaskUpdate(NamedTuple):
    """What a step decides about the masks.

    Attributes:
      masks: the masks from now on, in the form that the state stores.
      before: the masks before, where `fired` and somebody asked for them.
      rule_state: the state of the rule.
      fired: bool, whether the masks are new.
      pending: bool, whether an update is overdue.
      churn: that of the last update.
    """

    masks: Masks
    before: Masks
    rule_state: Any
    fired: Array
    pending: Array
    churn: Array


def look(
    rule: Rule,
    key: Array,
    grads: Params,
    state: SparseState,
    params: Params,
    skip_update: bool,
    regrown_state: str,
) -> Step:
    """(1) What the rule makes of the dense gradients, with everything else that the step needs."""
    masks, count, moves = as_masks(state.masks), state.count, rule.fires is not None
    observed = rules.observe(rule, state.rule_state, grads, masks, params, count)
    noise = jax.random.fold_in(key, 2)
    return Step(
        regrown_state=regrown_state,
        skips=skip_update and moves,
        grows=rule.grows and moves,
        sparse=rules.sparse_leaves(rule, params),
        key=key,
        state=state,
        params=params,
        grads=grads,
        adjusted=rules.adjust(rule, noise, count, masks, params, grads, observed),
        observed=observed,
    )


def no_update(step: Step) -> MaskUpdate:
    """(2) What a static rule decides: nothing."""
    state = step.state
    return MaskUpdate(
        masks=state.masks,
        before=state.masks,
        rule_state=step.observed,
        fired=jnp.asarray(False),
        pending=state.pending,
        churn=state.churn,
    )


def mask_update(
    step: Step,
    rule: Rule,
    scored: Callable[[], Params],
    wanted: Array,
    some: Array,
    compares: bool,
) -> MaskUpdate:
    """(2) New masks, if they are wanted and everything they are made from is finite.

    Args:
      step: what the step reads.
      rule: the rule whose masks move.
      scored: returns the parameters that masks are scored on, zero off the old masks.
      wanted: whether the masks should change.
      some: whether those of any replicate under `vmap` should.
      compares: whether the step compares the new masks with those before.
    """
    old, observed = step.state.masks, step.observed

    def copied() -> Masks:
        # The new masks overwrite the old ones in place, of which nothing is left but bits.
        return pack_leaves(old, step.sparse, everywhere=False) if compares else ()

    def attempt() -> tuple[Masks, Any, Array, Array, Masks]:
        # Made by a select, a copy is not taken for the old masks themselves, where these are bits.
        before = jax.tree.map(lambda x: jnp.where(some, x, jnp.zeros_like(x)), copied())
        new = decide(step, rule, scored(), wanted)
        # The churn is always finite and no count negative, but waiting for them lets the select, as
        # the last reader of the old masks, overwrite them in place; every step would copy them.
        last = new.fired & jnp.isfinite(new.churn)
        if compares and any(step.sparse):
            last &= jnp.all(living_each(_only(step.sparse, before)) >= 0)
        masks, rule_state = where(last, new.masks, old), where(new.fired, new.rule_state, observed)
        return masks, rule_state, new.fired, new.churn, before

    def nothing() -> tuple[Masks, Any, Array, Array, Masks]:
        # Nobody reads a copy then. XLA knows what is zero, and does not make it first.
        before = jax.tree.map(lambda x: x & jnp.zeros_like(x), copied())
        return old, observed, jnp.zeros_like(wanted), jnp.zeros_like(step.state.churn), before

    masks, rule_state, fired, churn, before = lax.cond(some, attempt, nothing)
    return MaskUpdate(
        masks=masks,
        before=before if compares else old,
        rule_state=rule_state,
        fired=fired,
        pending=wanted & ~fired,
        churn=jnp.where(fired, churn, step.state.churn),
    )


def decide(step: Step, rule: Rule, params: Params, wanted: Array) -> Decision:
    """What the rule decides for these parameters, which are zero off the old masks.

    Args:
      step, rule, wanted: as for `mask_update`.
      params: the parameters that masks are scored on.
    """
    old, observed = step.state.masks, step.observed
    params, finite = _checked(step, params)
    renew = automatic(_update_of(rule, old), (old, observed))
    masks, rule_state = renew(step.key, step.state.count, old, params, step.grads, observed)
    masks = _replace_sparse(step.sparse, old, masks)
    churn = _churn(step.sparse, old, masks)
    finite &= _finite(_only(step.sparse, step.grads)) & _finite([observed])
    return Decision(masks, rule_state, wanted & finite, churn)


def _update_of(rule: Rule, kept: Any) -> RuleUpdate:
    """The update of a rule, which takes and returns masks in the form that a state stores."""
    update: Any = rule.update
    packed = any(map(tells_mask, jax.tree.leaves(kept, is_leaf=tells_mask)))
    if packed and rule.reads_packed:
        return update

    def renew(key: Array, count: Array, kept: Any, *given: Any) -> tuple[Any, Any]:
        old = as_masks(kept)
        masks, rule_state = update(key, count, old, *given)
        trees.check_same(old, masks, "the masks of rule.update")
        check_boolean(masks, "the masks of rule.update")
        return kept_like(kept, masks), rule_state

    return renew


@jax.custom_batching.custom_vmap
def any_replicate(flag: Array) -> Array:
    """Whether any replicate under `vmap` raises the flag; the answer itself is not batched."""
    return flag


@any_replicate.def_vmap
def _(axis_size: int, in_batched: list[bool], flag: Array) -> tuple[Array, bool]:
    return any_replicate(jnp.any(flag)), False


def _only(sparse: list[bool], *found: Any) -> list[Array]:
    leaves = [jax.tree.leaves(tree, is_leaf=tells_mask) for tree in found]
    return [x for each in leaves for x, used in zip(each, sparse, strict=True) if used]


def _checked(step: Step, params: Params) -> tuple[Params, Array]:
    """The parameters that masks are scored on, and whether those of all sparse leaves are finite.

    XLA computes first what needs nothing else, and so the scored parameters of all leaves. Here
    each leaf waits until the one before is checked: by the time that its own are computed, masks
    are being made from those before, whose memory is then free.
    """
    leaves, treedef = jax.tree.flatten(params)
    given = treedef.flatten_up_to(step.params)
    sparse = [i for i, used in enumerate(step.sparse) if used]
    computed = [i for i in sparse if leaves[i] is not given[i]]
    finite = _finite([leaves[i] for i in sparse if leaves[i] is given[i]])
    if not kernels.exist() or any(leaves[i].dtype != jnp.float32 for i in computed):
        return params, finite & _finite([leaves[i] for i in computed])
    before = jnp.asarray(True)
    for i in computed:
        leaf = jnp.where(before, leaves[i], jnp.zeros_like(leaves[i]))
        leaves[i], flag, before = _check(leaf)
        finite &= flag
    return treedef.unflatten(leaves), finite


def _check_by_kernel(array: Array) -> tuple[Array, Array, Array]:
    same, finite = kernels.checked(array)
    return same, finite, finite


_check = on_one_device(
    _check_by_kernel,
    lambda array: (array, _none_infinite(array), jnp.asarray(True)),
    lambda array: (array, *2 * [jax.ShapeDtypeStruct((), jnp.bool_)]),
)
"""The same array, whether it is finite, and True for whoever waits for that."""


def _finite(found: list[Any]) -> Array:
    # The flags are not put into an array: it can be empty, and jaxlib 0.11 on a CPU crashes while
    # compiling an empty constant inside shard_map.
    arrays = [x for x in jax.tree.leaves(found) if jnp.issubdtype(x.dtype, jnp.inexact)]
    if kernels.exist() and arrays and all(x.dtype == jnp.float32 for x in arrays):
        return _finite_by_kernel(*arrays)
    return _none_infinite(*arrays)


def _none_infinite(*arrays: Array) -> Array:
    # A maximum with NaN is NaN; XLA reduces booleans far more slowly.
    flags = [jnp.max(jnp.abs(x), initial=0) < jnp.inf for x in arrays]
    return functools.reduce(jnp.logical_and, flags, jnp.asarray(True))


_finite_by_kernel = on_one_device(
    kernels.all_finite, _none_infinite, lambda *_: jax.ShapeDtypeStruct((), jnp.bool_)
)


def where(flag: Array, new: Any, old: Any) -> Any:
    """Selects leaf by leaf; what did not change is passed on as it is, at no cost."""
    return jax.tree.map(lambda a, b: a if a is b else jnp.where(flag, a, b), new, old)


def _replace_sparse(sparse: list[bool], old: Masks, new: Masks) -> Masks:
    leaves, treedef = jax.tree.flatten(old, is_leaf=tells_mask)
    pairs = zip(leaves, treedef.flatten_up_to(new), sparse, strict=True)
    return jax.tree.unflatten(treedef, [b if used else a for a, b, used in pairs])


def _churn(sparse: list[bool], old: Masks, new: Masks) -> Array:
    before, after = _only(sparse, old), _only(sparse, new)
    return counts.ratio(list(living_each(after, off=before)), list(living_each(after)))
