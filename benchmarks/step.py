"""What a sparse optimizer step costs, compared with the dense step and a naive implementation.

    python -m benchmarks.step                       # ResNet-50 shapes, 25.5 M weights; 5 minutes
    python -m benchmarks.step --optimizer adam
    python -m benchmarks.step --leaves vit_b_16     # 86 M weights
    python -m benchmarks.step --leaves one          # one leaf of 25 M weights; 1 minute

Donated state, no forward or backward pass, all variants taking turns within one run; medians, and
the median of the ratios to the dense step of the same turn. The cost of a mask update is the extra
time of a step in which masks change. DeepR changes them at every step. The naive implementation
("obvious") keeps masks in a list, multiplies by them, and sorts to prune and to grow. Bytes are
those of the compiled step.
"""

import argparse
import math
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxsparse
from benchmarks.timing import chain, optimizer_step, ratio, take_turns
from experiments.common.report.tables import markdown
from experiments.common.study.options import renamed
from experiments.common.training.methods import METHODS

SPARSITY = 0.9
OBVIOUS, UPDATE = "obvious rigl", " with mask update"


def resnet50_shapes() -> list[tuple[int, ...]]:
    shapes, width_in = [(7, 7, 3, 64)], 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += [(1, 1, width_in, width), (3, 3, width, width), (1, 1, width, 4 * width)]
            if block == 0:
                shapes.append((1, 1, width_in, 4 * width))
            width_in = 4 * width
    return [*shapes, (2048, 1000)]


def vit_b_16_shapes() -> list[tuple[int, ...]]:
    layer = [*[(768, 768)] * 4, (768, 3072), (3072, 768)]
    return [(16, 16, 3, 768), *layer * 12, (768, 1000)]


SHAPES = {
    "resnet50": resnet50_shapes(),
    "vit_b_16": vit_b_16_shapes(),
    "one": [(5000, 5000)],
}
OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "adam": optax.adam(1e-3),
    "adamw": optax.adamw(1e-3),
}


def weights(
    shapes: list[tuple[int, ...]], seed: int | jax.Array
) -> dict[str, dict[str, jax.Array]]:
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {
        f"layer{i:02d}": {"kernel": 0.05 * jax.random.normal(key, shape)}
        for i, (key, shape) in enumerate(zip(keys, shapes, strict=True))
    }


def obvious(inner: optax.GradientTransformation, every: int) -> optax.GradientTransformation:
    """RigL as a first draft: multiply by the mask, sort, all of it inside `lax.cond`."""

    def init(params):
        masks = jaxsparse.random_masks(0, params, SPARSITY)
        return inner.init(params), masks, jnp.int32(0)

    def regrow(mask, p, g):
        alive = jnp.sum(mask)
        kept = alive - jnp.floor(0.3 * alive).astype(int)
        by_size = jnp.argsort(-jnp.where(mask, jnp.abs(p), -1).ravel())
        keep = jnp.zeros(p.size, bool).at[by_size].set(jnp.arange(p.size) < kept)
        by_gradient = jnp.argsort(-jnp.where(keep, -1, jnp.abs(g).ravel()))
        grow = jnp.zeros(p.size, bool).at[by_gradient].set(jnp.arange(p.size) < alive - kept)
        return (keep | grow).reshape(p.shape)

    def update(grads, state, params):
        inner_state, masks, count = state
        fires = (count > 0) & (count % every == 0)
        masks = jax.lax.cond(
            fires,
            lambda: jax.tree.map(regrow, masks, params, grads),
            lambda: masks,
        )
        grads = jax.tree.map(lambda g, m: g * m, grads, masks)
        updates, inner_state = inner.update(grads, inner_state, params)
        updates = jax.tree.map(
            lambda u, p, m: jnp.where(fires, 0, u) * m - p * ~m, updates, params, masks
        )
        return updates, (inner_state, masks, count + 1)

    return optax.GradientTransformation(init, update)


def variant(
    name: str, inner: optax.GradientTransformation, every: int, **more: str
) -> optax.GradientTransformation:
    """The optimizer of a method; masks change at steps `every`, `2 * every`, ...

    Args:
      name: a key of `METHODS`.
      inner: the dense optimizer.
      every: steps between mask updates.
      more: options common to all methods, such as `storage`.
    """
    method = METHODS[name]
    if method.make is None:
        return inner
    given = {"every": every, "drop_fraction": 0.3}
    options = {name: value for name, value in given.items() if name in method.options}
    if method.ramps:  # compiling makes a table with a count for each of its updates
        options |= {"start": 0, "stop": 10_000 * every}
    return method.make(inner, sparsity=SPARSITY, key=0, **options, **more)


