"""Training steps, convolutions and forward passes on compressed kernels, against dense ones.

    python -m benchmarks.sparse
    python -m benchmarks.sparse --table convolutions --sparsity 0.95
    python -m benchmarks.sparse --table inference --sparsity 0.95
    python -m benchmarks.sparse --tune     # the costs by which format="auto" chooses

Networks: forward, both gradients, SGD; donated, ten steps per turn, as in training: right after
another program, a step would not find in the cache what it left there. Convolutions: forward and
both gradients, with images in the layout that XLA gives them between two convolutions of the same
kind. Inference: the forward pass of the same networks, ten calls per turn, each waited for;
"file" is what `sparse.export.save` writes and `load` reads. Everything is float32, taking turns
within one run. Bytes are those of the stored parameters, values and places, and the peak of the
compiled program besides its arguments.
"""

import argparse
import functools
import itertools
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.experimental.layout import Format, Layout

import jaxsparse
from benchmarks import sparse_costs
from benchmarks.shapes import CONVOLUTIONS, NETWORKS
from benchmarks.timing import chain, ratio, take_turns
from experiments.common.report.tables import markdown, size
from jaxsparse import sparse

INFERENCE = {
    f"{name}, batch {batch}": (sizes, batch)
    for name, (sizes, _) in NETWORKS.items()
    for batch in (1, 32, 256)
}
BLOCKS, BLOCK = (64, 32), 16  # of networks, of convolutions
STEPS = {"networks": 10, "convolutions": 1, "inference": 10}  # in a turn
Calls = dict[str, Callable[[], None]]


def predict(params: Mapping[str, Any], x: jax.Array) -> jax.Array:
    """What the network gives; `@` accepts both arrays and compressed kernels."""
    *hidden, last = params.values()
    for kernel in hidden:
        x = jax.nn.relu(x @ kernel)
    return x @ last


