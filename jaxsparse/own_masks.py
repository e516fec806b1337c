"""The user's own masks, from which a method starts instead of random ones."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse import trees
from jaxsparse.masks import check_masks, full_mask
from jaxsparse.patterns import group_mask
from jaxsparse.recognition import default_prunable, sparse_leaves
from jaxsparse.types import Array, Masks, Params, Prunable


class OwnMasks(NamedTuple):
    """Given masks, and what is known about them before any parameters are seen.

    Attributes:
      tree: the masks.
      alive: living weights by path; None if masks are traced, so that nothing is known.
    """

    tree: Masks
    alive: dict[str, int] | None

    def chosen(self, params: Params, prunable: Prunable | None) -> list[bool]:
        """One bool per leaf: may it be sparse? The filter decides, if there is one; otherwise the
        leaves that have dead weights may be, and if no leaf has any (or none can be seen), the
        default filter decides.

        Raises:
          ValueError: the filter accepts no leaf, or rejects one that has dead weights.
        """
        found = [(trees.name(path), leaf) for path, leaf in jax.tree.leaves_with_path(params)]
        floats = [trees.is_float(leaf) for _, leaf in found]
        dead = [self.alive is not None and self._has_dead(path, leaf) for path, leaf in found]
        if prunable is not None:
            chosen = sparse_leaves(params, prunable)
        elif any(dead):
            chosen = [a and b for a, b in zip(dead, floats, strict=True)]
        else:
            default = [default_prunable(path, leaf) for path, leaf in found]
            chosen = default if any(default) else floats
        for (path, _), use, some in zip(found, chosen, dead, strict=True):
            if some and not use:
                raise ValueError(
                    f"masks have dead weights at {path!r}, but prunable leaves it dense, or it is "
                    "not a floating array; without prunable=, the masks say what is sparse."
                )
        return chosen

    def sparsity(self, path: str, leaf: Array) -> float | None:
        """The sparsity of a leaf; None if it is not known."""
        if self.alive is None:
            return None
        return 1 - self.alive.get(path, leaf.size) / max(leaf.size, 1)

    def alive_at(self, path: str, leaf: Any) -> int:
        """The number of living weights of a leaf; without a mask, all of them live."""
        size = math.prod(getattr(leaf, "shape", ()))
        return (self.alive or {}).get(path, size)

    def given(self, params: Params, plan: Any = None) -> Masks:
        """The masks in the structure of `params`; a leaf without a mask is dense.

        Args:
          params: any pytree.
          plan: the plan whose patterns they must fit; masks of leaves that are dense there are all
            True.

        Raises:
          ValueError: the masks do not fit `params` or the pattern.
        """
        treedef = jax.tree.structure(params)
        leaves = trees.check_same(params, trees.cut(self.tree, params), "masks")

        def one(leaf: Any, mask: Any, entry: Any) -> Any:
            if mask is None or not trees.is_array(leaf) or (plan is not None and entry is None):
                return full_mask(leaf)
            if entry is not None and self.alive is not None:
                _check_pattern(entry, mask)
            return jnp.asarray(mask)

        entries = [None] * len(leaves) if plan is None else plan.leaves
        return treedef.unflatten(
            one(*each) for each in zip(jax.tree.leaves(params), leaves, entries, strict=True)
        )

    def _has_dead(self, path: str, leaf: Any) -> bool:
        return trees.is_array(leaf) and self.alive_at(path, leaf) < leaf.size


def own_masks(masks: Masks) -> OwnMasks:
    """Inspects the masks, once.

    Raises:
      TypeError: masks that are not boolean.
      ValueError: there are no masks.
    """
    check_masks(masks)
    found = {trees.name(path): leaf for path, leaf in jax.tree.leaves_with_path(masks)}
    found = {path: leaf for path, leaf in found.items() if trees.is_array(leaf)}
    if not found and None not in jax.tree.leaves(masks, is_leaf=lambda leaf: leaf is None):
        raise ValueError(
            f"masks must hold boolean arrays, got none in {type(masks).__name__} {masks!r}."
        )
    if any(isinstance(mask, jax.core.Tracer | jax.ShapeDtypeStruct) for mask in found.values()):
        return OwnMasks(masks, None)
    with jax.ensure_compile_time_eval():  # the caller may be traced where the masks are not
        return OwnMasks(masks, {path: int(jnp.sum(mask)) for path, mask in found.items()})


def _check_pattern(entry: Any, mask: Array) -> None:
    """Raises if a leaf's mask does not fit the pattern of its plan."""
    pattern = entry.pattern
    if not pattern.uses_axes:
        return
    with jax.ensure_compile_time_eval():
        groups = group_mask(pattern, entry.axes, jnp.asarray(mask))
        whole = jnp.array_equal(pattern.spread(groups, entry.shape, entry.axes), mask)
        counts = jnp.sum(groups, -1, dtype=jnp.int32)
        least, most = int(jnp.min(counts)), int(jnp.max(counts))
        alike = bool(jnp.all((counts == most) | ((counts == 0) & (pattern.fixed is None))))
    if not whole:
        raise ValueError(
            f"masks at {entry.path!r} do not fit pattern {pattern.name}: some of its groups of "
            "weights are only partly alive. Prune with the same pattern= and axes=."
        )
    if not pattern.by_rows or (alike and most == (pattern.fixed or most)):
        return
    wanted = "every living row must have as many as any other"
    if pattern.fixed is not None:
        wanted = f"every row must have {pattern.fixed}"
    raise ValueError(
        f"masks at {entry.path!r} do not fit pattern {pattern.name}: its rows hold {least} to "
        f"{most} weights, but {wanted}. Prune with the same pattern= and axes=."
    )
