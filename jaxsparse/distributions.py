"""How a target sparsity is spread over the layers: `(params, sparsity) -> tree of floats`."""

import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from jaxsparse import counts, trees
from jaxsparse.axes import all_axes
from jaxsparse.checks import check_regexes, check_size, check_sparsity, traced
from jaxsparse.recognition import sparse_leaves, why
from jaxsparse.types import Array, Axes, AxesSpec, Params, Prunable, Sparsities

__all__ = ["by_path", "erdos_renyi", "erk", "target_count", "uniform"]


def uniform(
    params: Params, sparsity: float | Array, *, prunable: Prunable | None = None
) -> Sparsities:
    """The same sparsity in every prunable leaf, 0.0 elsewhere.

    Args:
      params: any pytree.
      sparsity: in [0, 1).
      prunable: `(path, leaf) -> bool`; see `jaxsparse.default_prunable`.

    Returns:
      A tree of floats in the structure of `params`.

    Raises:
      ValueError: the sparsity is out of range, or the filter matches nothing.

    Differs from the paper:
      RigL's uniform distribution keeps the first layer dense; here `prunable` does that.

    Example:
      >>> import jax.numpy as jnp
      >>> uniform({"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}, 0.5)
      {'bias': 0.0, 'kernel': 0.5}
    """
    check_sparsity(sparsity)
    chosen = sparse_leaves(params, prunable)
    return jax.tree.structure(params).unflatten(sparsity if use else 0.0 for use in chosen)


def erdos_renyi(
    params: Params,
    sparsity: float,
    *,
    prunable: Prunable | None = None,
    axes: AxesSpec = None,
) -> Sparsities:
    """Erdos-Renyi: a leaf's density is proportional to `(n_in + n_out) / (n_in * n_out)`.

    The factor is chosen so that the whole net has the target sparsity; leaves whose density would
    exceed 1 stay dense, and the factor is solved for again.

    Args:
      params: any pytree.
      sparsity: of all prunable leaves together, in [0, 1).
      prunable: `(path, leaf) -> bool`.
      axes: which axes are inputs, outputs and stacked layers; see `jaxsparse.axes.leaf_axes`.

    Raises:
      ValueError: the sparsity is out of range, the filter matches nothing, or the axes of a leaf
        with more than two axes are ambiguous.

    References:
      Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse
      connectivity" (2018), equation 3; Evci et al., "Rigging the Lottery" (2020), section 3.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"a": jnp.ones((100, 10)), "b": jnp.ones((10, 10))}
      >>> {k: round(v, 3) for k, v in erdos_renyi(params, 0.8).items()}
      {'a': 0.814, 'b': 0.662}
    """

    def raw(n_in: int, n_out: int, window: list[int]) -> float:
        return (n_in + n_out) / (n_in * n_out)

    return _balanced(params, sparsity, prunable, axes, raw)


def erk(
    params: Params,
    sparsity: float,
    *,
    prunable: Prunable | None = None,
    axes: AxesSpec = None,
) -> Sparsities:
    """Erdos-Renyi-Kernel: like `erdos_renyi`, with the kernel's spatial axes included.

    A leaf's density is proportional to `(n_in + n_out + w + h) / (n_in * n_out * w * h)`.
    Arguments and errors as for `erdos_renyi`.

    References:
      Evci et al., "Rigging the Lottery" (2020), section 3.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"conv/kernel": jnp.ones((3, 3, 16, 32)), "head/kernel": jnp.ones((32, 10))}
      >>> {k: round(v, 3) for k, v in erk(params, 0.9).items()}
      {'conv/kernel': 0.94, 'head/kernel': 0.326}
    """

    def raw(n_in: int, n_out: int, window: list[int]) -> float:
        return sum((n_in, n_out, *window)) / math.prod((n_in, n_out, *window))

    return _balanced(params, sparsity, prunable, axes, raw)


def by_path(
    params: Params, sparsity: Mapping[str, float], *, prunable: Prunable | None = None
) -> Sparsities:
    """A sparsity per path: the first regular expression found in a leaf's path decides.

    Prunable leaves that no expression matches stay dense.

    Raises:
      ValueError: a sparsity out of range, or an expression that is the first match of no leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"fc1": {"kernel": jnp.ones((4, 3))}, "head": {"kernel": jnp.ones((3, 2))}}
      >>> by_path(params, {"fc": 0.9, ".*": 0.5})
      {'fc1': {'kernel': 0.9}, 'head': {'kernel': 0.5}}
    """
    if not isinstance(sparsity, Mapping):
        raise TypeError(f"sparsity must be a mapping {{path regex: sparsity}}, got {sparsity!r}.")
    for value in sparsity.values():
        check_sparsity(value)
    found = first_match(params, sparsity, "sparsity", prunable)
    return jax.tree.structure(params).unflatten(0.0 if value is None else value for value in found)


