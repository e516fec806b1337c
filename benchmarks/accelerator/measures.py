"""What the queue itself measures: selection, optimizer steps, whole training steps; as rows."""

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxsparse
from benchmarks import selection, sparse, sparse_momentum, step
from benchmarks.timing import ratio, training_steps
from experiments.common.models.transformer import CharacterTransformer
from experiments.common.training import loop
from experiments.common.training.execution import Execution
from experiments.sparse_momentum.settings import PRESETS

Rows = list[dict[str, Any]]
Shapes = list[tuple[int, ...]]
NEVER = 10**6


class Transformer(NamedTuple):
    """The size of a decoder, and of a batch of token sequences."""

    layers: int
    width: int
    heads: int
    vocabulary: int
    context: int
    batch: int

    def model(self, key: Any) -> nnx.Module:
        """The network with fresh parameters."""
        return CharacterTransformer(
            self.context,
            self.vocabulary,
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            kernel_init=nnx.initializers.glorot_normal(),
            rngs=nnx.Rngs(key),
        )


def selecting(sizes: Sequence[int], rounds: int) -> Rows:
    """The k-th largest of n scores and the mask of the k largest, k = n / 10, against sorting."""
    rows = []
    for n in sizes:
        for dtype, zeros in (("float32", 0.0), ("float32", 0.95), ("bfloat16", 0.0)):
            x = selection.scores(n, dtype, zeros)
            programs = _compiled(selection.ways(n), x)
            found = selection.interleaved(programs, x, rounds)
            about = {"n": n, "type": dtype, "zeros": zeros}
            rows += [about | row for row in _against(found, programs, "one pass", "jnp.sort")]
    return rows


def compressed_steps(networks: Mapping[str, Sequence[float]], turns: int) -> Rows:
    """Training steps on compressed kernels, compared with dense and masked ones."""
    return [
        row
        for name, sparsities in networks.items()
        for sparsity in sparsities
        for row in sparse.measured("networks", name, sparsity, turns)
    ]


def pruning(shapes: Shapes, rounds: int) -> Rows:
    """The masks of a whole network by magnitude, compared with sorting."""
    params, sparsity = step.weights(shapes, 0), step.SPARSITY

    def cut(scores: jax.Array) -> jax.Array:
        return jnp.sort(scores)[round(sparsity * scores.size)]

    def sorting(params: Any) -> Any:
        sizes = jax.tree.map(jnp.abs, params)
        return jax.tree.map(lambda size: size >= cut(size.ravel()), sizes)

    def sorting_all(params: Any) -> Any:
        sizes = jax.tree.map(jnp.abs, params)
        bound = cut(jnp.concatenate([size.ravel() for size in jax.tree.leaves(sizes)]))
        return jax.tree.map(lambda size: size >= bound, sizes)

    def ours(params: Any, scope: str) -> Any:
        return jaxsparse.prune(jaxsparse.magnitude(params), sparsity, scope=scope)

    ways = {
        "one pass": lambda params: jax.tree.map(lambda p: p * 2 + 1, params),
        "prune, by layer": functools.partial(ours, scope="layer"),
        "prune, all together": functools.partial(ours, scope="global"),
        "jnp.sort, by layer": sorting,
        "jnp.sort, all together": sorting_all,
    }
    programs = _compiled({name: jax.jit(way) for name, way in ways.items()}, params)
    found = selection.interleaved(programs, params, rounds)
    about = {"weights": sum(p.size for p in jax.tree.leaves(params))}
    return [about | row for row in _against(found, programs, "one pass", "jnp.sort, by layer")]


def optimizer_steps(
    inner: optax.GradientTransformation,
    shapes: Shapes,
    names: Sequence[str],
    turns: int,
    times: int,
) -> Rows:
    """Optimizer steps alone; see `benchmarks.step`."""
    return [
        {
            "method": name,
            "ms": cost.step,
            "times dense": cost.ratio,
            "mask update, ms": cost.update,
            "compile, s": cost.compiling,
            "argument bytes": cost.arguments,
            "temporary bytes": cost.temporary,
        }
        for name, cost in step.measure(inner, shapes, names, turns, times).items()
    ]


def image_steps(preset: str, names: Sequence[str], turns: int) -> Rows:
    """Whole training steps of a preset of the study of methods; see
    `benchmarks.sparse_momentum`."""
    settings = PRESETS[preset]
    spent = sparse_momentum.steps(settings, ["dense", *names], step.SPARSITY, turns)
    return _steps(spent, settings.batch_size)


def transformer_steps(size: Transformer, dtype: str, names: Sequence[str], turns: int) -> Rows:
    """Whole training steps of a decoder with AdamW; parameters remain float32."""
    inner = optax.adamw(3e-4)
    makers: dict[str, Callable[[Any], optax.GradientTransformation]] = {
        "dense": lambda key: inner,
        "fixed": lambda key: jaxsparse.fixed(inner, step.SPARSITY, key=key),
        "rigl": lambda key: jaxsparse.rigl(inner, step.SPARSITY, key=key, every=NEVER),
    }
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: size.model(0)))

    def init_params(key: jax.Array) -> Any:
        return nnx.state(size.model(key), nnx.Param)

    def apply(params: Any, tokens: jax.Array) -> jax.Array:
        params = jax.tree.map(lambda p: p.astype(dtype), params)
        return nnx.merge(graphdef, params)(tokens).astype(jnp.float32)

    generator = np.random.default_rng(0)
    text = generator.integers(0, size.vocabulary, (4 * size.batch, size.context + 1))
    tokens, following = (jnp.asarray(part, jnp.int32) for part in (text[:, :-1], text[:, 1:]))

    def trainer(name: str) -> loop.Trainer:
        return loop.make_trainer(
            apply,
            init_params,
            makers[name],
            tokens,
            following,
            batch_size=size.batch,
            execution=Execution("conv", "map"),
            start=loop.start_dense if name == "dense" else jaxsparse.init,
        )

    spent = training_steps({name: trainer(name) for name in ("dense", *names)}, turns)
    count = sum(p.size for p in jax.tree.leaves(jax.eval_shape(init_params, jax.random.key(0))))
    about = {"weights": count, "type": dtype}
    return [about | row for row in _steps(spent, size.batch * size.context)]


def shapes_of(size: Transformer) -> Shapes:
    """The kernels of a decoder."""
    params = nnx.state(nnx.eval_shape(lambda: size.model(0)), nnx.Param)
    return [
        leaf.shape
        for path, leaf in jax.tree.leaves_with_path(params)
        if "kernel" in jax.tree_util.keystr(path)
    ]


def _compiled(ways: dict[str, Any], x: Any) -> dict[str, Any]:
    return {name: way.lower(x).compile() for name, way in ways.items()}


def _against(found: dict[str, float], programs: dict[str, Any], base: str, sort: str) -> Rows:
    return [
        {
            "way": name,
            "ms": ms,
            "passes": ms / found[base],
            "times faster than sorting": found[sort] / ms,
            "temporary bytes": programs[name].memory_analysis().temp_size_in_bytes,
        }
        for name, ms in found.items()
    ]


def _steps(spent: dict[str, list[float]], examples: int) -> Rows:
    return [
        {
            "method": name,
            "ms": 1e3 * statistics.median(seconds),
            "times dense": ratio(seconds, spent["dense"]),
            "examples or tokens a second": examples / statistics.median(seconds),
        }
        for name, seconds in spent.items()
    ]
