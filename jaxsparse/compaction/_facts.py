"""What is known about all arrays of a program when some of its units are left out."""

import math
from typing import Any

import jax
import numpy as np

from jaxsparse.compaction._evaluate import run
from jaxsparse.compaction._known import rule_of
from jaxsparse.compaction._program import ELEMENTWISE, Program, Step, Value
from jaxsparse.compaction._slices import Slices, nothing
from jaxsparse.compaction._units import Units

_ARRANGE = frozenset(
    "broadcast_in_dim concatenate pad reshape slice split squeeze transpose".split()
)
_LIMIT = 1 << 26  # elements; a longer constant is not computed here


class Facts:
    """What is known about every array of a program.

    Args:
      program: the program.
      units: its units.
      leaves: the parameters, arrays.
      gone: for each unit, whether it is left out.
    """

    def __init__(self, program: Program, units: Units, leaves: list[Any], gone: np.ndarray):
        self._units, self._gone = units, gone
        self._arrays: dict[Value, Any] = dict(zip(program.leaves, leaves, strict=True))
        self._slices: dict[tuple[Value, int], Slices] = {}
        for step in program.steps:
            self._read(step)

    def array(self, value: Value) -> Any:
        """The whole array, if it depends on parameters alone; else None."""
        return value.constant if value.constant is not None else self._arrays.get(value)

    def slices(self, value: Value, axis: int) -> Slices:
        """What is known along an axis."""
        if (value, axis) not in self._slices:
            array = self.array(value)
            size = value.shape[axis]
            if array is None or jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended):
                found = nothing(size, value.dtype)
            else:
                found = self._uniform(value, np.asarray(array), axis)
            self._slices[value, axis] = self._without(value, axis, found)
        return self._slices[value, axis]

    def left(self, value: Value, axis: int) -> np.ndarray:
        """Which places along an axis remain."""
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
        simple = step.name in ELEMENTWISE or step.name in _ARRANGE
        if simple and all(a is not None for a in arrays):
            if self._compute(step, arrays):
                return
        rule = rule_of(step)
        for out in step.outputs:
            for axis in range(len(out.shape)):
                if self._units.whole(self._units.of(out)[axis]):
                    continue
                found = rule and rule(self, step, out, axis)
                found = found or nothing(out.shape[axis], out.dtype)
                self._slices[out, axis] = self._without(out, axis, found)

    def _compute(self, step: Step, arrays: list[Any]) -> bool:
        values = (*step.inputs, *step.outputs)
        if any(jax.dtypes.issubdtype(v.dtype, jax.dtypes.extended) for v in values):
            return False
        largest = max((math.prod(value.shape) for value in step.inputs), default=0)
        sizes = [math.prod(value.shape) for value in step.outputs]
        # A broadcast array is known by its slices, which take no memory.
        if max(sizes) > largest and (step.name == "broadcast_in_dim" or max(sizes) > _LIMIT):
            return False
        arrays = [np.asarray(a, v.dtype) for a, v in zip(arrays, step.inputs, strict=True)]
        self._arrays.update(zip(step.outputs, run(step, arrays), strict=True))
        return True

    def along(self, value: Value, axis: int, ndim: int, size: int) -> Slices | None:
        """The slices of an operand of an elementwise operation, along an axis of the result."""
        if len(value.shape) == ndim and value.shape[axis] == size:
            return self.slices(value, axis)
        array = self.array(value)
        if array is None or np.size(array) != 1:
            return None
        return Slices(np.ones(size, bool), np.full(size, np.asarray(array).reshape(())))