def variants(
    inner: optax.GradientTransformation, every: int, **more: str
) -> dict[str, optax.GradientTransformation]:
    """All optimizers by name, and the naive one."""
    return {name: variant(name, inner, every, **more) for name in METHODS} | {
        OBVIOUS: obvious(inner, every)
    }


NAMES = tuple(variants(optax.identity(), 2))


class Cost(NamedTuple):
    """What the optimizer steps of one variant cost.

    Attributes:
      step: milliseconds of a step in which no masks change, the median.
      ratio: the median ratio of that to the dense step of the same turn.
      update: milliseconds that a mask update adds; None if it cannot be separated.
      compiling: seconds.
      arguments: bytes of parameters, state and gradients.
      temporary: bytes that the compiled step needs in addition.
    """

    step: float
    ratio: float
    update: float | None
    compiling: float
    arguments: int
    temporary: int


def measure(
    inner: optax.GradientTransformation,
    shapes: list[tuple[int, ...]],
    names: Sequence[str],
    turns: int,
    times: int = 1,
    masks: str = "bool",
) -> dict[str, Cost]:
    """Times optimizer steps, including the dense ones; they take turns.

    Args:
      inner: the dense optimizer.
      shapes: of the leaves.
      names: of `variants`.
      turns: timed calls; a fifth of them, but at least 3, for the variant that sorts.
      times: steps per call. Each is dispatched before the previous one has ended, as in training.
      masks: the `mask_storage` of all methods.
    """
    grads, calls, programs, compiling = weights(shapes, 1), {}, {}, {}
    # The first call is a warm-up; after it, no masks change in every other call.
    made = variants(inner, 2 * times, mask_storage=masks)
    for name in dict.fromkeys(["dense", *names]):
        params = weights(shapes, 0)
        state = made[name].init(params)
        began = time.perf_counter()
        step = jax.jit(optimizer_step(made[name]), donate_argnums=(0, 1))
        programs[name] = step.lower(params, state, grads).compile()
        compiling[name] = time.perf_counter() - began
        call = chain(programs[name], (params, state), grads, times=times)
        call()
        calls[name] = call
        if name == OBVIOUS or METHODS[name].moves:
            calls[f"{name}{UPDATE}"] = call
    few = max(3, turns // 5)
    spent = take_turns(calls, {n: few if n.startswith(OBVIOUS) else turns for n in calls})
    found = {}
    for name, program in programs.items():
        base, more = spent[name], spent.get(f"{name}{UPDATE}")
        added = None
        if more is not None:
            added = 1e3 * statistics.median(b - a for a, b in zip(base, more, strict=True))
        memory = program.memory_analysis()
        found[name] = Cost(
            1e3 * statistics.median(base) / times,
            ratio(base, spent["dense"]),
            added,
            compiling[name],
            memory.argument_size_in_bytes,
            memory.temp_size_in_bytes,
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="momentum")
    parser.add_argument("--leaves", choices=SHAPES, default="resnet50")
    parser.add_argument("--method", default=",".join(NAMES), help="comma-separated (default: all)")
    parser.add_argument("--mask-storage", choices=("bool", "packed"), default="bool")
    parser.add_argument("--turns", type=int, default=15, help="timed turns of steps (default 15)")
    renamed(parser, "--methods", "--method")
    args = parser.parse_args()
    names = args.method.split(",")
    for name in names:
        if name not in NAMES:
            parser.error(f"--method must be among {', '.join(NAMES)}, got {name!r}")
    shapes = SHAPES[args.leaves]
    total = sum(map(math.prod, shapes))
    print(f"{total:,} weights, {args.optimizer}, masks: {args.mask_storage}")
    inner = OPTIMIZERS[args.optimizer]
    found = measure(inner, shapes, names, args.turns, masks=args.mask_storage)
    header = ["variant", "ms", "times the dense step", "mask update, ms", "compile, s"]
    rows = [
        [
            name,
            f"{cost.step:.1f}",
            f"{cost.ratio:.2f}",
            "" if cost.update is None else f"{cost.update:.0f}",
            f"{cost.compiling:.1f}",
            f"{cost.temporary / total:.1f}",
        ]
        for name, cost in found.items()
    ]
    print(markdown([*header, "temporary bytes a weight"], rows))


if __name__ == "__main__":
    main()
