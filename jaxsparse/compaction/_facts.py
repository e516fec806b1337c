"""What is known of the arrays of a program before it has seen any data.

A slice of an array, all places with one index along one axis, is *known* where all its numbers are
one number, whatever the arguments: zero behind dead weights, and a constant behind a bias.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.compaction._program import ELEMENTWISE, Program, Step, Value
from jaxsparse.compaction._units import Units, reshaped

_ARRANGE = frozenset(
    "broadcast_in_dim concatenate pad reshape slice split squeeze transpose".split()
)
_NUMPY: dict[str, Any] = {
    "abs": np.abs,
    "add": np.add,
    "add_any": np.add,
    "copy": np.copy,
    "eq": np.equal,
    "exp": np.exp,
    "ge": np.greater_equal,
    "gt": np.greater,
    "le": np.less_equal,
    "log": np.log,
    "lt": np.less,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "ne": np.not_equal,
    "neg": np.negative,
    "sqrt": np.sqrt,
    "square": np.square,
    "stop_gradient": np.copy,
    "sub": np.subtract,
    "tanh": np.tanh,
    "squeeze": lambda x, dimensions: np.squeeze(x, tuple(dimensions)),
    "transpose": lambda x, permutation: np.transpose(x, permutation),
}
"""What needs no compilation: every other operation is the primitive's own."""
_LIMIT = 1 << 26  # elements; a longer constant is not computed here


class Slices(NamedTuple):
    """The slices along one axis.

    Attributes:
      known: whether each is known; a slice that is left out counts as zero.
      numbers: what it is, where it is known; else zero.
    """

    known: np.ndarray
    numbers: np.ndarray

    @property
    def zero(self) -> np.ndarray:
        """Whether each is zero."""
        return self.known & (self.numbers == 0)


class Facts:
    """What is known of every array of a program.

    Args:
      program: the program.
      units: its units.
      leaves: the parameters, arrays.
      gone: of every unit, whether it is left out.
    """

    def __init__(self, program: Program, units: Units, leaves: list[Any], gone: np.ndarray):
        self._units, self._gone = units, gone
        self._arrays: dict[Value, Any] = dict(zip(program.leaves, leaves, strict=True))
        self._slices: dict[tuple[Value, int], Slices] = {}
        for step in program.steps:
            self._read(step)

    def array(self, value: Value) -> Any:
        """The whole array, where it depends on parameters alone; else None."""
        return value.constant if value.constant is not None else self._arrays.get(value)

    def slices(self, value: Value, axis: int) -> Slices:
        """What is known along an axis."""
        if (value, axis) not in self._slices:
            array = self.array(value)
            size = value.shape[axis]
            if array is None or jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended):
                found = _nothing(size, value.dtype)
            else:
                found = self._uniform(value, np.asarray(array), axis)
            self._slices[value, axis] = self._without(value, axis, found)
        return self._slices[value, axis]

    def left(self, value: Value, axis: int) -> np.ndarray:
        """Which places along an axis are left."""
        return ~self._gone[self._units.roots(value, axis)]

    def _without(self, value: Value, axis: int, found: Slices) -> Slices:
        gone = ~self.left(value, axis)
        return Slices(found.known | gone, np.where(gone, np.zeros((), value.dtype), found.numbers))

    def _uniform(self, value: Value, array: np.ndarray, axis: int) -> Slices:
        for k in range(array.ndim):
            if k != axis and not (places := self.left(value, k)).all():
                array = np.compress(places, array, k)
        lines = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
        if lines.shape[1] == 0:
            zeros = np.zeros(len(lines), value.dtype)
            return Slices(np.ones(len(lines), bool), zeros)
        known = (lines == lines[:, :1]).all(1)
        return Slices(known, np.where(known, lines[:, 0], np.zeros((), value.dtype)))

    def _read(self, step: Step) -> None:
        arrays = [self.array(value) for value in step.inputs]
        elementwise = step.name in ELEMENTWISE
        if all(a is not None for a in arrays) and (elementwise or step.name in _ARRANGE):
            if self._compute(step, arrays):
                return
        for out in step.outputs:
            for axis in range(len(out.shape)):
                if self._units.whole(self._units.of(out)[axis]):
                    continue
                rule = _elementwise if elementwise else _RULES.get(step.name)
                found = rule and rule(self, step, out, axis)
                found = found or _nothing(out.shape[axis], out.dtype)
                self._slices[out, axis] = self._without(out, axis, found)

    def _compute(self, step: Step, arrays: list[Any]) -> bool:
        values = (*step.inputs, *step.outputs)
        if any(jax.dtypes.issubdtype(v.dtype, jax.dtypes.extended) for v in values):
            return False
        largest = max((math.prod(value.shape) for value in step.inputs), default=0)
        sizes = [math.prod(value.shape) for value in step.outputs]
        # What is only spread out is known by its slices, and takes no memory that way.
        if max(sizes) > largest and (step.name == "broadcast_in_dim" or max(sizes) > _LIMIT):
            return False
        arrays = [np.asarray(a, v.dtype) for a, v in zip(arrays, step.inputs, strict=True)]
        self._arrays.update(zip(step.outputs, _run(step, arrays), strict=True))
        return True

    def along(self, value: Value, axis: int, ndim: int, size: int) -> Slices | None:
        """The slices of an operand of elementwise work, as the result has them."""
        if len(value.shape) == ndim and value.shape[axis] == size:
            return self.slices(value, axis)
        array = self.array(value)
        if array is None or np.size(array) != 1:
            return None
        return Slices(np.ones(size, bool), np.full(size, np.asarray(array).reshape(())))


