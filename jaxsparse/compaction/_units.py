"""Which places of which axes live and die together: every place of every axis belongs to a unit.

An operation ties the units of its operands: what a product sums over, what is added, what a kernel
and its bias have in common. Where places could not be left out one by one, they belong to `KEPT`.
"""

import math
from collections.abc import Callable

import numpy as np

from jaxsparse.compaction._program import ELEMENTWISE, Program, Step, Value

KEPT = 0
Labels = list[np.ndarray]
"""One array of units for each axis."""


class Partition:
    """Numbers in groups that only ever grow together; the smallest number names its group."""

    def __init__(self, size: int):
        self._parents = np.arange(size)

    def __len__(self) -> int:
        return len(self._parents)

    def find(self, labels: np.ndarray) -> np.ndarray:
        """The group that each number belongs to."""
        found = self._parents[labels]
        while not np.array_equal(found, up := self._parents[found]):
            found = up
        self._parents[labels] = found
        return found

    def tie(self, a: np.ndarray, b: np.ndarray) -> None:
        """Makes one group of each pair."""
        while True:
            a, b = self.find(a), self.find(b)
            differ = a != b
            if not differ.any():
                return
            a, b = a[differ], b[differ]
            # Of several pairs with one larger group one wins here, and the next turn ties the rest.
            self._parents[np.maximum(a, b)] = np.minimum(a, b)

    def grow(self, size: int) -> np.ndarray:
        """New numbers, each a group of its own."""
        new = np.arange(len(self._parents), len(self._parents) + size)
        self._parents = np.concatenate([self._parents, new])
        return new


class Units(Partition):
    """The units of a program.

    Attributes:
      crossings: `(step, input, axis, other input or None, other axis)`: sums over units.
    """

    def __init__(self, program: Program):
        super().__init__(1)
        self.labels: dict[Value, Labels] = {}
        self.crossings: list[tuple[Step, int, int, int | None, int]] = []
        for value in program.leaves:
            self.labels[value] = [self.fresh(n) for n in value.shape]
        for value in program.arguments:
            self.labels[value] = _kept(value.shape)
        for step in program.steps:
            given = [self.of(value) for value in step.inputs]
            rule = _RULES.get(step.name)
            if rule is None:
                rule = _elementwise if step.name in ELEMENTWISE else _unknown
            self.labels.update(zip(step.outputs, rule(self, step, given), strict=True))
        for value in program.outputs:
            for axis in self.of(value):
                self.keep(axis)

    def of(self, value: Value) -> Labels:
        """The labels of an array, by axis; a constant keeps all its places."""
        if value not in self.labels:
            self.labels[value] = _kept(value.shape)
        return self.labels[value]

    def roots(self, value: Value, axis: int) -> np.ndarray:
        """The unit of every place of an axis."""
        return self.find(self.of(value)[axis])

    def fresh(self, size: int) -> np.ndarray:
        """Units of their own; an axis of one place keeps it."""
        if size < 2:
            return np.zeros(size, np.int64)
        return self.grow(size)

    def axes(self) -> list[np.ndarray]:
        """The units of every axis of every array, each once."""
        each = {id(axis): axis for labels in self.labels.values() for axis in labels}
        return [self.find(axis) for axis in each.values() if len(axis)]

    def keep(self, labels: np.ndarray) -> None:
        """These places stay."""
        self.tie(labels, np.zeros_like(labels))

    def whole(self, labels: np.ndarray) -> bool:
        """Whether all of these places stay."""
        return not self.find(labels).any()


def _kept(shape: tuple[int, ...]) -> Labels:
    return [np.zeros(n, np.int64) for n in shape]


def _unknown(units: Units, step: Step, given: list[Labels]) -> list[Labels]:
    for labels in given:
        for axis in labels:
            units.keep(axis)
    return [_kept(value.shape) for value in step.outputs]


def _elementwise(units: Units, step: Step, given: list[Labels]) -> list[Labels]:
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


