"""Argument checks: every message names the argument, its value and what is allowed.

Traced values cannot be checked, so they pass.
"""

import difflib
import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

COUNTS = 2**31  # step counts are int32


def check_count(argument: str, value: Any, least: int = 0) -> None:
    """Raises unless `value` is a step count: an integer, or a scalar array, in [least, 2^31)."""
    if isinstance(value, bool) or not jnp.issubdtype(_type(value), jnp.integer):
        raise TypeError(f"{argument} must be an integer count of steps, got {value!r}.")
    if not traced(value) and not least <= int(value) < COUNTS:
        bound = f"at least {least}" if value < least else "below 2^31"
        raise ValueError(f"{argument} must be {bound}, got {value}.")


def check_size(argument: str, value: Any, least: int = 1, most: int | None = None) -> None:
    """Raises unless `value` is a Python int of at least `least` and, if given, at most `most`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{argument} must be an int, got {value!r}.")
    if value < least:
        raise ValueError(f"{argument} must be at least {least}, got {value}.")
    if most is not None and value > most:
        raise ValueError(f"{argument} must be at most {most}, got {value}.")


def check_rank(k: Any, size: int, least: int = 0) -> None:
    """Raises unless `k` is in [least, size] and one selection can count `size` scores."""
    if size >= COUNTS:
        raise ValueError(f"{size} scores are more than one selection can count (2^31 - 1).")
    if isinstance(k, bool) or not jnp.issubdtype(getattr(k, "dtype", type(k)), jnp.integer):
        raise TypeError(f"k must be an integer, got {k!r}.")
    if isinstance(k, int | np.integer) and not least <= k <= size:
        raise ValueError(f"k must be in [{least}, {size}], got {k}.")


def check_fraction(argument: str, value: Any) -> None:
    """Raises unless `value` is a number in [0, 1]."""
    if not _is_number(value):
        raise TypeError(f"{argument} must be a number in [0, 1] or a schedule, got {value!r}.")
    if not traced(value) and not 0 <= value <= 1:
        raise ValueError(f"{argument} must be in [0, 1], got {value}.")


def check_decay(argument: str, value: Any) -> None:
    """Raises unless `value` is a number in [0, 1)."""
    if not _is_number(value):
        raise TypeError(f"{argument} must be a number in [0, 1), got {value!r}.")
    if not traced(value) and not 0 <= value < 1:
        raise ValueError(f"{argument} must be in [0, 1), got {value}.")


def check_sparsity(value: Any, argument: str = "sparsity") -> None:
    """Raises unless `value` is a number in [0, 1)."""
    if not _is_number(value):
        raise TypeError(f"{argument} must be a number in [0, 1), got {value!r}.")
    if not traced(value) and not 0 <= value < 1:
        raise ValueError(
            f"{argument} must be in [0, 1), got {value}. It is the fraction of weights that are "
            "zero: 0.9 keeps one weight in ten."
        )


def check_number(argument: str, value: Any, *, above: bool = False) -> None:
    """Raises unless `value` is a finite number of at least 0, or with `above` greater than 0."""
    bound = "above 0" if above else "at least 0"
    if not _is_number(value):
        raise TypeError(f"{argument} must be a number {bound}, got {value!r}.")
    if traced(value):
        return
    if math.isinf(value):
        raise ValueError(f"{argument} must be finite, got {value}.")
    if not (value > 0 if above else value >= 0):
        raise ValueError(f"{argument} must be {bound}, got {value}.")


def check_choice(argument: str, value: Any, known: Iterable[str]) -> None:
    """Raises unless `value` is one of the known names."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{argument} must be one of {', '.join(known)}, got {value!r}.")


def check_flag(argument: str, value: Any) -> None:
    """Raises unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{argument} must be True or False, got {value!r}.")


def check_function(argument: str, value: Any, form: str) -> None:
    """Raises unless `value` can be called."""
    if not callable(value):
        raise TypeError(f"{argument} must be a function {form}, got {value!r}.")


def check_array(argument: str, value: Any, kind: Any = jnp.number) -> jax.Array:
    """Converts an array-like to an array; raises unless its type is of the given kind."""
    wanted = {jnp.integer: "an integer", jnp.floating: "a floating"}.get(kind, "a numeric")
    try:
        found = jnp.asarray(value)
    except (TypeError, ValueError):
        raise TypeError(f"{argument} must be {wanted} array, got {value!r}.") from None
    if not jnp.issubdtype(found.dtype, kind):
        raise TypeError(f"{argument} must be {wanted} array, got {found.dtype}.")
    if kind is jnp.floating and jnp.finfo(found.dtype).bits < 16:
        raise TypeError(
            f"{argument} must have 16 bits or more, got {found.dtype}; convert it, such as with "
            ".astype(jnp.float32)."
        )
    return found


def check_batches(batches: Any) -> None:
    """Raises unless `batches` is a tree of arrays with at least one batch along the first axis."""
    leaves = jax.tree.leaves(batches)
    if not leaves or not all(getattr(leaf, "ndim", 0) and len(leaf) for leaf in leaves):
        raise ValueError(
            f"batches must be arrays with at least one batch on their first axis, got {batches!r}."
        )


def check_regex(argument: str, regex: Any) -> None:
    """Raises unless `regex` is a regular expression."""
    if not isinstance(regex, str):
        raise TypeError(f"{argument}: a path regex must be a string, got {regex!r}.")
    try:
        re.compile(regex)
    except re.error as error:
        raise ValueError(f"{argument}: {regex!r} is not a regular expression: {error}.") from None


def check_regexes(argument: str, values: Mapping[str, Any]) -> None:
    """Raises unless a mapping is not empty and all its keys are regular expressions."""
    if not values:
        raise ValueError(f"{argument}: an empty mapping names no leaf; give {{path regex: value}}.")
    for regex in values:
        check_regex(argument, regex)


def check_options(function: Callable[..., Any], given: Iterable[str]) -> None:
    """Raises if an option is unknown; the message names the function and the closest known option.

    Args:
      function: its signature, and the `TypedDict` of its `**options`, define the known options.
      given: the names of the options.
    """
    known: set[str] = set()
    for parameter in inspect.signature(function).parameters.values():
        unpacked = get_args(parameter.annotation) if parameter.kind is parameter.VAR_KEYWORD else ()
        known |= unpacked[0].__annotations__.keys() if unpacked else {parameter.name}
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(sorted(known))}."
            raise TypeError(f"{function.__name__}() has no option {name!r}; {hint}")


def traced(value: Any) -> bool:
    """Whether a value is traced: known only when the compiled program runs."""
    return isinstance(value, jax.core.Tracer)


def _is_number(value: Any) -> bool:
    real = jnp.issubdtype(_type(value), jnp.integer) or jnp.issubdtype(_type(value), jnp.floating)
    return bool(real) and not isinstance(value, bool)


def _type(value: Any) -> Any:
    """The type of a number or a traced or concrete scalar; object for anything else."""
    scalar = isinstance(value, int | float) or getattr(value, "shape", None) == ()
    return getattr(value, "dtype", type(value)) if scalar else object
