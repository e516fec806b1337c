"""Continuing sparse from the optimizer state of a dense run."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse import trees
from jaxsparse.inner_state import project
from jaxsparse.state_tree import field, is_state, replace
from jaxsparse.states import get_masks, init
from jaxsparse.types import Params


def take_over(tx: Any, dense_state: Any, params: Params) -> tuple[Params, Any]:
    """Continues a dense run: `jaxsparse.init`, with the optimizer state of that run.

    Moments, step counts and everything else that the dense optimizer kept become the inner state of
    `tx`; what belongs to weights off the masks is reset, as if they had just died. The wrapper's
    own count, which times its mask updates, starts at 0.

    Args:
      tx: a sparse algorithm around the optimizer of the dense run, with the same settings.
      dense_state: the state of that optimizer.
      params: the parameters of the dense run.

    Returns:
      `(params, opt_state)`: the parameters with the masks applied, and the state, in new buffers.

    Raises:
      TypeError: `tx` is not a transformation.
      ValueError: `tx` holds no sparse algorithm or several, or `dense_state` is not the state of
        the optimizer inside it; the first path that differs is named.

    Example:
      >>> import jax.numpy as jnp, optax, jaxsparse
      >>> adam, params = optax.adam(1e-3), {"kernel": jnp.arange(4.0).reshape(2, 2)}
      >>> _, dense_state = adam.update(params, adam.init(params), params)
      >>> masks = jaxsparse.prune_by_magnitude(params, 0.5)
      >>> tx = jaxsparse.rigl(adam, masks=masks, key=0, every=100)
      >>> params, opt_state = take_over(tx, dense_state, params)
      >>> (
      ...     int(opt_state.inner_state[0].count),
      ...     int((opt_state.inner_state[0].mu["kernel"] > 0).sum()),
      ... )
      (1, 2)
    """
    sparse_params, opt_state = init(tx, params)
    leaves, treedef = jax.tree.flatten(opt_state, is_leaf=is_state)
    places = [i for i, leaf in enumerate(leaves) if is_state(leaf)]
    if len(places) > 1:
        raise ValueError(
            f"tx holds {len(places)} sparse algorithms: take over each of them separately."
        )
    state = leaves[places[0]]
    fresh = field(state, "inner_state", "take_over")
    given = _in_structure(fresh, getattr(dense_state, "opt_state", dense_state))
    inner_state = project(given, fresh, params, get_masks(state, params))
    leaves[places[0]] = replace(state, inner_state=inner_state)
    return sparse_params, jax.tree.unflatten(treedef, leaves)


def _in_structure(like: Any, state: Any) -> Any:
    """Copies of the arrays of `state` in the structure of `like`, matched by their paths."""
    given = {trees.name(path): leaf for path, leaf in jax.tree.leaves_with_path(state)}
    wanted = [(trees.name(path), leaf) for path, leaf in jax.tree.leaves_with_path(like)]
    strange = sorted(given.keys() ^ {path for path, _ in wanted})
    if strange:
        raise ValueError(
            "dense_state must be the state of the optimizer inside tx: the first path that differs "
            f"is {strange[0]!r}."
        )
    found = []
    for path, leaf in wanted:
        mine = jnp.array(given[path], copy=True)
        if (mine.shape, mine.dtype) != (leaf.shape, leaf.dtype):
            raise ValueError(
                f"dense_state at {path!r} is {mine.dtype}{list(mine.shape)}, but the optimizer "
                f"inside tx has {leaf.dtype}{list(leaf.shape)} there."
            )
        found.append(mine)
    return jax.tree.unflatten(jax.tree.structure(like), found)
