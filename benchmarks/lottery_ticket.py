"""What a ticket study costs per step, compared with a plain loop with the same evaluation.

    python -m benchmarks.lottery_ticket                # LeNet-300-100 on MNIST; a minute
    python -m benchmarks.lottery_ticket --dataset digits

Both train tickets with Adam on batches of 60 and measure loss and accuracy on the validation set
every 100 steps, keeping the best parameters. The plain loop is the obvious one: one replicate,
batches gathered on the host, one call per step, parameters multiplied by the mask. They take turns
within one run; milliseconds per step and replicate, medians, and the median of the ratios within a
turn.
"""

import argparse
import dataclasses
import statistics
import time

from experiments.common.training import execution

execution.use_every_core()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

import jaxsparse  # noqa: E402
from experiments.common.data import datasets  # noqa: E402
from experiments.common.models.network import make_network  # noqa: E402
from experiments.common.study.lab import Site  # noqa: E402
from experiments.lottery_ticket import cells, study  # noqa: E402
from experiments.lottery_ticket.settings import PRESETS  # noqa: E402

REPLICATES = 5
TURNS = 5
STEPS = 500


def plain_loop(settings, dataset):
    net = make_network(settings.model, dataset)
    images, test = (
        x.astype(np.float32) / 255 for x in (dataset.train_inputs, dataset.validation_inputs)
    )
    tx = optax.adam(settings.learning_rate)
    params = net.init_params(jax.random.key(0))
    masks = jaxsparse.prune_by_magnitude(params, 0.5)

    def mean_loss(params, inputs, labels):
        params = jax.tree.map(lambda p, m: p * m, params, masks)
        logits = net.apply(params, inputs)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, (logits.argmax(-1) == labels).mean()

    @jax.jit
    def step(params, state, inputs, labels):
        grads = jax.grad(mean_loss, has_aux=True)(params, inputs, labels)[0]
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    evaluate = jax.jit(mean_loss)

    def run(params, state, order):
        best = np.inf, params
        for i, rows in enumerate(order):
            params, state = step(params, state, images[rows], dataset.train_labels[rows])
            if (i + 1) % settings.every == 0:
                loss, _ = evaluate(params, test, dataset.validation_labels)
                best = min(best, (float(loss), params), key=lambda pair: pair[0])
        return jax.block_until_ready((params, state, best))

    generator = np.random.default_rng(0)

    def turn():
        order = generator.integers(0, len(images), (STEPS, settings.batch_size))
        run(params, tx.init(params), order)

    return turn


def compiled_study(settings):
    tickets = cells.build(settings, Site(execution.replicate_keys(0, REPLICATES)))
    side_by_side = [cells.Cell("ticket", 1)] * study.SIDE_BY_SIDE
    begin = cells.start(tickets, cells.no_masks(tickets), side_by_side)

    def turn():
        state = jax.tree.map(jnp.copy, begin)
        jax.block_until_ready(tickets.trainer.advance(state, 0, STEPS))

    return turn


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="mnist", choices=("mnist", "digits"))
    preset = "lenet" if parser.parse_args().dataset == "mnist" else "digits"
    settings = dataclasses.replace(PRESETS[preset], iterations=STEPS, every=100)
    dataset = datasets.split_validation(
        datasets.load(settings.dataset), settings.validation, seed=0
    )
    lanes = REPLICATES * study.SIDE_BY_SIDE
    turns = {
        "plain loop": (plain_loop(settings, dataset), 1),
        "study": (compiled_study(settings), lanes),
    }
    found = {name: [] for name in turns}
    for number in range(TURNS + 1):
        for name, (turn, replicates) in turns.items():
            begun = time.perf_counter()
            turn()
            if number:  # the first compiles
                found[name].append((time.perf_counter() - begun) / STEPS / replicates * 1e3)
    for name, times in found.items():
        print(f"{name:12} {statistics.median(times):.3f} ms a step and replicate")
    ratios = [a / b for a, b in zip(found["plain loop"], found["study"], strict=True)]
    print(f"plain loop / study: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
