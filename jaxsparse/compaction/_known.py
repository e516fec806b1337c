"""How knowledge about arrays passes through operations."""

import math

import numpy as np

from jaxsparse.compaction._evaluate import run
from jaxsparse.compaction._known_products import convolution, product
from jaxsparse.compaction._program import ELEMENTWISE, Step, Value, reshaped
from jaxsparse.compaction._slices import Known, Rule, Slices, along_all


def rule_of(step: Step) -> Rule | None:
    """The rule by which knowledge passes through an operation."""
    return _elementwise if step.name in ELEMENTWISE else _RULES.get(step.name)


def _elementwise(facts: Known, step: Step, out: Value, axis: int) -> Slices | None:
    size = out.shape[axis]
    found = [facts.along(value, axis, len(out.shape), size) for value in step.inputs]
    if step.name == "mul":
        zero = np.zeros(size, bool)
        for one in found:
            zero |= False if one is None else one.zero
        if any(one is None for one in found):
            return Slices(zero, np.zeros(size, out.dtype))
    if any(one is None for one in found):
        return None
    given = [one for one in found if one is not None]
    known = np.logical_and.reduce([one.known for one in given])
    if not known.any() and step.name != "mul":
        return None
    each = zip(given, step.inputs, strict=True)
    arrays = [np.asarray(one.numbers, value.dtype) for one, value in each]
    numbers = run(step, arrays)[step.outputs.index(out)]
    known &= np.isfinite(numbers) if np.issubdtype(numbers.dtype, np.inexact) else True
    if step.name == "mul":
        known |= zero
        numbers = np.where(zero, np.zeros((), out.dtype), numbers)
    return Slices(known, np.where(known, numbers, np.zeros((), out.dtype)))


def _moved(facts: Known, step: Step, out: Value, axis: int) -> Slices | None:
    """Permutes the axes."""
    return facts.slices(step.inputs[0], step.params["permutation"][axis])


def _squeezed(facts: Known, step: Step, out: Value, axis: int) -> Slices | None:
    ndim, gone = len(step.inputs[0].shape), step.params["dimensions"]
    return facts.slices(step.inputs[0], [k for k in range(ndim) if k not in gone][axis])


def _spread(facts: Known, step: Step, out: Value, axis: int) -> Slices | None:
    value, targets = step.inputs[0], step.params["broadcast_dimensions"]
    if axis in targets and value.shape[targets.index(axis)] == out.shape[axis]:
        return facts.slices(value, targets.index(axis))
    return facts.along(value, axis, -1, out.shape[axis])


def _reshaped(facts: Known, step: Step, out: Value, axis: int) -> Slices | None:
    value = step.inputs[0]
    sources, targets = next(g for g in reshaped(value.shape, out.shape) if axis in g[1])
    known, numbers = along_all(facts, value, sources)
    sizes = [out.shape[k] for k in targets]
    left = np.ones(sizes, bool)
    for i, k in enumerate(targets):
        if k != axis:
            left &= facts.left(out, k).reshape([-1 if j == i else 1 for j in range(len(sizes))])

    def lines(array: np.ndarray) -> np.ndarray:
        return np.moveaxis(array.reshape(sizes), targets.index(axis), 0).reshape(
            out.shape[axis], -1
        )

    known, numbers, left = lines(known), lines(numbers), lines(left)
    first = np.take_along_axis(numbers, np.argmax(left, 1)[:, None], 1)
    same = (~left | (known & (numbers == first))).all(1)
    return Slices(same, np.where(same, first[:, 0], np.zeros((), out.dtype)))


def _reduced(facts: Known, step: Step, out: Value, axis: int) -> Slices | None:
    value, gone = step.inputs[0], step.params["axes"]
    found = facts.slices(value, [k for k in range(len(value.shape)) if k not in gone][axis])
    if step.name != "reduce_sum":
        return found
    if all(facts.left(value, k).all() for k in gone):
        count = math.prod(value.shape[k] for k in gone)
        return Slices(found.known, found.numbers * np.asarray(count, value.dtype))
    return Slices(found.zero, np.zeros_like(found.numbers))


def _pooled(facts: Known, step: Step, out: Value, axis: int) -> Slices | None:
    found = facts.slices(step.inputs[0], axis)
    whole = all(n == 1 for n in step.params["base_dilation"])
    padded = any(any(pair) for pair in step.params["padding"])
    if step.name != "reduce_window_sum":  # the extreme of equal numbers, if a window has any
        each = zip(step.params["padding"], step.params["window_dimensions"], strict=True)
        whole &= all(max(pair) < window for pair, window in each)
        whole &= not padded or all(n == 1 for n in step.params["window_dilation"])
        return found if whole else None
    if padded or not whole:
        return Slices(found.zero, np.zeros_like(found.numbers))
    count = np.asarray(math.prod(step.params["window_dimensions"]), out.dtype)
    return Slices(found.known, found.numbers * count)


def _joined(facts: Known, step: Step, out: Value, axis: int) -> Slices | None:
    along = step.params["dimension"]
    found = [facts.slices(value, axis) for value in step.inputs]
    if axis == along:
        return Slices(*(np.concatenate(part) for part in zip(*found, strict=True)))
    first = found[0]
    same = [one.known & (one.numbers == first.numbers) for one in found]
    return Slices(np.logical_and.reduce(same), first.numbers)


def _cut(facts: Known, step: Step, out: Value, axis: int) -> Slices | None:
    found = facts.slices(step.inputs[0], axis)
    if step.name == "slice":
        start, end = step.params["start_indices"][axis], step.params["limit_indices"][axis]
        stride = (step.params["strides"] or [1] * (axis + 1))[axis]
        return Slices(*(part[start:end:stride] for part in found))
    if axis != step.params["axis"]:
        return found
    which = next(i for i, value in enumerate(step.outputs) if value is out)
    start = sum(step.params["sizes"][:which])
    return Slices(*(part[start : start + out.shape[axis]] for part in found))


def _loop(facts: Known, step: Step, out: Value, axis: int) -> Slices | None:
    """Of what changes between iterations, only slices that are zero in all of them are known."""
    if step.name == "loop_slice":
        zero = facts.slices(step.inputs[0], axis + 1).zero
    elif step.name == "loop_stack":
        zero = facts.slices(step.inputs[0], axis - 1).zero
    else:
        return None
    return Slices(zero, np.zeros(out.shape[axis], out.dtype))


_RULES: dict[str, Rule] = {
    "transpose": _moved,
    "squeeze": _squeezed,
    "broadcast_in_dim": _spread,
    "reshape": _reshaped,
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min"), _reduced),
    **dict.fromkeys(("reduce_window_max", "reduce_window_min", "reduce_window_sum"), _pooled),
    "concatenate": _joined,
    **dict.fromkeys(("slice", "split"), _cut),
    "dot_general": product,
    "conv_general_dilated": convolution,
    **dict.fromkeys(("loop_slice", "loop_stack"), _loop),
}
