"""Whole training steps on living weights: mask updates, memory, and the state of the optimizer.

    python -m benchmarks.sparse_training
    python -m benchmarks.sparse_training --table state

`updates`: RigL on an MLP 1024-4096-1024, batch 128, Adam, 95%: a step, a step with a mask update,
and the bytes of the compiled step, which contains both. `process`: the memory that the system
reports for a process that trains in one form: what it holds between steps and its peak during them,
beside what is left when parameters and state are deleted (Linux with glibc). `state`: the optimizer
step alone, Adam, 90%, ResNet-50 shapes, with dense parameters and `storage="compressed_state"`: in
any loop, or with the living weights written in place. Everything but `process` takes turns within
one run, donated; medians.
"""

import argparse
import ctypes
import functools
import gc
import itertools
import math
import multiprocessing
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import optax

import jaxsparse
from benchmarks.shapes import NETWORKS
from benchmarks.sparse import kernels, loss
from benchmarks.step import SHAPES, weights
from benchmarks.timing import chain, optimizer_step, ratio, step_in_place, take_turns
from experiments.common.report.tables import markdown
from jaxsparse import sparse

SIZES, BATCH = NETWORKS["MLP"]
WEIGHTS = sum(map(math.prod, itertools.pairwise(SIZES)))
BLOCK = 64
Program = tuple[Callable[[], None], Any]


def program(step: Callable[..., Any], state: Any, *rest: Any) -> Program:
    """A call of the compiled, donated step, and its memory statistics."""
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*state, *rest).compile()
    return chain(compiled, state, *rest), compiled.memory_analysis()


def forms() -> dict[str, Any]:
    """RigL in every storage. Masks change in every other call, after a first one."""
    inner, block = optax.adam(1e-3), jaxsparse.block(BLOCK, BLOCK)
    rigl = functools.partial(jaxsparse.rigl, inner, 0.95, key=0, every=2, axes="flax")
    blocks = f"compressed:block:{BLOCK}x{BLOCK}"
    return {
        "dense": inner,
        "RigL, masks": rigl(),
        "RigL, csr": rigl(storage="compressed"),
        f"RigL, blocks of {BLOCK}": rigl(storage=blocks, pattern=block),
    }


def training(name: str) -> Program:
    """A training step of the MLP in one of the forms."""
    tx = forms()[name]
    keys = jax.random.split(jax.random.key(0), 4)
    params = kernels(SIZES, keys)
    examples = [jax.random.normal(keys[2 + i], (BATCH, SIZES[i])) for i in (0, -1)]
    begun = (params, tx.init(params)) if name == "dense" else jaxsparse.init(tx, params)
    train = sparse.train_step(loss, tx)
    return program(lambda *args: train(*args)[:2], begun, *examples)


def updates(turns: int) -> list[list[str]]:
    """A row for each storage: the step, the step with a mask update, and its bytes."""
    calls, memory = {}, {}
    for name in forms():
        call, memory[name] = training(name)
        call()  # a warm-up
        calls[name] = call
        if name != "dense":
            calls[f"{name} with an update"] = call
    spent = take_turns(calls, turns)
    rows = []
    for name, found in memory.items():
        more = spent.get(f"{name} with an update")
        kept, beside = found.argument_size_in_bytes / WEIGHTS, found.temp_size_in_bytes / WEIGHTS
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


def process(turns: int) -> list[list[str]]:
    """A row for each storage: what its process holds, and its peak."""
    fresh = multiprocessing.get_context("spawn")  # nothing is inherited
    rows = []
    for name in forms():
        with fresh.Pool(1) as pool:
            held, peak = pool.apply(resident, (name, turns))
        rows.append([name, f"{held / WEIGHTS:.1f}", f"{peak / WEIGHTS:.1f}"])
    return rows


def resident(name: str, turns: int) -> tuple[int, int]:
    """Resident bytes of this process after some steps, and their peak during a few more."""
    call, _ = training(name)
    for _ in range(3):  # both kinds of steps
        call()
    held = _in_use()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    for _ in range(turns):
        call()
    peak = _status("VmHWM")
    del call
    rest = _in_use()  # the program and its compiler
    return held - rest, peak - rest


def _in_use() -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # returns what is free to the system
    return _status("VmRSS")


def _status(field: str) -> int:
    (line,) = re.findall(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(line)


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
    "process": (process, ["", "bytes a weight: held", "peak"]),
    "state": (state, ["", "ms", "times the dense step", "bytes of state a weight"]),
}


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", default=",".join(TABLES), help="comma-separated (default: all)")
    parser.add_argument("--turns", type=int, default=9)
    args = parser.parse_args()
    for name in args.table.split(","):
        if name not in TABLES:
            parser.error(f"--table must be among {', '.join(TABLES)}, got {name!r}")
        table, head = TABLES[name]
        print(f"\n{markdown(head, table(args.turns))}", flush=True)


if __name__ == "__main__":
    main()
