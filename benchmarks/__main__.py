"""The goals at the size where sparse training matters, and what this machine measures.

    python -m benchmarks                  # 20 minutes on two idle cores
    python -m benchmarks --part leaves    # or resnet50, vit_b_16, init, selection, replicates

Every row is a figure, its goal, and the measured number. Times are ratios within one interleaved
run, memory is that of the compiled program. Parts print their rows as they are measured.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxsparse
from benchmarks import selection
from benchmarks.step import OPTIMIZERS, SHAPES, SPARSITY, measure, variant, weights
from benchmarks.timing import optimizer_step, ratio, take_turns
from experiments.common.report.tables import markdown
from experiments.common.training.methods import METHODS

Row = tuple[str, float, float]
"""What is measured, its goal (at most), and what was found."""

STEPS = 5
"""Steps per timed call: the first one after a mask update, even another variant's, is slower."""
MOVING = ("gradual", "rigl", "sparse_evolution", "sparse_momentum")
STEP = {"sgd": 1.15, "momentum": 1.15, "adamw": 1.10}
UPDATE = {"rigl": 12.0, "sparse_evolution": 15.0, "sparse_momentum": 15.0}


def step(leaves: str, most: float, turns: int, masks: str) -> Iterator[Row]:
    """The optimizer step, a mask update, and the memory of both.

    Args:
      leaves: a key of `SHAPES`.
      most: the goal for the temporary bytes per weight.
      turns: timed calls.
      masks: the `mask_storage` of all methods.
    """
    shapes = SHAPES[leaves]
    size = sum(map(math.prod, shapes))
    for optimizer, goal in STEP.items():
        found = measure(OPTIMIZERS[optimizer], shapes, ["fixed", *MOVING], turns, STEPS, masks)
        dense = found.pop("dense").step
        for name, cost in found.items():
            what = f"{leaves}, {optimizer}, {name}"
            yield f"{what}: a step, times dense", goal, cost.ratio
            if name in UPDATE and cost.update is not None:
                yield f"{what}: a mask update, dense steps", UPDATE[name], cost.update / dense
            if optimizer == "momentum" and METHODS[name].moves:
                yield f"{what}: temporary bytes per weight", most, cost.temporary / size
            if (leaves, optimizer, name) == ("resnet50", "momentum", "rigl"):
                yield f"{what}: compiling, s", 5, cost.compiling


def init(_: int, masks: str) -> Iterator[Row]:
    """The memory of drawing masks and applying them."""
    shapes = SHAPES["resnet50"]
    size, params = sum(map(math.prod, shapes)), weights(shapes, 0)
    for name in ("fixed", *MOVING):
        tx = variant(name, OPTIMIZERS["momentum"], 100, mask_storage=masks)
        made = jax.jit(lambda params, tx=tx: jaxsparse.init(tx, params), donate_argnums=0)
        memory = made.lower(params).compile().memory_analysis()
        yield f"resnet50, {name}: init, bytes per weight", 2, memory.temp_size_in_bytes / size


def leaves(_: int, masks: str) -> Iterator[Row]:
    """The time to compile a step of 500 leaves of 10 shapes."""
    shapes = [(64, 32 * (1 + i % 10)) for i in range(500)]
    params = weights(shapes, 0)
    tx = variant("rigl", OPTIMIZERS["momentum"], 100, mask_storage=masks)
    state = tx.init(params)
    began = time.perf_counter()
    jax.jit(optimizer_step(tx), donate_argnums=(0, 1)).lower(params, state, params).compile()
    yield "500 leaves of 10 shapes, rigl: compiling, s", 10, time.perf_counter() - began


def select(turns: int, _: str) -> Iterator[Row]:
    """Selection of a tenth of 1e7 scores."""
    n = 10_000_000
    for dtype, zeros, threshold, mask in (
        ("float32", 0.0, 4, 6),
        ("float32", 0.95, 8, 8),
        ("bfloat16", 0.0, 8, 8),
    ):
        made = selection.ways(n)
        del made["jnp.sort"]
        found = selection.interleaved(made, selection.scores(n, dtype, zeros), turns)
        what = f"1e7 {dtype}{', 95% zeros' if zeros else ''}"
        passes = found.pop("one pass")
        yield f"{what}: threshold, passes", threshold, found["kth_largest"] / passes
        yield f"{what}: mask, passes", mask, found["top_k_mask"] / passes


def replicates(turns: int, masks: str) -> Iterator[Row]:
    """Five replicates under `vmap`, with four mask updates in 200 steps, beside static masks."""
    sizes, batch, steps, every = (784, 300, 100, 10), 100, 200, 40
    shapes = list(zip(sizes, sizes[1:], strict=False))
    inputs = jax.random.normal(jax.random.key(0), (batch, sizes[0]))
    labels = jnp.arange(batch) % sizes[-1]
    stored = {"mask_storage": masks}
    when = {"every": every, "start": every, "stop": steps} | stored

    def loss(params: Any) -> jax.Array:
        x = inputs
        for name, layer in params.items():
            x = x @ layer["kernel"]
            x = x if name == list(params)[-1] else jax.nn.relu(x)
        return optax.softmax_cross_entropy_with_integer_labels(x, labels).mean()

    def run(name: str) -> Callable[[], Any]:
        options = when if METHODS[name].moves else stored

        def one(seed: jax.Array) -> Any:
            tx = METHODS[name].make(OPTIMIZERS["momentum"], sparsity=SPARSITY, key=seed, **options)
            params, state = jaxsparse.init(tx, weights(shapes, seed))

            def body(carry: Any, _: None) -> tuple[Any, None]:
                return optimizer_step(tx)(*carry, jax.grad(loss)(carry[0])), None

            (params, _), _ = jax.lax.scan(body, (params, state), length=steps)
            return params

        whole = jax.jit(jax.vmap(one))
        return lambda: jax.block_until_ready(whole(jnp.arange(5)))

    calls = {name: run(name) for name in ("fixed", *MOVING)}
    for call in calls.values():
        call()  # compiles
    spent = take_turns(calls, turns)
    for name in MOVING:
        yield f"5 replicates, {name}: a run, times static", 1.5, ratio(spent[name], spent["fixed"])


PARTS: dict[str, Callable[[int, str], Iterator[Row]]] = {
    "resnet50": partial(step, "resnet50", 2),
    "vit_b_16": partial(step, "vit_b_16", 3),
    "init": init,
    "leaves": leaves,
    "selection": select,
    "replicates": replicates,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--part", default=",".join(PARTS), help="comma-separated (default: all)")
    parser.add_argument("--turns", type=int, default=9, help="timed turns (default 9)")
    parser.add_argument("--mask-storage", choices=("bool", "packed"), default="bool")
    args = parser.parse_args()
    unknown = set(args.part.split(",")) - set(PARTS)
    if unknown:
        parser.error(f"--part must be among {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    print(markdown(["", "goal: at most", "measured", ""], []), flush=True)
    for part in args.part.split(","):
        for what, goal, found in PARTS[part](args.turns, args.mask_storage):
            met = "met" if found <= goal else "missed"
            print(f"| {what} | {goal:g} | {found:.2f} | {met} |", flush=True)


if __name__ == "__main__":
    main()
