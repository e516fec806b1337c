"""What a sparse optimizer step costs, against the dense step and against the obvious way.

    python -m benchmarks.step                       # ResNet-50 shapes, 25.5 M weights; 5 minutes
    python -m benchmarks.step --optimizer adam
    python -m benchmarks.step --leaves one          # one leaf of 25 M weights; 1 minute

Donated state, no forward or backward pass, all variants in turn within one run; medians, and the
median of the ratios to the dense step of the same turn. `update` rows are steps in which masks
change. The obvious way keeps masks in a list, multiplies by them, and sorts to prune and to grow.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import optax

import jaxsparse
from benchmarks.turns import chain, optimizer_step, ratio, take_turns

SPARSITY = 0.9
NEVER = 10**6


def resnet50_shapes() -> list[tuple[int, ...]]:
    shapes, width_in = [(7, 7, 3, 64)], 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += [(1, 1, width_in, width), (3, 3, width, width), (1, 1, width, 4 * width)]
            if block == 0:
                shapes.append((1, 1, width_in, 4 * width))
            width_in = 4 * width
    return [*shapes, (2048, 1000)]


SHAPES = {"resnet50": resnet50_shapes(), "one": [(5000, 5000)]}
OPTIMIZERS = {"momentum": optax.sgd(0.1, momentum=0.9), "adam": optax.adam(1e-3)}


def weights(shapes: list[tuple[int, ...]], seed: int) -> dict[str, dict[str, jax.Array]]:
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {
        f"layer{i:02d}": {"kernel": 0.05 * jax.random.normal(key, shape)}
        for i, (key, shape) in enumerate(zip(keys, shapes, strict=True))
    }


def obvious(inner: optax.GradientTransformation, every: int) -> optax.GradientTransformation:
    """RigL as one would write it down first: multiply by the mask, sort, `lax.cond` around all."""

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
        fires = count % every == every - 1
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


def variants(inner: optax.GradientTransformation) -> dict[str, optax.GradientTransformation]:
    dynamic = {
        "sparse_evolution": jaxsparse.sparse_evolution,
        "rigl": jaxsparse.rigl,
        "sparse_momentum": jaxsparse.sparse_momentum,
    }
    ramp = {"start": 0, "stop": 10_000}  # compiling makes a table of a count for each update
    found = {"dense": inner, "fixed": jaxsparse.fixed(inner, SPARSITY, key=0)}
    found["gradual"] = jaxsparse.gradual(inner, SPARSITY, **ramp, every=NEVER)
    found["gradual update"] = jaxsparse.gradual(inner, SPARSITY, **ramp, every=1)
    for name, make in dynamic.items():
        found[name] = make(inner, SPARSITY, key=0, every=NEVER)
        found[f"{name} update"] = make(inner, SPARSITY, key=0, every=1, drop_fraction=0.3)
    found["obvious rigl"] = obvious(inner, NEVER)
    found["obvious rigl update"] = obvious(inner, 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="momentum")
    parser.add_argument("--leaves", choices=SHAPES, default="resnet50")
    parser.add_argument("--turns", type=int, default=15, help="timed turns of steps (default 15)")
    args = parser.parse_args()
    inner, shapes = OPTIMIZERS[args.optimizer], SHAPES[args.leaves]
    grads = weights(shapes, 1)

    def compiled(tx):
        params = weights(shapes, 0)
        state = tx.init(params)
        began = time.perf_counter()
        step = jax.jit(optimizer_step(tx), donate_argnums=(0, 1))
        program = step.lower(params, state, grads).compile()
        return chain(program, program(params, state, grads), grads), time.perf_counter() - began

    print(f"{sum(g.size for g in jax.tree.leaves(grads)):,} weights, {args.optimizer}")
    calls, compiling = {}, {}
    for name, tx in variants(inner).items():
        calls[name], compiling[name] = compiled(tx)
    few = max(3, args.turns // 5)
    turns = {name: few if name.endswith("update") else args.turns for name in calls}
    times = take_turns(calls, turns)
    print("| variant | ms | times the dense step | compile, s |\n| --- | --- | --- | --- |")
    for name, spent in times.items():
        ms = 1e3 * statistics.median(spent)
        print(f"| {name} | {ms:.1f} | {ratio(spent, times['dense']):.2f} | {compiling[name]:.1f} |")


if __name__ == "__main__":
    main()
