"""Which units can be left out: a search to a fixed point, and constants folded into a bias."""

from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from jaxsparse.compaction._facts import Facts
from jaxsparse.compaction._partition import Partition
from jaxsparse.compaction._program import Program, Step, Value, reshaped
from jaxsparse.compaction._slices import along_all
from jaxsparse.compaction._units import KEPT, Units


class Fold(NamedTuple):
    """A bias that takes what constant inputs add to a product.

    Attributes:
      leaf: which parameter is the bias.
      kernel: which factor of the product is the kernel, 0 or 1.
      sign: of what is added: -1 if the parameter is subtracted from the product.
    """

    leaf: int
    kernel: int
    sign: int


def remove(
    program: Program, units: Units, leaves: list[Any], stay: np.ndarray, folds: dict[Value, Fold]
) -> tuple[np.ndarray, list[Any]]:
    """Leaves out units until every remaining one has an effect.

    A unit goes if every sum over it gets zero from it: its slice of one factor is zero. Without
    it, weights of its inputs no longer count, so the next turn may find more.

    Args:
      program: the program.
      units: its units.
      leaves: the parameters, zero where no weight lives.
      stay: units that must not be left out.
      folds: for results of products, the bias that takes constants.

    Returns:
      For each unit, whether it is left out; and the parameters, with new biases.
    """
    leaves, stay = list(leaves), stay.copy()
    stay[KEPT] = True
    gone, crossed = np.zeros(len(units), bool), np.zeros(len(units), bool)
    for step, i, k, _, _ in units.crossings:
        crossed[units.roots(step.inputs[i], k)] = True
    while True:
        facts = Facts(program, units, leaves, gone)
        free = crossed & ~stay & ~gone
        for step, i, k, j, other in units.crossings:
            silent = facts.slices(step.inputs[i], k).zero
            if j is not None:
                silent = silent | facts.slices(step.inputs[j], other).zero
            if fold := folds.get(step.outputs[0]):
                constant = facts.slices(step.inputs[1 - fold.kernel], (other, k)[fold.kernel])
                silent = silent | constant.known
            free[units.roots(step.inputs[i], k)[~silent]] = False
        _spare(units, free, gone, stay)
        if not free.any():
            return gone, leaves
        for step in program.steps:
            if fold := folds.get(step.outputs[0]):
                leaves[fold.leaf] = _folded(facts, units, step, fold, free, leaves[fold.leaf])
        gone |= free


def _spare(units: Units, free: np.ndarray, gone: np.ndarray, stay: np.ndarray) -> None:
    """Keeps one unit of every axis, because most code cannot handle layers without units."""
    for found in units.axes():
        if (free | gone)[found].all():
            first = found[free[found]][0]
            free[first], stay[first] = False, True


def families(units: Units) -> np.ndarray:
    """The family of each unit: units that share an axis anywhere belong together."""
    found = Partition(len(units))
    for axis in units.axes():
        axis = axis[axis != KEPT]
        found.tie(axis[:1].repeat(len(axis)), axis)
    return found.find(np.arange(len(units)))


