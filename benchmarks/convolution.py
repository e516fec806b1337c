"""What each form of a convolution costs in a training step, in a compiled loop and call by call.

    python -m benchmarks.convolution                     # the networks of the studies; 10 minutes
    python -m benchmarks.convolution --model lenet_5 --naive

Dense steps of SGD on synthetic images, taking turns within one run; milliseconds per step and
replicate, medians. `patches` is a loop of steps in which every convolution is done by slices and
matrix products, with one replicate per device (on a CPU every core is a device);
`conv, call by call` is XLA's own convolution in one jitted step with donated parameters, with one
replicate on all cores; `conv, in a loop` (with `--naive`) is that in a loop, which may take a
hundred times as long.
"""

import argparse
import statistics
from collections.abc import Callable

from experiments.common.training import execution

execution.use_every_core()

import jax  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from benchmarks.timing import chain, ratio, take_turns  # noqa: E402
from experiments.common.data import datasets  # noqa: E402
from experiments.common.models import network as networks  # noqa: E402
from experiments.common.models.network import make_network  # noqa: E402
from experiments.common.study.options import renamed  # noqa: E402

MNIST, CIFAR = (28, 28, 1), (32, 32, 3)
NETWORKS = {
    "lenet_5": (128, MNIST),
    "lenet_5_caffe": (100, MNIST),
    "conv_2": (60, CIFAR),
    "conv_4": (60, CIFAR),
    "conv_6": (60, CIFAR),
    "resnet_18": (128, CIFAR),
    "vgg_19": (64, CIFAR),
    "wrn_16_8": (32, CIFAR),
}
"""Batch size and image of each."""

PATCHES, CALLS, NAIVE = "patches", "conv, call by call", "conv, in a loop"
LOOP_SECONDS = 0.3  # a call of a loop lasts at least as long


def program(name: str, form: str, steps: int, replicates: int) -> Callable[..., None]:
    """Trains for some steps when it is called."""
    batch, shape = NETWORKS[name]
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (batch, *shape), dtype=np.uint8)
    labels = generator.integers(0, 10, batch)
    made = datasets.Dataset(name, "made-up images", images, labels, images, labels, num_classes=10)
    net = make_network(name, made, convolution=form)
    logits = networks.trained(net)

    def loss(params, images, labels):
        losses = optax.softmax_cross_entropy_with_integer_labels(logits(params, images), labels)
        return losses.mean()

    def train(params, images, labels):
        def step(params, _):
            grads = jax.grad(loss)(params, images, labels)
            return jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads), None

        return (step(params, None) if steps == 1 else jax.lax.scan(step, params, length=steps))[0]

    def trained(params, images, labels):
        if replicates == 1:
            return (train(params, images, labels),)
        return (execution.over_replicates(train, "map")((params,), images, labels),)

    if replicates == 1:
        start = net.init_params(jax.random.key(0))
    else:
        start = jax.vmap(net.init_params)(execution.replicate_keys(0, replicates))
        start, images, labels = execution.place(start, images, labels)
    return chain(jax.jit(trained, donate_argnums=0), (start,), images, labels)


def measure(name: str, turns: int, naive: bool) -> dict[str, list[float]]:
    """The seconds of a step and replicate, turn by turn."""
    once = program(name, "conv", 1, 1)
    once()
    steps = max(2, round(LOOP_SECONDS / take_turns({CALLS: once}, 1)[CALLS][0]))
    replicates = jax.device_count()
    calls = {PATCHES: program(name, "patches", steps, replicates)}
    calls[CALLS] = lambda: [once() for _ in range(steps)]
    if naive:
        calls[NAIVE] = program(name, "conv", steps, replicates)
    take_turns(calls, 1)  # compiles
    many = {PATCHES: replicates, CALLS: 1, NAIVE: replicates}
    return {
        form: [seconds / steps / many[form] for seconds in found]
        for form, found in take_turns(calls, turns).items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--model", default=",".join(NETWORKS), help="comma-separated (default: all)"
    )
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--naive", action="store_true", help="XLA's convolution in a loop too")
    renamed(parser, "--networks", "--model")
    args = parser.parse_args()
    forms = [PATCHES, CALLS, *([NAIVE] if args.naive else [])]
    print(f"ms a step and replicate, {jax.device_count()} devices\n")
    print(f"| network, batch | {' | '.join(forms)} | {CALLS} / {PATCHES} |")
    print(f"| --- |{' --: |' * (len(forms) + 1)}")
    for name in args.model.split(","):
        if name not in NETWORKS:
            parser.error(f"--model must be among {', '.join(NETWORKS)}, got {name!r}")
        spent = measure(name, args.turns, args.naive)
        row = [f"{1e3 * statistics.median(spent[form]):.3g}" for form in forms]
        times = ratio(spent[CALLS], spent[PATCHES])
        batch = NETWORKS[name][0]
        print(f"| `{name}`, {batch} | {' | '.join(row)} | {times:.2f} |", flush=True)


if __name__ == "__main__":
    main()
