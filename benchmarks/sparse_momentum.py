"""What a training step and a mask update cost with each dynamic sparse method.

    python -m benchmarks.sparse_momentum                              # LeNet-5-Caffe
    python -m benchmarks.sparse_momentum --preset wrn_16_8 --turns 3
    python -m benchmarks.sparse_momentum --preset vgg_16_d --method sparse_momentum --turns 0

Steps of the study of methods on synthetic images: its recipe and its compiled loop, including batch
normalization, dropout and augmentation. All methods take turns within one run; medians, and the
median of the ratios to the dense step of the same turn. The cost of a mask update is the difference
between two optimizer steps on weights of the network's shapes, with and without the update;
`amortised` adds it at the rate of the recipe, one per epoch. DeepR rewires at every step, so its
first ratio includes everything.
"""

import argparse
import statistics

import jax
import jax.numpy as jnp
import numpy as np

import jaxsparse
from benchmarks.timing import chain, optimizer_step, ratio, take_turns, training_steps
from experiments.common.data import datasets
from experiments.common.models.network import make_network
from experiments.common.study.options import renamed
from experiments.common.training import loop
from experiments.common.training.execution import execution
from experiments.common.training.methods import METHODS
from experiments.sparse_momentum.settings import PRESETS, Settings, method

EXAMPLES = {
    "digits": (1298, (8, 8, 1), 10),
    "mnist": (54_000, (28, 28, 1), 10),
    "cifar10": (45_000, (32, 32, 3), 10),
    "imagenet2012": (1_274_761, (224, 224, 3), 1000),
}
"""Training examples, their shape and their classes, by data set."""
NEVER = 10**6
UPDATES = 15  # timed mask updates
ONCE = {"xla_backend_optimization_level": 0}  # compiles quickly, for what runs once


def made(settings: Settings, batches: int = 4) -> datasets.Dataset:
    generator = np.random.default_rng(0)
    _, shape, classes = EXAMPLES[settings.dataset]
    count = batches * settings.batch_size
    images = generator.standard_normal((count, *shape), np.float32)
    labels = generator.integers(0, classes, count).astype(np.int32)
    return datasets.Dataset("made", "", images, labels, images, labels, classes)


def steps(settings: Settings, names: list[str], sparsity: float, turns: int) -> dict:
    """The seconds of a training step in which no masks change; methods take turns."""
    dataset = made(settings)
    network = make_network(settings.model, dataset, dropout=settings.dropout)
    inputs, labels = jnp.asarray(dataset.train_inputs), jnp.asarray(dataset.train_labels)
    in_memory = settings.image_size is None  # otherwise the images come augmented from disk

    def trainer(name: str) -> loop.Trainer:
        return loop.make_trainer(
            network.apply,
            network.init_params,
            lambda key: method(settings, name, sparsity, key, NEVER),
            inputs,
            labels,
            batch_size=settings.batch_size,
            execution=execution(settings.model, jax.default_backend()),
            start=loop.start_dense if METHODS[name].dense else jaxsparse.init,
            forward=network.forward,
            augment=datasets.augment if settings.augment and in_memory else None,
        )

    return training_steps({name: trainer(name) for name in names}, turns)


def updates(settings: Settings, names: list[str], sparsity: float) -> dict[str, float]:
    """The seconds of a mask update, without the step that contains it."""
    network = make_network(settings.model, made(settings, 1), dropout=settings.dropout)
    grads = jax.tree.map(
        lambda p: 1e-2 * jax.random.normal(jax.random.key(p.size), p.shape),
        jax.eval_shape(network.init_params, jax.random.key(0)),
    )
    calls = {}
    for name in names:
        tx = method(settings, name, sparsity, 0, NEVER)
        begin = lambda key, tx=tx: jaxsparse.init(tx, network.init_params(key))  # noqa: E731
        begun = jax.jit(begin, compiler_options=ONCE)(jax.random.key(0))
        # With epochs of one step, masks are updated at every step but the first.
        for every in (NEVER, 1):
            tx = method(settings, name, sparsity, 0, every)
            step = jax.jit(optimizer_step(tx), donate_argnums=(0, 1))
            calls[name, every] = chain(step, jax.tree.map(jnp.copy, begun), grads)
            calls[name, every]()
    spent = take_turns(calls, UPDATES)
    return {
        name: statistics.median(
            a - b for a, b in zip(spent[name, 1], spent[name, NEVER], strict=True)
        )
        for name in names
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=PRESETS, default="lenet_5_caffe")
    parser.add_argument(
        "--method", default=",".join(METHODS), help="comma-separated (default: all)"
    )
    parser.add_argument("--turns", type=int, default=15, help="of steps; 0: mask updates only")
    renamed(parser, "--network", "--preset")
    renamed(parser, "--methods", "--method")
    args = parser.parse_args()
    settings = PRESETS[args.preset]
    sparsity = settings.sparsities[0]
    names = [name for name in args.method.split(",") if name != "dense"]
    for name in names:
        if name not in METHODS:
            parser.error(f"--method must be among {', '.join(METHODS)}, got {name!r}")
    period = EXAMPLES[settings.dataset][0] // settings.batch_size
    updating = [name for name in names if METHODS[name].moves]
    cost = updates(settings, updating, sparsity) if updating else {}
    spent = steps(settings, ["dense", *names], sparsity, args.turns) if args.turns else {}
    print(
        f"{args.preset}, {100 * (1 - sparsity):g}% of the weights, batches of "
        f"{settings.batch_size}, masks change every {period} steps\n"
    )
    print("| method | step, ms | times the dense step | amortised | mask update, s |")
    print("| --- | --- | --- | --- | --- |")
    for name in ["dense", *names]:
        row = ["", "", ""]
        if spent:
            times = ratio(spent[name], spent["dense"])
            more = cost.get(name, 0.0) / period / statistics.median(spent["dense"])
            ms = 1e3 * statistics.median(spent[name])
            row = [f"{ms:.1f}", f"{times:.3f}", f"{times + more:.3f}"]
        update = f"{cost[name]:.3f}" if name in cost else ""
        print(f"| {name} | {' | '.join(row)} | {update} |")


if __name__ == "__main__":
    main()
