"""What every walk through a jaxpr needs: functions of trees traced, calls and loops opened; and
functions that are compiled apart from what calls them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.experimental.xla_metadata import set_xla_metadata

from jaxsparse import trees
from jaxsparse.checks import traced
from jaxsparse.types import Array

_CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")


class Scan(NamedTuple):
    """A `scan`, taken apart.

    Attributes:
      body: its jaxpr, of constants, carry and slices, to carry and slices.
      constants: how many of its inputs are the same in every turn.
      carry: how many inputs, and outputs, go from turn to turn.
    """

    body: Any
    constants: int
    carry: int


def apart(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, compiled by itself where it is called while tracing.

    XLA computes first what many leaves need first, on a CPU, and keeps it for all of them. Leaves
    whose functions are compiled apart come one after the other, each in the memory of the last.
    """

    def call(*given: Any) -> Any:
        leaves, treedef = jax.tree.flatten(given)
        arrays = [x for x in leaves if isinstance(x, jax.Array)]
        if jax.default_backend() != "cpu" or not any(map(traced, arrays)):
            return function(*given)

        @jax.jit
        def run(arrays: list[Array]) -> Any:
            found = iter(arrays)
            mixed = [next(found) if isinstance(x, jax.Array) else x for x in leaves]
            with set_xla_metadata(inlineable="true"):
                return function(*treedef.unflatten(mixed))

        with set_xla_metadata(inlineable="false"):
            return run(arrays)

    return call


def trace(fn: Callable[..., Any], params: Any, args: tuple[Any, ...]) -> Any:
    """The closed jaxpr of `fn(params, *args)`, from the arrays among its leaves to those of the
    result; what is not an array is passed as it is."""
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
    """Whether an equation holds a jaxpr, be it with other inputs than its own."""
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
