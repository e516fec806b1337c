"""Runs a traced function on compressed kernels: each product with one becomes the kernel's own.

Everything else runs as in the original function. A kernel may be cast, scaled, transposed and
reshaped on its way to the product; it is followed through jit, checkpoint, scan, cond and while.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.extend.core import Literal

from jaxsparse import jaxprs
from jaxsparse.sparse import _rules
from jaxsparse.sparse._views import View


class Product(NamedTuple):
    """A product in two forms, to measure one against the other.

    Attributes:
      x: what the kernel was multiplied by, as a `jax.ShapeDtypeStruct`.
      sparse: `(kernel, x) -> y`.
      dense: `(array, x) -> y`, with an array of the shape that the function sees.
      view: turns a kernel into that array.
    """

    x: Any
    sparse: Callable[..., Any]
    dense: Callable[..., Any]
    view: Callable[..., Any]


class Met(NamedTuple):
    """One operation that met a compressed kernel.

    Attributes:
      name: the path of the leaf.
      kernel: the leaf.
      operation: the primitive and the shapes of its operands.
      product: the kernel's own product that was used; None if the kernel was made dense.
    """

    name: str
    kernel: Any
    operation: str
    product: Product | None = None


class Interpreter:
    """Evaluates jaxprs in which some of the values are views of compressed kernels.

    Args:
      dense: whether an operation that no kernel supports gets the kernel as a dense array.

    Attributes:
      met: the operations that met a compressed kernel, in order.
    """

    def __init__(self, *, dense: bool):
        self.met: list[Met] = []
        self._dense = dense

    def run(self, jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
        """The outputs; a kernel that is passed on comes out as a view."""
        known = dict(zip(jaxpr.constvars, consts, strict=True))
        known.update(zip(jaxpr.invars, args, strict=True))

        def read(var: Any) -> Any:
            return var.val if isinstance(var, Literal) else known[var]

        for eqn in jaxpr.eqns:
            found = self._step(jaxpr, eqn, [read(var) for var in eqn.invars])
            known.update(zip(eqn.outvars, found, strict=True))
        return [read(var) for var in jaxpr.outvars]

    def _step(self, jaxpr: Any, eqn: Any, inputs: list[Any]) -> Sequence[Any]:
        bind = functools.partial(_bind, jaxpr, eqn)
        if not any(isinstance(x, View) for x in inputs):
            return bind(inputs)
        kind, found = eqn.primitive.name, None
        if kind in _INNER:
            found = _INNER[kind](self, eqn, inputs)
        elif kind in _rules.VIEWS:
            found = _rules.VIEWS[kind](bind, eqn, *inputs)
        elif kind in _rules.PRODUCTS:
            found = self._product(bind, eqn, *inputs)
        return bind(self._arrays(eqn, inputs)) if found is None else found

    def _product(self, bind: Any, eqn: Any, left: Any, right: Any) -> list[Any] | None:
        """A product of a view and an array, if the kernel supports it."""
        if isinstance(left, View) and isinstance(right, View):
            return None
        view, x = (left, right) if isinstance(left, View) else (right, left)
        first = view is left

        def product(kernel: Any, x: Any) -> Any:
            return _rules.PRODUCTS[eqn.primitive.name](eqn, view.on(kernel), x, first)

        y = product(view.kernel, x)
        if y is None:
            return None
        both = Product(
            x=jax.ShapeDtypeStruct(x.shape, x.dtype),
            sparse=product,
            dense=lambda array, x: bind([array, x] if first else [x, array])[0],
            view=lambda kernel: view.on(kernel).dense(),
        )
        self.met.append(Met(view.name, view.kernel, _told(eqn), both))
        return [y.astype(eqn.outvars[0].aval.dtype)]

    def _arrays(self, eqn: Any, inputs: Sequence[Any]) -> list[Any]:
        """The inputs of an operation that takes no compressed kernel.

        Raises:
          ValueError: one is compressed, and making it dense was not requested.
        """

        def array(x: Any) -> Any:
            if not isinstance(x, View):
                return x
            told = _told(eqn)
            if not self._dense:
                raise ValueError(
                    f"no kernel computes {told} with the compressed leaf {x.name!r} of shape "
                    f"{x.kernel.shape} and {x.kernel.places.axes}. Leave this leaf dense, tell "
                    'compress what its axes mean (axes=), or accelerate with fallback="dense".'
                )
            self.met.append(Met(x.name, x.kernel, told))
            return x.dense()

        return [array(x) for x in inputs]

    def _inline(self, eqn: Any, inputs: list[Any]) -> list[Any]:
        inner = eqn.params["jaxpr"]
        return self.run(inner.jaxpr, inner.consts, inputs)

    def _remat(self, eqn: Any, inputs: list[Any]) -> list[Any]:
        inner = eqn.params["jaxpr"]
        run = self._over_arrays(inputs, lambda args: self._leaving(eqn, inner, (), args))
        options = {k: eqn.params[k] for k in ("prevent_cse", "policy")}
        return jax.checkpoint(run, **options)(*_parts(inputs))

    def _scan(self, eqn: Any, inputs: list[Any]) -> list[Any] | None:
        closed, first, count = jaxprs.scan(eqn)
        after = first + count
        consts, carry, stacks = inputs[:first], inputs[first:after], inputs[after:]
        carry = self._arrays(eqn, carry)
        layers = [x.kernel.layers() if isinstance(x, View) else None for x in stacks]
        views = [x.layer(k) if k is not None else None for x, k in zip(stacks, layers, strict=True)]
        if any(k is not None and v is None for k, v in zip(layers, views, strict=True)):
            return None

        def turn(carry: Any, parts: Any) -> tuple[Any, Any]:
            each = [part if v is None else v.on(part) for v, part in zip(views, parts, strict=True)]
            outs = self._leaving(eqn, closed.jaxpr, closed.consts, [*consts, *carry, *each])
            return outs[:count], outs[count:]

        parts = [x if k is None else k for x, k in zip(stacks, layers, strict=True)]
        options = {k: eqn.params[k] for k in ("length", "reverse", "unroll")}
        carry, ys = lax.scan(turn, carry, parts, **options)
        return [*carry, *ys]

    def _cond(self, eqn: Any, inputs: list[Any]) -> list[Any]:
        index, *rest = inputs

        def branch(inner: Any) -> Callable[..., Any]:
            return self._over_arrays(
                rest, lambda args: self._leaving(eqn, inner.jaxpr, inner.consts, args)
            )

        return lax.switch(index, [branch(b) for b in eqn.params["branches"]], *_parts(rest))

    def _while(self, eqn: Any, inputs: list[Any]) -> list[Any]:
        test, body = eqn.params["cond_jaxpr"], eqn.params["body_jaxpr"]
        first = eqn.params["cond_nconsts"]
        after = first + eqn.params["body_nconsts"]

        def go(carry: Any) -> Any:
            return self._leaving(eqn, test.jaxpr, test.consts, [*inputs[:first], *carry])[0]

        def turn(carry: Any) -> Any:
            return self._leaving(eqn, body.jaxpr, body.consts, [*inputs[first:after], *carry])

        return lax.while_loop(go, turn, self._arrays(eqn, inputs[after:]))

    def _leaving(
        self, eqn: Any, jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]
    ) -> list[Any]:
        """The outputs of a body that JAX compiles as a whole, which can return arrays only."""
        return self._arrays(eqn, self.run(jaxpr, consts, args))

    def _over_arrays(
        self, inputs: list[Any], run: Callable[[list[Any]], Any]
    ) -> Callable[..., Any]:
        """The function with views replaced by their kernels among the arguments."""

        def of(*parts: Any) -> Any:
            return run(
                [
                    x.on(part) if isinstance(x, View) else part
                    for x, part in zip(inputs, parts, strict=True)
                ]
            )

        return of


def _parts(inputs: Sequence[Any]) -> list[Any]:
    return [x.kernel if isinstance(x, View) else x for x in inputs]


def _bind(jaxpr: Any, eqn: Any, inputs: Sequence[Any]) -> Sequence[Any]:
    """The outputs of this equation alone for these inputs."""
    pairs = zip(eqn.invars, inputs, strict=True)
    known = {var: x for var, x in pairs if not isinstance(var, Literal)}
    parts = {"constvars": [], "invars": [*known], "outvars": eqn.outvars, "eqns": [eqn]}
    alone = jaxpr.replace(**parts)
    return jax.core.eval_jaxpr(alone, [], *known.values())


def _told(eqn: Any) -> str:
    shapes = " and ".join(str(tuple(var.aval.shape)) for var in eqn.invars[:2])
    return f"{eqn.primitive.name} of {shapes}"


_INNER: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("jit", "pjit", "closed_call", "core_call"), Interpreter._inline),
    **dict.fromkeys(("checkpoint", "remat", "remat2"), Interpreter._remat),
    "cond": Interpreter._cond,
    "scan": Interpreter._scan,
    "while": Interpreter._while,
}
