"""The cost of analysing a network: gradient flow during training, Lanczos, the exact Hessian.

    python -m benchmarks.analysis                   # LeNet-5 at 95% on MNIST
    python -m benchmarks.analysis --quick           # fewer examples, steps and turns

Gradient flow: training with the norm of the gradient on 1,000 fixed examples every 200 steps,
compared with the same training without it, taking turns within one run; milliseconds per step and
replicate, medians, and the median of the ratios within a turn. Lanczos: 80 steps with full
reorthogonalization on 10,000 examples. The exact Hessian: all of it, on 5,000 examples, by far the
longest part. Both use living weights and biases, in batches of 100; seconds include compilation.
"""

import argparse
import functools
import statistics
import time

from experiments.common.training import execution

execution.use_every_core()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402

import jaxsparse  # noqa: E402
from experiments.common.data import datasets  # noqa: E402
from experiments.common.models.network import make_network  # noqa: E402
from experiments.common.training import evaluation, loop  # noqa: E402
from jaxsparse import analysis  # noqa: E402

SPARSITY = 0.95
REPLICATES = 2
EVERY = 200
MEASURED = 1000
BATCH = 100


def mean_loss(net, params, examples):
    inputs, labels = examples
    return evaluation.cross_entropy(net.apply(params, inputs), labels).mean()


def trainer(dataset, net, measures):
    """LeNet-5 trained as in the study, with or without the flow in its state."""
    inputs, labels = jnp.asarray(dataset.train_inputs), jnp.asarray(dataset.train_labels)

    def norms(params, opt_state, examples):
        grads = jax.grad(functools.partial(mean_loss, net))(params, examples)
        return analysis.gradient_flow(grads, jaxsparse.get_masks(opt_state, params))

    def init(params, opt_state):
        examples = inputs[:MEASURED], labels[:MEASURED]
        shapes = jax.eval_shape(norms, params, opt_state, examples)
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    track = loop.Track(
        EVERY,
        init,
        lambda tracked, state, count, loss, examples: norms(
            state.params, state.opt_state, examples
        ),
        (inputs[:MEASURED], labels[:MEASURED]),
    )
    inner = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.05, momentum=0.9))
    return loop.make_trainer(
        net.apply,
        net.init_params,
        lambda key: jaxsparse.fixed(inner, SPARSITY, key=key),
        inputs,
        labels,
        batch_size=128,
        execution=execution.execution("lenet_5", jax.default_backend()),
        start=jaxsparse.init,
        track=track if measures else None,
    )


def time_flow(dataset, net, turns):
    trainers = {"without": trainer(dataset, net, False), "with": trainer(dataset, net, True)}
    states = {
        name: one.init(execution.replicate_keys(0, REPLICATES)) for name, one in trainers.items()
    }
    spent = {name: [] for name in trainers}
    for turn in range(turns + 1):
        for name, one in trainers.items():
            begun = time.perf_counter()
            states[name] = one.advance(states[name], turn * EVERY, (turn + 1) * EVERY)
            jax.block_until_ready(states[name])
            if turn:  # the first compiles
                spent[name].append((time.perf_counter() - begun) / EVERY / REPLICATES * 1e3)
    ratio = statistics.median(a / b for a, b in zip(spent["with"], spent["without"], strict=True))
    for name, times in spent.items():
        print(f"training {name} gradient flow: {statistics.median(times):.2f} ms a step")
    print(f"with / without: {ratio:.2f}", flush=True)


def batches(dataset, examples):
    parts = dataset.train_inputs[:examples], dataset.train_labels[:examples]
    return tuple(jnp.asarray(part).reshape(-1, BATCH, *part.shape[1:]) for part in parts)


def timed(name, call):
    begun = time.perf_counter()
    found = jax.block_until_ready(call())
    print(f"{name}: {time.perf_counter() - begun:.1f} s", flush=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer examples, steps and turns")
    quick = parser.parse_args().quick
    dataset = datasets.as_floats(datasets.load("mnist"))
    net = make_network("lenet_5", dataset)
    time_flow(dataset, net, turns=1 if quick else 5)

    params = net.init_params(jax.random.key(0))
    masks = jaxsparse.random_masks(1, params, SPARSITY)
    params = jaxsparse.sparse_init(2, params, masks)
    steps, examples = (10, 1000) if quick else (80, 10_000)
    loss = functools.partial(mean_loss, net)
    found = timed(
        f"Lanczos, {steps} steps on {examples:,} examples",
        lambda: analysis.spectrum(
            loss, params, batches(dataset, examples), masks, steps=steps, key=0
        ),
    )
    low, high = map(float, found.extremes)
    examples = 200 if quick else 5000
    matrix = timed(
        f"exact Hessian on {examples:,} examples",
        lambda: analysis.exact_hessian(loss, params, batches(dataset, examples), masks),
    )
    values = timed("its eigenvalues", lambda: jnp.linalg.eigvalsh(matrix))
    print(f"{len(matrix):,} living weights, eigenvalues from {values[0]:.3g} to {values[-1]:.3g}")
    print(f"by Lanczos, on its examples, from {low:.3g} to {high:.3g}")


if __name__ == "__main__":
    main()
