"""What is decided about one leaf that may be sparse."""

import warnings
from typing import NamedTuple

import jax.numpy as jnp

from jaxsparse.checks import traced
from jaxsparse.distributions import target_count
from jaxsparse.masks import living
from jaxsparse.patterns import Groups, Pattern, fan_in, group_mask, grow, select
from jaxsparse.types import Array, Axes


class LeafPlan(NamedTuple):
    """What is decided about one leaf that may be sparse.

    Attributes:
      path: the leaf's name, such as `"fc1/kernel"`.
      shape: its shape.
      pattern: which weights live or die together.
      axes: what its axes mean; empty if neither the pattern nor `units` needs them.
      groups: rows, columns and weights per group.
      least: the minimum number of groups that each row keeps.
      units: the axes, if every output unit must keep a weight; None if units may be empty.
      strict: whether a leaf that would be empty is an error.
    """

    path: str
    shape: tuple[int, ...]
    pattern: Pattern
    axes: Axes
    groups: Groups
    least: int
    units: Axes | None = None
    strict: bool = False

    @property
    def granularity(self) -> int:
        """The step, in weights, by which the leaf grows or shrinks: one group in every row."""
        return self.groups.rows * self.groups.size

    def target_count(self, sparsity: float | Array) -> int | Array:
        """The number of living groups per row at a sparsity."""
        if self.pattern.fixed is not None:
            return self._fixed(self.pattern.fixed, sparsity)
        count = target_count(self.groups.columns, sparsity)
        if not isinstance(count, int):
            return jnp.clip(count, self.least, self.groups.columns)
        if count < 1 and self.strict:
            raise ValueError(
                f"sparsity {sparsity} leaves no weight of {self.path!r}; lower it, or let "
                "min_alive keep some."
            )
        if count < self.least:
            warnings.warn(
                f"sparsity {sparsity} leaves {count} in {self.path!r}; min_alive keeps "
                f"{self.least}.",
                stacklevel=2,
            )
        return min(max(count, self.least), self.groups.columns)

    def select(self, scores: Array, k: int | Array, where: Array | None = None) -> Array:
        """The mask of the `k` best groups of every row; see `jaxsparse.patterns.select`."""
        if self.units is None:
            return select(self.pattern, self.axes, scores, k, where)
        safe = select(fan_in, self.units, scores, 1, where)  # the best of every output unit
        others = ~safe if where is None else where & ~safe
        left = k - living(safe)
        return safe | select(self.pattern, self.axes, scores, left, others)

    def grow(self, mask: Array, scores: Array, k: int | Array) -> Array:
        """A mask and the `k` best groups off it of every row, whichever units they belong to."""
        return grow(self.pattern, self.axes, mask, scores, k)

    def alive_groups(self, mask: Array) -> Array:
        """The mask of the groups that live."""
        return group_mask(self.pattern, self.axes, mask)

    def count_alive(self, mask: Array, by_rows: bool = False) -> Array:
        """Living groups of a mask, an int32 scalar, or one per row."""
        groups = self.alive_groups(mask)
        return jnp.sum(groups, -1, dtype=jnp.int32) if by_rows else living(groups)

    def _fixed(self, n: int, sparsity: float | Array) -> int:
        m = self.groups.columns
        if not traced(sparsity) and target_count(m, sparsity) != n:
            raise ValueError(
                f"sparsity {sparsity} at {self.path!r} cannot be reached: pattern "
                f"{self.pattern.name} keeps {n} of {m}; ask for sparsity={1 - n / m}."
            )
        return n
