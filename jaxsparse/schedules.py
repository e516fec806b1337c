"""Schedules: when masks change, how sparse they are by then, and how many weights move.

A schedule is a function of the step count, a traced int32 scalar. Counts are compared as integers.
"""

from typing import Protocol, overload

import jax
import jax.numpy as jnp

from jaxsparse.checks import check_count, check_fraction
from jaxsparse.types import Array, Schedule

__all__ = ["constant", "cosine", "cubic", "linear", "once", "periodic"]


def periodic(
    every: int | Array, start: int | Array | None = None, stop: int | Array | None = None
) -> Schedule:
    """True at the counts `start, start + every, ...` below `stop`.

    Args:
      every: steps from one firing to the next, at least 1.
      start: the first count that fires, at least 0; defaults to `every`.
      stop: no count from here on fires; None means never stop.

    Raises:
      ValueError: a concrete argument out of its range.
      TypeError: an argument that is not an integer.

    Example:
      >>> import jax.numpy as jnp
      >>> [t for t in range(10) if periodic(2, start=3, stop=8)(jnp.int32(t))]
      [3, 5, 7]
    """
    start = every if start is None else start
    check_count("every", every, least=1)
    check_count("start", start)
    if stop is not None:
        check_count("stop", stop)
        traced = isinstance(stop, jax.core.Tracer) or isinstance(start, jax.core.Tracer)
        if not traced and stop <= start:
            raise ValueError(
                f"stop must be larger than start = {start}, got {stop}: no update would ever fire."
            )

    def fires(count: Array) -> Array:
        on = (count >= start) & ((count - start) % every == 0)
        return on if stop is None else on & (count < stop)

    return fires


def once(at: int | Array) -> Schedule:
    """True at the one count `at`.

    Example:
      >>> import jax.numpy as jnp
      >>> [t for t in range(5) if once(3)(jnp.int32(t))]
      [3]
    """
    check_count("at", at)
    return lambda count: count == at


class Ramp(Protocol):
    """A schedule that also takes Python ints, and then returns a Python float."""

    @overload
    def __call__(self, count: int, /) -> float: ...
    @overload
    def __call__(self, count: Array, /) -> Array: ...


def cubic(final: float, start: int, stop: int) -> Ramp:
    """Zhu & Gupta's cubic sparsity: `final * (1 - (1 - (t - start) / (stop - start))^3)`.

    Zero up to `start`, `final` from `stop` on. Also takes Python ints, and then returns an exact
    Python float.

    Args:
      final: the sparsity at `stop`, in [0, 1].
      start: the last count with sparsity 0.
      stop: the first count with sparsity `final`, larger than `start`.

    Raises:
      ValueError: an argument out of its range.

    References:
      Zhu & Gupta, "To prune, or not to prune" (2017), equation 1.

    Example:
      >>> [round(cubic(0.8, 0, 4)(t), 3) for t in range(6)]
      [0.0, 0.463, 0.7, 0.788, 0.8, 0.8]
    """
    check_fraction("final", final)
    check_count("start", start)
    check_count("stop", stop)
    if stop <= start:
        raise ValueError(f"stop must be larger than start = {start}, got {stop}.")

    @overload
    def at(count: int) -> float: ...
    @overload
    def at(count: Array) -> Array: ...
    def at(count: int | Array) -> float | Array:
        progress: float | Array
        if isinstance(count, int):
            progress = min(max((count - start) / (stop - start), 0.0), 1.0)
        else:
            progress = jnp.clip((count - start).astype(jnp.float32) / (stop - start), 0, 1)
        return final * (1 - (1 - progress) ** 3)

    return at


def constant(fraction: float) -> Schedule:
    """The same drop fraction at every count.

    Raises:
      ValueError: a fraction outside [0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> round(float(constant(0.3)(jnp.int32(7))), 3)
      0.3
    """
    check_fraction("fraction", fraction)
    return lambda count: jnp.asarray(fraction, jnp.float32)


def cosine(fraction: float, stop: int, final: float = 0.0) -> Schedule:
    """Cosine decay: `final + (fraction - final) / 2 * (1 + cos(pi * t / stop))`, `final` after it.

    Args:
      fraction: the drop fraction at count 0, in [0, 1].
      stop: the count at which `final` is reached.
      final: the drop fraction from there on, in [0, 1].

    References:
      Evci et al., "Rigging the Lottery" (2020), section 3; Dettmers & Zettlemoyer's code decays to
      0.005.

    Example:
      >>> import jax.numpy as jnp
      >>> [round(float(cosine(0.3, 100)(jnp.int32(t))), 3) for t in (0, 50, 100)]
      [0.3, 0.15, 0.0]
    """
    progress = _progress(fraction, stop, final)
    return lambda count: (
        jnp.float32(final)
        + jnp.float32(fraction - final) / 2 * (1 + jnp.cos(jnp.float32(jnp.pi) * progress(count)))
    )


def linear(fraction: float, stop: int, final: float = 0.0) -> Schedule:
    """Linear decay from `fraction` at count 0 to `final` at `stop` and after it.

    Example:
      >>> import jax.numpy as jnp
      >>> [round(float(linear(0.4, 100)(jnp.int32(t))), 3) for t in (0, 50, 100, 200)]
      [0.4, 0.2, 0.0, 0.0]
    """
    progress = _progress(fraction, stop, final)
    return lambda count: jnp.float32(fraction) + jnp.float32(final - fraction) * progress(count)


def as_schedule(fraction: float | Array | Schedule, argument: str = "drop_fraction") -> Schedule:
    """A float as a constant schedule; a schedule as it is.

    Raises:
      ValueError: a float outside [0, 1].
      TypeError: neither a number nor a function.
    """
    if callable(fraction):
        return fraction
    check_fraction(argument, fraction)
    return lambda count: jnp.asarray(fraction, jnp.float32)


def _progress(fraction: float, stop: int, final: float) -> Schedule:
    check_fraction("fraction", fraction)
    check_fraction("final", final)
    check_count("stop", stop, least=1)
    return lambda count: jnp.clip(jnp.asarray(count).astype(jnp.float32) / stop, 0, 1)
