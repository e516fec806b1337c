"""The table of costs by which `compress(format="auto")` chooses, measured on this machine.

For each format and batch it times a product with both gradients at two sparsities, which give an
overhead and a rate. `python -m benchmarks.sparse --tune` writes the table to the user's cache.
"""

import json
import statistics
from collections.abc import Callable
from typing import Any

import jax

import jaxsparse
from benchmarks.timing import take_turns
from jaxsparse import sparse

SIZE = 1024  # inputs and outputs of the kernel that is measured
CHANNELS, SIDE = 128, 16  # of the images
BATCHES = (1, 16, 128, 1024)
IMAGES = 32
SPARSITIES = (0.8, 0.98)
BLOCKS = (8, 16, 32, 64, 128)
TURNS = 7


def measure() -> dict[str, dict[str, tuple[float, float]]]:
    """`{machine: {work: (overhead in microseconds, rate)}}`, in the form that the library reads."""
    table = {}
    for batch in BATCHES:
        x = jax.random.normal(jax.random.key(1), (batch, SIZE))
        shape = (SIZE, SIZE)
        for format in ("masked", "csr", *(f"block:{side}x{side}" for side in BLOCKS)):
            table[f"{format} {batch}"] = _cost(format, shape, batch, lambda k, x: x @ k, x)
    x = jax.random.normal(jax.random.key(1), (IMAGES, SIDE, SIDE, CHANNELS))
    convolve = lambda k, x: k.convolve(x, padding=((1, 1), (1, 1)))  # noqa: E731
    positions, shape = IMAGES * SIDE**2, (3, 3, CHANNELS, CHANNELS)
    for format in ("masked", "csr"):
        cost = _cost(format, shape, positions, convolve, x)
        table[f"{format} convolution {positions}"] = cost
    return {sparse.machine(): table}


def save() -> str:
    """Measures and stores the table; returns its path."""
    file = sparse.costs_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(measure(), indent=1) + "\n")
    return str(file)


def _cost(
    format: str, shape: tuple[int, ...], batch: int, product: Callable[..., Any], x: Any
) -> tuple[float, float]:
    """Overhead and rate, from the fewest and the most living weights; dense work has a rate."""
    spent, work = [], []
    for sparsity in SPARSITIES:
        values = jax.random.normal(jax.random.key(2), shape)
        side = format.removeprefix("block:").split("x")[0]
        pattern = jaxsparse.block(int(side), int(side)) if side.isdigit() else None
        options = {} if pattern is None else {"pattern": pattern}
        masks = jaxsparse.random_masks(3, {"kernel": values}, sparsity, axes="flax", **options)
        kernel = sparse.compress({"kernel": values}, masks, format=format)["kernel"]
        spent.append(_microseconds(kernel, product, x))
        work.append(batch * (values.size if format == "masked" else kernel.values.size) / 1000)
    if format == "masked":
        return 0.0, round(work[0] / min(spent), 3)
    rate = (work[0] - work[1]) / max(spent[0] - spent[1], 1e-3)
    return round(max(spent[1] - work[1] / rate, 0.0), 2), round(rate, 3)


def _microseconds(kernel: Any, product: Callable[..., Any], x: Any) -> float:
    @jax.jit
    def step(living: Any, x: Any) -> Any:
        y, back = jax.vjp(product, living, x)
        return back(y)

    def call() -> None:
        jax.block_until_ready(step(kernel, x))

    call()
    return 1e6 * statistics.median(take_turns({"": call}, TURNS)[""])