def _transpose(units: Units, step: Step, given: list[Labels]) -> list[Labels]:
    return [[given[0][k] for k in step.params["permutation"]]]


def _squeeze(units: Units, step: Step, given: list[Labels]) -> list[Labels]:
    gone = step.params["dimensions"]
    return [[axis for k, axis in enumerate(given[0]) if k not in gone]]


def _broadcast(units: Units, step: Step, given: list[Labels]) -> list[Labels]:
    shape = step.outputs[0].shape
    found = [np.zeros(0, np.int64)] * len(shape)
    for mine, k in zip(given[0], step.params["broadcast_dimensions"], strict=True):
        if len(mine) == shape[k]:
            found[k] = mine
    return [[a if len(a) == n else units.fresh(n) for a, n in zip(found, shape, strict=True)]]


def _reshape(units: Units, step: Step, given: list[Labels]) -> list[Labels]:
    if step.params["dimensions"] is not None:
        return _unknown(units, step, given)
    old, new = step.inputs[0].shape, step.outputs[0].shape
    found: Labels = [np.zeros(n, np.int64) for n in new]
    for sources, targets in reshaped(old, new):
        flat = _merge(units, [given[0][k] for k in sources])
        for k, labels in zip(targets, _split(units, flat, [new[k] for k in targets]), strict=True):
            found[k] = labels
    return [found]


