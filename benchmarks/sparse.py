"""A training step on compressed kernels against the dense step and the masked one.

    python -m benchmarks.sparse
    python -m benchmarks.sparse --sizes 784,300,100,10 --batch 100

A multilayer perceptron with ReLU and SGD: forward, both gradients, update; float32, donated, in
turns within one run. Bytes are what is kept of the parameters, values and places.
"""

import argparse
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxsparse
from benchmarks.timing import chain, ratio, take_turns
from experiments.common.report.tables import markdown, size
from jaxsparse import sparse

SPARSITIES = (0.9, 0.95, 0.98)


def network(sizes: list[int]) -> dict[str, Any]:
    """Kernels by name, in the order of the layers."""
    keys = jax.random.split(jax.random.key(0), len(sizes))
    pairs = enumerate(itertools.pairwise(sizes))
    return {f"fc{i}": jax.random.normal(keys[i], pair) / pair[0] ** 0.5 for i, pair in pairs}


def loss(params: dict[str, Any], x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean squared error; `@` takes arrays and compressed kernels alike."""
    *hidden, last = params.values()
    for kernel in hidden:
        x = jax.nn.relu(x @ kernel)
    return jnp.mean((x @ last - y) ** 2)


def loss_of_columns(params: dict[str, Any], x: jax.Array, y: jax.Array) -> jax.Array:
    """The same with the batch as the last axis, as the compiled kernel has it."""
    *hidden, last = params.values()
    for kernel in hidden:
        x = jax.nn.relu(kernel.product_of_columns(x))
    return jnp.mean((last.product_of_columns(x) - y) ** 2)


def step(of: Callable[..., jax.Array], tx: optax.GradientTransformation) -> Callable[..., Any]:
    """`(params, state, *rest) -> (params, state)`, compiled and donated."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train(params: Any, state: Any, *rest: Any) -> tuple[Any, Any]:
        updates, state = tx.update(jax.grad(of)(params, *rest), state, params)
        return optax.apply_updates(params, updates), state

    return train


def measure(
    sizes: list[int], batch: int, sparsity: float, block: int, turns: int
) -> list[list[str]]:
    """The rows of one sparsity: form, milliseconds, times as fast as dense, bytes kept."""
    x = jax.random.normal(jax.random.key(1), (batch, sizes[0]))
    y = jax.random.normal(jax.random.key(2), (batch, sizes[-1]))
    params, tx = network(sizes), optax.sgd(0.1)
    masks = jaxsparse.random_masks(3, params, sparsity, prunable=lambda path, leaf: True)
    fixed = jaxsparse.fixed(tx, masks=masks)
    copy = functools.partial(jax.tree.map, jnp.copy)
    calls = {"dense": chain(step(loss, tx), (copy(params), tx.init(params)), x, y)}
    calls["masks"] = chain(step(loss, fixed), jaxsparse.init(fixed, params), x, y)
    kept = {"dense": sparse.nbytes(params), "masks": sparse.nbytes((params, masks))}
    forms = {"csr": (masks, "csr", loss), "csr, batch last": (masks, "csr", loss_of_columns)}
    if all(n % block == 0 for n in sizes):
        pattern = {"pattern": jaxsparse.block(block, block), "axes": "flax"}
        blocks = jaxsparse.random_masks(
            3, params, sparsity, prunable=lambda path, leaf: True, **pattern
        )
        forms[f"blocks of {block}"] = (blocks, f"block:{block}x{block}", loss)
    for name, (chosen, form, function) in forms.items():
        small = sparse.compress(params, chosen, format=form)

        def of(living: Any, x: Any, y: Any, places: Any, function: Any = function) -> jax.Array:
            return function(sparse.with_values(places, living), x, y)

        examples = (x.T, y.T) if function is loss_of_columns else (x, y)
        living = copy(sparse.values(small))
        calls[name] = chain(step(of, tx), (living, tx.init(living)), *examples, small)
        kept[name] = sparse.nbytes(small)
    take_turns(calls, 2)  # compiles
    spent = take_turns(calls, turns)
    return [
        [
            f"{100 * sparsity:g}%, {name}",
            f"{1000 * sorted(found)[len(found) // 2]:.2f}",
            f"{1 / ratio(found, spent['dense']):.1f}",
            size(kept[name]),
        ]
        for name, found in spent.items()
    ]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="1024,4096,1024", help="units of the layers")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--block", type=int, default=64, help="side of a block")
    parser.add_argument("--turns", type=int, default=15)
    args = parser.parse_args()
    sizes = [int(text) for text in args.sizes.split(",")]
    found = sparse.backends()["csr"]
    print(f"csr kernel: {'compiled' if found.compiled else 'that of XLA'}, {found.why}\n")
    rows = []
    for sparsity in SPARSITIES:
        rows += measure(sizes, args.batch, sparsity, args.block, args.turns)
    print(markdown(["", "ms a step", "times as fast as dense", "bytes kept"], rows))


if __name__ == "__main__":
    main()
