"""What each operation ties: the units of its inputs to one another, and to those of its outputs."""

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np

from jaxsparse.compaction._program import ELEMENTWISE, Step, reshaped

Labels = list[np.ndarray]
"""One array of units for each axis."""


class Ties(Protocol):
    """What a rule does to units; see `Units`."""

    crossings: list[tuple[Step, int, int, int | None, int]]

    def tie(self, a: np.ndarray, b: np.ndarray) -> None: ...

    def keep(self, labels: np.ndarray) -> None: ...

    def fresh(self, size: int) -> np.ndarray: ...

    def find(self, labels: np.ndarray) -> np.ndarray: ...

    def whole(self, labels: np.ndarray) -> bool: ...


def rule_of(step: Step) -> Callable[[Ties, Step, list[Labels]], list[Labels]]:
    """`(units, step, labels of its inputs) -> labels of its outputs`."""
    return _RULES.get(step.name) or (_elementwise if step.name in ELEMENTWISE else _unknown)


def kept(shape: tuple[int, ...]) -> Labels:
    """Labels of places all of which stay."""
    return [np.zeros(n, np.int64) for n in shape]


def _unknown(units: Ties, step: Step, given: list[Labels]) -> list[Labels]:
    for labels in given:
        for axis in labels:
            units.keep(axis)
    return [kept(value.shape) for value in step.outputs]


def _elementwise(units: Ties, step: Step, given: list[Labels]) -> list[Labels]:
    outputs = []
    for out in step.outputs:
        found = []
        for k, size in enumerate(out.shape):
            same = [g[k] for g in given if len(g) == len(out.shape) and len(g[k]) == size]
            for other in same[1:]:
                units.tie(same[0], other)
            found.append(same[0])
        outputs.append(found)
    return outputs


def _transpose(units: Ties, step: Step, given: list[Labels]) -> list[Labels]:
    return [[given[0][k] for k in step.params["permutation"]]]


def _squeeze(units: Ties, step: Step, given: list[Labels]) -> list[Labels]:
    gone = step.params["dimensions"]
    return [[axis for k, axis in enumerate(given[0]) if k not in gone]]


def _broadcast(units: Ties, step: Step, given: list[Labels]) -> list[Labels]:
    shape = step.outputs[0].shape
    found = [np.zeros(0, np.int64)] * len(shape)
    for mine, k in zip(given[0], step.params["broadcast_dimensions"], strict=True):
        if len(mine) == shape[k]:
            found[k] = mine
    return [[a if len(a) == n else units.fresh(n) for a, n in zip(found, shape, strict=True)]]


def _reshape(units: Ties, step: Step, given: list[Labels]) -> list[Labels]:
    if step.params["dimensions"] is not None:
        return _unknown(units, step, given)
    old, new = step.inputs[0].shape, step.outputs[0].shape
    found: Labels = [np.zeros(n, np.int64) for n in new]
    for sources, targets in reshaped(old, new):
        flat = _merge(units, [given[0][k] for k in sources])
        for k, labels in zip(targets, _split(units, flat, [new[k] for k in targets]), strict=True):
            found[k] = labels
    return [found]


def _merge(units: Ties, axes: Labels) -> np.ndarray:
    """Several axes as one: the units of one axis remain, the other axes stay whole."""
    some = [k for k, labels in enumerate(axes) if not units.whole(labels)]
    for k in some[1:]:
        units.keep(axes[k])
    if not some:
        return np.zeros(math.prod(len(labels) for labels in axes), np.int64)
    shape = [len(labels) for labels in axes]
    spread = axes[some[0]].reshape([-1 if k == some[0] else 1 for k in range(len(axes))])
    return np.broadcast_to(spread, shape).reshape(-1)


def _split(units: Ties, flat: np.ndarray, sizes: list[int]) -> Labels:
    """One axis as several: the first axis that separates the units keeps them."""
    if len(sizes) == 1:
        return [flat]
    grid = flat.reshape(sizes)
    found = [np.zeros(n, np.int64) for n in sizes]
    if units.whole(flat):
        return found
    lines = [np.moveaxis(grid, k, 0).reshape(n, -1) for k, n in enumerate(sizes)]
    alike = [
        k for k, line in enumerate(lines) if (units.find(line) == units.find(line[:, :1])).all()
    ]
    chosen = alike[0] if alike else 0
    line = lines[chosen]
    units.tie(line, np.broadcast_to(line[:, :1], line.shape))
    found[chosen] = line[:, 0]
    return found


def _sum(units: Ties, step: Step, given: list[Labels]) -> list[Labels]:
    axes = step.params["axes"]
    units.crossings += [(step, 0, k, None, k) for k in axes]
    return [[labels for k, labels in enumerate(given[0]) if k not in axes]]


def _reduce(units: Ties, step: Step, given: list[Labels]) -> list[Labels]:
    axes = step.params["axes"]
    for k in axes:
        units.keep(given[0][k])
    return [[labels for k, labels in enumerate(given[0]) if k not in axes]] * len(step.outputs)


def _dot(units: Ties, step: Step, given: list[Labels]) -> list[Labels]:
    (left, right), (left_batch, right_batch) = step.params["dimension_numbers"]
    a, b = given
    for i, j in zip((*left, *left_batch), (*right, *right_batch), strict=True):
        units.tie(a[i], b[j])
    units.crossings += [(step, 0, i, 1, j) for i, j in zip(left, right, strict=True)]
    free_a = [labels for k, labels in enumerate(a) if k not in (*left, *left_batch)]
    free_b = [labels for k, labels in enumerate(b) if k not in (*right, *right_batch)]
    return [[*(a[k] for k in left_batch), *free_a, *free_b]]


