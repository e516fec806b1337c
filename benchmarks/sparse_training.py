"""Whole training steps on living weights: mask updates, memory, and the state of the optimizer.

    python -m benchmarks.sparse_training
    python -m benchmarks.sparse_training --table state

`updates`: RigL on an MLP 1024-4096-1024, batch 128, Adam, 95%: a step, a step with a mask update,
and the bytes of the compiled step, which contains both. `state`: the optimizer step alone, Adam,
90%, ResNet-50 shapes, with dense parameters and `storage="compressed_state"`: in any loop, or with
the living weights written in place. Everything takes turns within one run, donated; medians.
"""

import argparse
import functools
import math
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxsparse
from benchmarks.sparse import NETWORKS, kernels, loss
from benchmarks.step import SHAPES, weights
from benchmarks.timing import chain, optimizer_step, ratio, step_in_place, take_turns
from experiments.common.report.tables import markdown
from jaxsparse import sparse

SIZES, BATCH = NETWORKS["MLP"]
BLOCK = 64
Program = tuple[Callable[[], None], Any]


def program(step: Callable[..., Any], state: Any, *rest: Any) -> Program:
    """A call of the compiled, donated step, and its memory statistics."""
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*state, *rest).compile()
    return chain(compiled, state, *rest), compiled.memory_analysis()


def updates(turns: int) -> list[list[str]]:
    """A row for each storage: the step, the step with a mask update, and its bytes."""
    keys = jax.random.split(jax.random.key(0), 4)
    params = kernels(SIZES, keys)
    examples = [jax.random.normal(keys[2 + i], (BATCH, SIZES[i])) for i in (0, -1)]
    inner, block = optax.adam(1e-3), jaxsparse.block(BLOCK, BLOCK)
    # The first call is a warm-up; after it, masks change in every other call.
    rigl = functools.partial(jaxsparse.rigl, inner, 0.95, key=0, every=2, axes="flax")
    forms = {
        "dense": inner,
        "RigL, masks": rigl(),
        "RigL, csr": rigl(storage="compressed"),
        f"RigL, blocks of {BLOCK}": rigl(
            storage=f"compressed:block:{BLOCK}x{BLOCK}", pattern=block
        ),
    }
    calls, memory = {}, {}
    for name, tx in forms.items():
        copy = jax.tree.map(jnp.copy, params)
        state = (copy, tx.init(copy)) if name == "dense" else jaxsparse.init(tx, copy)
        train = sparse.train_step(loss, tx)
        call, memory[name] = program(lambda *args, train=train: train(*args)[:2], state, *examples)
        call()
        calls[name] = call
        if name != "dense":
            calls[f"{name} with an update"] = call
    spent = take_turns(calls, turns)
    size, rows = sum(p.size for p in params.values()), []
    for name, found in memory.items():
        more = spent.get(f"{name} with an update")
        kept, beside = found.argument_size_in_bytes / size, found.temp_size_in_bytes / size
        rows.append(
            [
                name,
                f"{1000 * statistics.median(spent[name]):.1f}",
                f"{1 / ratio(spent[name], spent['dense']):.1f}",
                "" if more is None else f"{ratio(more, spent['dense']):.1f}",
                f"{kept:.1f}",
                f"{beside:.1f}",
                f"{kept + beside:.1f}",
            ]
        )
    return rows


def state(turns: int) -> list[list[str]]:
    """A row for each way of storing the optimizer's state."""
    shapes, inner = SHAPES["resnet50"], optax.adam(1e-3)
    size, grads = sum(map(math.prod, shapes)), weights(shapes, 1)

    forms: dict[str, tuple[Any, Callable[..., Any]]] = {"dense": (inner, optimizer_step)}
    for name, make in (
        ("fixed", functools.partial(jaxsparse.fixed, inner, 0.9, key=0)),
        ("RigL", functools.partial(jaxsparse.rigl, inner, 0.9, key=0, every=10**6)),
    ):
        forms[f"{name}, masks"] = make(), optimizer_step
        compressed = make(storage="compressed_state")
        forms[f"{name}, compressed state, any loop"] = compressed, optimizer_step
        forms[f"{name}, compressed state, in place"] = compressed, step_in_place
    calls, kept = {}, {}
    for name, (tx, step) in forms.items():
        params = weights(shapes, 0)
        begun = (params, tx.init(params)) if name == "dense" else jaxsparse.init(tx, params)
        kept[name] = sparse.nbytes(begun[1]) / size
        calls[name], _ = program(step(tx), begun, grads)
    take_turns(calls, 1)  # a warm-up
    spent = take_turns(calls, turns)
    return [
        [
            name,
            f"{1000 * statistics.median(found):.1f}",
            f"{ratio(found, spent['dense']):.2f}",
            f"{kept[name]:.2f}",
        ]
        for name, found in spent.items()
    ]


TABLES: dict[str, tuple[Callable[[int], list[list[str]]], list[str]]] = {
    "updates": (
        updates,
        [
            "",
            "ms a step",
            "times as fast as dense",
            "with a mask update, dense steps",
            "bytes a weight: arguments",
            "temporary",
            "both",
        ],
    ),
    "state": (state, ["", "ms", "times the dense step", "bytes of state a weight"]),
}


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", default=",".join(TABLES), help="comma-separated (default: both)")
    parser.add_argument("--turns", type=int, default=9)
    args = parser.parse_args()
    for name in args.table.split(","):
        if name not in TABLES:
            parser.error(f"--table must be among {', '.join(TABLES)}, got {name!r}")
        table, head = TABLES[name]
        print(f"\n{markdown(head, table(args.turns))}", flush=True)


if __name__ == "__main__":
    main()
