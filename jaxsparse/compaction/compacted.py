"""A network without its dead units: a smaller dense model that computes the same."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsparse import trees
from jaxsparse.checks import check_flag, check_function
from jaxsparse.compaction._facts import Facts
from jaxsparse.compaction._program import Value, difference, program
from jaxsparse.compaction._removal import families, find_folds, remove
from jaxsparse.compaction._units import Units
from jaxsparse.inner_state import owners
from jaxsparse.masks import check_masks
from jaxsparse.types import Masks, Params


class Compacted(NamedTuple):
    """A smaller network.

    Attributes:
      params: the parameters that remain, in the structure of the old ones.
      masks: boolean arrays in their shapes: which weights live.
      keep: in that structure, a tuple per array: for each axis the indices that remain.
      notes: where dead units were kept, and why; mostly empty.
      before: the shapes of the old parameters.
    """

    params: Params
    masks: Masks
    keep: Any
    notes: tuple[str, ...]
    before: Any

    def take(self, tree: Any) -> Any:
        """The same cut through another tree, such as the state of an optimizer.

        Args:
          tree: any pytree. An array is cut where its path ends with that of a parameter and its
            last axes have that parameter's old shape; everything else is unchanged.

        Example:
          >>> import jax.numpy as jnp, optax
          >>> params = {"hidden": jnp.ones((4, 8)), "out": jnp.ones((8, 2))}
          >>> masks = {"hidden": jnp.ones((4, 8), bool), "out": jnp.arange(16).reshape(8, 2) < 6}
          >>> forward = lambda params, x: jnp.tanh(x @ params["hidden"]) @ params["out"]
          >>> small = compact(forward, params, masks, jnp.ones((1, 4)))
          >>> small.take(optax.adam(1e-3).init(params))[0].mu["hidden"].shape
          (4, 3)
        """
        keep, find = jax.tree.structure(self.before).flatten_up_to(self.keep), owners(self.before)

        def leaf(path: tuple[Any, ...], value: Any) -> Any:
            owner = find(path, value)
            return value if owner is None else _cut(value, keep[owner])

        return jax.tree.map_with_path(leaf, tree)


def compact(
    fn: Callable[..., Any],
    params: Params,
    masks: Masks,
    *args: Any,
    fold_constants: bool = False,
    zeros: bool = True,
    rebuild: Callable[[Params], Callable[..., Any]] | None = None,
) -> Compacted:
    r"""Removes dead units and channels from a whole network, which then computes the same.

    `fn(params, *args)` is traced, and every axis of every array is followed through it. A unit is
    a set of places that can only be left out together: for example a column of one kernel, its
    bias and the statistics of its normalization, the same channel of all branches that are added,
    and the rows of the next kernel; after a flattened convolution, the features of one channel; in
    attention, a head. Layer names play no role. A unit goes

    - if everything that reads it has dead weights for it, whatever it computes, or
    - if it carries zero: all weights into it are dead, it has no bias or a zero one, and the
      activation preserves zero;
    - with `fold_constants`, also if it carries a constant (a bias and dead weights) and the product
      that reads it has a bias of its own, which then absorbs the constant.

    A removed unit no longer keeps the units before it alive, and so on to a fixed point. What `fn`
    takes and returns keeps its size, every axis keeps one unit, and units are kept where they
    cannot be removed: in a sum over units (layer normalization), a softmax, or an operation that
    is not known here. `fn` is traced again with the smaller parameters: a unit is removed only if
    the program is the same, step by step, at the expected sizes. So a number that depends on a
    width (the scale of attention), or a size written into a reshape, keeps the units that it
    concerns.

    Args:
      fn: the function as it is used after training: no dropout, and normalization by stored
        statistics.
      params: its parameters, and anything else that it stores per unit, such as those statistics.
      masks: boolean arrays in the structure of `params`; None for a leaf without dead weights.
      *args: the other arguments; arrays or `jax.ShapeDtypeStruct`. Their values do not matter, as
        long as they are finite.
      fold_constants: change biases if that removes more units.
      zeros: whether living weights that are exactly zero count as dead. False for parameters that
        have yet to be trained, such as fresh biases.
      rebuild: for models that fix their widths (Flax Linen): returns the function for parameters of
        other shapes, which it gets as arrays or `jax.ShapeDtypeStruct`. By default it is `fn`.

    Returns:
      A `Compacted`. Its parameters are zero where no weight lives.

    Raises:
      ValueError: the masks have another structure or shape, or `fold_constants` without `zeros`.
      TypeError: the masks are not boolean, or parameters or masks are traced.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> params = {"hidden": jnp.ones((4, 8)), "bias": jnp.ones(8), "out": jnp.ones((8, 2))}
      >>> masks = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), params)
      >>> masks["out"] = jnp.arange(16).reshape(8, 2) < 6  # the last five units are not read
      >>> forward = lambda p, x: jax.nn.relu(x @ p["hidden"] + p["bias"]) @ p["out"]
      >>> small = compact(forward, params, masks, jnp.ones((1, 4)))
      >>> jax.tree.map(jnp.shape, small.params)
      {'bias': (3,), 'hidden': (4, 3), 'out': (3, 2)}
      >>> small.keep["out"][0].tolist()
      [0, 1, 2]
    """
    check_function("fn", fn, "(params, *args)")
    trees.check_tree(params)
    check_masks(masks)
    check_flag("fold_constants", fold_constants)
    check_flag("zeros", zeros)
    if rebuild is not None:
        check_function("rebuild", rebuild, "(params) -> fn")
    if fold_constants and not zeros:
        raise ValueError("fold_constants=True uses the present biases; it needs zeros=True.")
    leaves, alive = _living(params, masks)
    known = leaves if zeros else list(map(_marked, leaves, alive))
    network = _Network(fn, params, args, rebuild or (lambda _: fn))
    gone, changed, notes = network.search(known, fold_constants)
    keep = network.keep(gone)
    return Compacted(
        params=network.tree(map(_cut, changed if zeros else leaves, keep)),
        masks=network.tree(map(_cut, alive, keep)),
        keep=network.tree(keep),
        notes=notes,
        before=network.tree(map(_shape, leaves)),
    )


class _Network:
    """A traced function and its parameters."""

    def __init__(self, fn: Any, params: Params, args: tuple[Any, ...], rebuild: Any):
        self._leaves, self._treedef = jax.tree.flatten(params)
        self._places = [i for i, leaf in enumerate(self._leaves) if trees.is_array(leaf)]
        self._names = [trees.name(path) for path, _ in jax.tree.leaves_with_path(params)]
        self._args, self._rebuild = args, rebuild
        self._program = program(fn, params, args, len(self._places))
        self._units = Units(self._program)
        self._families = families(self._units)

    def tree(self, arrays: Iterable[Any]) -> Params:
        """The parameters with these in place of their arrays."""
        leaves = list(self._leaves)
        for place, array in zip(self._places, arrays, strict=True):
            leaves[place] = array
        return self._treedef.unflatten(leaves)

    def search(
        self, leaves: list[Any], fold: bool
    ) -> tuple[np.ndarray, list[Any], tuple[str, ...]]:
        """The units that go, the parameters with new biases, and the notes."""
        stay = np.zeros(len(self._units), bool)
        folds = {}
        if fold:
            folds = find_folds(self._program, Facts(self._program, self._units, leaves, stay))
        notes: list[str] = []
        while True:
            gone, changed = remove(self._program, self._units, leaves, stay, folds)
            refused = self._refused(gone)
            if not refused:
                return gone, changed, tuple(notes)
            for family, why in refused.items():
                stay = stay | (self._families == family)
                notes.append(f"{self._told(family)} keeps its units: {why}.")

    def keep(self, gone: np.ndarray) -> list[tuple[np.ndarray, ...]]:
        """For each parameter and each axis, the indices that remain."""
        values = self._program.leaves
        return [tuple(map(np.flatnonzero, self._left(value, gone))) for value in values]

    def _left(self, value: Value, gone: np.ndarray) -> list[np.ndarray]:
        return [~gone[self._units.find(axis)] for axis in self._units.of(value)]

    def _refused(self, gone: np.ndarray) -> dict[int, str]:
        """The families that the function does not allow to go, and why."""
        whole = self._difference(gone) if gone.any() else None
        if whole is None:
            return {}
        some = np.unique(self._families[gone])
        each = {name: self._difference(gone & (self._families == name)) for name in some}
        return {k: v for k, v in each.items() if v is not None} or dict.fromkeys(some, whole)

    def _difference(self, gone: np.ndarray) -> str | None:
        small = [
            jax.ShapeDtypeStruct(tuple(map(len, keep)), value.dtype)
            for keep, value in zip(self.keep(gone), self._program.leaves, strict=True)
        ]
        params = self.tree(small)
        try:
            other = program(self._rebuild(params), params, self._args, len(small))
        except Exception as error:  # whatever a model raises if shapes do not fit
            told = (str(error).strip().splitlines() or ["?"])[0]
            return f"fn raises {type(error).__name__} for fewer ({told[:200]}); rebuild= may help"
        return difference(self._program, other, lambda value: self._left(value, gone))

    def _told(self, family: int) -> str:
        for place, value in zip(self._places, self._program.leaves, strict=True):
            for k, axis in enumerate(self._units.of(value)):
                if (self._families[self._units.find(axis)] == family).any():
                    return f"axis {k} of {self._names[place]!r}"
        return "an inner axis"


def _living(params: Params, masks: Masks) -> tuple[list[Any], list[Any]]:
    """The arrays of the parameters, zero where no weight lives, and where they live.

    In NumPy: a compilation for every shape would take longer than the whole search.
    """
    leaves, alive = [], []
    found = trees.check_same(params, masks, "masks")
    for leaf, mask in zip(jax.tree.leaves(params), found, strict=True):
        if not trees.is_array(leaf):
            continue
        mask = np.ones(leaf.shape, bool) if mask is None else mask
        if any(isinstance(x, jax.core.Tracer | jax.ShapeDtypeStruct) for x in (leaf, mask)):
            raise TypeError("params and masks must be arrays, and not traced: they set the shapes.")
        if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
            leaf = np.where(mask, leaf, np.zeros((), leaf.dtype))
        leaves.append(leaf)
        alive.append(np.asarray(mask))
    return leaves, alive


def _marked(leaf: Any, mask: Any) -> Any:
    """Living zeros as NaN, about which nothing is known."""
    if not trees.is_float(leaf):
        return leaf
    return np.where(mask & (leaf == 0), np.asarray(np.nan, leaf.dtype), leaf)


def _shape(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _cut(leaf: Any, keep: tuple[np.ndarray, ...]) -> Any:
    """The places of an array that remain, along its last axes."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
        return leaf
    first, found = leaf.ndim - len(keep), np.asarray(leaf)
    for k, places in enumerate(keep):
        if len(places) < leaf.shape[first + k]:
            found = np.take(found, places, first + k)
    return jax.device_put(found)
