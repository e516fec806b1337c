"""Schedules against loops over the counts, as Python ints and traced."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse
from tests import reference

COUNTS = np.arange(60, dtype=np.int32)


def values(schedule):
    return np.asarray(jax.jit(jax.vmap(schedule))(COUNTS))


@pytest.mark.parametrize(
    ("every", "start", "stop"),
    [(1, None, None), (7, None, None), (7, 0, None), (5, 3, 40), (5, 50, 55), (10, 10, 30)],
)
def test_periodic(every, start, stop):
    end = 60 if stop is None else stop
    expected = set(range(every if start is None else start, end, every))
    assert set(np.flatnonzero(values(jaxsparse.schedules.periodic(every, start, stop)))) == expected


def test_once():
    assert np.flatnonzero(values(jaxsparse.schedules.once(17))).tolist() == [17]


def test_periodic_takes_traced_settings():
    def fires(every, stop):
        return jax.vmap(jaxsparse.schedules.periodic(every, start=2, stop=stop))(COUNTS)

    found = jax.jit(fires)(jnp.int32(4), jnp.int32(20))
    assert np.flatnonzero(found).tolist() == [2, 6, 10, 14, 18]


@pytest.mark.parametrize(("final", "start", "stop"), [(0.9, 5, 45), (0.98, 0, 1), (1.0, 10, 59)])
def test_cubic(final, start, stop):
    schedule = jaxsparse.schedules.cubic(final, start, stop)
    expected = [reference.cubic(final, start, stop, t) for t in COUNTS.tolist()]
    assert [schedule(t) for t in COUNTS.tolist()] == expected
    assert np.allclose(values(schedule), expected, rtol=0, atol=1e-6)
    assert schedule(start) == 0.0 and schedule(stop) == schedule(stop + 1000) == final
    assert values(schedule)[stop] == np.float32(final)


def test_cubic_of_a_python_int_is_exact():
    """Counts of living weights are made from it, so float64 rounding is all that may differ."""
    for t in range(0, 75_001, 2_500):
        rest = 1 - Fraction(t, 75_000)
        exact = Fraction(0.95) * (1 - rest**3)
        assert abs(Fraction(jaxsparse.schedules.cubic(0.95, 0, 75_000)(t)) - exact) < Fraction(
            1, 10**15
        )


def test_drop_fractions():
    t = np.minimum(COUNTS / 40, 1)
    cosine = 0.005 + (0.3 - 0.005) / 2 * (1 + np.cos(math.pi * t))
    assert np.allclose(values(jaxsparse.schedules.cosine(0.3, 40, final=0.005)), cosine, atol=1e-7)
    linear = 0.5 + (0.1 - 0.5) * t
    assert np.allclose(values(jaxsparse.schedules.linear(0.5, 40, final=0.1)), linear, atol=1e-7)
    assert set(values(jaxsparse.schedules.constant(0.25))) == {np.float32(0.25)}
    for schedule in (jaxsparse.schedules.cosine(0.3, 40), jaxsparse.schedules.linear(0.3, 40)):
        found = values(schedule)
        assert found.dtype == np.float32 and (np.diff(found) <= 0).all()
        assert found[0] == np.float32(0.3) and (found[40:] == 0).all()