def _nothing(size: int, dtype: Any) -> Slices:
    if jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
        dtype = np.float32
    return Slices(np.zeros(size, bool), np.zeros(size, dtype))


def _run(step: Step, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """What an operation makes of arrays."""
    if step.name == "reshape" and step.params["dimensions"] is None:
        return [arrays[0].reshape(step.params["new_sizes"])]
    if step.name == "convert_element_type":
        return [arrays[0].astype(step.outputs[0].dtype)]
    if step.name == "rsqrt":
        return [(1 / np.sqrt(arrays[0])).astype(arrays[0].dtype)]
    if step.name in _NUMPY:
        names = ("permutation", "dimensions")
        return [_NUMPY[step.name](*arrays, **{k: v for k, v in step.params.items() if k in names})]
    found = step.eqn.primitive.bind(*map(jnp.asarray, arrays), **step.params)
    return list(map(np.asarray, found if step.eqn.primitive.multiple_results else [found]))


def _elementwise(facts: Facts, step: Step, out: Value, axis: int) -> Slices | None:
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
    numbers = _run(step, arrays)[step.outputs.index(out)]
    known &= np.isfinite(numbers) if np.issubdtype(numbers.dtype, np.inexact) else True
    if step.name == "mul":
        known |= zero
        numbers = np.where(zero, np.zeros((), out.dtype), numbers)
    return Slices(known, np.where(known, numbers, np.zeros((), out.dtype)))


def _moved(facts: Facts, step: Step, out: Value, axis: int) -> Slices | None:
    """Axes in another order."""
    return facts.slices(step.inputs[0], step.params["permutation"][axis])


def _squeezed(facts: Facts, step: Step, out: Value, axis: int) -> Slices | None:
    ndim, gone = len(step.inputs[0].shape), step.params["dimensions"]
    return facts.slices(step.inputs[0], [k for k in range(ndim) if k not in gone][axis])


def _spread(facts: Facts, step: Step, out: Value, axis: int) -> Slices | None:
    value, targets = step.inputs[0], step.params["broadcast_dimensions"]
    if axis in targets and value.shape[targets.index(axis)] == out.shape[axis]:
        return facts.slices(value, targets.index(axis))
    return facts.along(value, axis, -1, out.shape[axis])


def _reshaped(facts: Facts, step: Step, out: Value, axis: int) -> Slices | None:
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


def _reduced(facts: Facts, step: Step, out: Value, axis: int) -> Slices | None:
    value, gone = step.inputs[0], step.params["axes"]
    found = facts.slices(value, [k for k in range(len(value.shape)) if k not in gone][axis])
    if step.name != "reduce_sum":
        return found
    if all(facts.left(value, k).all() for k in gone):
        count = math.prod(value.shape[k] for k in gone)
        return Slices(found.known, found.numbers * np.asarray(count, value.dtype))
    return Slices(found.zero, np.zeros_like(found.numbers))


def _pooled(facts: Facts, step: Step, out: Value, axis: int) -> Slices | None:
    found = facts.slices(step.inputs[0], axis)
    if step.name != "reduce_window_sum":
        return found
    if any(any(pair) for pair in step.params["padding"]):
        return Slices(found.zero, np.zeros_like(found.numbers))
    count = np.asarray(math.prod(step.params["window_dimensions"]), out.dtype)
    return Slices(found.known, found.numbers * count)


def _joined(facts: Facts, step: Step, out: Value, axis: int) -> Slices | None:
    along = step.params["dimension"]
    found = [facts.slices(value, axis) for value in step.inputs]
    if axis == along:
        return Slices(*(np.concatenate(part) for part in zip(*found, strict=True)))
    first = found[0]
    same = [one.known & (one.numbers == first.numbers) for one in found]
    return Slices(np.logical_and.reduce(same), first.numbers)


def _cut(facts: Facts, step: Step, out: Value, axis: int) -> Slices | None:
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


def _dot(facts: Facts, step: Step, out: Value, axis: int) -> Slices | None:
    contracted, batch = step.params["dimension_numbers"]
    frees = [
        [k for k in range(len(value.shape)) if k not in (*contracted[i], *batch[i])]
        for i, value in enumerate(step.inputs)
    ]
    count = len(batch[0])
    if axis < count:
        found = [facts.slices(step.inputs[i], batch[i][axis]).zero for i in (0, 1)]
        return Slices(found[0] | found[1], np.zeros(out.shape[axis], out.dtype))
    side = 0 if axis - count < len(frees[0]) else 1
    mine = frees[side][axis - count - (len(frees[0]) if side else 0)]
    kernel, other = step.inputs[side], step.inputs[1 - side]
    array = facts.array(kernel)
    if array is None or batch[0]:
        zero = facts.slices(kernel, mine).zero
        return Slices(zero, np.zeros(out.shape[axis], out.dtype))
    moved = np.moveaxis(np.asarray(array), [*contracted[side], mine], range(len(contracted[0]) + 1))
    given = along_all(facts, other, contracted[1 - side])
    return _of_kernel(facts, kernel, mine, moved, given)


def along_all(facts: Facts, value: Value, axes: Any) -> Slices:
    """What is known along several axes together: a place lies on a slice of each."""
    shape = [value.shape[k] for k in axes]
    known, numbers = np.zeros(shape, bool), np.zeros(shape, value.dtype)
    for i, k in enumerate(axes):
        mine = facts.slices(value, k)
        spread = [-1 if j == i else 1 for j in range(len(shape))]
        some = mine.known.reshape(spread)
        numbers = np.where(some & ~known, mine.numbers.reshape(spread), numbers)
        known = known | some
    return Slices(known, numbers)


def _of_kernel(facts: Facts, kernel: Value, axis: int, moved: np.ndarray, x: Slices) -> Slices:
    """Outputs of a kernel `(inputs..., outputs, rest...)`: known where all that comes in is known.

    The rest are other axes of outputs, over which a slice must be uniform: it is, if it is zero.
    """
    outputs = moved.shape[x.known.ndim]
    weights = moved.reshape(x.known.size, outputs, -1)
    unknown, numbers = ~x.known.reshape(-1), x.numbers.reshape(-1)
    known = ~(weights[unknown] != 0).any((0, 2))
    some = np.flatnonzero(numbers)
    sums = np.einsum("i,ior->or", *(_wide(a) for a in (numbers[some], weights[some])))
    known &= (sums == sums[:, :1]).all(1)
    return Slices(known, np.where(known, sums[:, 0], 0).astype(x.numbers.dtype))


def _convolved(facts: Facts, step: Step, out: Value, axis: int) -> Slices | None:
    where = step.params["dimension_numbers"]
    if axis == where.out_spec[0]:
        return None
    x, kernel = step.inputs
    found = facts.slices(x, where.lhs_spec[1])
    padded = any(any(pair) for pair in step.params["padding"])
    if padded or any(n != 1 for n in step.params["lhs_dilation"]):
        found = Slices(found.zero, np.zeros_like(found.numbers))
    array = facts.array(kernel)
    if step.params["feature_group_count"] != 1:
        times = out.shape[axis] // len(found.known)
        dead = facts.slices(kernel, where.rhs_spec[0]).zero
        return Slices(np.repeat(found.zero, times) | dead, np.zeros(out.shape[axis], out.dtype))
    if array is None:
        dead = facts.slices(kernel, where.rhs_spec[0]).zero
        return Slices(dead, np.zeros(out.shape[axis], out.dtype))
    taps = np.moveaxis(np.asarray(array), [where.rhs_spec[1], where.rhs_spec[0]], [0, 1])
    taps = taps.reshape(*taps.shape[:2], -1)
    reached = ~found.known
    known = ~(taps[reached] != 0).any((0, 2)) if reached.any() else np.ones(taps.shape[1], bool)
    some = np.flatnonzero(found.numbers)
    sums = np.einsum("i,iot->o", *(_wide(a) for a in (found.numbers[some], taps[some])))
    known &= np.isfinite(sums)
    return Slices(known, np.where(known, sums, 0).astype(out.dtype))


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if jnp.issubdtype(array.dtype, jnp.floating) else array


def _loop(facts: Facts, step: Step, out: Value, axis: int) -> Slices | None:
    """Of what changes from turn to turn it is known only where every turn has zero."""
    if step.name == "loop_slice":
        zero = facts.slices(step.inputs[0], axis + 1).zero
    elif step.name == "loop_stack":
        zero = facts.slices(step.inputs[0], axis - 1).zero
    else:
        return None
    return Slices(zero, np.zeros(out.shape[axis], out.dtype))


_RULES: dict[str, Any] = {
    "transpose": _moved,
    "squeeze": _squeezed,
    "broadcast_in_dim": _spread,
    "reshape": _reshaped,
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min"), _reduced),
    **dict.fromkeys(("reduce_window_max", "reduce_window_min", "reduce_window_sum"), _pooled),
    "concatenate": _joined,
    **dict.fromkeys(("slice", "split"), _cut),
    "dot_general": _dot,
    "conv_general_dilated": _convolved,
    **dict.fromkeys(("loop_slice", "loop_stack"), _loop),
}
