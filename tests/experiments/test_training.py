"""The training loop, evaluation and statistics, on a network of two layers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse
from experiments.common.report.tables import percent, statistics
from experiments.common.study import engine
from experiments.common.training import evaluation, loop
from experiments.common.training.execution import Execution

FORMS = {
    "vmap": Execution("conv", "vmap"),
    "map": Execution("conv", "map"),
}
N, SIZE = 50, 7  # seven batches, and one example left over


@pytest.fixture(scope="module")
def examples():
    keys = jax.random.split(jax.random.key(1), 2)
    inputs = jax.random.normal(keys[0], (N, 6))
    return inputs, (inputs[:, 0] > 0).astype(jnp.int32)


def init_params(key):
    a, b = jax.random.split(key)
    return {"fc": {"kernel": jax.random.normal(a, (6, 8))}, "head": jax.random.normal(b, (8, 2))}


def apply(params, inputs):
    return jnp.tanh(inputs @ params["fc"]["kernel"]) @ params["head"]


def sparse_tx(key):
    return jaxsparse.rigl(optax.adam(0.02), sparsity=0.5, key=key, every=3, stop=20)


def trainer(examples, form="vmap", *, make_tx=sparse_tx, apply=apply, **options):
    start = jaxsparse.init if make_tx is sparse_tx else loop.start_dense
    options = {"execution": FORMS[form]} | options
    return loop.make_trainer(
        apply,
        init_params,
        make_tx,
        *examples,
        batch_size=SIZE,
        start=start,
        **options,
    )


@pytest.fixture(scope="module")
def sparse(examples):
    """The sparse trainer of each form, compiled once for all tests, and its list of traces."""
    made = {}
    for form in FORMS:
        traces = []

        def counted(params, inputs, traces=traces):
            traces.append(inputs.shape)
            return apply(params, inputs)

        made[form] = trainer(examples, form, apply=counted), traces
    return made


@pytest.fixture(scope="module")
def still(examples):
    """A dense trainer that does not move."""
    return trainer(examples, make_tx=lambda key: optax.sgd(0.0))


def keys(n=3):
    return jax.vmap(jax.random.key)(jnp.arange(n))


def same(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.parametrize("form", FORMS)
def test_chunks_of_any_length_give_the_same_bits_from_one_trace(sparse, form):
    made, traces = sparse[form]
    whole = made.advance(made.init(keys()), 0, 17)
    cut = made.init(keys())
    for first, last in [(0, 1), (1, 6), (6, 9), (9, 17)]:
        cut = made.advance(cut, first, last)
    assert same(whole, cut)
    assert traces == [(SIZE, 6)]


def test_all_forms_agree(sparse):
    found = [made.advance(made.init(keys()), 0, 15).params for made, _ in sparse.values()]
    for params in found[1:]:
        for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(found[0]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_single_replicate_may_go_step_by_step(examples):
    """The same numbers as in the loop, whatever the calls, measurements among them."""
    count = loop.Track(
        5,
        lambda *_: jnp.zeros(4),
        lambda seen, state, step, loss, _: seen.at[step // 5].set(loss),
        (),
    )
    found = {}
    for by_steps in (False, True):
        execution = Execution("conv", "map", by_steps)
        made = trainer(examples, execution=execution, track=count)
        found[by_steps] = made.advance(made.init(keys(1)), 0, 17)
    cut = made.init(keys(1))
    for first, last in [(0, 6), (6, 17)]:
        cut = made.advance(cut, first, last)
    assert same(cut, found[True])
    for a, b in zip(*map(jax.tree.leaves, found.values()), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_step_is_an_ordinary_optax_step(examples):
    made = trainer(examples, make_tx=lambda key: optax.sgd(0.1))
    state = made.advance(made.init(keys(1)), 0, 2)
    params = jax.tree.map(lambda leaf: leaf[0], made.init(keys(1)).params)
    for rows in state.order[0, :2]:

        def loss(params, rows=rows):
            losses = evaluation.cross_entropy(apply(params, examples[0][rows]), examples[1][rows])
            return losses.mean()

        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params))
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(a[0], b, rtol=1e-5, atol=1e-6)


def test_replicates_are_independent_and_a_twin_starts_alike(sparse, still):
    made, _ = sparse["vmap"]
    one, other = (made.advance(made.init(keys()), 0, 1) for made in (made, still))
    assert np.array_equal(one.order, other.order)
    assert not np.array_equal(one.order[0], one.order[1])
    start, dense = made.init(keys()), still.init(keys())
    masks = jax.vmap(jaxsparse.get_masks)(start.opt_state, start.params)
    kernels = masks["fc"]["kernel"]
    assert not np.array_equal(kernels[0], kernels[1])
    assert same(start.params, jaxsparse.apply(dense.params, masks))


def test_every_epoch_has_a_new_order_of_different_examples(still):
    first = still.advance(still.init(keys()), 0, 1).order[0]
    second = still.advance(still.init(keys()), 0, 8).order[0]
    for order in (first, second):
        assert len(np.unique(order)) == order.size == N // SIZE * SIZE
    assert not np.array_equal(first, second)


def test_augmentation_has_another_key_at_every_step(examples):
    def augment(key, inputs):
        return jnp.full_like(inputs, jax.random.normal(key))

    made = trainer(examples, make_tx=lambda key: optax.sgd(0.0), augment=augment)
    state, sums = made.init(keys(1)), [0.0]
    for step in range(14):
        state = made.advance(state, step, step + 1)
        sums.append(float(state.loss_sum[0]))
    assert len(set(np.diff(sums).round(3))) == 14


@pytest.mark.parametrize("form", FORMS)
def test_evaluation_counts_every_example_once(examples, sparse, form):
    made, _ = sparse[form]
    params = made.init(keys()).params
    found = made.evaluate(params, evaluation.evaluation_set(*examples, size=16))
    for i in range(3):
        logits = apply(jax.tree.map(lambda leaf: leaf[i], params), examples[0])  # noqa: B023
        assert found["accuracy"][i] == np.mean(logits.argmax(-1) == examples[1])
        loss = evaluation.cross_entropy(logits, examples[1]).mean()
        np.testing.assert_allclose(found["loss"][i], loss, rtol=1e-5)


def test_run_evaluates_on_time_and_learns(examples, sparse):
    made, _ = sparse["vmap"]
    sets = {"test": evaluation.evaluation_set(*examples)}
    observe = jax.jit(lambda state: jax.vmap(jaxsparse.metrics)(state.opt_state))
    measure = engine.evaluation_of(made, sets, observe)
    training = engine.Training(made, made.init(keys()), 150, 40, measure)
    done = list(engine.chunks(training))
    measured = {chunk.step: chunk.metrics for chunk in done if chunk.metrics is not None}
    assert list(measured) == [40, 80, 120, 150]
    history = list(measured.values())
    assert history[-1]["test_accuracy"].min() > 0.9
    assert history[-1]["loss"].max() < history[0]["loss"].min()
    assert np.all(history[0]["density"] == 0.5)
    longer = training._replace(state=done[-1].state, start=150, steps=170)
    evaluated = [c.step for c in engine.chunks(longer) if c.metrics is not None]
    assert evaluated == [160, 170]


def test_the_logged_loss_is_the_mean_since_the_last_evaluation(examples, still):
    measure = engine.evaluation_of(still, {})
    training = engine.Training(still, still.init(keys()), 14, 7, measure)
    history = [c.metrics for c in engine.chunks(training) if c.metrics is not None]
    params = jax.tree.map(lambda leaf: leaf[0], still.init(keys()).params)
    losses = evaluation.cross_entropy(apply(params, examples[0]), examples[1])
    order = still.advance(still.init(keys()), 0, 8).order[0]
    np.testing.assert_allclose(history[1]["loss"][0], losses[order.reshape(-1)].mean(), rtol=1e-5)


@pytest.mark.parametrize("batch_size", [0, N + 1])
def test_an_impossible_batch_size(examples, batch_size):
    with pytest.raises(ValueError, match=rf"batch_size must be in \[1, {N}\].*{batch_size}"):
        loop.make_trainer(
            apply,
            init_params,
            sparse_tx,
            *examples,
            batch_size=batch_size,
            execution=FORMS["map"],
        )


def test_statistics_against_numpy():
    values = np.random.RandomState(0).rand(5)
    found = statistics(list(values))
    assert list(found) == ["mean", "std", "standard_error", "min", "max", "n"]
    assert found["n"] == 5
    np.testing.assert_allclose(
        [found["mean"], found["std"], found["standard_error"], found["min"], found["max"]],
        [
            values.mean(),
            values.std(ddof=1),
            values.std(ddof=1) / np.sqrt(5),
            values.min(),
            values.max(),
        ],
    )


def test_statistics_of_one_value_and_of_none():
    assert statistics([0.5])["standard_error"] == 0
    assert percent(statistics([0.5])) == "50.00 %"
    with pytest.raises(ValueError, match="at least one"):
        statistics([])