def first_match(
    params: Params, values: Mapping[str, float], argument: str, prunable: Prunable | None
) -> list[float | None]:
    """For each prunable leaf, the value of the first regex found in its path; otherwise None.

    An expression that finds only dense leaves is ignored, with a warning that says why.

    Raises:
      ValueError: no values, or an expression that is the first match of no leaf.
    """
    check_regexes(argument, values)
    chosen = sparse_leaves(params, prunable)
    leaves = {trees.name(path): leaf for path, leaf in jax.tree.leaves_with_path(params)}
    sparse = [name for name, use in zip(leaves, chosen, strict=True) if use]
    used = {leaf: next((r for r in values if re.search(r, leaf)), None) for leaf in sparse}
    for regex in values:
        if regex in used.values() or not leaves:
            continue
        dense = [name for name in leaves if name not in used and re.search(regex, name)]
        if not dense or any(re.search(regex, name) for name in sparse):
            raise ValueError(
                f"{argument}: {regex!r} is the first match of no prunable leaf; the leaves are "
                f"{', '.join(leaves)}."
            )
        told = [f"{name} ({why(name, leaves[name], prunable)[1]})" for name in dense[:5]]
        more = ", ..." if len(dense) > 5 else ""
        only = f"{argument}: {regex!r} finds only leaves that stay dense: {', '.join(told)}{more}"
        if all(chosen is None for chosen in used.values()):
            raise ValueError(f"{only}, so nothing is sparse; pass prunable= to choose leaves.")
        warnings.warn(f"{only}; pass prunable= to choose leaves.", stacklevel=2)
    regexes = [used.get(name) for name in leaves]
    return [None if regex is None else float(values[regex]) for regex in regexes]


def target_count(size: int, sparsity: float | Array) -> int | Array:
    """The number of weights that live: `floor(size * (1 - sparsity) + 0.5)`, as a Python int.

    Every count in the library comes from here. The sparsity is read as a multiple of 1 / 12,000,000
    (`jaxsparse.counts.share`), so that 0.9 is exactly nine tenths and not the float32 below it, and
    the rest is exact. A traced sparsity gives the same number as a traced int32, for sizes below
    2^31.

    Raises:
      TypeError: a size that is not an int, or a sparsity that is not a number.
      ValueError: a negative size, a sparsity outside [0, 1), or a traced one of more than
        2^31 - 1 weights.

    Example:
      >>> target_count(1000, 0.9), target_count(5, 0.5), target_count(5, 0.9)
      (100, 3, 1)
    """
    check_size("size", size, 0)
    check_sparsity(sparsity)
    return counts.nearest(
        size, counts.share(sparsity if traced(sparsity) else float(sparsity)).rest()
    )


def _balanced(
    params: Params,
    sparsity: float,
    prunable: Prunable | None,
    axes: AxesSpec,
    raw: Callable[[int, int, list[int]], float],
) -> Sparsities:
    if traced(sparsity):
        raise TypeError(
            "sparsity is traced, but this distribution needs a Python float; under "
            "optax.inject_hyperparams pass static_args=('sparsity',)."
        )
    check_sparsity(sparsity)
    found = jax.tree.leaves_with_path(params)
    chosen = sparse_leaves(params, prunable)
    layers = {
        i: (trees.name(path), leaf)
        for i, ((path, leaf), use) in enumerate(zip(found, chosen, strict=True))
        if use and math.prod(leaf.shape)
    }
    known = _layer_axes(layers.values(), axes)
    free = {}
    for i, (path, leaf) in layers.items():
        inputs, outputs, stacked = known[path]
        window = [s for a, s in enumerate(leaf.shape) if a not in inputs + outputs + stacked]
        n_in, n_out = (math.prod(leaf.shape[a] for a in units) for units in (inputs, outputs))
        free[i] = raw(n_in, n_out, window), math.prod(leaf.shape)
    densities = [1.0] * len(found)
    budget = (1 - sparsity) * sum(size for _, size in free.values())
    while free:
        factor = budget / sum(density * size for density, size in free.values())
        largest = max(density for density, _ in free.values())
        if factor * largest <= 1:
            for i, (density, _) in free.items():
                densities[i] = factor * density
            break
        for i in [i for i, (density, _) in free.items() if density == largest]:
            budget -= free.pop(i)[1]
    return jax.tree.structure(params).unflatten(float(1 - d) for d in densities)


def _layer_axes(layers: Iterable[tuple[str, Any]], axes: AxesSpec) -> dict[str, Axes]:
    """The axes of all layers; of two axes, it does not matter which are the inputs."""
    known, asked = {}, {}
    for path, leaf in layers:
        if axes is None and len(leaf.shape) <= 2:
            known[path] = Axes(*((a,) if a < len(leaf.shape) else () for a in (0, 1)))
        else:
            asked[path] = leaf
    return known | all_axes(axes, asked)
