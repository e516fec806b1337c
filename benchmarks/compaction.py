"""A training step of a network without its dead units, compared with the dense step.

    python -m benchmarks.compaction
    python -m benchmarks.compaction --sizes 784,300,100,10 --batch 100

A multilayer perceptron and a convolutional network with ReLU, biases and SGD: forward, both
gradients, update; float32, donated, taking turns within one run. "channels" means masks that leave
one hidden unit or channel in twenty; "SRigL" means what `rigl` with `fan_in` and `min_salient`
leaves after a short training on a teacher's outputs. The seconds of `compact` are those of the
search alone.
"""

import argparse
import functools
import itertools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxsparse
from benchmarks.sparse import step
from benchmarks.timing import chain, ratio, take_turns
from experiments.common.report.tables import markdown, size
from jaxsparse import sparse

SPARSITY = 0.95
STEPS, EVERY, MIN_SALIENT = 60, 10, 0.95
Tree = dict[str, Any]


def layers(shapes: list[tuple[int, ...]]) -> Tree:
    """Kernels and biases by name, in the order of the layers."""
    keys = jax.random.split(jax.random.key(0), len(shapes))
    found = {}
    for i, shape in enumerate(shapes):
        inputs = jnp.prod(jnp.array(shape[:-1]))
        kernel = jax.random.normal(keys[i], shape) * jnp.sqrt(2 / inputs)
        found[f"layer{i}"] = {"kernel": kernel, "bias": 0.1 * jnp.ones(shape[-1])}
    return found


def mlp(params: Tree, x: jax.Array) -> jax.Array:
    """Dense layers with ReLU between them."""
    *hidden, last = params.values()
    for layer in hidden:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x @ last["kernel"] + last["bias"]


def convolutional(params: Tree, x: jax.Array) -> jax.Array:
    """3x3 convolutions, each with ReLU and pooling, and a dense layer."""
    *hidden, last = params.values()
    for layer in hidden:
        order = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(
            x, layer["kernel"], (1, 1), "SAME", dimension_numbers=order
        )
        x = jax.nn.relu(x + layer["bias"])
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return x.reshape(len(x), -1) @ last["kernel"] + last["bias"]


def hidden(path: str, leaf: Any, last: str) -> bool:
    """Whether it is a kernel of a hidden layer: the units of the last layer are the outputs."""
    return path.endswith("kernel") and not path.startswith(last)


def channels(params: Tree) -> Tree:
    """Masks that leave one unit in twenty; the biases of the others die with them."""
    last = list(params)[-1]
    masks = jaxsparse.random_masks(
        1, params, SPARSITY, pattern=jaxsparse.channel, axes="flax",
        distribution=jaxsparse.distributions.uniform,
        prunable=functools.partial(hidden, last=last),
    )  # fmt: skip
    for layer in masks.values():
        kernel = layer["kernel"]
        layer["bias"] = layer["bias"] & jnp.any(kernel, range(kernel.ndim - 1))
    return masks


def srigl(loss: Callable[..., Any], params: Tree, x: jax.Array, y: jax.Array) -> tuple[Tree, Tree]:
    """Parameters and masks after a short training that removes units."""
    last = list(params)[-1]
    tx = jaxsparse.rigl(
        optax.sgd(0.05), SPARSITY, key=0, every=EVERY, stop=STEPS, pattern=jaxsparse.fan_in,
        axes="flax", min_salient=MIN_SALIENT, keep_units=(),
        distribution=jaxsparse.distributions.uniform,
        prunable=functools.partial(hidden, last=last),
    )  # fmt: skip
    params, state = jaxsparse.init(tx, params)
    train = step(loss, tx)
    for _ in range(STEPS):
        params, state = train(params, state, x, y)
    return params, jaxsparse.get_masks(state, params)


def measure(
    name: str, network: Callable[..., Any], shapes: list[tuple[int, ...]], x: jax.Array, turns: int
) -> list[list[str]]:
    """The rows of one network."""

    def loss(params: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.mean((network(params, x) - y) ** 2)

    params = layers(shapes)
    y = network(jax.tree.map(lambda leaf: leaf[..., ::-1], params), x)
    tx, copy = optax.sgd(0.01), functools.partial(jax.tree.map, jnp.copy)
    found = {"dense": (params, 0.0)}
    for form in ("channels", "SRigL"):
        chosen = (
            (params, channels(params)) if form == "channels" else srigl(loss, copy(params), x, y)
        )
        jax.block_until_ready(chosen)
        began = time.perf_counter()
        small = jaxsparse.compact(network, *chosen, x, fold_constants=True)
        found[form] = small.params, time.perf_counter() - began
    calls = {
        form: chain(step(loss, tx), (copy(p), tx.init(p)), x, y) for form, (p, _) in found.items()
    }
    take_turns(calls, 2)  # compiles
    spent = take_turns(calls, turns)
    return [
        [
            f"{name}, {form}",
            "-".join(str(layer["bias"].size) for layer in found[form][0].values()),
            f"{1000 * sorted(seconds)[len(seconds) // 2]:.2f}",
            f"{1 / ratio(seconds, spent['dense']):.1f}",
            size(sparse.nbytes(found[form][0])),
            f"{found[form][1]:.2f}" if found[form][1] else "",
        ]
        for form, seconds in spent.items()
    ]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="1024,4096,1024", help="units of the perceptron")
    parser.add_argument("--channels", default="3,64,128", help="of the convolutional network")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--turns", type=int, default=15)
    args = parser.parse_args()
    sizes = [int(text) for text in args.sizes.split(",")]
    widths = [int(text) for text in args.channels.split(",")]
    x = jax.random.normal(jax.random.key(1), (args.batch, sizes[0]))
    rows = measure("perceptron", mlp, list(itertools.pairwise(sizes)), x, args.turns)
    shapes = [(3, 3, *pair) for pair in itertools.pairwise(widths)]
    side = 16 // 2 ** len(shapes)
    images = jax.random.normal(jax.random.key(2), (args.batch, 16, 16, widths[0]))
    shapes.append((side * side * widths[-1], 10))
    rows += measure("convolutional", convolutional, shapes, images, args.turns)
    head = ["", "units", "ms a step", "times as fast as dense", "bytes kept", "compact, s"]
    print(markdown(head, rows))


if __name__ == "__main__":
    main()
