"""Arrays on a mesh: where they lie, and what its axes ask for.

- Under `jit` the compiler shards what is between given arrays, if it may: `automatic`.
- Inside `jax.shard_map` arrays vary over axes of the mesh where every device has its own. Outside
  of it, and with `check_vma=False`, nothing is known to vary.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.sharding import AxisType, NamedSharding

from jaxsparse.types import Array


def varying_axes(tree: Any) -> frozenset[str]:
    """The axes of the mesh that any leaf varies over."""
    arrays = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    return frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in arrays))


def varying_like(tree: Any, *others: Any) -> Any:
    """The same arrays, said to vary over whatever the others vary over: a loop that starts from
    numbers that do not vary could not come to some that do."""
    axes = varying_axes(others)

    def one(x: Array) -> Array:
        more = tuple(sorted(axes - varying_axes(x)))
        return lax.pcast(x, more, to="varying") if more else x

    return jax.tree.map(one, tree)


def automatic(function: Callable[..., Any], like: Any) -> Callable[..., Any]:
    """Lets the compiler shard what is between explicitly sharded arguments and results.

    Args:
      function: of arrays and trees of them.
      like: arrays that lie as the results are to lie, in their structure.
    """
    arrays = [leaf for leaf in jax.tree.leaves(like) if isinstance(leaf, jax.Array)]
    if any(AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types for x in arrays):
        shardings = jax.tree.map(lambda x: jax.typeof(x).sharding, like)
        return jax.sharding.auto_axes(function, out_sharding=shardings)
    return function


def mesh_sharding(leaf: Any) -> NamedSharding | None:
    """How an array lies on a mesh of several devices; None where it does not, or is traced."""
    if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer):
        return None
    at = leaf.sharding
    return at if isinstance(at, NamedSharding) and at.num_devices > 1 else None


def beside(tree: Any, params: Any) -> Any:
    """The arrays of a tree, each where the leaf of the parameters lies that it belongs to."""

    def one(p: Any, x: Any) -> Any:
        at = mesh_sharding(p)
        return x if at is None or not isinstance(x, jax.Array) else jax.device_put(x, at)

    return jax.tree.map(one, params, tree)
