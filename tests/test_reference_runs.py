"""Every algorithm agrees, step for step, with a plain NumPy loop written from its paper's rule.

The random numbers (initial masks, random growth) are the library's own; all else is NumPy's.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse
from tests import reference_runs as reference

STEPS, EVERY, STOP, KEY = 50, 6, 57, 3
UPDATES = [6, 12, 18, 24, 30, 36, 42, 48]
SHAPES = {"fc1": (8, 16), "fc2": (16, 12), "fc3": (12, 5)}
SPARSITY = {"fc1": 0.7, "fc2": 0.8, "fc3": 0.6}
NEARLY_FULL = {"fc1": 0.7, "fc2": 0.15, "fc3": 0.5}
OPTIMIZERS = {
    "momentum": (lambda: optax.sgd(0.1, 0.9), lambda: reference.Momentum(0.1)),
    "adam": (lambda: optax.adam(0.01), lambda: reference.Adam(0.01)),
}


def make_problem(shapes, steps):
    """A random net, and batches that another random net has labelled."""
    draw = np.random.default_rng(0)
    net = {
        layer: {
            "kernel": (draw.normal(size=shape) / math.sqrt(shape[0])).astype(np.float32),
            "bias": (0.1 * draw.normal(size=shape[1])).astype(np.float32),
        }
        for layer, shape in shapes.items()
    }
    x = draw.normal(size=(steps, 32, 8)).astype(np.float32)
    labels = (np.tanh(x @ draw.normal(size=(8, 12))) @ draw.normal(size=(12, 5))).argmax(-1)
    return net, list(zip(x, labels, strict=True))


@pytest.fixture(scope="module")
def problem():
    return make_problem(SHAPES, STEPS)


def loss(params, x, labels):
    for layer in ("fc1", "fc2"):
        x = jnp.tanh(x @ params[layer]["kernel"] + params[layer]["bias"])
    logits = x @ params["fc3"]["kernel"] + params["fc3"]["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def library_run(tx, net, batches, promotion="strict"):
    """`(weights, masks)` after each step, as NumPy arrays."""
    params, state = jaxsparse.init(tx, jax.tree.map(jnp.asarray, net))

    @jax.jit
    def step(params, state, x, labels):
        updates, state = tx.update(jax.grad(loss)(params, x, labels), state, params)
        return optax.apply_updates(params, updates), state

    run = []
    for x, labels in batches:
        with jax.numpy_dtype_promotion(promotion):
            params, state = step(params, state, x, labels)
        run.append(jax.tree.map(np.asarray, (params, state.masks)))
    return run


def drawn(net, t=None):
    """The random scores of the initial masks, or of the growth at count t."""
    key = jax.random.key(KEY)
    key = key if t is None else jax.random.fold_in(key, t)
    return reference.kernels(np.asarray, jaxsparse.random_scores(key, net))


def initial_masks(net, sparsity):
    def mask(layer, scores):
        alive = math.floor(scores.size * (1 - sparsity[layer]) + 0.5)
        return reference.best(scores, alive, np.ones(scores.shape, bool))

    return {layer: mask(layer, scores) for layer, scores in drawn(net).items()}


def full_masks(net):
    return reference.kernels(lambda kernel: np.ones(kernel.shape, bool), net)


def fires(t):
    return t > 0 and t % EVERY == 0 and t < STOP


def difference(run, expected):
    """What first differs, in words, or None; masks must agree exactly, weights closely."""
    for t, ((params, masks), (net, truth)) in enumerate(zip(run, expected, strict=True)):
        for layer, mask in truth.items():
            if not np.array_equal(masks[layer]["kernel"], mask):
                return f"step {t}: masks of {layer}"
            if np.any(params[layer]["kernel"][~mask]):
                return f"step {t}: dead weights of {layer}"
            for leaf in ("kernel", "bias"):
                if not np.allclose(params[layer][leaf], net[layer][leaf], rtol=1e-4, atol=2e-6):
                    off = np.abs(params[layer][leaf] - net[layer][leaf]).max()
                    return f"step {t}: {leaf} of {layer} by {off}"
    return None


def changes(run):
    """The steps at which the masks changed."""
    masks = [m for _, m in run]
    pairs = enumerate(zip(masks, masks[1:], strict=False), 1)
    same = [(t, jax.tree.map(np.array_equal, a, b)) for t, (a, b) in pairs]
    return [t for t, equal in same if not all(jax.tree.leaves(equal))]


def dynamic(problem, method, fraction, optimizer="momentum"):
    net, batches = problem

    def scores(t, grads):
        return reference.kernels(np.abs, grads) if method == "rigl" else drawn(net, t)

    return reference.train(
        net,
        initial_masks(net, SPARSITY),
        OPTIMIZERS[optimizer][1](),
        batches,
        fires,
        reference.dynamic(fraction, scores),
        replaces_step=method == "rigl",
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_rigl(problem, optimizer):
    tx = jaxsparse.rigl(
        OPTIMIZERS[optimizer][0](), sparsity=SPARSITY, key=KEY, every=EVERY, stop=STOP
    )
    # Optax's own bias correction leans on implicit promotion.
    run = library_run(tx, *problem, promotion="standard" if optimizer == "adam" else "strict")
    cosine = reference.cosine(0.3, STOP)
    assert difference(run, dynamic(problem, "rigl", cosine, optimizer)) is None
    assert len(changes(run)) >= 6 and set(changes(run)) <= set(UPDATES)
    # A comparison that would pass a slightly different rule is worth nothing.
    other = reference.cosine(0.35, STOP)
    assert "masks" in difference(run, dynamic(problem, "rigl", other, optimizer))


def test_sparse_evolution(problem):
    tx = jaxsparse.sparse_evolution(
        optax.sgd(0.1, 0.9), sparsity=SPARSITY, key=KEY, every=EVERY, stop=STOP, drop_fraction=0.25
    )
    run = library_run(tx, *problem)
    assert difference(run, dynamic(problem, "set", lambda t: 0.25)) is None
    assert changes(run) == UPDATES
    assert "masks" in difference(run, dynamic(problem, "set", lambda t: 0.2))


@pytest.mark.parametrize(
    ("growth", "redistribution", "sparsity"),
    [
        ("momentum", "momentum", NEARLY_FULL),
        ("random", "magnitude", SPARSITY),
        ("momentum_neuron", "nonzero", NEARLY_FULL),
        ("momentum", "none", SPARSITY),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_sparse_momentum(problem, growth, redistribution, sparsity):
    options = {"growth": growth, "redistribution": redistribution}
    run = library_run(momentum_method(sparsity, **options), *problem)
    rule, truth = momentum_reference(problem, 0.2, sparsity, **options)
    assert difference(run, truth) is None
    assert changes(run) == UPDATES
    assert (rule.log["moved"] > 0) == (redistribution != "none")
    if sparsity is NEARLY_FULL:
        assert rule.log["limited"] > 0
        assert rule.log["full"] > 0 or redistribution == "nonzero"
    assert "masks" in difference(run, momentum_reference(problem, 0.25, sparsity, **options)[1])


def momentum_method(sparsity, **options):
    inner, when = optax.sgd(0.1, 0.9), {"every": EVERY, "stop": STOP}
    return jaxsparse.sparse_momentum(inner, sparsity=sparsity, key=KEY, **when, **options)


def momentum_reference(problem, start, sparsity, growth="momentum", redistribution="momentum"):
    net, batches = problem
    rate = reference.cosine(start, STOP, 0.005)
    rule = reference.SparseMomentum(net, rate, growth, redistribution, lambda t: drawn(net, t))
    masks, optimizer = initial_masks(net, sparsity), reference.Momentum(0.1)
    run = reference.train(net, masks, optimizer, batches, fires, rule.move, False, rule.observe)
    return rule, list(run)


def test_sparse_momentum_leaves_a_hundredth_of_a_full_layer():
    """A small layer rounds that cap away; of 356 free places here three are left."""
    shapes = {"fc1": (8, 64), "fc2": (64, 256), "fc3": (256, 5)}
    sparsity, problem = {"fc1": 0.7, "fc2": 0.8, "fc3": 0.15}, make_problem(shapes, EVERY + 1)
    run = library_run(momentum_method(sparsity), *problem)
    rule, truth = momentum_reference(problem, 0.2, sparsity)
    assert difference(run, truth) is None
    assert rule.log["full"] > 0 and rule.log["limited"] == 1
    assert (~run[-1][1]["fc3"]["kernel"]).sum() == 3


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_gradual(problem, scope):
    net, batches = problem
    start, stop = 5, 40
    tx = jaxsparse.gradual(
        optax.sgd(0.1, 0.9), sparsity=0.8, start=start, stop=stop, every=EVERY, scope=scope
    )
    run = library_run(tx, net, batches)
    sizes = reference.kernels(np.size, net)

    def expected(sparsity):
        return reference.train(
            net,
            full_masks(net),
            reference.Momentum(0.1),
            batches,
            lambda t: t == stop or (start <= t < stop and (t - start) % EVERY == 0),
            reference.gradual(sizes, sparsity, start, stop, scope),
            replaces_step=False,
        )

    assert difference(run, expected(0.8)) is None
    assert changes(run) == [11, 17, 23, 29, 35, 40]
    assert "masks" in difference(run, expected(0.79))


def test_fixed(problem):
    net, batches = problem
    masks = initial_masks(net, SPARSITY)
    tx = jaxsparse.fixed(optax.sgd(0.1, 0.9), sparsity=SPARSITY, key=KEY)
    run = library_run(tx, net, batches)

    def expected(decay):
        optimizer = reference.Momentum(0.1, decay)
        return reference.train(net, masks, optimizer, batches, lambda t: False, None, False)

    assert difference(run, expected(0.9)) is None
    assert changes(run) == []
    assert "kernel" in difference(run, expected(0.89))
