"""Products of blocks as Pallas kernels, for a TPU and for a GPU. Neither has been measured.

Tests check their numbers in Pallas' interpreter, and check by exporting them that they lower; no
such device has run them. Arrays are those of `_block.py`: `x` is
`(rows of blocks, batch, inputs of a block)`, and `g` is the same for the outputs. A product adds up
`x[source[k]] @ values[which[k]]` at every `target[k]`, which ascends: sources are the inputs and
targets the outputs, or the reverse.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as plgpu

from jaxsparse.types import Array

_BATCH = 128
"""How many examples a kernel processes at once."""
_FAST_MEMORY = 12 * 2**20
"""Bytes of a TPU core's 16 MiB of memory that the tiles of one step may take."""


def choose(via: str, size: tuple[int, ...], dtype: Any) -> bool:
    """Whether a product uses these kernels.

    Raises:
      ValueError: `via` is none of "auto", "pallas" and "xla"; or "pallas" was requested for a type
        or for blocks that the kernels cannot hold.
    """
    if via not in ("auto", "pallas", "xla"):
        raise ValueError(f'via must be "auto", "pallas" or "xla", got {via!r}.')
    backend = jax.default_backend()
    if via == "xla" or (via == "auto" and backend == "cpu"):
        return False
    try:
        if dtype == jnp.float64:
            raise ValueError('values: the Pallas kernels lack float64; use float32, or via="xla".')
        (_fits_gpu if backend == "gpu" else _fits_tpu)(*size)
    except ValueError:
        if via == "pallas":
            raise
        return False
    return True


def product(
    shape: tuple[int, ...],
    pairs: tuple[Array, Array, Array, Array],
    values: Array,
    x: Array,
    *,
    turned: bool,
) -> Array:
    """The sum of blocks times tiles of `x`, at every target.

    Args:
      shape: of the result.
      pairs: for each block its value, source and target; and how many of the values live.
      values: `(blocks, inputs, outputs)`.
      x: `(sources, batch, inputs)`, or outputs in place of inputs if `turned`.
      turned: whether each block is transposed.

    Raises:
      ValueError: the device's kernel cannot hold the blocks.
    """
    which, source, target, count = pairs
    if not len(which):
        return jnp.zeros(shape, x.dtype)
    target, count = jnp.asarray(target), jnp.reshape(jnp.asarray(count), 1)
    wide, size = _padded(x)
    args = (jnp.asarray(which), jnp.asarray(source), target, count, wide, values)
    out = jax.ShapeDtypeStruct((shape[0], wide.shape[1], shape[2]), jnp.float32)
    found = _anywhere(_product_tpu, _product_gpu, args, out=out, size=size, turned=turned)
    reached = jnp.zeros(shape[0], bool).at[target].set(True)[:, None, None]
    return jnp.where(reached, found, 0.0)[:, : shape[1]].astype(x.dtype)


def of_values(places: tuple[Array, Array, Array], x: Array, g: Array) -> Array:
    """The gradient of every block: its tile of `x`, transposed, times its tile of `g`.

    Args:
      places: inputs and outputs of every block, and how many of the blocks live.
      x: `(rows of blocks, batch, inputs)`.
      g: `(columns of blocks, batch, outputs)`.

    Raises:
      ValueError: the device's kernel cannot hold the blocks.
    """
    inputs, outputs, count = places
    shape = (len(inputs), x.shape[-1], g.shape[-1])
    if not len(inputs):
        return jnp.zeros(shape, x.dtype)
    (x, size), (g, _) = _padded(x), _padded(g)
    indices = jnp.asarray(inputs), jnp.asarray(outputs), jnp.reshape(jnp.asarray(count), 1)
    out = jax.ShapeDtypeStruct(shape, jnp.float32)
    return _anywhere(_values_tpu, _values_gpu, (*indices, x, g), out=out, size=size).astype(x.dtype)


def _anywhere(
    tpu: Callable[..., Array], gpu: Callable[..., Array], args: Any, **told: Any
) -> Array:
    """The kernel of the platform that this is lowered for; on others the TPU's, interpreted."""
    return jax.lax.platform_dependent(
        *args,
        tpu=functools.partial(tpu, **told),
        cuda=functools.partial(gpu, **told),
        default=functools.partial(tpu, interpret=True, **told),
    )


def _padded(x: Array) -> tuple[Array, int]:
    """The batch padded to whole tiles, and their size: a power of two of at least 16."""
    size = min(_BATCH, max(16, 1 << (x.shape[1] - 1).bit_length()))
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % size), (0, 0))), size


