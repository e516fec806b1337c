"""Numbers in groups that only ever grow together."""

import numpy as np


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
            # If several pairs share the larger group, one wins here; the next turn ties the rest.
            self._parents[np.maximum(a, b)] = np.minimum(a, b)

    def grow(self, size: int) -> np.ndarray:
        """New numbers, each a group of its own."""
        new = np.arange(len(self._parents), len(self._parents) + size)
        self._parents = np.concatenate([self._parents, new])
        return new
