"""Every optimizer times RigL, every algorithm times two optimizers of three, times the invariants.

A cell is one compiled program, and another one where replicates train side by side: it trains a
small net for some steps with several mask updates and answers one bool per invariant. It begins as
users do, outside of `jit`, where cells share what is compiled; replicates begin under `vmap`.
"""

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import jaxsparse
from tests.optimizers import EXEMPT, EXTRA, IMPOSSIBLE, OPTIMIZERS

# Optimizers of optax lean on implicit promotion; the cells with plain SGD forbid it again.
pytestmark = pytest.mark.standard_promotion

STEPS = 9
KEY = 3

ALGORITHMS = {
    "fixed": lambda inner, key, **more: jaxsparse.fixed(inner, 0.7, key=key, **more),
    "gradual": lambda inner, key, **more: jaxsparse.gradual(
        inner, 0.7, start=1, stop=6, every=2, **more
    ),
    "gradual global": lambda inner, key, **more: jaxsparse.gradual(
        inner, 0.7, start=1, stop=6, every=2, scope="global", **more
    ),
    "sparse_evolution": lambda inner, key, **more: jaxsparse.sparse_evolution(
        inner, 0.7, key=key, every=2, drop_fraction=0.5, **more
    ),
    "rigl": lambda inner, key, **more: jaxsparse.rigl(
        inner, 0.7, key=key, every=2, drop_fraction=0.5, **more
    ),
    "rigl accumulate": lambda inner, key, **more: jaxsparse.rigl(
        inner, 0.7, key=key, every=3, accumulate=2, drop_fraction=0.5, **more
    ),
    "rigl removing units": lambda inner, key, **more: jaxsparse.rigl(
        inner,
        0.7,
        key=key,
        every=2,
        drop_fraction=0.5,
        pattern=jaxsparse.fan_in,
        min_salient=0.6,
        keep_units=(),
        **more,
    ),
    "sparse_momentum": lambda inner, key, **more: jaxsparse.sparse_momentum(
        inner, 0.7, key=key, every=2, drop_fraction=0.5, **more
    ),
    "sparse_momentum by neuron": lambda inner, key, **more: jaxsparse.sparse_momentum(
        inner, 0.7, key=key, every=2, growth="momentum_neuron", redistribution="magnitude", **more
    ),
    "sparse_momentum global": lambda inner, key, **more: jaxsparse.sparse_momentum(
        inner, 0.7, key=key, every=2, drop_by="global", growth="global", drop_fraction=0.4, **more
    ),
    "sparse_momentum normalised": lambda inner, key, **more: jaxsparse.sparse_momentum(
        inner,
        0.7,
        key=key,
        every=2,
        second_moment=0.999,
        drop_by="sign",
        redistribution="nonzero",
        **more,
    ),
    "sparse_evolution by sign": lambda inner, key, **more: jaxsparse.sparse_evolution(
        inner, 0.7, key=key, every=2, drop_fraction=0.5, drop_by="sign", **more
    ),
    "dynamic_reparameterization": lambda inner, key, **more: jaxsparse.dynamic_reparameterization(
        inner, 0.7, key=key, every=2, threshold=0.1, target=0.3, **more
    ),
    "deep_rewiring": lambda inner, key, **more: jaxsparse.deep_rewiring(
        inner, 0.7, key=key, l1=0.01, noise=0.5, **more
    ),
    "deep_rewiring free": lambda inner, key, **more: jaxsparse.deep_rewiring(
        inner, 0.7, key=key, l1=0.01, noise=0.5, sign="free", **more
    ),
}

INNERS = {
    "sgd": lambda: optax.sgd(1e-2, momentum=0.9),
    "adamw": lambda: optax.adamw(1e-2, weight_decay=0.1),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(0.1), optax.adam(1e-2)),
}


class Spied(NamedTuple):
    """State of `spy`: what the inner optimizer last saw, and its own state."""

    grads: Any
    params: Any
    inner: Any


def spy(inner):
    """The same optimizer, keeping what it sees."""
    inner = optax.with_extra_args_support(inner)

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return Spied(zeros, zeros, inner.init(params))

    def update(grads, state, params=None, **extra):
        updates, state = inner.update(grads, state.inner, params, **extra)
        return updates, Spied(grads, params, state)

    return optax.GradientTransformationExtraArgs(init, update)


