"""What the operations of a jaxpr do to a compressed kernel.

A rule in `VIEWS` gives the outputs of an operation as views; a rule in `PRODUCTS` gives the product
of a view and an array. None means that the kernel does not support the operation. `bind` runs the
operation on arrays.
"""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxsparse.sparse._views import View


def _of_values(bind: Any, eqn: Any, view: View, *_: Any) -> list[Any]:
    """An elementwise operation that maps zero to zero."""
    return [view.with_values(bind([view.kernel.values])[0])]


def _cast(bind: Any, eqn: Any, view: View) -> list[Any] | None:
    kind = eqn.params["new_dtype"]
    if not jnp.issubdtype(kind, jnp.floating):
        return None
    return [view.with_values(view.kernel.values.astype(kind))]


def _scaled(bind: Any, eqn: Any, left: Any, right: Any) -> list[Any] | None:
    """Scaled by a number, or by the same view of the same kernel."""
    view, by = (left, right) if isinstance(left, View) else (right, left)
    if isinstance(by, View):
        if eqn.primitive.name == "div" or by.dims != view.dims or by.name != view.name:
            return None
        return [view.with_values(view.kernel.values * by.kernel.values)]
    if (
        math.prod(jnp.shape(by)) != 1
        or len(jnp.shape(by)) > len(view.dims)
        or view is not left
        and eqn.primitive.name == "div"
    ):
        return None
    by, values = jnp.reshape(by, ()), view.kernel.values
    return [view.with_values(values / by if eqn.primitive.name == "div" else values * by)]


def _broadcast(bind: Any, eqn: Any, view: View) -> list[Any] | None:
    shape, where = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    if math.prod(shape) != math.prod(view.shape):
        return None
    dims: list[Any] = [()] * len(shape)
    for d, target in enumerate(where):
        dims[target] = view.dims[d]
    return [view.with_dims(dims)]


def _reshape(bind: Any, eqn: Any, view: View) -> list[Any] | None:
    found = view.reshaped(eqn.params["new_sizes"])
    return None if found is None else [found]


def _squeeze(bind: Any, eqn: Any, view: View) -> list[Any]:
    return [
        view.with_dims([d for i, d in enumerate(view.dims) if i not in eqn.params["dimensions"]])
    ]


def _transpose(bind: Any, eqn: Any, view: View) -> list[Any]:
    return [view.with_dims([view.dims[d] for d in eqn.params["permutation"]])]


def _sum(bind: Any, eqn: Any, view: View) -> list[Any] | None:
    if len(eqn.params["axes"]) < len(view.dims):
        return None
    return [jnp.sum(view.kernel.values)]


def _same(bind: Any, eqn: Any, *inputs: Any) -> list[Any]:
    bare = [x.kernel.values if isinstance(x, View) else x for x in inputs]
    return [
        x.with_values(y) if isinstance(x, View) else y
        for x, y in zip(inputs, bind(bare), strict=True)
    ]


def _dot(eqn: Any, view: View, x: Any, first: bool) -> Any:
    (left, right), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    contracted = (left, right) if first else (right, left)
    batch = (left_batch, right_batch) if first else (right_batch, left_batch)
    y = view.times(x, contracted, batch)
    if y is None or first:
        return y
    common, own = len(left_batch), len(view.dims) - len(contracted[0]) - len(left_batch)
    order = [*range(common), *range(common + own, y.ndim), *range(common, common + own)]
    return jnp.transpose(y, order)


def _convolution(eqn: Any, view: View, x: Any, first: bool) -> Any:
    """A convolution with the unchanged kernel, axis for axis, as its right operand."""
    params, axes = eqn.params, view.kernel.places.axes
    numbers, shape = params["dimension_numbers"], view.kernel.shape
    spatial = [a for a in range(len(shape)) if a not in axes.inputs + axes.outputs + axes.stacked]
    meant = View.of(view.name, view.kernel).dims
    order = [*axes.outputs, *axes.inputs, *spatial]
    seen = [view.dims[d] for d in numbers.rhs_spec]
    plain = (
        not first
        and len(axes.inputs) == len(axes.outputs) == 1
        and not axes.stacked
        and seen == [meant[a] for a in order]
        and params["feature_group_count"] == params["batch_group_count"] == 1
        and math.prod((*params["lhs_dilation"], *params["rhs_dilation"])) == 1
    )
    convolve = getattr(view.kernel, "convolve", None)
    if not plain or convolve is None:
        return None
    batch, features, *space = numbers.lhs_spec
    x = jnp.transpose(x, (batch, *space, features))
    y = convolve(x, strides=tuple(params["window_strides"]), padding=tuple(params["padding"]))
    batch, features, *space = numbers.out_spec
    return jnp.transpose(y, _placed([batch, *space, features]))


def _placed(where: list[int]) -> list[int]:
    """The permutation that moves axis i to `where[i]`."""
    return [where.index(d) for d in range(len(where))]


VIEWS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(
        ("abs", "copy", "copy_p", "integer_pow", "neg", "reduce_precision"), _of_values
    ),
    **dict.fromkeys(("sign", "square", "stop_gradient"), _of_values),
    "broadcast_in_dim": _broadcast,
    "convert_element_type": _cast,
    "div": _scaled,
    "mul": _scaled,
    "optimization_barrier": _same,
    "reduce_sum": _sum,
    "reshape": _reshape,
    "sharding_constraint": lambda bind, eqn, view: [view],
    "squeeze": _squeeze,
    "transpose": _transpose,
}
PRODUCTS: dict[str, Callable[..., Any]] = {
    "conv_general_dilated": _convolution,
    "dot_general": _dot,
}
