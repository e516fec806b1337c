"""The state: resumable, mappable, drawn from its key; updates that wait for finite numbers."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import jaxsparse

DRAW = np.random.default_rng(0)
PARAMS = {
    "kernel": jnp.asarray(DRAW.normal(size=(6, 8)), jnp.float32),
    "bias": jnp.asarray(DRAW.normal(size=8), jnp.float32),
}
PHASES = jax.tree.map(lambda p: jnp.asarray(DRAW.uniform(0, 6, p.shape), jnp.float32), PARAMS)
ALIVE = 12
FACTORIES = {
    "fixed": lambda inner, **o: jaxsparse.fixed(inner, 0.75, key=0),
    "gradual": lambda inner, **o: jaxsparse.gradual(inner, 0.75, start=2, stop=8, every=3),
    "sparse_evolution": partial(jaxsparse.sparse_evolution, sparsity=0.75, key=0, every=3),
    "rigl": partial(jaxsparse.rigl, sparsity=0.75, key=0, every=3),
    "accumulate": partial(jaxsparse.rigl, sparsity=0.75, key=0, every=3, accumulate=2),
    "sparse_momentum": partial(jaxsparse.sparse_momentum, sparsity=0.75, key=0, every=3),
}


def gradients(params, t):
    """Dense gradients, different at every step and at every weight."""
    return jax.tree.map(lambda p, phase: jnp.cos(p + t * phase) + 0.1 * p, params, PHASES)


def stepper(tx):
    """`(params, state, grads) -> (params, state)`."""

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def steps(step, params, state, counts):
    for t in counts:
        params, state = step(params, state, gradients(params, jnp.float32(t)))
    return params, state


def rigl_with(key):
    return jaxsparse.rigl(optax.sgd(0.1, 0.9), 0.75, key=key, every=3)


@cache
def plain_step():
    return jax.jit(stepper(rigl_with(0)))


def assert_equal(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_checkpoint_resumes_bit_for_bit(tmp_path):
    tx = FACTORIES["sparse_momentum"](optax.sgd(0.1, 0.9), growth="random")
    params, state = jaxsparse.init(tx, PARAMS)
    leaves = jax.tree.leaves(state)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    assert not any(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves)
    assert state.version == 1 and state.version.dtype == jnp.int32

    step = jax.jit(stepper(tx))
    middle = steps(step, params, state, range(5))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "run", middle)
        checkpointer.wait_until_finished()
        like = jax.eval_shape(partial(jaxsparse.init, tx), PARAMS)
        restored = checkpointer.restore(tmp_path / "run", like)
    assert_equal(restored, middle)
    straight, resumed = (steps(step, *start, range(5, 11)) for start in (middle, restored))
    assert_equal(resumed, straight)
    assert straight[1].last_update == 9
    assert not np.array_equal(straight[1].masks["kernel"], middle[1].masks["kernel"])


@pytest.mark.parametrize("method", FACTORIES)
def test_tree_map_params(method):
    """Optax finds the weight-shaped trees of a state by a placeholder that it gives to `init`."""
    tx = FACTORIES[method](optax.sgd(0.1, 0.9))
    specs = {name: name for name in PARAMS}
    found = optax.tree_utils.tree_map_params(
        tx, lambda _, spec: spec, tx.init(PARAMS), specs, transform_non_params=lambda _: None
    )
    assert found.masks == specs and found.inner_state[0].trace == specs and found.count is None


def test_metrics_say_what_happened():
    params, state = jaxsparse.init(rigl_with(0), PARAMS)
    found = jaxsparse.metrics(state)
    assert {name: value.dtype for name, value in found.items()} == {
        "density": jnp.float32,
        "churn": jnp.float32,
        "last_update": jnp.int32,
        "postponed": jnp.int32,
    }
    assert found["density"] == 0.25 and found["last_update"] == -1 and found["churn"] == 0
    _, after = steps(plain_step(), params, state, range(5))
    born = (after.masks["kernel"] & ~state.masks["kernel"]).sum()
    found = jax.jit(jaxsparse.metrics)(after)
    assert born > 0 and found["churn"] == np.float32(born) / np.float32(ALIVE)
    assert found["last_update"] == 3 and found["postponed"] == 0 and found["density"] == 0.25


@pytest.mark.parametrize("method", ["gradual", "rigl", "accumulate", "sparse_momentum"])
def test_updates_wait_for_finite_numbers(method):
    """`zero_nans` lets training go on; the mask update is counted, and made up for later."""
    tx = FACTORIES[method](optax.chain(optax.zero_nans(), optax.sgd(0.1)))
    params, state = jaxsparse.init(tx, PARAMS)
    step, due = jax.jit(stepper(tx)), {"gradual": 5}.get(method, 3)
    history = []
    for t in range(due + 7):
        grads = gradients(params, jnp.float32(t))
        if t in (1, due, due + 1):
            grads["kernel"] = grads["kernel"].at[0, 0].set(jnp.nan)
        params, state = step(params, state, grads)
        assert np.all(np.isfinite(params["kernel"]))
        assert not np.any(np.asarray(params["kernel"])[~np.asarray(state.masks["kernel"])])
        history.append(state)
    for waiting in (due, due + 1):
        np.testing.assert_array_equal(
            history[waiting].masks["kernel"], history[due - 1].masks["kernel"]
        )
        assert history[waiting].pending and history[waiting].postponed == waiting - due + 1
    made_up = history[due + 2]
    assert made_up.last_update == due + 2 and not made_up.pending and made_up.postponed == 2
    assert not np.array_equal(made_up.masks["kernel"], history[due].masks["kernel"])
    assert state.postponed == 2 and state.last_update == due + {"gradual": 3}.get(method, 6)


@pytest.mark.parametrize("kept", ["reset", "keep", "dense"])
def test_state_of_weights_that_died(kept):
    tx = FACTORIES["rigl"](optax.sgd(0.1, 0.9), regrown_state=kept, drop_fraction=0.5)
    step = jax.jit(stepper(tx))
    params, before = steps(step, *jaxsparse.init(tx, PARAMS), range(3))
    grads = np.asarray(gradients(params, jnp.float32(3))["kernel"])
    params, state = steps(step, params, before, [3])
    died = np.asarray(before.masks["kernel"] & ~state.masks["kernel"])
    lived = np.asarray(before.masks["kernel"] & state.masks["kernel"])
    trace = np.asarray(state.inner_state[0].trace["kernel"])
    assert died.any() and np.all(trace[lived])
    decayed = 0.9 * np.asarray(before.inner_state[0].trace["kernel"])
    expected = {"reset": 0 * decayed, "keep": decayed, "dense": decayed + grads}[kept]
    np.testing.assert_allclose(trace[died], expected[died], rtol=1e-6)
    born = np.asarray(state.masks["kernel"] & ~before.masks["kernel"])
    np.testing.assert_allclose(trace[born], (decayed + grads)[born], rtol=1e-5)
    assert born.any() and np.all((decayed[born] != 0) == (kept == "dense"))


def test_accumulate_grows_by_the_mean_of_its_window():
    """A gradient before the window does not count; one inside it does, though not the last."""

    def grown(accumulate):
        tx = jaxsparse.rigl(
            optax.sgd(0.0), 0.75, key=0, every=3, drop_fraction=0.25, accumulate=accumulate
        )
        params, state = jaxsparse.init(tx, PARAMS)
        free = np.argwhere(~np.asarray(state.masks["kernel"]))
        step, before = jax.jit(stepper(tx)), np.asarray(state.masks["kernel"])
        for first, size in [(0, 0.0), (0, 9.0), (3, 5.0), (6, 1.0)]:
            grads = jax.tree.map(jnp.zeros_like, PARAMS)
            rows, columns = free[first : first + 3].T
            grads["kernel"] = grads["kernel"].at[rows, columns].set(size)
            params, state = step(params, state, grads)
        assert state.last_update == 3
        born = np.argwhere(np.asarray(state.masks["kernel"]) & ~before)
        return [int(np.where((free == place).all(1))[0][0]) for place in born]

    assert grown(1) == [6, 7, 8]
    assert grown(2) == [3, 4, 5]


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("method", ["rigl", "sparse_evolution"])
def test_skip_update_and_first_value(method, skip):
    def ones(key, params):
        return jax.tree.map(jnp.ones_like, params)

    tx = FACTORIES[method](optax.sgd(0.1, 0.9), skip_update=skip, first_value=ones)
    step = jax.jit(stepper(tx))
    params, state = steps(step, *jaxsparse.init(tx, PARAMS), range(3))
    after, new = steps(step, params, state, [3])
    mask, old = (np.asarray(s.masks["kernel"]) for s in (new, state))
    kernel, before = np.asarray(after["kernel"]), np.asarray(params["kernel"])
    assert new.last_update == 3 and (mask & ~old).any() and mask.sum() == ALIVE
    assert np.all(kernel[mask & ~old] == 1) and not np.any(kernel[~mask])
    assert np.array_equal(kernel[mask & old], before[mask & old]) == skip
    assert np.array_equal(after["bias"], params["bias"]) == skip
    trace = new.inner_state[0].trace["bias"]
    assert not np.array_equal(trace, state.inner_state[0].trace["bias"])


def test_keys_of_every_kind():
    raw = jax.random.key_data(jax.random.key(5))
    expected = rigl_with(5).init(PARAMS)
    for key in (np.int32(5), jnp.int32(5), jax.random.key(5), raw, np.asarray(raw)):
        assert_equal(rigl_with(key).init(PARAMS), expected)
    for key in (jnp.int32(5), raw):
        assert_equal(jax.jit(lambda key: rigl_with(key).init(PARAMS))(key), expected)


@pytest.mark.parametrize(
    "wrong",
    [
        *("5", 5.0, None, True, np.float32(5), np.zeros((2, 2), np.uint32)),
        lambda: jax.random.split(jax.random.key(0)),
    ],
    ids=lambda key: type(key).__name__,
)
def test_what_is_no_key(wrong):
    with pytest.raises(TypeError, match="key"):
        rigl_with(wrong() if callable(wrong) else wrong)


@cache
def replicates():
    """Three nets, their states, and one compiled step of all of them together."""
    keys = jax.random.split(jax.random.key(1), 3)
    nets = jax.tree.map(lambda p: jnp.stack([p, 2 - p, p**2]), PARAMS)
    nets, state = jax.jit(jax.vmap(lambda key, p: jaxsparse.init(rigl_with(key), p)))(keys, nets)
    step = jax.jit(jax.vmap(stepper(rigl_with(0)))).lower(nets, state, nets).compile()
    return keys, nets, state, step


def one(tree, i):
    return jax.tree.map(lambda a: a[i], tree)


def test_replicates_have_masks_of_their_own():
    keys, nets, state, _ = replicates()
    masks = np.asarray(state.masks["kernel"])
    assert [mask.sum() for mask in masks] == [ALIVE] * 3
    assert not np.array_equal(masks[0], masks[1]) and not np.array_equal(masks[1], masks[2])
    for i, key in enumerate(keys):
        assert_equal(one(state, i), rigl_with(key).init(one(nets, i)))


def test_replicates_run_as_if_alone():
    """Also where their counts, batched by `vmap(tx.init)`, are not the same."""
    _, nets, state, together = replicates()
    state = state._replace(count=jnp.array([0, 1, 2], jnp.int32))
    many, singles = (nets, state), [one((nets, state), i) for i in range(3)]
    fired = set()
    for t in range(7):
        grads = [gradients(params, jnp.float32(t)) for params, _ in singles]
        many = together(*many, jax.tree.map(lambda *leaves: jnp.stack(leaves), *grads))
        singles = [plain_step()(*single, g) for single, g in zip(singles, grads, strict=True)]
        fired.add(tuple(many[1].last_update.tolist()))
    assert {(-1, -1, 3), (3, 6, 6)} <= fired
    assert_equal(many, jax.tree.map(lambda *leaves: jnp.stack(leaves), *singles))


def test_replicates_without_an_update_stay_cheap():
    """Under vmap a conditional must not become a select that runs both branches at every step."""
    assert " conditional(" in replicates()[3].as_text()


def test_scan_is_a_loop_in_one_trace(count_traces):
    tx = rigl_with(0)
    start, counted = jaxsparse.init(tx, PARAMS), count_traces(stepper(tx))
    looped = steps(jax.jit(counted), *start, range(9))
    assert counted.traces == 1 and looped[1].last_update == 6

    def body(carry, t):
        return stepper(tx)(*carry, gradients(carry[0], t)), None

    scanned, _ = jax.jit(lambda carry: jax.lax.scan(body, carry, jnp.arange(9.0)))(start)
    assert_equal(scanned[1].masks, looped[1].masks)
    for a, b in zip(jax.tree.leaves(scanned[0]), jax.tree.leaves(looped[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_donated_buffers(recwarn):
    tx, params = rigl_with(0), jax.tree.map(jnp.copy, PARAMS)
    step = jax.jit(stepper(tx), donate_argnums=(0, 1))
    current = jaxsparse.init(tx, params)
    for t in range(5):
        grads = gradients(current[0], jnp.float32(t))
        given, current = current, step(*current, grads)
        assert given[0]["kernel"].is_deleted() and given[1].masks["kernel"].is_deleted()
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))
    assert not [w for w in recwarn if "donated" in str(w.message).lower()]
    assert_equal(current, steps(plain_step(), *jaxsparse.init(tx, PARAMS), range(5)))