RANDOM = np.random.default_rng(0)
WEIGHTS = {
    "fc1": {"kernel": RANDOM.normal(size=(8, 6)) / 3, "bias": np.zeros(6)},
    "fc2": {"kernel": RANDOM.normal(size=(6, 5)) / 3},
}
INPUTS = RANDOM.normal(size=(16, 8))


def initial_params(dtype=jnp.float32):
    return jax.tree.map(lambda w: jnp.asarray(w, dtype), WEIGHTS)


def loss(params):
    x = jnp.asarray(INPUTS, params["fc2"]["kernel"].dtype)
    hidden = jnp.tanh(x @ params["fc1"]["kernel"] + params["fc1"]["bias"])
    return jnp.mean((hidden @ params["fc2"]["kernel"] - x[:, :5]) ** 2)


def off_mask_is_initial(inner, state, params, masks):
    """Every weight-shaped leaf of the inner state holds its initial value off the masks."""
    good = jnp.asarray(True)
    paths = {tuple(p): m for p, m in jax.tree.leaves_with_path(masks) if m.ndim == 2}
    fresh = jax.tree.leaves(inner.init(params))
    for (path, leaf), initial in zip(jax.tree.leaves_with_path(state), fresh, strict=True):
        mask = next((m for p, m in paths.items() if tuple(path[-len(p) :]) == p), None)
        if mask is not None and leaf.shape[-2:] == mask.shape:
            # adabelief adds its epsilon to every weight at every step, hence a tolerance.
            close = jnp.abs(leaf - initial) <= 1e-6
            good &= jnp.all(mask | close)
    return good


def run(make, inner, key, dtype=jnp.float32, extra=("value", "unknown"), **more):
    """Trains; returns the last parameters and, for every step, one bool per invariant."""
    inner = spy(inner)
    tx = make(inner, key, **more)

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        known = {"value": value, "grad": grads, "value_fn": loss, "obj_fn": loss, "unknown": 1.0}
        given = {name: known[name] for name in extra}
        updates, state = tx.update(grads, state, params, **given)
        types = all(
            u.dtype == p.dtype
            for u, p in zip(jax.tree.leaves(updates), jax.tree.leaves(params), strict=True)
        )
        params = optax.apply_updates(params, updates)
        masks = jaxsparse.get_masks(state, params)

        def dead(tree):
            pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(masks), strict=True)
            return jnp.all(jnp.stack([jnp.all(mask | (leaf == 0)) for leaf, mask in pairs]))

        seen = state.inner_state
        flags = {
            "updates have the type of the parameters": jnp.asarray(types),
            "exactly sparse": dead(params),
            "inner sees living gradients only": dead(seen.grads),
            "inner sees living parameters only": dead(seen.params),
            "inner state is initial off the masks": off_mask_is_initial(inner, seen, params, masks),
            "finite": jnp.isfinite(loss(params)),
            "bias is dense": jnp.all(masks["fc1"]["bias"]),
        }
        alive = jax.tree.map(lambda mask: jnp.sum(mask, dtype=jnp.int32), masks)
        return (params, state), (flags, alive, jaxsparse.metrics(state))

    @jax.jit
    def train(start):
        (params, _), outputs = jax.lax.scan(step, start, None, length=STEPS)
        return params, *outputs

    return train(jaxsparse.init(tx, initial_params(dtype)))


def assert_flags(flags):
    broken = {name: np.flatnonzero(~np.asarray(ok)) for name, ok in flags.items()}
    assert not {name: steps for name, steps in broken.items() if steps.size}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_with_rigl(name):
    make = ALGORITHMS["rigl"]
    extra = EXTRA.get(name, ("value", "unknown"))
    _, flags, alive, metrics = run(make, OPTIMIZERS[name](), KEY, extra=extra)
    for known in EXEMPT.get(name, ()):
        flags.pop(known)
    assert_flags(flags)
    expected = jaxsparse.rigl_rule(0.7).alive(initial_params(), 0)
    jax.tree.map(lambda got, want: np.testing.assert_array_equal(got, want), alive, expected)
    np.testing.assert_array_equal(metrics["last_update"], [-1, -1, 2, 2, 4, 4, 6, 6, 8])
    assert metrics["churn"].max() > 0 and metrics["postponed"].max() == 0