def _convolve(units: Ties, step: Step, given: list[Labels]) -> list[Labels]:
    x, kernel = given
    where, groups = step.params["dimension_numbers"], step.params["feature_group_count"]
    inputs, outputs = x[where.lhs_spec[1]], kernel[where.rhs_spec[0]]
    whole = groups not in (1, len(inputs))
    if step.params["batch_group_count"] != 1 or whole:
        return _unknown(units, step, given)
    for k in where.lhs_spec[2:]:
        units.keep(x[k])
    for k in where.rhs_spec[2:]:
        units.keep(kernel[k])
    if groups == 1:
        units.tie(inputs, kernel[where.rhs_spec[1]])
        units.crossings.append((step, 0, where.lhs_spec[1], 1, where.rhs_spec[1]))
    else:  # each channel on its own
        units.tie(np.repeat(inputs, len(outputs) // groups), outputs)
    found = kept(step.outputs[0].shape)
    found[where.out_spec[0]], found[where.out_spec[1]] = x[where.lhs_spec[0]], outputs
    return [found]


def _concatenate(units: Ties, step: Step, given: list[Labels]) -> list[Labels]:
    along = step.params["dimension"]
    found = list(given[0])
    for other in given[1:]:
        for k, labels in enumerate(other):
            if k != along:
                units.tie(found[k], labels)
    found[along] = np.concatenate([labels[along] for labels in given])
    return [found]


def _slice(units: Ties, step: Step, given: list[Labels]) -> list[Labels]:
    starts, ends = step.params["start_indices"], step.params["limit_indices"]
    strides = step.params["strides"] or [1] * len(starts)
    cuts = zip(given[0], starts, ends, strides, strict=True)
    found = []
    for labels, start, end, stride in cuts:
        if stride != 1:
            units.keep(labels)
        found.append(labels[start:end:stride])
    return [found]


def _parts(units: Ties, step: Step, given: list[Labels]) -> list[Labels]:
    """`split`."""
    along, ends = step.params["axis"], np.cumsum(step.params["sizes"])
    return [
        [part if k == along else labels for k, labels in enumerate(given[0])]
        for part in np.split(given[0][along], ends[:-1])
    ]


def _pad(units: Ties, step: Step, given: list[Labels]) -> list[Labels]:
    found = []
    for labels, (low, high, inner) in zip(given[0], step.params["padding_config"], strict=True):
        if inner or low < 0 or high < 0:
            return _unknown(units, step, given)
        found.append(np.pad(labels, (low, high)))  # KEPT
    return [found]


def _along(name: str) -> Callable[[Ties, Step, list[Labels]], list[Labels]]:
    """One axis, named by a parameter, is kept whole; the others pass through."""

    def rule(units: Ties, step: Step, given: list[Labels]) -> list[Labels]:
        for labels in given:
            units.keep(labels[step.params[name]])
        return _elementwise(units, step, given)

    return rule


def _window(units: Ties, step: Step, given: list[Labels]) -> list[Labels]:
    found = []
    windows, strides = step.params["window_dimensions"], step.params["window_strides"]
    each = zip(given[0], windows, strides, step.outputs[0].shape, strict=True)
    for labels, window, stride, size in each:
        if window == stride == 1 and size == len(labels):
            found.append(labels)
        else:
            units.keep(labels)
            found.append(np.zeros(size, np.int64))
    return [found]


def _gather(units: Ties, step: Step, given: list[Labels]) -> list[Labels]:
    """Rows of a table: axes taken whole pass through, such as the features of an embedding."""
    numbers, sizes = step.params["dimension_numbers"], step.params["slice_sizes"]
    found = kept(step.outputs[0].shape)
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    whole = [k for k in range(len(given[0])) if k not in gone]
    targets = dict(zip(whole, numbers.offset_dims, strict=True))
    for k, labels in enumerate(given[0]):
        if k in targets and sizes[k] == len(labels) and k not in numbers.start_index_map:
            found[targets[k]] = labels
        else:
            units.keep(labels)
    for labels in given[1]:
        units.keep(labels)
    return [found]


def _iota(units: Ties, step: Step, given: list[Labels]) -> list[Labels]:
    shape, along = step.outputs[0].shape, step.params["dimension"]
    return [[np.zeros(n, np.int64) if k == along else units.fresh(n) for k, n in enumerate(shape)]]


def _same(units: Ties, step: Step, given: list[Labels]) -> list[Labels]:
    for other in given[1:]:
        for a, b in zip(given[0], other, strict=True):
            units.tie(a, b)
    return [given[0]]


def _loop_slice(units: Ties, step: Step, given: list[Labels]) -> list[Labels]:
    units.keep(given[0][0])
    return [given[0][1:]]


def _loop_stack(units: Ties, step: Step, given: list[Labels]) -> list[Labels]:
    return [[np.zeros(step.outputs[0].shape[0], np.int64), *given[0]]]


_RULES: dict[str, Callable[[Ties, Step, list[Labels]], list[Labels]]] = {
    "transpose": _transpose,
    "squeeze": _squeeze,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "reduce_sum": _sum,
    **dict.fromkeys(
        ("reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "argmax", "argmin"),
        _reduce,
    ),
    "dot_general": _dot,
    "conv_general_dilated": _convolve,
    "concatenate": _concatenate,
    "slice": _slice,
    "split": _parts,
    "pad": _pad,
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), _along("axis")),
    "sort": _along("dimension"),
    **dict.fromkeys(("reduce_window_max", "reduce_window_min", "reduce_window_sum"), _window),
    "gather": _gather,
    "iota": _iota,
    **dict.fromkeys(("loop_carry", "loop_end", "branches"), _same),
    "loop_slice": _loop_slice,
    "loop_stack": _loop_stack,
}
