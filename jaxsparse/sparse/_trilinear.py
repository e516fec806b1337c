"""One product of a compressed kernel, and with it all of its derivatives.

A product combines three arrays, the values of a kernel, an input x and an output g, into a number
that is linear in each: the inner product of g with the kernel times x. Leaving out one of the three
gives the product, its transpose or the gradient of the values, and each is a derivative of the
others. So three functions are enough for `grad`, `jvp` and derivatives of any order.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxsparse.types import Array

VALUES, INPUT, OUTPUT = 0, 1, 2


class Shapes(NamedTuple):
    """The three arrays of a product, as `jax.ShapeDtypeStruct`s of one type."""

    values: Any
    x: Any
    g: Any


class Trilinear:
    """A product in the three forms that are each other's derivatives.

    Args:
      name: of the primitive, as it appears in a jaxpr.
      product: `(static, shapes, places, values, x) -> g`.
      transposed: `(static, shapes, places, values, g) -> x`.
      gradient: `(static, shapes, places, x, g) -> values`; zero where no value lives.
      folds: the axes of x and of g that number the examples; an axis mapped by `vmap` can be merged
        into them. None if `vmap` has to go through the functions, as it can in plain JAX.
    """

    def __init__(
        self,
        name: str,
        product: Callable[..., Array],
        transposed: Callable[..., Array],
        gradient: Callable[..., Array],
        *,
        folds: tuple[int, int] | None = None,
    ):
        self._functions = {OUTPUT: product, INPUT: transposed, VALUES: gradient}
        self._folds = folds
        self._primitive = primitive = Primitive(f"sparse_{name}")
        primitive.def_impl(jax.jit(self._run, static_argnames=("open", "static", "shapes", "kind")))
        primitive.def_abstract_eval(self._abstract)
        mlir.register_lowering(primitive, mlir.lower_fun(self._run, multiple_results=False))
        ad.primitive_jvps[primitive] = self._jvp
        ad.primitive_transposes[primitive] = self._transpose
        batching.primitive_batchers[primitive] = self._batch

    def product(
        self, static: Any, shape: tuple[int, ...], places: Any, values: Array, x: Array
    ) -> Array:
        """`kernel * x`, of this shape; `values` and `x` have the same type."""
        found = [jax.ShapeDtypeStruct(s, x.dtype) for s in (values.shape, x.shape, shape)]
        return self._bind(OUTPUT, static, Shapes(*found), places, values, x)

    def transposed(
        self, static: Any, shape: tuple[int, ...], places: Any, values: Array, g: Array
    ) -> Array:
        """`kernel.T * g`, of this shape."""
        found = [jax.ShapeDtypeStruct(s, g.dtype) for s in (values.shape, shape, g.shape)]
        return self._bind(INPUT, static, Shapes(*found), places, values, g)

    def _bind(
        self, open: int, static: Any, shapes: Shapes, places: Any, a: Array, b: Array
    ) -> Array:
        leaves, kind = jax.tree.flatten(places)
        return self._primitive.bind(
            a, b, *leaves, open=open, static=static, shapes=shapes, kind=kind
        )

    def _run(
        self, a: Array, b: Array, *leaves: Array, open: int, static: Any, shapes: Shapes, kind: Any
    ) -> Array:
        places = jax.tree.unflatten(kind, leaves)
        return self._functions[open](static, shapes, places, a, b)

    def _abstract(self, *_: Any, open: int, shapes: Shapes, **__: Any) -> Any:
        return jax.core.ShapedArray(shapes[open].shape, shapes[open].dtype)

    def _jvp(self, primals: Any, tangents: Any, **params: Any) -> tuple[Array, Any]:
        (a, b, *leaves), (da, db, *_) = primals, tangents
        out = self._primitive.bind(a, b, *leaves, **params)
        parts = [
            self._primitive.bind(*pair, *leaves, **params)
            for pair, moved in (((da, b), da), ((a, db), db))
            if not isinstance(moved, ad.Zero)
        ]
        return out, sum(parts[1:], parts[0])

    def _transpose(
        self, cotangent: Any, a: Any, b: Any, *leaves: Array, **params: Any
    ) -> list[Any]:
        open, nothing = params["open"], [None] * len(leaves)
        if isinstance(cotangent, ad.Zero):
            return [None, None, *nothing]
        slots = [slot for slot in (VALUES, INPUT, OUTPUT) if slot != open]
        asked = 0 if ad.is_undefined_primal(a) else 1
        given = {slots[1 - asked]: (b if asked == 0 else a), open: cotangent}
        pair = [given[slot] for slot in sorted(given)]
        found = self._primitive.bind(*pair, *leaves, **params | {"open": slots[asked]})
        return [found, None, *nothing] if asked == 0 else [None, found, *nothing]

    def _batch(self, args: Any, dims: Any, **params: Any) -> tuple[Array, int]:
        args = [x if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(args, dims, strict=True)]
        mapped = [d is not None for d in dims]
        if self._folds is None:
            axes = [0 if m else None for m in mapped]
            return jax.vmap(lambda *each: self._run(*each, **params), axes)(*args), 0
        if mapped[:2] == [False, True] and not any(mapped[2:]) and params["open"] != VALUES:
            return self._folded(args[1].shape[0], *args, **params), 0

        def one(moving: list[Array]) -> Array:
            given = iter(moving)
            each = [next(given) if m else x for x, m in zip(args, mapped, strict=True)]
            return self._primitive.bind(*each, **params)

        return jax.lax.map(one, [x for x, m in zip(args, mapped, strict=True) if m]), 0

    def _folded(self, size: int, a: Array, b: Array, *leaves: Array, **params: Any) -> Array:
        """Many inputs of one kernel are one input with more examples."""
        given, open = (INPUT, OUTPUT)[:: 1 if params["open"] == OUTPUT else -1]
        first, last = self._folds[given - 1], self._folds[open - 1]  # type: ignore[index]

        def more(shape: Any, axis: int) -> Any:
            sizes = list(shape.shape)
            sizes[axis] *= size
            return jax.ShapeDtypeStruct(tuple(sizes), shape.dtype)

        shapes = params["shapes"]
        wide = shapes._replace(x=more(shapes.x, self._folds[0]), g=more(shapes.g, self._folds[1]))  # type: ignore[index]
        b = jnp.moveaxis(b, 0, first).reshape(wide[given].shape)
        found = self._primitive.bind(a, b, *leaves, **params | {"shapes": wide})
        axis = last % len(wide[open].shape)
        sizes = wide[open].shape
        found = found.reshape(*sizes[:axis], size, sizes[axis] // size, *sizes[axis + 1 :])
        return jnp.moveaxis(found, axis, 0)