def test_the_table_holds_every_optimizer_that_optax_exports():
    found = {
        name
        for module in (optax, contrib)
        for name, f in vars(module).items()
        if inspect.isfunction(f)
        and "learning_rate" in inspect.signature(f).parameters
        and not name.startswith(("scale_by", "_"))
    }
    assert {"adam", "sgd", "muon"} <= found
    assert found <= OPTIMIZERS.keys() | IMPOSSIBLE.keys()


@pytest.mark.parametrize(
    ("inner", "name"),
    [("sgd", name) for name in ALGORITHMS]
    + [(("adamw", "clipped")[i % 2], name) for i, name in enumerate(ALGORITHMS)],
)
def test_every_algorithm(inner, name):
    make = ALGORITHMS[name]
    other = {"mask_storage": "bool" if inner == "sgd" else "packed"}

    replicates = jax.jit(jax.vmap(lambda key: run(make, INNERS[inner](), key, **other)))

    with jax.numpy_dtype_promotion("strict" if inner == "sgd" else "standard"):
        params, flags, alive, metrics = run(make, INNERS[inner](), KEY)
        many, many_flags, _, _ = replicates(jnp.array([KEY, KEY + 1]))
    assert_flags(flags)
    assert_flags(jax.tree.map(lambda ok: ok.all(0), many_flags))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b[0], rtol=2e-5, atol=1e-6), params, many
    )
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a == 0, b[0] == 0), params, many)
    if name not in ("gradual", "gradual global"):
        kernels = many["fc1"]["kernel"]
        assert (kernels[0] != 0).tolist() != (kernels[1] != 0).tolist()
    assert (metrics["last_update"][-1] >= 0) == (name != "fixed")
    rule = RULES[name]
    for count in range(STEPS):
        now = jax.tree.map(lambda a, t=count: int(a[t]), alive)
        want = rule.alive(initial_params(), count)
        if isinstance(want, int):
            now = sum(jax.tree.leaves(now))
        assert now == want, count


RULES = {
    "fixed": jaxsparse.fixed_rule(0.7),
    "gradual": jaxsparse.gradual_rule(0.7, start=1, stop=6, every=2),
    "gradual global": jaxsparse.gradual_rule(0.7, start=1, stop=6, every=2, scope="global"),
    "sparse_evolution": jaxsparse.sparse_evolution_rule(0.7),
    "rigl": jaxsparse.rigl_rule(0.7),
    "rigl accumulate": jaxsparse.rigl_rule(0.7),
    "rigl removing units": jaxsparse.rigl_rule(
        0.7, pattern=jaxsparse.fan_in, min_salient=0.6, keep_units=()
    ),
    "sparse_momentum": jaxsparse.sparse_momentum_rule(0.7),
    "sparse_momentum by neuron": jaxsparse.sparse_momentum_rule(0.7),
    "sparse_momentum global": jaxsparse.sparse_momentum_rule(0.7),
    "sparse_momentum normalised": jaxsparse.sparse_momentum_rule(0.7),
    "sparse_evolution by sign": jaxsparse.sparse_evolution_rule(0.7),
    "dynamic_reparameterization": jaxsparse.dynamic_reparameterization_rule(0.7),
    "deep_rewiring": jaxsparse.deep_rewiring_rule(0.7),
    "deep_rewiring free": jaxsparse.deep_rewiring_rule(0.7, sign="free"),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("rigl", "bfloat16"),
        ("rigl", "float64"),
        ("rigl removing units", "float16"),
        ("sparse_evolution", "bfloat16"),
        ("sparse_momentum", "float16"),
        ("gradual", "float16"),
        ("dynamic_reparameterization", "bfloat16"),
        ("deep_rewiring", "float16"),
        ("deep_rewiring", "float64"),
    ],
)
def test_every_float_type(name, dtype):
    inner = optax.sgd(1e-2, momentum=0.9)
    with jax.numpy_dtype_promotion("strict"), jax.enable_x64(dtype == "float64"):
        _, flags, _, _ = run(ALGORITHMS[name], inner, KEY, dtype)
    assert_flags(flags)