def _fits_tpu(inputs: int, outputs: int) -> None:
    rows, lanes = -(-inputs // 8) * 8, -(-outputs // 128) * 128
    needed = 2 * 4 * (rows * lanes + _BATCH * (-(-inputs // 128) * 128 + lanes))
    if needed > _FAST_MEMORY:
        raise ValueError(
            f"size ({inputs}, {outputs}): the tiles of such a block take {needed} bytes of a TPU's "
            f'fast memory, and {_FAST_MEMORY} is the limit; take smaller blocks, or via="xla".'
        )


def _fits_gpu(inputs: int, outputs: int) -> None:
    if any(side < 16 or side & (side - 1) for side in (inputs, outputs)):
        raise ValueError(
            f"size ({inputs}, {outputs}): the sides of a block must be powers of two of at least "
            '16 for the GPU kernel; take such blocks, or via="xla".'
        )


def _dot(a: Array, b: Array, contracted: tuple[int, int]) -> Array:
    dims = ((contracted[:1], contracted[1:]), ((), ()))
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _product_tpu(
    which: Array,
    source: Array,
    target: Array,
    count: Array,
    x: Array,
    values: Array,
    *,
    out: Any,
    size: int,
    turned: bool,
    interpret: bool = False,
) -> Array:
    """Blocks one after another, so that those of one target share one tile of the output."""
    _fits_tpu(*values.shape[1:])

    def kernel(which: Any, source: Any, target: Any, count: Any, x: Any, w: Any, y: Any) -> None:
        k = pl.program_id(1)

        @pl.when((k == 0) | (target[k] != target[jnp.maximum(k - 1, 0)]))
        def _() -> None:
            y[...] = jnp.zeros(y.shape, y.dtype)

        @pl.when(which[k] < count[0])
        def _() -> None:
            y[0] += _dot(x[0], w[0], (1, 1 if turned else 0))

    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=4,
        grid=(x.shape[1] // size, len(which)),
        in_specs=[
            pl.BlockSpec((1, size, x.shape[2]), lambda b, k, w, s, t, c: (s[k], b, 0)),
            pl.BlockSpec((1, *values.shape[1:]), lambda b, k, w, s, t, c: (w[k], 0, 0)),
        ],
        out_specs=pl.BlockSpec((1, size, out.shape[2]), lambda b, k, w, s, t, c: (t[k], b, 0)),
    )
    call = pl.pallas_call(kernel, out_shape=out, grid_spec=grid, interpret=interpret)
    return call(which, source, target, count, x, values)


def _values_tpu(
    inputs: Array,
    outputs: Array,
    count: Array,
    x: Array,
    g: Array,
    *,
    out: Any,
    size: int,
    interpret: bool = False,
) -> Array:
    """Tiles of the batch one after another, for each block."""
    _fits_tpu(*out.shape[1:])

    def kernel(inputs: Any, outputs: Any, count: Any, x: Any, g: Any, d: Any) -> None:
        @pl.when(pl.program_id(1) == 0)
        def _() -> None:
            d[...] = jnp.zeros(d.shape, d.dtype)

        @pl.when(pl.program_id(0) < count[0])
        def _() -> None:
            d[0] += _dot(x[0], g[0], (0, 0))

    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=3,
        grid=(out.shape[0], x.shape[1] // size),
        in_specs=[
            pl.BlockSpec((1, size, x.shape[2]), lambda k, b, i, o, c: (i[k], b, 0)),
            pl.BlockSpec((1, size, g.shape[2]), lambda k, b, i, o, c: (o[k], b, 0)),
        ],
        out_specs=pl.BlockSpec((1, *out.shape[1:]), lambda k, b, i, o, c: (k, 0, 0)),
    )
    call = pl.pallas_call(kernel, out_shape=out, grid_spec=grid, interpret=interpret)
    return call(inputs, outputs, count, x, g)


def _product_gpu(
    which: Array,
    source: Array,
    target: Array,
    count: Array,
    x: Array,
    values: Array,
    *,
    out: Any,
    size: int,
    turned: bool,
    interpret: bool = False,
) -> Array:
    """One program per target and tile of the batch; it loops over the blocks of the target."""
    _fits_gpu(*values.shape[1:])
    ends = jnp.searchsorted(target, jnp.arange(out.shape[0] + 1)).astype(jnp.int32)

    def kernel(ends: Any, which: Any, source: Any, count: Any, x: Any, w: Any, y: Any) -> None:
        t, rows = pl.program_id(0), pl.ds(pl.program_id(1) * size, size)

        def more(k: Array, total: Array) -> Array:
            part = _dot(x[source[k], rows, :], w[which[k]], (1, 1 if turned else 0))
            return total + jnp.where(which[k] < count[0], part, 0.0)

        start = jnp.zeros((size, out.shape[2]), jnp.float32)
        y[t, rows, :] = jax.lax.fori_loop(ends[t], ends[t + 1], more, start)

    grid = (out.shape[0], x.shape[1] // size)
    return _triton(kernel, out, grid, interpret)(ends, which, source, count, x, values)


def _values_gpu(
    inputs: Array,
    outputs: Array,
    count: Array,
    x: Array,
    g: Array,
    *,
    out: Any,
    size: int,
    interpret: bool = False,
) -> Array:
    """One program per block; it loops over the batch."""
    _fits_gpu(*out.shape[1:])
    tiles = x.shape[1] // size

    def kernel(inputs: Any, outputs: Any, count: Any, x: Any, g: Any, d: Any) -> None:
        k = pl.program_id(0)

        def more(b: Array, total: Array) -> Array:
            rows = pl.ds(b * size, size)
            return total + _dot(x[inputs[k], rows, :], g[outputs[k], rows, :], (0, 0))

        found = jax.lax.fori_loop(0, tiles, more, jnp.zeros(out.shape[1:], jnp.float32))
        d[k] = jnp.where(k < count[0], found, 0.0)

    return _triton(kernel, out, (out.shape[0],), interpret)(inputs, outputs, count, x, g)


def _triton(kernel: Any, out: Any, grid: tuple[int, ...], interpret: bool) -> Callable[..., Array]:
    params = None if interpret else plgpu.CompilerParams()
    return pl.pallas_call(
        kernel, out_shape=out, grid=grid, interpret=interpret, compiler_params=params
    )
