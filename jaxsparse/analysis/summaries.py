"""A human-readable table of a sparse network."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse import trees
from jaxsparse.masks import check_masks, prunable_masks
from jaxsparse.recognition import why
from jaxsparse.state_tree import find
from jaxsparse.states import get_masks, metrics
from jaxsparse.types import Masks, Params, Prunable

_Row = tuple[str, str, int, int, int, str]


def summary(params: Params, masks: Masks, *, prunable: Prunable | None = None) -> str:
    """A table with one line per leaf: shape, living weights, sparsity, bytes, why it is sparse.

    Bytes are those of the dense array as it is stored; a mask adds one byte per weight. The last
    lines count all leaves, and the prunable ones alone, whose sparsity is the requested one. The
    last column says why a leaf is dense, or why it may be sparse.

    Args:
      params: the parameters (or their shapes).
      masks: boolean arrays in the structure of `params`, or an optimizer state that holds them.
      prunable: the filter that the algorithm was given, if any; a state contains it.

    Returns:
      Text, ready for `print`. A warning says that the parameters of a state are not sparse: then
      its masks were drawn but not applied.

    Raises:
      ValueError: the trees differ.
      TypeError: the masks are not boolean.

    Example:
      >>> import jax.numpy as jnp, jaxsparse
      >>> params = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
      >>> print(summary(params, jaxsparse.prune_by_magnitude(params, 0.75)))
      leaf      shape   alive     size  sparsity   bytes  why
      bias      4           4        4    0.0000      16  dense: named bias
      kernel    4x4         4       16    0.7500      64  sparse: 2 axes longer than 1
      all                   8       20    0.6000      80
      prunable              4       16    0.7500      64
    """
    rows: list[_Row] = []
    totals = {"all": (0, 0, 0), "prunable": (0, 0, 0)}
    counted = None
    if states := find(masks):
        _warn_of_dense(params, masks)
        masks = get_masks(masks, params)
        counted = prunable_masks([state._replace(masks=masks) for state in states], prunable)
    leaves = trees.check_same(params, masks, "masks")
    check_masks(masks)
    for (path, leaf), mask in zip(jax.tree.leaves_with_path(params), leaves, strict=True):
        if not trees.is_array(leaf):
            continue
        name, size = trees.name(path), leaf.size
        alive = size if mask is None else int(jnp.sum(mask))
        stored = size * leaf.dtype.itemsize
        sparse, reason = why(name, leaf, prunable)
        if counted is not None and sparse != (name in counted):
            sparse, reason = not sparse, "prunable" if not sparse else "not prunable"
        for total in ("all", "prunable")[: 1 + sparse]:
            before = totals[total]
            totals[total] = (before[0] + alive, before[1] + size, before[2] + stored)
        reason = f"{'sparse' if sparse else 'dense'}: {reason}"
        if sparse and alive == size:
            reason += ", nothing pruned"
        shape = "x".join(map(str, leaf.shape)) or "scalar"
        rows.append((name, shape, alive, size, stored, reason))
    rows += [(total, "", *counts, "") for total, counts in totals.items()]
    return _table(rows)


def _warn_of_dense(params: Params, opt_state: Any) -> None:
    """Here values are known; in an update they are traced, so an update cannot warn."""
    if not all(isinstance(leaf, jax.Array | np.ndarray) for leaf in jax.tree.leaves(params)):
        return
    stray = int(metrics(opt_state, params=params)["off_mask"])
    if stray:
        warnings.warn(
            f"{stray:,} weights off the masks are not zero. Before training: begin with "
            "jaxsparse.init, or with jaxsparse.nnx.start_sparse, so that it starts sparse. Later: "
            "something behind the wrapper moves weights.",
            stacklevel=3,
        )


def _table(rows: list[_Row]) -> str:
    cells = [("leaf", "shape", "alive", "size", "sparsity", "bytes", "why")]
    for name, shape, alive, size, stored, reason in rows:
        zero = 1 - alive / size if size else 0.0
        cells.append((name, shape, f"{alive:,}", f"{size:,}", f"{zero:.4f}", f"{stored:,}", reason))
    widths = [max(len(row[i]) for row in cells) for i in range(7)]
    left = (0, 1, 6)
    lines = [
        "  ".join(
            c.ljust(w) if i in left else c.rjust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in lines)
