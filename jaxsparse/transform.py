"""`sparsify`: the single Optax wrapper. It keeps the masks in its state and applies a rule."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxsparse import compressed, prng, rules, trees
from jaxsparse.checks import check_choice, check_flag, check_function
from jaxsparse.inner_state import reset_dead
from jaxsparse.mask_update import (
    MaskUpdate,
    Step,
    any_replicate,
    look,
    mask_update,
    no_update,
)
from jaxsparse.masks import check_boolean, zero_dead
from jaxsparse.meshes import beside
from jaxsparse.packed import pack_leaves
from jaxsparse.sparse._values import expand
from jaxsparse.state_tree import (
    FORMAT,
    SparseState,
    as_masks,
    check_copies,
    find,
    is_state,
    starting_masks,
)
from jaxsparse.storage import Storage, regained, start, storage_of
from jaxsparse.types import Array, AxesSpec, Key, Masks, Params, Rule


def sparsify(
    inner: optax.GradientTransformation,
    rule: Rule,
    *,
    key: Key,
    skip_update: bool = False,
    regrown_state: str = "reset",
    first_value: Callable[[Array, Params], Params] | None = None,
    storage: str = "masked",
    room: float = 1.5,
    window: int | None = None,
    axes: AxesSpec = None,
    mask_storage: str = "bool",
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that its updates keep the parameters exactly sparse.

    One call of `update` does, in this order: (1) `rule.observe` sees the dense gradients; (2) where
    the rule fires, `rule.update` makes new masks (postponed while parameters, gradients or rule
    state are not all finite); (3) at a mask update, the inner state of weights that were dead
    before it, or are dead after it, is reset to its initial value; (4) the inner optimizer sees the
    gradients (as `rule.adjust` leaves them) and parameters of living weights; (5) living weights
    move by its update, weights that came to life start at their first value, dead weights are set
    to zero.

    With `skip_update` the mask update replaces the weight step of that count, as in RigL: masks
    are scored on the parameters as they are, no weight moves, and the inner state still advances.
    Without it, masks are scored on the parameters that the step leads to, so the next forward
    pass sees both.

    Args:
      inner: any Optax optimizer, including `optax.MultiSteps`. The wrapper must not be followed by
        transformations that move dead weights.
      rule: the method; see `jaxsparse.Rule`.
      key: an int, a typed key or raw key data; may be traced.
      skip_update: whether a mask update replaces the weight step.
      regrown_state: "reset"; "keep" to leave the inner state of dead weights alone; or "dense" to
        show the inner optimizer the gradients of dead weights too, so that a grown weight continues
        with the momentum that it would have had.
      first_value: `(key, params) -> tree of values` for weights that come to life; default 0.
      storage: "masked": dense arrays and masks. "compressed": the parameters are living values and
        their places, as csr or in another format, such as "compressed:block:32x32"; see
        `jaxsparse.sparse.train_step`. "compressed_state": the parameters stay dense, and the inner
        optimizer sees and keeps vectors of living values.
      room: with a compressed storage, the ratio, at least 1, of a leaf's capacity to the weights
        that live in it at the start, for methods that move weights between leaves. What one leaf
        has no room for goes to the others; see `jaxsparse.sparse.fit`.
      window: with storage "compressed", how many steps before a mask update `rule.observe` sees;
        None means `rule.window`.
      axes: with storage "compressed", what the axes of the kernels mean, as for
        `jaxsparse.sparse.compress`.
      mask_storage: "bool": a byte for every weight. "packed": the state keeps a bit for every
        weight of a leaf that may be sparse and a byte for every dense leaf; masks, results and
        `get_masks` are the same. Only for storage "masked".

    Returns:
      A `GradientTransformationExtraArgs`; `update` needs `params` and forwards extra arguments.
      With storage "compressed" it takes gradients of living values, and `dense_grads`, a function
      that gives the gradient of dense parameters; `jaxsparse.sparse.apply_updates` applies the
      updates.

    Raises:
      TypeError: `inner` is not a gradient transformation, `rule` is not a rule, or `key` is not a
        key; later, a state that was not made by this wrapper, or masks that are not boolean.
      ValueError: `regrown_state`, `storage` or `mask_storage` is unknown, or they do not work
        together; later, trees that differ from the parameters.

    Example:
      >>> import jax.numpy as jnp, jaxsparse, optax
      >>> tx = sparsify(optax.sgd(0.1), jaxsparse.rigl_rule(sparsity=0.5), key=0)
      >>> params = {"kernel": jnp.ones((2, 2))}
      >>> state = tx.init(params)
      >>> updates, state = tx.update({"kernel": jnp.ones((2, 2))}, state, params)
      >>> int((optax.apply_updates(params, updates)["kernel"] == 0).sum())
      2
    """
    if isinstance(inner, optax.MultiSteps):  # has `init` and `update`, but is not a transformation
        inner = inner.gradient_transformation()
    if not isinstance(inner, optax.GradientTransformation):
        raise TypeError(f"inner must be an Optax gradient transformation, got {inner!r}.")
    rules.check_rule(rule)
    check_choice("regrown_state", regrown_state, ("reset", "keep", "dense"))
    check_flag("skip_update", skip_update)
    if first_value is not None:
        check_function("first_value", first_value, "(key, params) -> tree of values")
    # Checked without making an array: `jax.distributed.initialize` may come after this.
    jax.eval_shape(lambda: prng.as_key(key))
    inner = optax.with_extra_args_support(inner)
    kept = storage_of(
        storage,
        rule,
        room=room,
        window=window,
        axes=axes,
        regrown_state=regrown_state,
        first_value=first_value,
        skip_update=skip_update,
    )
    check_choice("mask_storage", mask_storage, ("bool", "packed"))
    if mask_storage == "packed" and kept is not None:
        raise ValueError(
            f'mask_storage="packed" is for storage="masked"; with storage={storage!r} there are no '
            "masks, but places of living weights."
        )

    def init_fn(params: Params) -> SparseState:
        random = prng.as_key(key)
        dense = expand(params)
        masks, rule_state = rule.init(random, dense)
        check_boolean(masks, "the masks of rule.init")
        masks = beside(starting_masks(masks), dense)
        if kept is None:
            used = rules.sparse_leaves(rule, params)
            living = zero_dead(params, masks, used)
            masks = pack_leaves(masks, used) if mask_storage == "packed" else masks
        else:
            living, masks = start(kept, rule, params, masks)
        return SparseState(
            version=jnp.int32(FORMAT),
            count=jnp.int32(0),
            key=jax.random.key_data(random),
            masks=masks,
            inner_state=inner.init(living),
            rule_state=rule_state,
            pending=jnp.asarray(False),
            postponed=jnp.int32(0),
            last_update=jnp.int32(-1),
            churn=jnp.float32(0),
            sparse=rules.prunable_paths(rule, dense),
        )

    def update_fn(
        grads: Params,
        state: SparseState,
        params: Params | None = None,
        *,
        dense_grads: Callable[[Params], Params] | None = None,
        patches: bool = False,
        **extra: Any,
    ) -> tuple[Params, SparseState]:
        if params is None:
            raise ValueError(
                "update needs the parameters: call tx.update(grads, opt_state, params)."
            )
        _check_state(grads, state, params)
        state = state._replace(masks=regained(rule, state.masks, params))
        params = _fitting(grads, state, params, kept)
        impl = jax.random.key_impl(prng.as_key(key))
        random = jax.random.fold_in(jax.random.wrap_key_data(state.key, impl=impl), state.count)
        optimizer = optax.GradientTransformation(
            inner.init, functools.partial(inner.update, **extra)
        )
        if kept is None:
            step = look(rule, random, grads, state, params, skip_update, regrown_state)
            updates, decided, inner_state = _masked_step(optimizer, rule, step, first_value)
        else:
            method = compressed.Method(rule, optimizer, kept)
            updates, decided, inner_state = compressed.step(
                method, random, grads, state, params, dense_grads, patches
            )
        return updates, state._replace(
            count=optax.safe_increment(state.count),
            masks=decided.masks,
            inner_state=inner_state,
            rule_state=decided.rule_state,
            pending=decided.pending,
            postponed=state.postponed + decided.pending.astype(jnp.int32),
            last_update=jnp.where(decided.fired, state.count, state.last_update),
            churn=decided.churn,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _masked_step(
    optimizer: optax.GradientTransformation,
    rule: Rule,
    step: Step,
    first_value: Callable[[Array, Params], Params] | None,
) -> tuple[Params, MaskUpdate, Any]:
    """One step of dense arrays and masks."""
    state = step.state
    if rule.fires is None:
        decided, inner_state = no_update(step), state.inner_state
    else:
        wanted = rule.fires(state.count) | state.pending
        # Under vmap a batched predicate would run both branches at every step.
        some = any_replicate(wanted)
        # The state of a dead weight drifts from its initial value as the inner optimizer decays it,
        # and `set_masks` leaves it as it was; the update may bring the weight to life.
        clean, some = _reset(optimizer, step, state.masks, state.inner_state, wanted, some)
        scored = functools.partial(_scored, optimizer, step, clean, rule.reads_dead)
        compares = first_value is not None or step.grows_while_moving
        decided = mask_update(step, rule, scored, wanted, some, compares)
        inner_state, _ = _reset(optimizer, step, decided.masks, clean, decided.fired, some)
    updates, inner_state = _inner_step(optimizer, step, decided.masks, inner_state)
    return _emit(step, decided, updates, first_value), decided, inner_state


def _reset(
    inner: optax.GradientTransformation,
    step: Step,
    masks: Masks,
    inner_state: Any,
    when: Array,
    some: Array,
) -> tuple[Any, Array]:
    """(3) Resets the inner state of weights off the masks to what `inner.init` gives there."""
    if step.regrown_state != "reset":
        return inner_state, some

    def fresh() -> Any:
        return inner.init(zero_dead(step.params, as_masks(masks), step.sparse))

    return reset_dead(inner_state, fresh, step.params, masks, step.sparse, when, some)


def _inner_step(
    inner: optax.GradientTransformation, step: Step, masks: Masks, inner_state: Any
) -> tuple[Params, Any]:
    """(4) What the inner optimizer makes of the living weights."""
    grads, masks = step.adjusted, as_masks(masks)
    if step.regrown_state != "dense":
        grads = zero_dead(grads, masks, step.sparse)
    return inner.update(grads, inner_state, zero_dead(step.params, masks, step.sparse))


def _scored(
    inner: optax.GradientTransformation, step: Step, inner_state: Any, reads_dead: bool
) -> Params:
    """The parameters that new masks are scored on: as they are, or as the step leaves them."""
    masks = step.masks
    if step.skips and not reads_dead:
        return step.params
    params = zero_dead(step.params, masks, step.sparse)
    if step.skips:
        return params
    moves, _ = _inner_step(inner, step, masks, inner_state)
    return zero_dead(optax.apply_updates(params, moves), masks, step.sparse)


def _emit(
    step: Step,
    decided: MaskUpdate,
    updates: Params,
    first_value: Callable[[Array, Params], Params] | None,
) -> Params:
    """(5) Updates that land exactly on the masks."""
    fired = decided.fired

    def leaf(p: Array, u: Any, mask: Array, before: Array, used: bool, value: Any) -> Any:
        if not trees.is_array(u) or not jnp.issubdtype(u.dtype, jnp.inexact):
            return u
        u = u.astype(p.dtype)
        if step.skips:
            u = jnp.where(fired, jnp.zeros((), p.dtype), u)
        if not used:
            return u
        if value is not None:
            u = jnp.where(fired & ~before, value.astype(p.dtype) - p, u)
        elif step.grows_while_moving:
            u = jnp.where(fired, jnp.where(before, u, -p), u)
        return jnp.where(mask, u, -p)

    used = jax.tree.unflatten(jax.tree.structure(step.params), step.sparse)
    first = jax.tree.map(lambda _: None, step.params)
    if first_value is not None:
        first = first_value(jax.random.fold_in(step.key, 1), step.params)
    masks, before = as_masks(decided.masks), as_masks(decided.before)
    return jax.tree.map(leaf, step.params, updates, masks, before, used, first)


def _fitting(grads: Params, state: SparseState, params: Params, kept: Storage | None) -> Params:
    """The parameters, without the parts that the masks do not have.

    Raises:
      TypeError: parameters that are not compressed where they should be, or the other way round.
      ValueError: trees that differ from the parameters.
    """
    if kept is not None and kept.format is not None:
        compressed.check_compressed(grads, state, params)
        return params
    masks = as_masks(state.masks)
    if kept is not None:
        masks = jax.tree.map(lambda _: True, masks)
    params = trees.cut(params, masks)
    trees.check_same(params, grads, "grads")
    trees.check_same(params, masks, "masks", shapes=kept is None)
    check_copies(params, grads, state.count)
    return params


def _check_state(grads: Any, state: Any, params: Any) -> None:
    if isinstance(state, SparseState):
        return
    if find(grads) or find(params):
        raise TypeError("the arguments are swapped: call tx.update(grads, opt_state, params).")
    hint = "to take over a dense run, begin with jaxsparse.take_over(tx, opt_state, params)"
    if is_state(state) and not isinstance(state, Mapping):
        hint = "this is the state of another sparse transformation"
    elif find(state):
        hint = "restore a checkpoint with a template such as jax.eval_shape(tx.init, params)"
    raise TypeError(
        f"opt_state must be what tx.init(params) gives, a SparseState, got {type(state).__name__}; "
        f"{hint}."
    )
