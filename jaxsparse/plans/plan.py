"""The plan of all leaves, which maps functions over the sparse ones."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse import jaxprs, prng, trees
from jaxsparse.checks import traced
from jaxsparse.distributions import target_count
from jaxsparse.masks import full_mask, living, living_each
from jaxsparse.plans._later import Later, call, elements
from jaxsparse.plans._leaf import LeafPlan
from jaxsparse.scores import drawn
from jaxsparse.selection import global_top_k_masks
from jaxsparse.state_tree import as_masks
from jaxsparse.types import Array, Key, Masks, Params, Scores

Counts = Any
"""Numbers of groups of weights: a tree in the structure of the parameters, with one number for
every sparse leaf (or one for each of its rows) and None for a dense one; or, if all leaves compete,
one number for all of them together."""


_CAPACITIES: ContextVar[Sequence[int] | None] = ContextVar("capacities", default=None)


@contextmanager
def limited_to(capacities: Sequence[int]) -> Iterator[None]:
    """Within this context, no sparse leaf is given more weights than it has room for.

    Args:
      capacities: how many weights every sparse leaf has room for.
    """
    token = _CAPACITIES.set(capacities)
    try:
        yield
    finally:
        _CAPACITIES.reset(token)


class Plan(NamedTuple):
    """What is decided about a whole tree of parameters.

    Its methods take trees in the structure of the parameters; the functions passed to them see only
    the sparse leaves of these. Masks may be packed: functions see booleans, and a mask made from a
    packed one is packed again.

    Attributes:
      treedef: the structure of the parameters.
      leaves: a plan for every leaf, in flattening order; None = the leaf is dense.
      scope: "layer", or "global" where all sparse leaves compete.
      sparsity: the target in [0, 1) of every sparse leaf, as a tree with None for dense leaves (and
        where it is not known); with scope "global", one number for all leaves together.
      prunable: a tree of bools: the leaves that count in a density, including those that stay
        dense.
    """

    treedef: Any
    leaves: tuple[LeafPlan | None, ...]
    scope: str
    sparsity: Any
    prunable: Any

    @property
    def sparse(self) -> list[LeafPlan]:
        """The plans of the sparse leaves."""
        return [leaf for leaf in self.leaves if leaf is not None]

    @property
    def granularity(self) -> int:
        """Weights per group if all leaves compete."""
        return self.sparse[0].granularity

    def tree(self, values: Iterable[Any]) -> Any:
        """A tree of one value for every sparse leaf, with None for the dense ones. The values of
        an array are read where `each` or `map` reads them."""
        found = iter(elements(values) if isinstance(values, jax.Array) else values)
        return self.treedef.unflatten(leaf and next(found) for leaf in self.leaves)

    def zip(self, *values: Any) -> list[tuple[Any, ...]]:
        """`(leaf plan, *leaves)` for every sparse leaf; None stands for a tree of Nones."""
        found = zip(self.leaves, *map(self._flat, values), strict=True)
        return [each for each in found if each[0] is not None]

    def each(self, function: Callable[..., Any], *values: Any, apart: bool = False) -> list[Any]:
        """`function(leaf plan, *leaves)` for every sparse leaf.

        Args:
          function: the function to call.
          values: trees with its arguments.
          apart: whether leaves are computed one after the other, each in the memory of the one
            before. The leaf plans that the function sees have no path then.
        """
        if not apart:
            return [call(function, *found) for found in self.zip(*values)]
        run = jaxprs.apart(call)
        # Leaves that differ only in their names are computed by one program.
        return [run(function, leaf._replace(path=""), *x) for leaf, *x in self.zip(*values)]

    def later(self, function: Callable[..., Array], tree: Any, *others: Any) -> Any:
        """Like `map`, but each result is computed where `each` or `map` reads it."""
        found = iter(Later(function, each[1:]) for each in self.zip(tree, *others))
        leaves = zip(self.leaves, self._flat(tree), strict=True)
        return self.treedef.unflatten(
            leaf if plan is None else next(found) for plan, leaf in leaves
        )

    def sizes(self, params: Params) -> Any:
        """`|w|`, computed later."""
        return self.later(lambda _, p: jnp.abs(p), params)

    def draws(self, key: Key, params: Params) -> Any:
        """Random scores, computed later; those of `scores.random_scores`."""
        keys = prng.leaf_keys(key, [leaf.path for leaf in self.sparse])
        kind = jax.random.key_impl(keys)

        def draw(_: LeafPlan, p: Array, data: Array) -> Array:
            return drawn(jax.random.wrap_key_data(data, impl=kind), p)

        return self.later(draw, params, self.tree(jax.random.key_data(keys)))

    def map(
        self,
        function: Callable[..., Any],
        tree: Any,
        *others: Any,
        dense: Callable[[Any], Any] = lambda leaf: leaf,
        apart: bool = False,
    ) -> Any:
        """A tree of `function(leaf plan, leaf, *others)`; dense leaves of `tree` go through
        `dense`, which by default leaves them as they are."""
        found = iter(self.each(function, tree, *others, apart=apart))
        return self.treedef.unflatten(
            dense(leaf) if plan is None else next(found)
            for plan, leaf in zip(self.leaves, self._flat(tree), strict=True)
        )

    def with_leaves(self, change: Callable[[LeafPlan], LeafPlan]) -> "Plan":
        """The same plan, with the plan of every sparse leaf changed."""
        return self._replace(leaves=tuple(leaf and change(leaf) for leaf in self.leaves))

    def groups(self) -> list[int]:
        """The number of groups of every sparse leaf, alive or dead."""
        return [leaf.groups.rows * leaf.groups.columns for leaf in self.sparse]

    def places(self) -> list[int]:
        """How many groups may live in every sparse leaf: all, or as many as there is room for."""
        weights, groups = _CAPACITIES.get(), self.groups()
        if weights is None:
            return groups
        sizes = (leaf.groups.size for leaf in self.sparse)
        return [min(n, most // size) for n, most, size in zip(groups, weights, sizes, strict=True)]

    def total(self) -> int:
        """The number of groups of all sparse leaves together, alive or dead."""
        return sum(self.groups())

    def whole(self) -> Counts:
        """The counts at which all groups live."""
        if self.scope == "global":
            return self.total()
        return self.tree(leaf.groups.columns for leaf in self.sparse)

    def counts(self, sparsity: Any) -> Counts:
        """Living groups per row at a sparsity (or in total, with scope "global").

        Args:
          sparsity: one for all leaves, or a tree like the attribute `sparsity`.
        """
        if self.scope == "global":
            total = target_count(self.total(), sparsity)
            self.check_total(total)
            return total
        if jax.tree_util.all_leaves([sparsity]):
            return self.tree(leaf.target_count(sparsity) for leaf in self.sparse)
        return self.tree(self.each(LeafPlan.target_count, sparsity))

    def tabulated(self, counts: Sequence[Counts]) -> Array:
        """The counts of several moments in the rows of one array, int32."""
        if self.scope == "global":
            return jnp.array(counts, jnp.int32)
        return jnp.array([[count for _, count in self.zip(each)] for each in counts], jnp.int32)

    def counts_in(self, row: Array) -> Counts:
        """The counts in a row of `tabulated`."""
        return row if self.scope == "global" else self.tree(row)

    def weights(self, counts: Counts, params: Params) -> Any:
        """The number of weights that live at `counts`, including all weights of dense leaves: a
        tree of numbers, or with scope "global" one number for all leaves together."""

        def scaled(leaf: LeafPlan, _: Array, count: Any) -> Any:
            return count * leaf.granularity

        def size(leaf: Any) -> int:
            return leaf.size if trees.is_array(leaf) else 0

        if self.scope == "global":
            dense = self.map(lambda *_: 0, params, dense=size)
            return counts * self.granularity + sum(jax.tree.leaves(dense))
        return self.map(scaled, params, counts, dense=size)

    def count_alive(self, masks: Masks) -> Array:
        """Living groups per sparse leaf, int32 of shape (leaves,); their sum may exceed 2^31."""
        return living_each(self.each(LeafPlan.alive_groups, masks))

    def select(self, scores: Scores, counts: Counts, within: Masks | None = None) -> Masks:
        """Masks of the best groups, as many as `counts` says; dense leaves are all True."""
        if self.scope == "global":
            return self.select_globally(scores, counts, within)
        return self.map(LeafPlan.select, scores, counts, within, dense=full_mask, apart=True)

    def select_globally(
        self, scores: Scores, total: int | Array, within: Masks | None = None
    ) -> Masks:
        """Masks of the `total` best groups of all sparse leaves; each first keeps its `least`."""
        self.check_countable()
        self.check_total(total)

        def first(leaf: LeafPlan, score: Array, where: Array | None) -> Array:
            return leaf.alive_groups(leaf.select(score, leaf.least, where))

        def others(leaf: LeafPlan, where: Array | None, mask: Array) -> Array:
            return ~mask if where is None else leaf.alive_groups(where) & ~mask

        def join(leaf: LeafPlan, _: Array, mask: Array, more: Array) -> Array:
            return leaf.pattern.spread(mask | more, leaf.shape, leaf.axes)

        gathered = self.each(lambda leaf, s: leaf.pattern.gather(s, leaf.axes), scores)
        safe = self.each(first, scores, within)
        left = total - sum(map(living, safe))
        where = as_masks(self.each(others, within, self.tree(safe)))
        chosen = global_top_k_masks(gathered, left, where=where)
        return self.map(join, scores, self.tree(safe), self.tree(chosen), dense=full_mask)

    def check_countable(self) -> None:
        """Raises if the sparse leaves have more groups than one selection can count."""
        groups = self.total()
        if groups > 2**31 - 1:
            raise ValueError(
                f"a global choice counts at most {2**31 - 1:,} weights (or groups of a pattern), "
                f'but these leaves have {groups:,}; choose by layer (scope="layer"), group the '
                "weights by a pattern, or leave more of them dense with prunable=."
            )

    def check_total(self, total: int | Array) -> None:
        """Raises if a total is too small for every leaf to keep its minimum."""
        least = sum(leaf.least for leaf in self.sparse)
        if isinstance(total, int) and total < least:
            raise ValueError(
                f"sparsity leaves {total} groups of weights in all, but min_alive keeps {least}, "
                "some in every leaf; lower one of them."
            )

    def _flat(self, tree: Any) -> list[Any]:
        return [None] * len(self.leaves) if tree is None else self.treedef.flatten_up_to(tree)


def remembered(plan: Callable[[Params], Plan]) -> Callable[[Params], Plan]:
    """A planning function that reuses its last plan for the same structure, shapes and types.

    A plan that holds a traced sparsity is valid only in its own trace, so it is not reused.
    """
    last: list[tuple[Any, Plan]] = []

    def look_up(params: Params) -> Plan:
        leaves, treedef = jax.tree.flatten(params)
        key = treedef, [(x.shape, x.dtype) if trees.is_array(x) else None for x in leaves]
        for known, made in last:
            if known == key:
                return made
        made = plan(params)
        if not any(map(traced, jax.tree.leaves(made.sparsity))):
            last[:] = [(key, made)]
        return made

    return look_up
