"""Helpers for walking jaxprs, which trace functions of trees and open calls and loops; and
functions that are compiled apart from their callers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.xla_metadata import set_xla_metadata

from jaxsparse import trees
from jaxsparse.checks import traced
from jaxsparse.types import Array

_CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")
_ARRAY = object()


class Scan(NamedTuple):
    """The parts of a `scan`.

    Attributes:
      body: its jaxpr, from constants, carry and slices to carry and slices.
      constants: how many of its inputs are the same in every iteration.
      carry: how many inputs, and outputs, are carried from one iteration to the next.
    """

    body: Any
    constants: int
    carry: int


def apart(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, compiled on its own when it is called while tracing.

    On a CPU, XLA computes the first stage of many leaves before any later stage, and keeps the
    results of all of them. Leaves whose functions are compiled apart are computed one after the
    other, each in the memory of the one before. Calls that differ only in the values of arrays are
    traced once.
    """
    traced_before: dict[Any, Callable[..., Any]] = {}

    def call(*given: Any) -> Any:
        leaves, treedef = jax.tree.flatten(given)
        arrays = [x for x in leaves if isinstance(x, jax.Array | np.ndarray)]
        if jax.default_backend() != "cpu" or not any(map(traced, arrays)):
            return function(*given)
        static = tuple(_ARRAY if isinstance(x, jax.Array | np.ndarray) else x for x in leaves)
        key = treedef, static, tuple(map(type, static))  # True is not 1 here

        def run(arrays: list[Array]) -> Any:
            found = iter(arrays)
            mixed = [next(found) if x is _ARRAY else x for x in static]
            with set_xla_metadata(inlineable="true"):
                return function(*treedef.unflatten(mixed))

        compiled = traced_before.setdefault(key, jax.jit(run))
        with set_xla_metadata(inlineable="false"):
            return compiled(arrays)

    return call


def trace(fn: Callable[..., Any], params: Any, args: tuple[Any, ...]) -> Any:
    """The closed jaxpr of `fn(params, *args)`, from the arrays among its leaves to those of the
    result; other leaves are passed as they are."""
    leaves, treedef = jax.tree.flatten((params, args))
    places = [i for i, leaf in enumerate(leaves) if trees.is_array(leaf)]

    def call(*arrays: Any) -> Any:
        full = list(leaves)
        for place, array in zip(places, arrays, strict=True):
            full[place] = array
        params, args = treedef.unflatten(full)
        return [leaf for leaf in jax.tree.leaves(fn(params, *args)) if trees.is_array(leaf)]

    return jax.make_jaxpr(call)(*(leaves[i] for i in places))


def opened(jaxpr: Any) -> Any:
    """The jaxpr in a closed one."""
    return getattr(jaxpr, "jaxpr", jaxpr)


def called(eqn: Any) -> Any:
    """The jaxpr that an equation calls with its own inputs (`jit`, `checkpoint`, `custom_jvp`), or
    None."""
    shapes = [var.aval.shape for var in eqn.invars]
    for key in _CALLS:
        if key in eqn.params:
            if [var.aval.shape for var in opened(eqn.params[key]).invars] == shapes:
                return eqn.params[key]
    return None


def calls(eqn: Any) -> bool:
    """Whether an equation holds a jaxpr, even one with inputs other than its own."""
    return any(key in eqn.params for key in _CALLS)


def scan(eqn: Any) -> Scan:
    """The parts of a `scan`."""
    # The names of the parameters that tell constants, carry and slices apart differ between JAX
    # versions; that a slice has one axis less than its stack does not.
    body = opened(eqn.params["jaxpr"])
    slices = sum(map(_is_slice, body.invars, eqn.invars))
    carry = len(body.outvars) - sum(map(_is_slice, body.outvars, eqn.outvars))
    return Scan(eqn.params["jaxpr"], len(eqn.invars) - slices - carry, carry)


def _is_slice(inner: Any, outer: Any) -> bool:
    return len(inner.aval.shape) < len(outer.aval.shape)
