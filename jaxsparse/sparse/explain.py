"""`explain`: which products of a function skip zeros, with which kernel, and what that gains."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse import trees
from jaxsparse.sparse._accelerate import interpret
from jaxsparse.sparse._choice import gain
from jaxsparse.sparse._interpreter import Interpreter, Met, Product
from jaxsparse.sparse._kernels import backends
from jaxsparse.sparse._layout import is_compressed

_TURNS = 8  # the first compiles


@dataclasses.dataclass(frozen=True)
class Row:
    """One product of one leaf.

    Attributes:
      leaf: its path.
      shape: of the dense kernel.
      sparsity: fraction of zeros.
      format: how it is stored; "dense" if it is not compressed.
      operation: the product and the shapes of its operands.
      kernel: what computes it, or why it is dense.
      estimate: dense time over sparse time, forward and both gradients, by the table of costs; None
        if the table has no such entry.
      measured: the same as timed here and now; None if that was not requested.
    """

    leaf: str
    shape: tuple[int, ...]
    sparsity: float
    format: str
    operation: str
    kernel: str
    estimate: float | None = None
    measured: float | None = None


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The rows in the order of the products; as a string, a table.

    Attributes:
      rows: one for every product of a compressed leaf, and one for every leaf without any.
    """

    rows: tuple[Row, ...]

    def __str__(self) -> str:
        heads = ("leaf", "shape", "sparsity", "format", "product", "kernel", "estimate", "measured")
        table = [heads] + [
            (
                *(row.leaf, str(row.shape), f"{row.sparsity:.1%}", row.format, row.operation),
                *(row.kernel, _times(row.estimate), _times(row.measured)),
            )
            for row in self.rows
        ]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        pairs = [zip(line, widths, strict=True) for line in table]
        return "\n".join("  ".join(f"{x:{width}}" for x, width in line).rstrip() for line in pairs)


def explain(
    function: Callable[..., Any], params: Any, *args: Any, measure: bool = False, **kwargs: Any
) -> Explanation:
    """What `accelerate(function)` does with each leaf of the parameters.

    Args:
      function: as for `accelerate`.
      params: its first argument, with compressed leaves.
      *args: further arguments: arrays, or what `jax.eval_shape` returns.
      measure: whether to time each product, forward and both gradients, next to the dense one.
      **kwargs: further arguments.

    Returns:
      An `Explanation`; print it. An operation that no kernel supports is a row with the reason;
      `accelerate` raises an error for it. A leaf that is used twice has two rows.

    Example:
      >>> import jax.numpy as jnp, jaxsparse
      >>> from jaxsparse import sparse
      >>> dense = {"kernel": jnp.arange(16.0).reshape(4, 4), "bias": jnp.ones(4)}
      >>> params = sparse.compress(dense, jaxsparse.prune_by_magnitude(dense, 0.75))
      >>> predict = lambda params, x: x @ params["kernel"] + params["bias"]
      >>> (row,) = sparse.explain(predict, params, jnp.ones((2, 4))).rows
      >>> row.leaf, row.format, row.operation
      ('kernel', 'csr', 'dot_general of (2, 4) and (4, 4)')
    """
    interpreter = Interpreter(dense=True)
    jax.eval_shape(lambda rest: interpret(interpreter, function, (params, *rest), kwargs), args)
    leaves = {
        trees.name(path): leaf
        for path, leaf in jax.tree.leaves_with_path(params, is_leaf=is_compressed)
        if is_compressed(leaf) or (trees.is_float(leaf) and leaf.ndim > 1)
    }
    rows = [_row(met, leaves[met.name], measure) for met in interpreter.met]
    seen = {row.leaf for row in rows}
    for name, leaf in leaves.items():
        if name not in seen:
            why = "no product reads it" if is_compressed(leaf) else "it is not compressed"
            rows.append(_unread(name, leaf, why))
    return Explanation(tuple(rows))


def _row(met: Met, leaf: Any, measure: bool) -> Row:
    if met.product is None:
        row = _unread(met.name, leaf, "no kernel has this operation; it is made dense")
        return dataclasses.replace(row, operation=met.operation)
    row = _unread(met.name, leaf, backends()[leaf.format.split(":")[0]].why)
    return dataclasses.replace(
        row,
        operation=met.operation,
        estimate=gain(leaf, met.product.x),
        measured=_measured(met.product, met.kernel, leaf) if measure else None,
    )


def _unread(name: str, leaf: Any, kernel: str) -> Row:
    alive = leaf.mask if is_compressed(leaf) else leaf != 0
    form = leaf.format if is_compressed(leaf) else "dense"
    return Row(name, tuple(leaf.shape), 1 - float(jnp.mean(alive)), form, "", kernel)


def _measured(product: Product, seen: Any, leaf: Any) -> float:
    """Dense time over sparse time of the product with both gradients."""
    kernel = leaf if leaf.shape == seen.shape else jax.tree.map(lambda a: a[0], leaf.layers())
    kernel = dataclasses.replace(kernel, values=kernel.values.astype(seen.dtype))
    x = jax.random.normal(jax.random.key(0), product.x.shape, product.x.dtype)

    def gradients(function: Callable[..., Any]) -> Callable[..., Any]:
        def of(weights: Any, x: Any) -> Any:
            y, back = jax.vjp(function, weights, x)
            return back(y)

        return jax.jit(of)

    def of_values(values: Any, x: Any) -> Any:
        return product.sparse(dataclasses.replace(kernel, values=values), x)

    calls = {
        "dense": functools.partial(gradients(product.dense), product.view(kernel), x),
        "sparse": functools.partial(gradients(of_values), kernel.values, x),
    }
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(_TURNS):
        for name, call in calls.items():
            began = time.perf_counter()
            jax.block_until_ready(call())
            spent[name].append(time.perf_counter() - began)
    return statistics.median(spent["dense"][1:]) / statistics.median(spent["sparse"][1:])


def _times(gain: float | None) -> str:
    return "" if gain is None else f"{gain:.1f}x"