def reshaped(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """The axes of an array, and those that they become, in groups of equal size; no sizes of 1."""
    left = [(k, n) for k, n in enumerate(old) if n != 1]
    right = [(k, n) for k, n in enumerate(new) if n != 1]
    groups = []
    while left and right:
        sources, targets = [left.pop(0)], [right.pop(0)]
        while (a := math.prod(n for _, n in sources)) != (b := math.prod(n for _, n in targets)):
            if a < b:
                sources.append(left.pop(0))
            else:
                targets.append(right.pop(0))
        groups.append(([k for k, _ in sources], [k for k, _ in targets]))
    return groups


def _merge(units: Units, axes: Labels) -> np.ndarray:
    """Several axes as one: the places of one axis decide, the others stay whole."""
    some = [k for k, labels in enumerate(axes) if not units.whole(labels)]
    for k in some[1:]:
        units.keep(axes[k])
    if not some:
        return np.zeros(math.prod(len(labels) for labels in axes), np.int64)
    shape = [len(labels) for labels in axes]
    spread = axes[some[0]].reshape([-1 if k == some[0] else 1 for k in range(len(axes))])
    return np.broadcast_to(spread, shape).reshape(-1)


def _split(units: Units, flat: np.ndarray, sizes: list[int]) -> Labels:
    """One axis as several: of groups of places the first axis that tells them apart decides."""
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


def _sum(units: Units, step: Step, given: list[Labels]) -> list[Labels]:
    axes = step.params["axes"]
    units.crossings += [(step, 0, k, None, k) for k in axes]
    return [[labels for k, labels in enumerate(given[0]) if k not in axes]]


def _reduce(units: Units, step: Step, given: list[Labels]) -> list[Labels]:
    axes = step.params["axes"]
    for k in axes:
        units.keep(given[0][k])
    return [[labels for k, labels in enumerate(given[0]) if k not in axes]] * len(step.outputs)


def _dot(units: Units, step: Step, given: list[Labels]) -> list[Labels]:
    (left, right), (left_batch, right_batch) = step.params["dimension_numbers"]
    a, b = given
    for i, j in zip((*left, *left_batch), (*right, *right_batch), strict=True):
        units.tie(a[i], b[j])
    units.crossings += [(step, 0, i, 1, j) for i, j in zip(left, right, strict=True)]
    free_a = [labels for k, labels in enumerate(a) if k not in (*left, *left_batch)]
    free_b = [labels for k, labels in enumerate(b) if k not in (*right, *right_batch)]
    return [[*(a[k] for k in left_batch), *free_a, *free_b]]


def _convolve(units: Units, step: Step, given: list[Labels]) -> list[Labels]:
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
    else:  # each channel for itself
        units.tie(np.repeat(inputs, len(outputs) // groups), outputs)
    found = _kept(step.outputs[0].shape)
    found[where.out_spec[0]], found[where.out_spec[1]] = x[where.lhs_spec[0]], outputs
    return [found]


def _concatenate(units: Units, step: Step, given: list[Labels]) -> list[Labels]:
    along = step.params["dimension"]
    found = list(given[0])
    for other in given[1:]:
        for k, labels in enumerate(other):
            if k != along:
                units.tie(found[k], labels)
    found[along] = np.concatenate([labels[along] for labels in given])
    return [found]


def _slice(units: Units, step: Step, given: list[Labels]) -> list[Labels]:
    starts, ends = step.params["start_indices"], step.params["limit_indices"]
    strides = step.params["strides"] or [1] * len(starts)
    cuts = zip(given[0], starts, ends, strides, strict=True)
    found = []
    for labels, start, end, stride in cuts:
        if stride != 1:
            units.keep(labels)
        found.append(labels[start:end:stride])
    return [found]


def _parts(units: Units, step: Step, given: list[Labels]) -> list[Labels]:
    """`split`."""
    along, ends = step.params["axis"], np.cumsum(step.params["sizes"])
    return [
        [part if k == along else labels for k, labels in enumerate(given[0])]
        for part in np.split(given[0][along], ends[:-1])
    ]


def _pad(units: Units, step: Step, given: list[Labels]) -> list[Labels]:
    found = []
    for labels, (low, high, inner) in zip(given[0], step.params["padding_config"], strict=True):
        if inner or low < 0 or high < 0:
            return _unknown(units, step, given)
        found.append(np.pad(labels, (low, high)))  # KEPT
    return [found]


def _along(name: str) -> Callable[[Units, Step, list[Labels]], list[Labels]]:
    """One axis is kept whole, named by a parameter; the others pass."""

    def rule(units: Units, step: Step, given: list[Labels]) -> list[Labels]:
        for labels in given:
            units.keep(labels[step.params[name]])
        return _elementwise(units, step, given)

    return rule


def _window(units: Units, step: Step, given: list[Labels]) -> list[Labels]:
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


def _gather(units: Units, step: Step, given: list[Labels]) -> list[Labels]:
    """Rows of a table: axes that are taken whole pass, such as the features of an embedding."""
    numbers, sizes = step.params["dimension_numbers"], step.params["slice_sizes"]
    found = _kept(step.outputs[0].shape)
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    whole = [k for k in range(len(given[0])) if k not in gone]
    targets = dict(zip(whole, numbers.offset_dims, strict=True))
    for k, labels in enumerate(given[0]):
        if k in targets and sizes[k] == len(labels):
            found[targets[k]] = labels
        else:
            units.keep(labels)
    for labels in given[1]:
        units.keep(labels)
    return [found]


def _iota(units: Units, step: Step, given: list[Labels]) -> list[Labels]:
    shape, along = step.outputs[0].shape, step.params["dimension"]
    return [[np.zeros(n, np.int64) if k == along else units.fresh(n) for k, n in enumerate(shape)]]


def _same(units: Units, step: Step, given: list[Labels]) -> list[Labels]:
    for other in given[1:]:
        for a, b in zip(given[0], other, strict=True):
            units.tie(a, b)
    return [given[0]]


def _loop_slice(units: Units, step: Step, given: list[Labels]) -> list[Labels]:
    units.keep(given[0][0])
    return [given[0][1:]]


def _loop_stack(units: Units, step: Step, given: list[Labels]) -> list[Labels]:
    return [[np.zeros(step.outputs[0].shape[0], np.int64), *given[0]]]


_RULES: dict[str, Callable[[Units, Step, list[Labels]], list[Labels]]] = {
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
