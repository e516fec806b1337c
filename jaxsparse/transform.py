"""`sparsify`: the single Optax wrapper. It keeps the masks in its state and puts a rule to work."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxsparse import counts, prng, trees
from jaxsparse.checks import check_choice, check_flag, check_function
from jaxsparse.inner_state import reset_dead
from jaxsparse.masks import check_boolean
from jaxsparse.schedules import never
from jaxsparse.state_tree import FORMAT, SparseState, find, starting_masks
from jaxsparse.types import Array, Key, Masks, Params, Rule


def sparsify(
    inner: optax.GradientTransformation,
    rule: Rule,
    *,
    key: Key,
    skip_update: bool = False,
    regrown_state: str = "reset",
    first_value: Callable[[Array, Params], Params] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that its updates keep the parameters exactly sparse.

    One call of `update` does, in this order: (1) `rule.observe` sees the dense gradients; (2) where
    the rule fires, `rule.update` makes new masks (postponed while parameters, gradients or rule
    state are not all finite); (3) at a mask update the inner state of weights that were dead before
    it, or are dead after it, goes back to its initial value; (4) the inner optimizer sees the
    gradients (as `rule.adjust` leaves them) and parameters of living weights; (5) living weights
    move by its update, weights that came to life start at their first value, dead weights are set
    to zero.

    With `skip_update` the mask update replaces the weight step of that count, as in RigL: masks
    are scored on the parameters as they are, no weight moves, and the inner state still advances.
    Without it, masks are scored on the parameters that the step leads to, so the next forward
    pass sees both.

    Args:
      inner: any Optax optimizer, `optax.MultiSteps` among them; it must not be followed by
        transformations that move dead weights.
      rule: the method; see `jaxsparse.Rule`.
      key: an int, a typed key or raw key data; may be traced.
      skip_update: whether a mask update replaces the weight step.
      regrown_state: "reset"; "keep" to leave the inner state of dead weights alone; or "dense" to
        show the inner optimizer the gradients of dead weights too, so that a grown weight goes on
        with the momentum that it would have.
      first_value: `(key, params) -> tree of values` for weights that come to life; default 0.

    Returns:
      A `GradientTransformationExtraArgs`; `update` needs `params` and forwards extra arguments.

    Raises:
      TypeError: `inner` is no gradient transformation, `rule` no rule, `key` no key; later, a state
        that is none of this wrapper, or masks that are not boolean.
      ValueError: `regrown_state` is unknown; later, trees that differ from the parameters.

    Example:
      >>> import jax.numpy as jnp, jaxsparse, optax
      >>> tx = sparsify(optax.sgd(0.1), jaxsparse.rigl_rule(sparsity=0.5), key=0)
      >>> params = {"kernel": jnp.ones((2, 2))}
      >>> state = tx.init(params)
      >>> updates, state = tx.update({"kernel": jnp.ones((2, 2))}, state, params)
      >>> int((optax.apply_updates(params, updates)["kernel"] == 0).sum())
      2
    """
    if isinstance(inner, optax.MultiSteps):  # has `init` and `update`, but is no transformation
        inner = inner.gradient_transformation()
    if not isinstance(inner, optax.GradientTransformation):
        raise TypeError(f"inner must be an Optax gradient transformation, got {inner!r}.")
    if not isinstance(rule, Rule):
        raise TypeError(f"rule must be a jaxsparse.Rule, got {rule!r}.")
    check_choice("regrown_state", regrown_state, ("reset", "keep", "dense"))
    check_flag("skip_update", skip_update)
    if first_value is not None:
        check_function("first_value", first_value, "(key, params) -> tree of values")
    prng.as_key(key)
    inner = optax.with_extra_args_support(inner)
    static = rule.fires is never

    def init_fn(params: Params) -> SparseState:
        random = prng.as_key(key)
        masks, rule_state = rule.init(random, params)
        check_boolean(masks, "the masks of rule.init")
        masks = starting_masks(masks)
        return SparseState(
            version=jnp.int32(FORMAT),
            count=jnp.int32(0),
            key=jax.random.key_data(random),
            masks=masks,
            inner_state=inner.init(_living(params, masks, _sparse(rule, params))),
            rule_state=rule_state,
            pending=jnp.asarray(False),
            postponed=jnp.int32(0),
            last_update=jnp.int32(-1),
            churn=jnp.float32(0),
            sparse=_prunable_paths(rule, params),
        )

    def update_fn(
        grads: Params, state: SparseState, params: Params | None = None, **extra: Any
    ) -> tuple[Params, SparseState]:
        if params is None:
            raise ValueError(
                "update needs the parameters: call tx.update(grads, opt_state, params)."
            )
        _check_state(grads, state, params)
        params = trees.cut(params, state.masks)
        trees.check_same(params, grads, "grads")
        trees.check_same(params, state.masks, "masks")
        sparse, old = _sparse(rule, params), state.masks
        impl = jax.random.key_impl(prng.as_key(key))
        random = jax.random.fold_in(jax.random.wrap_key_data(state.key, impl=impl), state.count)
        observed = rule.observe(state.rule_state, grads, old, params, state.count)
        adjusted = grads
        if rule.adjust is not None:
            noise = jax.random.fold_in(random, 2)
            adjusted = rule.adjust(noise, state.count, old, params, grads, observed)

        def seen(masks: Masks) -> Params:
            """The gradients as the inner optimizer sees them."""
            return adjusted if regrown_state == "dense" else _living(adjusted, masks, sparse)

        def reset(inner_state: Any, masks: Masks, when: Array, some: Array) -> tuple[Any, Array]:
            if regrown_state != "reset":
                return inner_state, some
            fresh = lambda: inner.init(_living(params, masks, sparse))  # noqa: E731
            return reset_dead(inner_state, fresh, params, masks, sparse, when, some)

        def attempt() -> tuple[Masks, Any, Array, Array]:
            scored = _living(params, old, sparse)
            if not skip_update:
                moves, _ = inner.update(seen(old), inner_state, scored, **extra)
                scored = _living(optax.apply_updates(scored, moves), old, sparse)
            masks, kept = rule.update(random, state.count, old, scored, grads, observed)
            masks = _replace_sparse(sparse, old, masks)
            churn = _churn(sparse, old, masks)
            fired = wanted & _finite(_only(sparse, scored, grads)) & _finite([observed])
            # The churn is always finite, but waiting for it lets the select, as the last reader of
            # the old masks, write over them in place; otherwise every step would copy them.
            last = fired & jnp.isfinite(churn)
            return _where(last, masks, old), _where(fired, kept, observed), fired, churn

        if static:
            masks, rule_state, pending, churn = old, observed, state.pending, state.churn
            fired = jnp.asarray(False)
            inner_state = state.inner_state
        else:
            wanted = rule.fires(state.count) | state.pending
            # Under vmap a batched predicate would run both branches at every step.
            some = _any_replicate(wanted)
            # The state of a dead weight drifts from its initial value as the inner optimizer
            # decays it, and `set_masks` leaves what it was; the update may bring it to life.
            inner_state, some = reset(state.inner_state, old, wanted, some)
            masks, rule_state, fired, churn = lax.cond(
                some,
                attempt,
                lambda: (old, observed, jnp.zeros_like(wanted), jnp.float32(0)),
            )
            pending, churn = wanted & ~fired, jnp.where(fired, churn, state.churn)
            inner_state, _ = reset(inner_state, masks, fired, some)

        updates, inner_state = inner.update(
            seen(masks), inner_state, _living(params, masks, sparse), **extra
        )

        def emit(u: Array, p: Array, mask: Array, before: Array, used: bool, first: Any) -> Array:
            if not trees.is_array(u) or not jnp.issubdtype(u.dtype, jnp.inexact):
                return u
            u = u.astype(p.dtype)
            if skip_update and not static:
                u = jnp.where(fired, jnp.zeros((), p.dtype), u)
            if not used:
                return u
            if first is not None:
                u = jnp.where(fired & ~before, first.astype(p.dtype) - p, u)
            elif rule.grows and not (skip_update or static):
                u = jnp.where(fired, jnp.where(before, u, -p), u)
            return jnp.where(mask, u, -p)

        treedef = jax.tree.structure(params)
        first = [None] * len(sparse)
        if first_value is not None:
            first = treedef.flatten_up_to(first_value(jax.random.fold_in(random, 1), params))
        flat = [treedef.flatten_up_to(tree) for tree in (updates, params, masks, old)]
        updates = treedef.unflatten(map(emit, *flat, sparse, first))
        return updates, SparseState(
            version=state.version,
            count=optax.safe_increment(state.count),
            key=state.key,
            masks=masks,
            inner_state=inner_state,
            rule_state=rule_state,
            pending=pending,
            postponed=state.postponed + pending.astype(jnp.int32),
            last_update=jnp.where(fired, state.count, state.last_update),
            churn=churn,
            sparse=state.sparse,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


@jax.custom_batching.custom_vmap
def _any_replicate(flag: Array) -> Array:
    """Whether any replicate under `vmap` raises the flag; the answer itself is not batched."""
    return flag


@_any_replicate.def_vmap
def _(axis_size: int, in_batched: list[bool], flag: Array) -> tuple[Array, bool]:
    return _any_replicate(jnp.any(flag)), False


def _sparse(rule: Rule, params: Params) -> list[bool]:
    return jax.tree.leaves(rule.sparse(params))


def _prunable_paths(rule: Rule, params: Params) -> tuple[str, ...]:
    chosen = (rule.prunable or rule.sparse)(params)
    found = zip(jax.tree.leaves_with_path(params), jax.tree.leaves(chosen), strict=True)
    return tuple(trees.name(path) for (path, _), use in found if use)


def _check_state(grads: Any, state: Any, params: Any) -> None:
    if isinstance(state, SparseState):
        return
    if find(grads) or find(params):
        raise TypeError("the arguments are swapped: call tx.update(grads, opt_state, params).")
    hint = "to take over a dense run, begin with jaxsparse.take_over(tx, opt_state, params)"
    if find(state):
        hint = "restore a checkpoint with a template such as jax.eval_shape(tx.init, params)"
    raise TypeError(
        f"opt_state must be what tx.init(params) gives, a SparseState, got {type(state).__name__}; "
        f"{hint}."
    )


def _living(tree: Any, masks: Masks, sparse: list[bool]) -> Any:
    """Zero off the masks; leaves that are never sparse cost nothing."""
    leaves, treedef = jax.tree.flatten(masks)
    found = treedef.flatten_up_to(tree)
    return treedef.unflatten(
        jnp.where(mask, leaf, jnp.zeros((), leaf.dtype)) if used and trees.is_array(leaf) else leaf
        for leaf, mask, used in zip(found, leaves, sparse, strict=True)
    )


def _only(sparse: list[bool], *found: Any) -> list[Array]:
    return [
        x for tree in found for x, used in zip(jax.tree.leaves(tree), sparse, strict=True) if used
    ]


def _finite(found: list[Any]) -> Array:
    # No array of the flags: it can be empty, and jaxlib 0.11 on a CPU crashes while compiling an
    # empty constant inside shard_map.
    arrays = [x for x in jax.tree.leaves(found) if jnp.issubdtype(x.dtype, jnp.inexact)]
    flags = [jnp.all(jnp.isfinite(x)) for x in arrays]
    return functools.reduce(jnp.logical_and, flags, jnp.asarray(True))


def _where(flag: Array, new: Any, old: Any) -> Any:
    """Selects leaf by leaf; what did not change is passed on as it is, and so costs nothing."""
    return jax.tree.map(lambda a, b: a if a is b else jnp.where(flag, a, b), new, old)


def _replace_sparse(sparse: list[bool], old: Masks, new: Masks) -> Masks:
    leaves, treedef = jax.tree.flatten(old)
    found = trees.check_same(old, new, "the masks of rule.update")
    check_boolean(new, "the masks of rule.update")
    return treedef.unflatten(
        b if used else a for a, b, used in zip(leaves, found, sparse, strict=True)
    )


def _churn(sparse: list[bool], old: Masks, new: Masks) -> Array:
    before, after = _only(sparse, old), _only(sparse, new)
    born = [jnp.sum(b & ~a, dtype=jnp.int32) for a, b in zip(before, after, strict=True)]
    return counts.ratio(born, [jnp.sum(b, dtype=jnp.int32) for b in after])
