"""Which places of which axes live and die together: each place of each axis belongs to a unit.

An operation ties the units of its operands: what a product sums over, what is added, what a kernel
and its bias share. Places that could not be left out one by one belong to `KEPT`.
"""

import numpy as np

from jaxsparse.compaction._partition import Partition
from jaxsparse.compaction._program import Program, Step, Value
from jaxsparse.compaction._ties import Labels, kept, rule_of

KEPT = 0


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
            self.labels[value] = kept(value.shape)
        for step in program.steps:
            given = [self.of(value) for value in step.inputs]
            self.labels.update(zip(step.outputs, rule_of(step)(self, step, given), strict=True))
        for value in program.outputs:
            for axis in self.of(value):
                self.keep(axis)

    def of(self, value: Value) -> Labels:
        """The labels of an array, by axis; a constant keeps all its places."""
        if value not in self.labels:
            self.labels[value] = kept(value.shape)
        return self.labels[value]

    def roots(self, value: Value, axis: int) -> np.ndarray:
        """The unit of each place of an axis."""
        return self.find(self.of(value)[axis])

    def fresh(self, size: int) -> np.ndarray:
        """New units; an axis with a single place keeps it."""
        if size < 2:
            return np.zeros(size, np.int64)
        return self.grow(size)

    def axes(self) -> list[np.ndarray]:
        """The units of every axis of every array, each axis once."""
        each = {id(axis): axis for labels in self.labels.values() for axis in labels}
        return [self.find(axis) for axis in each.values() if len(axis)]

    def keep(self, labels: np.ndarray) -> None:
        """Makes these places stay."""
        self.tie(labels, np.zeros_like(labels))

    def whole(self, labels: np.ndarray) -> bool:
        """Whether all of these places stay."""
        return not self.find(labels).any()
