"""Which format is the fastest for a kernel, estimated from a table of measured costs."""

import functools
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsparse.compiled import cache_folder
from jaxsparse.sparse import _kernels, _layout
from jaxsparse.types import Array, Axes

_SHIPPED = Path(__file__).with_name("costs.json")
_BLOCKS = (128, 64, 32, 16, 8)


class Cost(NamedTuple):
    """The time of a product: the forward pass and both gradients together.

    Attributes:
      overhead: microseconds per call.
      rate: thousands of multiply-adds of each of the three, per microsecond.
    """

    overhead: float
    rate: float


class Choice(NamedTuple):
    """A format for one kernel.

    Attributes:
      format: the format string, as `compress` takes it.
      gain: estimated dense time over its time; 1.0 for "masked", which is a dense product.
      why: the reason, in one line.
    """

    format: str
    gain: float
    why: str


def costs_file() -> Path:
    """Where `python -m benchmarks.sparse --tune` keeps what it measured on this machine."""
    return cache_folder() / "costs.json"


@functools.cache
def costs() -> dict[str, dict[str, Cost]]:
    """`{machine: {work: Cost}}`: the table that ships, overridden by what was measured here.

    A machine reads like "cpu compiled". Work reads like "csr 128": a format, or "masked" for a
    dense product, and a batch; "csr convolution 8192" is a convolution and its positions.
    """
    found = json.loads(_SHIPPED.read_text())
    if costs_file().exists():
        found |= json.loads(costs_file().read_text())
    return {
        machine: {work: Cost(*cost) for work, cost in table.items()}
        for machine, table in found.items()
    }


def machine() -> str:
    """The key of this machine's costs."""
    return f"{jax.default_backend()} {'compiled' if _kernels.products().compiled else 'xla'}"


def estimate(format: str, multiplied: int, batch: int, *, convolution: bool) -> float | None:
    """Microseconds of a product with both gradients; None if nothing like it was measured.

    Args:
      format: as `compress` takes it; blocks count as the square blocks closest to them.
      multiplied: how many weights are multiplied: the living ones, or all.
      batch: examples, times positions for a convolution.
      convolution: whether the product is a convolution.
    """
    table, kind = costs().get(machine(), {}), _kind(format, convolution)
    known = [int(work.rsplit(" ", 1)[1]) for work in table if work.rsplit(" ", 1)[0] == kind]
    if not known:
        return None
    nearest = min(known, key=lambda other: abs(math.log(other / max(batch, 1))))
    cost = table[f"{kind} {nearest}"]
    return cost.overhead + batch * multiplied / (1000 * cost.rate)


def gain(kernel: Any, x: Any) -> float | None:
    """Estimated dense time over the time of a kernel's product with this input."""
    axes, shape = kernel.places.axes, kernel.shape
    size = math.prod(shape) // max(math.prod(shape[a] for a in axes.stacked), 1)
    convolution = _spatial(shape, axes)
    batch = x.size // max(math.prod(shape[a] for a in axes.inputs), 1)
    layers = max(math.prod(kernel.places.stacked), 1)
    dense = estimate("masked", size, batch, convolution=convolution)
    own = estimate(kernel.format, kernel.values.size // layers, batch, convolution=convolution)
    return None if dense is None or own is None else dense / own


def choose(mask: Array, axes: Axes, batch: int) -> Choice:
    """The fastest format for a mask.

    Args:
      mask: boolean, of the kernel's shape.
      axes: of the kernel.
      batch: examples per product, times positions for a convolution.
    """
    convolution = _spatial(mask.shape, axes)
    kept = _fitting(mask, axes)
    times = {f: estimate(f, n, batch, convolution=convolution) for f, n in kept.items()}
    known = {f: t for f, t in times.items() if t is not None}
    if "masked" not in known:
        return Choice("masked", 1.0, f"no costs are known for {machine()}")
    best = min(known, key=known.__getitem__)
    gains = {f: known["masked"] / t for f, t in known.items() if f != "masked"}
    told = ", ".join(f"{f} {found:.1f}x" for f, found in gains.items())
    return Choice(best, gains.get(best, 1.0), f"against dense at batch {batch}: {told}")


def _fitting(mask: Array, axes: Axes) -> dict[str, int]:
    """The formats that hold a mask, and how many weights each multiplies in one layer."""
    layers = np.asarray(_layout.flat(mask, axes))
    layers = layers.reshape(-1, *layers.shape[-2:])
    most = int(np.max(np.sum(layers, (1, 2)), initial=0))
    found = {"masked": math.prod(layers.shape[1:]), "csr": most}
    rows, columns = np.any(layers, 2), np.any(layers, 1)
    whole = np.array_equal(layers, rows[:, :, None] & columns[:, None, :])
    if whole and not _spatial(mask.shape, axes) and len(layers):
        found["channels"] = int(np.max(rows.sum(1)) * np.max(columns.sum(1)))
    inputs, outputs = layers.shape[1:]
    for side in _BLOCKS:
        if inputs % side or outputs % side:
            continue
        tiles = layers.reshape(-1, inputs // side, side, outputs // side, side)
        if np.array_equal(np.any(tiles, (2, 4)), np.all(tiles, (2, 4))):
            return found | {f"block:{side}x{side}": most}
    return found


def _kind(format: str, convolution: bool) -> str:
    name = format
    # Blocks of a window are multiplied as rows, as a constant fan-in is.
    if name == "condensed" or (convolution and name.startswith("block:")):
        name = "csr"
    elif name.startswith("block:"):
        sides = [int(n) for n in name.removeprefix("block:").split("x")]
        side = min(_BLOCKS, key=lambda known: abs(math.log(known / min(sides))))
        name = f"block:{side}x{side}"
    return f"{name} convolution" if convolution else name


def _spatial(shape: tuple[int, ...], axes: Axes) -> bool:
    return len(shape) > len(axes.inputs + axes.outputs + axes.stacked)