def find_folds(program: Program, facts: Facts) -> dict[Value, Fold]:
    """The products to whose result a parameter is added that is used nowhere else."""
    readers = Counter(value for step in program.steps for value in step.inputs)
    readers.update(program.outputs)
    biases = {v: (i, {k: k for k in range(len(v.shape))}) for i, v in enumerate(program.leaves)}
    products: dict[Value, tuple[Value, int, list[int]]] = {}
    found: dict[Value, Fold] = {}
    for step in program.steps:
        if not step.inputs or len(step.outputs) != 1:
            continue
        first, out = step.inputs[0], step.outputs[0]
        if (moved := _axes(step)) is not None and readers[first] == 1:
            if first in biases:
                leaf, axes = biases[first]
                biases[out] = leaf, {moved[k]: a for k, a in axes.items() if k in moved}
            if first in products and all(k in moved for k in products[first][2]):
                product, kernel, free = products[first]
                products[out] = product, kernel, [moved[k] for k in free]
        for kernel, free in _kernels(step):
            if facts.array(step.inputs[kernel]) is not None:
                products[out] = out, kernel, free
        if step.name in ("add", "sub"):
            pairs = [step.inputs] if step.name == "sub" else [step.inputs, step.inputs[::-1]]
            for result, bias in pairs:
                alone = readers[result] == readers[bias] == 1 and result.shape == out.shape
                if not (alone and result in products and bias in biases):
                    continue
                product, kernel, free = products[result]
                leaf, axes = biases[bias]
                shape = tuple(out.shape[k] for k in free)
                fits = all(axes.get(k) == i for i, k in enumerate(free) if out.shape[k] > 1)
                if fits and program.leaves[leaf].shape == shape:
                    found[product] = Fold(leaf, kernel, 1 if step.name == "add" else -1)
    return found


def _axes(step: Step) -> dict[int, int] | None:
    """Where the axes of an array go if the step only shows it in another shape; else None."""
    shape = step.inputs[0].shape
    if step.name == "convert_element_type":
        return {k: k for k in range(len(shape))}
    if step.name == "transpose":
        return {k: i for i, k in enumerate(step.params["permutation"])}
    if step.name == "broadcast_in_dim":
        return dict(enumerate(step.params["broadcast_dimensions"]))
    if step.name == "reshape" and step.params["dimensions"] is None:
        groups = reshaped(shape, step.outputs[0].shape)
        if all(len(a) == len(b) == 1 for a, b in groups):
            return {a[0]: b[0] for a, b in groups}
    return None


def _kernels(step: Step) -> list[tuple[int, list[int]]]:
    """Which factor of a product may be a kernel, and where its outputs are in the result."""
    if step.name == "conv_general_dilated":
        pads = [n for pair in step.params["padding"] for n in pair]
        plain = step.params["feature_group_count"] == 1 and not any(pads)
        if plain and all(n == 1 for n in step.params["lhs_dilation"]):
            return [(1, [step.params["dimension_numbers"].out_spec[1]])]
    if step.name == "dot_general" and not step.params["dimension_numbers"][1][0]:
        ndim = len(step.outputs[0].shape)
        left = len(step.inputs[0].shape) - len(step.params["dimension_numbers"][0][0])
        return [(0, list(range(left))), (1, list(range(left, ndim)))]
    return []


def _folded(facts: Facts, units: Units, step: Step, fold: Fold, free: np.ndarray, bias: Any) -> Any:
    """The bias, plus what the units that go have contributed."""
    x, array = step.inputs[1 - fold.kernel], facts.array(step.inputs[fold.kernel])
    if step.name == "dot_general":
        axes = step.params["dimension_numbers"][0]
        of_x, of_kernel = axes[1 - fold.kernel], axes[fold.kernel]
        weights = np.moveaxis(np.asarray(array), of_kernel, range(len(of_kernel)))
    else:
        where = step.params["dimension_numbers"]
        of_x = (where.lhs_spec[1],)
        weights = np.moveaxis(np.asarray(array), (where.rhs_spec[1], where.rhs_spec[0]), (0, 1))
        weights = weights.reshape(*weights.shape[:2], -1).astype(np.float64).sum(-1)
    found = along_all(facts, x, of_x)
    going = np.zeros(found.known.shape, bool)
    for i, k in enumerate(of_x):
        going |= free[units.roots(x, k)].reshape([-1 if j == i else 1 for j in range(going.ndim)])
    numbers = np.where(going & found.known, found.numbers, np.zeros((), found.numbers.dtype))
    some = np.flatnonzero(numbers)
    weights = weights.reshape(numbers.size, -1)[some].astype(np.float64)
    added = numbers.reshape(-1)[some].astype(np.float64) @ weights
    return (bias + fold.sign * added.reshape(bias.shape)).astype(bias.dtype)
