"""A training step of whole networks of the sparse momentum paper, with a few percent of weights.

    python -m benchmarks.sparse_networks
    python -m benchmarks.sparse_networks --network lenet_5_caffe --sparsity 0.99
    python -m benchmarks.sparse_networks --network wrn_16_8 --batch 32 --turns 3

Forward, both gradients and SGD with momentum, including batch normalization, on synthetic images;
jitted, donated steps, ten per call if they are short, all forms taking turns within one run;
medians. Ratios are to the faster of two dense steps, one with XLA's convolutions and one with this
repository's patches. `masks` is patches with a static mask; `csr` is XLA's form through
`jaxsparse.sparse.accelerate`, with the same masks.
"""

import argparse
import functools
import statistics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxsparse
from benchmarks.timing import chain, ratio, take_turns
from experiments.common.models.network import Network, make_network
from experiments.common.report.tables import markdown, size
from experiments.common.training.evaluation import cross_entropy
from jaxsparse import sparse

BATCHES = {"lenet_300_100": 100, "lenet_5_caffe": 100, "vgg_16_d": 128, "wrn_16_8": 128}
"""Examples per step, as in the paper."""


class Made(NamedTuple):
    """What a network must know about its images."""

    input_shape: tuple[int, ...]
    num_classes: int


def step(network: Network, tx: optax.GradientTransformation, fast: bool) -> Any:
    """`(params, opt_state, images, labels) -> (params, opt_state)`, compiled and donated."""

    def loss(params: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
        moved = None
        if network.forward is None:
            logits = network.apply(params, images)
        else:
            logits, moved = network.forward(params, jax.random.key(0), images)
        return cross_entropy(logits, labels).mean(), moved

    of = sparse.accelerate(loss) if fast else loss

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train(params: Any, state: Any, images: jax.Array, labels: jax.Array) -> tuple[Any, Any]:
        grads, moved = jax.grad(of, has_aux=True)(params, images, labels)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        if moved is not None:
            params = jax.tree.map(
                lambda new, p: p if new is None else new,
                moved,
                params,
                is_leaf=lambda leaf: leaf is None,
            )
        return params, state

    return train


def measure(name: str, batch: int, sparsity: float, turns: int) -> list[list[str]]:
    """The rows of one network: form, milliseconds, times as fast as dense, bytes stored."""
    task = Made((28, 28, 1) if name.startswith("lenet") else (32, 32, 3), 10)
    images = jax.random.normal(jax.random.key(1), (batch, *task.input_shape))
    labels = jax.random.randint(jax.random.key(2), (batch,), 0, task.num_classes)
    forms = {form: make_network(name, task, convolution=form) for form in ("conv", "patches")}
    params = forms["conv"].init_params(jax.random.key(0))
    masks = jaxsparse.random_masks(3, params, sparsity)
    tx = optax.sgd(0.1, momentum=0.9)
    fixed = jaxsparse.fixed(tx, masks=masks)

    steps = 10 if name.startswith("lenet") else 1

    def begun(params: Any) -> tuple[Any, Any]:
        params = jax.tree.map(jnp.copy, params)
        return params, tx.init(params)

    def training(step: Any, carry: tuple) -> Any:
        return chain(step, carry, images, labels, times=steps)

    calls = {
        f"dense, {form}": training(step(network, tx, False), begun(params))
        for form, network in forms.items()
    }
    small = sparse.compress(jaxsparse.apply(params, masks), masks)
    calls["masks"] = training(step(forms["patches"], fixed, False), jaxsparse.init(fixed, params))
    calls["csr"] = training(step(forms["conv"], tx, True), begun(small))
    kept = dict.fromkeys(calls, sparse.nbytes(params))
    kept |= {"masks": sparse.nbytes((params, masks)), "csr": sparse.nbytes(small)}
    take_turns(calls, 2)  # compiles
    spent = take_turns(calls, turns)
    faster = min(forms, key=lambda form: statistics.median(spent[f"dense, {form}"]))
    return [
        [
            f"{name}, {100 * (1 - sparsity):g}%, batch {batch}: {form}",
            f"{1000 * statistics.median(found) / steps:.1f}",
            f"{1 / ratio(found, spent[f'dense, {faster}']):.2f}",
            size(kept[form]),
        ]
        for form, found in spent.items()
    ]


def main() -> None:
    """Prints the table network by network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--network", default=",".join(BATCHES), help="comma-separated (default: all)"
    )
    parser.add_argument("--batch", type=int, help="examples per step (default: the paper's)")
    parser.add_argument("--sparsity", type=float, default=0.95)
    parser.add_argument("--turns", type=int, default=7)
    args = parser.parse_args()
    head = ["", "ms a step", "times as fast as dense", "bytes of parameters"]
    for name in args.network.split(","):
        if name not in BATCHES:
            parser.error(f"--network must be among {', '.join(BATCHES)}, got {name!r}")
        rows = measure(name, args.batch or BATCHES[name], args.sparsity, args.turns)
        print(markdown(head, rows), flush=True)


if __name__ == "__main__":
    main()
