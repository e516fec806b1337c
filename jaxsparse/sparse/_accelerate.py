"""`accelerate`: runs any function of parameters on compressed kernels, without changing it."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxsparse import trees
from jaxsparse.checks import check_choice, check_function
from jaxsparse.sparse._interpreter import Interpreter
from jaxsparse.sparse._layout import is_compressed
from jaxsparse.sparse._views import View


def accelerate(function: Callable[..., Any], *, fallback: str = "error") -> Callable[..., Any]:
    """The same function, in which compressed kernels are multiplied by their own products.

    The function is traced with dense shapes, but no dense array is made. Its operations are then
    carried out on the compressed kernels: a product, a convolution or an `einsum` that reads one
    leaf, even if the leaf is first cast, scaled, transposed or reshaped, uses the leaf's own
    product. So a model of Flax NNX, Linen or Equinox, or a plain function, needs no other layers.
    The function may contain `jax.jit`, `jax.checkpoint`, `jax.lax.scan` over stacked layers,
    `cond` and `while_loop`, and `jax.jit`, `jax.grad` and `jax.vmap` may be applied to it.

    Args:
      function: of parameters and anything else. Arguments that are neither arrays nor compressed
        kernels, such as modules, strings and Python numbers, are passed on unchanged.
      fallback: what to do with an operation that no kernel supports: "error", or "dense" to make
        the kernel dense for it. `explain` lists these operations.

    Returns:
      A function of the same arguments, with the same result up to rounding.

    Raises:
      ValueError: `fallback` is unknown; or, when the function is called, no kernel supports an
        operation, which is named with its leaf.
      TypeError: `function` is not a function.

    Example:
      >>> import jax, jax.numpy as jnp, jaxsparse
      >>> from jaxsparse import sparse
      >>> dense = {"kernel": jnp.arange(16.0).reshape(4, 4), "bias": jnp.ones(4)}
      >>> params = sparse.compress(dense, jaxsparse.prune_by_magnitude(dense, 0.75))
      >>> predict = lambda params, x: jnp.dot(x, params["kernel"]) + params["bias"]
      >>> sparse.accelerate(predict)(params, jnp.ones((1, 4))).tolist()
      [[13.0, 14.0, 15.0, 16.0]]
    """
    check_function("function", function, "(params, ...) -> anything")
    check_choice("fallback", fallback, ("error", "dense"))

    @functools.wraps(function)
    def fast(*args: Any, **kwargs: Any) -> Any:
        return interpret(Interpreter(dense=fallback == "dense"), function, args, kwargs)

    return fast


def interpret(
    interpreter: Interpreter, function: Callable[..., Any], args: Any, kwargs: Any
) -> Any:
    """The result of one call, computed by this interpreter."""
    found, kind = jax.tree.flatten_with_path((args, kwargs), is_leaf=is_compressed)
    leaves = [leaf for _, leaf in found]
    traced = [i for i, leaf in enumerate(leaves) if is_compressed(leaf) or _is_array(leaf)]

    def of(*arrays: Any) -> Any:
        filled = dict(enumerate(leaves)) | dict(zip(traced, arrays, strict=True))
        args, kwargs = jax.tree.unflatten(kind, filled.values())
        return function(*args, **kwargs)

    shapes = [_dense_shape(leaves[i]) for i in traced]
    closed, out = jax.make_jaxpr(of, return_shape=True)(*shapes)
    inputs = [
        View.of(trees.name(found[i][0][2:]), leaves[i]) if is_compressed(leaves[i]) else leaves[i]
        for i in traced
    ]
    outs = interpreter.run(closed.jaxpr, closed.consts, inputs)
    outs = [_leaf(x) if isinstance(x, View) else x for x in outs]
    return jax.tree.unflatten(jax.tree.structure(out), outs)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray)


def _dense_shape(leaf: Any) -> jax.ShapeDtypeStruct:
    weak = not is_compressed(leaf) and getattr(leaf, "weak_type", False)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=weak)


def _leaf(view: View) -> Any:
    """A kernel that the function returns, compressed, unchanged."""
    if not view.whole:
        raise ValueError(f"a function must return the compressed leaf {view.name!r} unchanged.")
    return view.kernel
