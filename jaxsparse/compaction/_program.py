"""A traced function as one straight list of steps: calls and branches inlined, loop bodies once."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import Literal

from jaxsparse import jaxprs

ELEMENTWISE = frozenset(
    "abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp "
    "convert_element_type copy copy_p cos cosh div eq erf erf_inv erfc exp exp2 expm1 floor "
    "ge gt imag integer_pow is_finite le lgamma log log1p logistic lt max min mul ne neg "
    "nextafter not optimization_barrier or pow real reduce_precision rem round rsqrt select_n "
    "sign sin sinh sqrt square stop_gradient sub tan tanh xor".split()
)
"""Primitives that work place by place: inputs and outputs align, and sizes of 1 broadcast."""


@dataclasses.dataclass(eq=False)
class Value:
    """An array of the program.

    Attributes:
      shape: its shape.
      dtype: its type.
      constant: its value if that is known before anything runs; else None.
    """

    shape: tuple[int, ...]
    dtype: Any
    constant: Any = None


class Step(NamedTuple):
    """One operation.

    Attributes:
      name: of the primitive. `loop_carry`, `loop_slice`, `loop_stack`, `loop_end` and `branches`
        stand for the parts of `scan` and `cond`.
      inputs: the values it reads.
      outputs: the values it makes.
      eqn: the equation of the jaxpr.
    """

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    eqn: Any

    @property
    def params(self) -> Any:
        """The parameters of the primitive."""
        return self.eqn.params


class Program(NamedTuple):
    """A function, taken apart.

    Attributes:
      leaves: the arrays among the parameters.
      arguments: the arrays among the other arguments.
      steps: all operations, in order.
      outputs: what it returns.
    """

    leaves: list[Value]
    arguments: list[Value]
    steps: list[Step]
    outputs: list[Value]


def program(fn: Callable[..., Any], params: Any, args: tuple[Any, ...], leaves: int) -> Program:
    """The program of `fn(params, *args)`; the first `leaves` arrays belong to the parameters."""
    closed = jaxprs.trace(fn, params, args)
    inputs = [_value(var) for var in closed.jaxpr.invars]
    steps: list[Step] = []
    outputs = _inline(closed, inputs, steps)
    return Program(inputs[:leaves], inputs[leaves:], steps, outputs)


def _inline(jaxpr: Any, inputs: Sequence[Value], steps: list[Step]) -> list[Value]:
    """Appends the steps of a jaxpr; returns its outputs."""
    inner = jaxprs.opened(jaxpr)
    consts = getattr(jaxpr, "consts", ())
    known = {var: _value(var, const) for var, const in zip(inner.constvars, consts, strict=False)}
    known |= dict(zip(inner.invars, inputs, strict=True))

    def read(var: Any) -> Value:
        return _value(var, var.val) if isinstance(var, Literal) else known[var]

    for eqn in inner.eqns:
        given = tuple(read(var) for var in eqn.invars)
        known.update(zip(eqn.outvars, _outputs(eqn, given, steps), strict=True))
    return [read(var) for var in inner.outvars]


def _outputs(eqn: Any, given: tuple[Value, ...], steps: list[Step]) -> Sequence[Value]:
    name = eqn.primitive.name

    def step(name: str, inputs: Sequence[Value], outputs: Sequence[Value]) -> tuple[Value, ...]:
        steps.append(Step(name, tuple(inputs), tuple(outputs), eqn))
        return tuple(outputs)

    if name == "scan":
        body, constants, count = jaxprs.scan(eqn)
        variables = jaxprs.opened(body).invars
        after = constants + count
        turn = [_value(var) for var in variables[constants:]]
        for mine, outer in zip(turn[:count], given[constants:after], strict=True):
            step("loop_carry", [outer], [mine])
        for mine, outer in zip(turn[count:], given[after:], strict=True):
            step("loop_slice", [outer], [mine])
        found = _inline(body, [*given[:constants], *turn], steps)
        outputs = [_value(var) for var in eqn.outvars]
        for i, (out, inside) in enumerate(zip(outputs, found, strict=True)):
            if i < count:
                step("loop_end", [inside, turn[i]], [out])
            else:
                step("loop_stack", [inside], [out])
        return outputs
    if name == "cond":
        branches = [_inline(branch, given[1:], steps) for branch in eqn.params["branches"]]
        outputs = [_value(var) for var in eqn.outvars]
        for out, options in zip(outputs, zip(*branches, strict=True), strict=True):
            step("branches", options, [out])
        return outputs
    inner = jaxprs.called(eqn)
    if inner is not None:
        return _inline(inner, given, steps)
    return step(name, given, [_value(var) for var in eqn.outvars])


def _value(var: Any, constant: Any = None) -> Value:
    return Value(tuple(var.aval.shape), var.aval.dtype, constant)


def reshaped(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """The axes of an array and those they become, in groups of equal size; without sizes of 1."""
    left = [(k, n) for k, n in enumerate(old) if n != 1]
    right = [(k, n) for k, n in enumerate(new) if n != 1]
    groups = []
    while left and right:
        sources, targets = [left.pop(0)], [right.pop(0)]
        while (a := math.prod(n for _, n in sources)) != (b := math.prod(n for _, n in targets)):
            if a < b:
                sources.append(left.pop(0))
            else:
                targets.append(right.pop(0))
        groups.append(([k for k, _ in sources], [k for k, _ in targets]))
    return groups


def difference(
    program: Program, other: Program, left: Callable[[Value], list[np.ndarray]]
) -> str | None:
    """Why the second program is not the first one at other sizes; None if it is.

    Args:
      program: the program.
      other: the function traced at other sizes.
      left: which places of an array of the first remain in the second, by axis, boolean.
    """

    def shape(value: Value) -> tuple[int, ...]:
        return tuple(int(places.sum()) for places in left(value))

    if len(program.steps) != len(other.steps):
        return "it computes something else"
    for mine, new in zip(program.steps, other.steps, strict=True):
        if mine.name != new.name:
            return f"it computes {new.name} instead of {mine.name}"
        for a, b in zip(mine.inputs + mine.outputs, new.inputs + new.outputs, strict=True):
            if shape(a) != b.shape:
                return f"{mine.name} has the shape {b.shape}, not {shape(a)}"
            if not _same(a.constant, b.constant):
                return f"a number that {mine.name} takes depends on the width"
        if mine.name in ELEMENTWISE and str(mine.params) != str(new.params):
            return f"a number that {mine.name} takes depends on the width"
        if mine.name == "slice":
            starts = zip(left(mine.inputs[0]), mine.params["start_indices"], strict=True)
            if tuple(places[:n].sum() for places, n in starts) != new.params["start_indices"]:
                return "a slice begins at another place"
        if mine.name == "pad" and mine.params["padding_config"] != new.params["padding_config"]:
            return "the padding depends on the width"
    return None


def _same(a: Any, b: Any) -> bool:
    if a is None or b is None:
        return a is b
    if any(jax.dtypes.issubdtype(getattr(x, "dtype", None), jax.dtypes.extended) for x in (a, b)):
        return False
    return bool(np.array_equal(np.asarray(a), np.asarray(b), equal_nan=False) or a is b)
