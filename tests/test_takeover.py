"""Going on sparse from the optimizer state of a dense run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse

pytestmark = pytest.mark.standard_promotion  # Adam leans on it

DRAW = np.random.default_rng(0)
PARAMS = {
    "fc": {"kernel": jnp.asarray(DRAW.normal(size=(4, 6)), jnp.float32), "bias": jnp.ones(6)},
    "head": {"kernel": jnp.asarray(DRAW.normal(size=(6, 4)), jnp.float32)},
}
MASKS = jaxsparse.prune_by_magnitude(PARAMS, 0.5)
ADAM = optax.adam(0.1)
TAKERS = {
    "gradual": lambda: jaxsparse.gradual(ADAM, 0.5, start=1, stop=3, every=1),
    "rigl": lambda: jaxsparse.rigl(ADAM, 0.5, key=0, every=2),
    "rigl masks": lambda: jaxsparse.rigl(ADAM, masks=MASKS, key=0, every=2),
    "fixed": lambda: jaxsparse.fixed(ADAM, masks=MASKS),
    "chain": lambda: optax.chain(optax.clip(9.0), jaxsparse.fixed(ADAM, masks=MASKS)),
}


@pytest.mark.parametrize("kind", ["state", "restored"])
@pytest.mark.parametrize("method", TAKERS)
def test_taking_over_a_dense_run(method, kind):
    """The moments of living weights go on, those of dead ones start anew, counts go on."""
    tx, params, dense = TAKERS[method](), PARAMS, ADAM.init(PARAMS)
    step = jax.jit(lambda params, state, tx: tx.update(params, state, params), static_argnums=2)
    for _ in range(3):
        updates, dense = step(params, dense, ADAM)
        params = optax.apply_updates(params, updates)
    given = dense
    if kind == "restored":  # as a checkpoint without a template gives it back
        given = [dict(zip(node._fields, node, strict=True)) for node in dense]
    sparse, state = jaxsparse.take_over(tx, given, params)
    masks = jaxsparse.get_masks(state, params)
    inner = jax.tree.leaves(state, is_leaf=lambda n: isinstance(n, jaxsparse.SparseState))
    inner = next(n for n in inner if isinstance(n, jaxsparse.SparseState)).inner_state
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(params))
    assert inner[0].count == 3
    for moment in ("mu", "nu"):
        expected = jaxsparse.apply(getattr(dense[0], moment), masks)
        jax.tree.map(np.testing.assert_array_equal, getattr(inner[0], moment), expected)
    jax.tree.map(np.testing.assert_array_equal, sparse, jaxsparse.apply(params, masks))
    updates, state = step(sparse, state, tx)
    moved = optax.apply_updates(sparse, updates)
    plain, _ = step(params, dense, ADAM)
    if method != "rigl":
        living = jaxsparse.apply(optax.apply_updates(params, plain), masks)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), moved, living)
    assert jaxsparse.metrics(state, params=moved)["off_mask"] == 0
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((params, dense)))
