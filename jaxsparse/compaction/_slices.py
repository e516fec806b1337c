"""What can be known about an array before it has seen any data.

A slice, that is all places with one index along one axis, is *known* if all its numbers are the
same number, whatever the arguments: zero after dead weights, and a constant after a bias.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from jaxsparse.compaction._program import Step, Value


class Slices(NamedTuple):
    """The slices along one axis.

    Attributes:
      known: whether each is known; a slice that is left out counts as zero.
      numbers: the number of each known slice; else zero.
    """

    known: np.ndarray
    numbers: np.ndarray

    @property
    def zero(self) -> np.ndarray:
        """Whether each is zero."""
        return self.known & (self.numbers == 0)


class Known(Protocol):
    """What a rule may ask; see `Facts`."""

    def array(self, value: Value) -> Any: ...

    def slices(self, value: Value, axis: int) -> Slices: ...

    def left(self, value: Value, axis: int) -> np.ndarray: ...

    def along(self, value: Value, axis: int, ndim: int, size: int) -> Slices | None: ...


Rule = Callable[[Known, Step, Value, int], Slices | None]
"""`(facts, step, one of its outputs, axis) -> what is known along the axis`."""


def nothing(size: int, dtype: Any) -> Slices:
    """Slices, none of which is known."""
    if jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
        dtype = np.float32
    return Slices(np.zeros(size, bool), np.zeros(size, dtype))


def along_all(facts: Known, value: Value, axes: Any) -> Slices:
    """What is known along several axes together: each place lies on one slice per axis."""
    shape = [value.shape[k] for k in axes]
    known, numbers = np.zeros(shape, bool), np.zeros(shape, value.dtype)
    for i, k in enumerate(axes):
        mine = facts.slices(value, k)
        spread = [-1 if j == i else 1 for j in range(len(shape))]
        some = mine.known.reshape(spread)
        numbers = np.where(some & ~known, mine.numbers.reshape(spread), numbers)
        known = known | some
    return Slices(known, numbers)
