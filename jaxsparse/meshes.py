"""Arrays on a mesh: how they are sharded, and what the mesh axes require.

- Under `jit` the compiler shards the arrays between the given ones, if it may: `automatic`.
- Inside `jax.shard_map` an array varies over the mesh axes along which every device has its own.
  Outside of it, and with `check_vma=False`, nothing is known to vary.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jax.sharding import AxisType, NamedSharding

from jaxsparse.types import Array


def varying_axes(tree: Any) -> frozenset[str]:
    """The axes of the mesh that any leaf varies over."""
    arrays = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    return frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in arrays))


def varying_like(tree: Any, *others: Any) -> Any:
    """The same arrays, marked as varying over whatever the others vary over: the carry of a loop
    cannot start out the same on all devices and vary later."""
    axes = varying_axes(others)

    def one(x: Array) -> Array:
        more = tuple(sorted(axes - varying_axes(x)))
        return lax.pcast(x, more, to="varying") if more else x

    return jax.tree.map(one, tree)


def automatic(function: Callable[..., Any], like: Any) -> Callable[..., Any]:
    """Lets the compiler shard the arrays between explicitly sharded arguments and results.

    Args:
      function: a function of arrays and trees of them.
      like: arrays sharded as the results should be, in their structure.
    """
    arrays = [leaf for leaf in jax.tree.leaves(like) if isinstance(leaf, jax.Array)]
    if any(AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types for x in arrays):
        shardings = jax.tree.map(lambda x: jax.typeof(x).sharding, like)
        return jax.sharding.auto_axes(function, out_sharding=shardings)
    return function


def on_one_device(
    one: Callable[..., Any], several: Callable[..., Any], result: Callable[..., Any]
) -> Callable[..., Any]:
    """A function of arrays that takes another form if they are on a single CPU device.

    The form is chosen when a program is compiled for its devices, so that forms that cannot be
    sharded, or exist on this machine only, never end up on a mesh, on another platform or in an
    exported file.

    Args:
      one: the form for a single CPU device.
      several: the form for everything else.
      result: returns, for the same arguments, the shape and type of what both return, an array or
        a tuple of arrays.
    """

    def call(*args: Array) -> Any:
        if varying_axes(args):
            return several(*args)
        kinds = {"one": one, "several": several, "result": result}
        found = _form.bind(*map(lax.stop_gradient, args), **kinds)
        return tuple(found) if isinstance(result(*args), tuple) else found[0]

    return call


_form = Primitive("on_one_device")
_form.multiple_results = True
_form.def_impl(jax.jit(_form.bind, static_argnames=("one", "several", "result")))


@_form.def_abstract_eval
def _(*args: Any, result: Any, **_: Any) -> Any:
    return [jax.core.ShapedArray(x.shape, x.dtype) for x in jax.tree.leaves(result(*args))]


def _map(args: Any, dims: Any, **kinds: Any) -> tuple[list[Array], list[int]]:
    moved = [d is not None for d in dims]
    args = [x if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(args, dims, strict=True)]

    def each(given: list[Array]) -> list[Array]:
        rest = iter(given)
        return _form.bind(
            *(next(rest) if m else x for x, m in zip(args, moved, strict=True)), **kinds
        )

    found = lax.map(each, [x for x, m in zip(args, moved, strict=True) if m])
    return found, [0] * len(found)


def _lower(context: Any, *args: Any, one: Any, several: Any, result: Any) -> Any:
    module = context.module_context
    devices, manual = module.axis_context, getattr(module.axis_context, "manual_axes", None)
    single = getattr(devices, "num_devices", 0) == 1
    single |= manual is not None and manual == frozenset(devices.mesh.axis_names)
    exported = module.lowering_parameters.for_export
    return _lowered(one if single and not exported else several)(context, *args)


def _lowered(function: Callable[..., Any]) -> Callable[..., Any]:
    return mlir.lower_fun(lambda *args: jax.tree.leaves(function(*args)), multiple_results=True)


batching.primitive_batchers[_form] = _map
mlir.register_lowering(_form, _lower, platform="cpu")
mlir.register_lowering(
    _form,
    lambda context, *args, one, several, result: _lowered(several)(context, *args),
)


def mesh_sharding(leaf: Any) -> NamedSharding | None:
    """How an array is sharded over a mesh of several devices; None if it is not, or is traced."""
    if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer):
        return None
    at = leaf.sharding
    return at if isinstance(at, NamedSharding) and at.num_devices > 1 else None


def beside(tree: Any, params: Any) -> Any:
    """The arrays of a tree, each sharded like the leaf of the parameters that it belongs to."""

    def one(p: Any, x: Any) -> Any:
        at = mesh_sharding(p)
        return x if at is None or not isinstance(x, jax.Array) else jax.device_put(x, at)

    return jax.tree.map(one, params, tree)