def loss(params: Mapping[str, Any], x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean squared error."""
    return jnp.mean((predict(params, x) - y) ** 2)


def kernels(sizes: Sequence[int], keys: jax.Array) -> dict[str, jax.Array]:
    """The kernels of a network, one key each."""
    pairs = enumerate(itertools.pairwise(sizes))
    return {f"fc{i}": jax.random.normal(keys[i], pair) / pair[0] ** 0.5 for i, pair in pairs}


def training(tx: optax.GradientTransformation, state: tuple, *rest: Any) -> tuple[Any, Any]:
    """A call of the compiled step, and the peak bytes of the program."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train(params: Any, state: Any, *rest: Any) -> tuple[Any, Any]:
        updates, state = tx.update(jax.grad(loss)(params, *rest), state, params)
        return optax.apply_updates(params, updates), state

    program = train.lower(*state, *rest).compile()
    call = chain(program, state, *rest, times=STEPS["networks"])
    return call, program.memory_analysis().temp_size_in_bytes


def in_formats(
    sizes: Sequence[int], sparsity: float, keys: jax.Array
) -> tuple[dict[str, jax.Array], Any, dict[str, Any]]:
    """The parameters of a network, their unstructured masks, and both in every format."""
    params = kernels(sizes, keys)

    def random(**pattern: Any) -> Any:
        every = {"prunable": lambda path, leaf: True, "axes": "flax"}
        return jaxsparse.random_masks(3, params, sparsity, **every, **pattern)

    masks = random()
    compressed = {"csr": sparse.compress(params, masks)}
    for block in BLOCKS:
        if all(n % block == 0 for n in sizes):
            chosen = random(pattern=jaxsparse.block(block, block))
            form = f"block:{block}x{block}"
            compressed[form] = sparse.compress(params, chosen, format=form)
    return params, masks, compressed


def network(name: str, sparsity: float) -> tuple[Calls, dict[str, list[str]]]:
    """The calls of each form, and the bytes that each keeps and needs."""
    sizes, batch = NETWORKS[name]
    keys = jax.random.split(jax.random.key(0), len(sizes) + 2)
    params, masks, compressed = in_formats(sizes, sparsity, keys)
    examples = [
        jax.random.normal(keys[-2], (batch, sizes[0])),
        jax.random.normal(keys[-1], (batch, sizes[-1])),
    ]
    tx, copy = optax.sgd(0.1), functools.partial(jax.tree.map, jnp.copy)
    fixed = jaxsparse.fixed(tx, masks=masks)
    forms = {
        "dense": (tx, (copy(params), tx.init(params)), params),
        "masks": (fixed, jaxsparse.init(fixed, params), (params, masks)),
    }
    for form, small in compressed.items():
        forms[form] = tx, (copy(small), tx.init(small)), small
    calls, notes = {}, {}
    for form, (wrapped, state, kept) in forms.items():
        calls[form], peak = training(wrapped, state, *examples)
        notes[form] = [size(sparse.nbytes(kept)), size(peak)]
    return calls, notes


def inference(name: str, sparsity: float) -> tuple[Calls, dict[str, list[str]]]:
    """The same for the forward pass, in this process and from a file."""
    sizes, batch = INFERENCE[name]
    keys = jax.random.split(jax.random.key(0), len(sizes) + 1)
    params, _, compressed = in_formats(sizes, sparsity, keys)
    x = jax.random.normal(keys[-1], (batch, sizes[0]))
    calls, notes = {}, {}

    def add(form: str, function: Callable[..., Any], weights: Any, *given: Any) -> None:
        program = jax.jit(function).lower(*given).compile()

        def call() -> None:
            for _ in range(STEPS["inference"]):
                jax.block_until_ready(program(*given))

        calls[form] = call
        notes[form] = [
            size(sparse.nbytes(weights)),
            size(program.memory_analysis().temp_size_in_bytes),
        ]

    for form, weights in {"dense": params, **compressed}.items():
        add(form, predict, weights, weights, x)
    with tempfile.TemporaryDirectory() as folder:
        for form, weights, via in (
            ("dense, file", params, "portable"),
            ("csr, file", compressed["csr"], "portable"),
            ("csr, file, jaxlib's product", compressed["csr"], "xla"),
        ):
            path = os.path.join(folder, "function")
            sparse.export.save(path, predict, weights, x, kernels=via)
            add(form, sparse.export.load(path), weights, x)
    return calls, notes


def convolution(name: str, sparsity: float) -> tuple[Calls, dict[str, list[str]]]:
    """The same for a convolution."""
    inputs, outputs, side, window, stride, batch = CONVOLUTIONS[name]
    keys = jax.random.split(jax.random.key(0), 3)
    values = jax.random.normal(keys[0], (window, window, inputs, outputs))
    mask = jax.random.bernoulli(keys[1], 1 - sparsity, values.shape)
    drawn = jaxsparse.random_masks(
        3, {"kernel": values}, sparsity, pattern=jaxsparse.block(BLOCK, BLOCK)
    )
    x = jax.random.normal(keys[2], (batch, side, side, inputs))
    kernel, strides = sparse.CSR.from_dense(values, mask), (stride, stride)
    in_blocks = sparse.Block.from_dense(values, drawn["kernel"], size=(BLOCK, BLOCK))
    pads = jax.lax.padtype_to_pads((side, side), (window, window), strides, "SAME")
    kept = Format(Layout((3, 1, 2, 0)), x.sharding)

    def dense(x: jax.Array, values: Any) -> jax.Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, values, strides, pads, dimension_numbers=numbers)

    def masked(x: jax.Array, values: Any) -> jax.Array:
        return dense(x, jnp.where(mask, values, 0.0))

    def own(x: jax.Array, kernel: Any) -> jax.Array:
        return kernel.convolve(x, strides=strides, padding=pads)

    calls, notes = {}, {}
    for form, function, weights, order in (
        ("dense", dense, values, x.format),
        ("masks", masked, values, x.format),
        ("csr", own, kernel, kept),
        (in_blocks.format, own, in_blocks, kept),
    ):

        def step(x: jax.Array, weights: Any, grads: Any, function: Any = function) -> Any:
            found, pull = jax.vjp(function, x, weights)
            return found, *pull(grads)

        grads = jax.jit(function)(x, weights)
        program = jax.jit(
            step, in_shardings=(order, None, order), out_shardings=(order, order, None)
        )
        given = jax.device_put(x, order), weights, jax.device_put(grads, order)
        compiled = program.lower(*given).compile()
        calls[form] = lambda run=compiled, given=given: jax.block_until_ready(run(*given))
        peak = compiled.memory_analysis().temp_size_in_bytes
        notes[form] = [size(sparse.nbytes(weights)), size(peak)]
    return calls, notes


TABLES = {
    "networks": (NETWORKS, network),
    "convolutions": (CONVOLUTIONS, convolution),
    "inference": (INFERENCE, inference),
}


def measured(table: str, name: str, sparsity: float, turns: int) -> list[dict[str, Any]]:
    """A row for each form of one network or convolution at one sparsity."""
    calls, notes = TABLES[table][1](name, sparsity)
    take_turns(calls, 2)  # compiles
    spent = take_turns(calls, turns)
    rows = []
    for form, seconds in spent.items():
        kept, peak = notes[form]
        row = {"": f"{name}, {100 * sparsity:g}%, {form}"}
        row["ms"] = f"{1000 * statistics.median(seconds) / STEPS[table]:.2f}"
        row["times as fast as dense"] = f"{1 / ratio(seconds, spent['dense']):.1f}"
        rows.append(row | {"bytes kept": kept, "peak bytes": peak})
    return rows


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", default=",".join(TABLES), help="comma-separated (default: all)")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--sparsity", default="0.8,0.9,0.95,0.98")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--tune", action="store_true", help='measure costs for format="auto"')
    args = parser.parse_args()
    if args.tune:
        print(f"costs of {sparse.machine()} are in {sparse_costs.save()}")
        return
    for name, found in sparse.backends().items():
        print(f"{name}: {'compiled' if found.compiled else 'XLA'}, {found.why}")
    for table in args.table.split(","):
        rows = []
        for name, text in itertools.product(TABLES[table][0], args.sparsity.split(",")):
            if args.only in name:
                rows += measured(table, name, float(text), args.turns)
        print(f"\n{markdown([*rows[0]], [[*row.values()] for row in rows])}", flush=True)


if __name__ == "__main__":
    main()
