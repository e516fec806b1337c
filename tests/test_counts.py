"""Fractions of counts, totals of many leaves and ratios of them, against Python's integers."""

import math
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxsparse
from jaxsparse import counts
from tests import reference

LARGEST = 2**31 - 1
many = settings(max_examples=300, deadline=None, database=None, derandomize=True)
sizes = st.integers(0, LARGEST) | st.integers(0, 300) | st.integers(2**24 - 3, 2**24 + 3)
fractions = st.floats(0, 1) | st.integers(0, 10**6).map(lambda k: k / 10**6)

share = jax.jit(lambda fraction: counts.share(fraction).numerator)


@jax.jit
def rounded(count, numerator, denominator):
    part = counts.Share(numerator, denominator)
    return counts.floor(count, part), counts.ceil(count, part), counts.nearest(count, part)


def exactly(count, part):
    """Down, up, and to the nearest."""
    product = part * count
    return math.floor(product), math.ceil(product), math.floor(product + Fraction(1, 2))


@many
@given(sizes, sizes, sizes)
def test_a_ratio_of_a_count(count, a, b):
    low, high = sorted((a, max(b, 1)))
    expected = exactly(count, Fraction(low, high))
    assert tuple(int(x) for x in rounded(*np.array([count, low, high], np.int32))) == expected
    part = counts.Share(low, high)
    assert (
        counts.floor(count, part),
        counts.ceil(count, part),
        counts.nearest(count, part),
    ) == expected


def test_a_ratio_of_many_counts_at_once():
    """Products up to 2^62, among them all that are nearly whole."""
    draw = np.random.default_rng(0)
    denominators = (2 ** draw.uniform(0, 31, 20_000)).astype(np.int64).clip(1, LARGEST)
    numerators = (denominators * draw.random(20_000)).astype(np.int64)
    numerators[::5], numerators[1::5] = denominators[::5], denominators[1::5] - 1
    sizes = (2 ** draw.uniform(0, 31, 20_000)).astype(np.int64).clip(0, LARGEST)
    sizes[::3] = sizes[::3] // denominators[::3] * denominators[::3]
    found = rounded(*(jnp.asarray(x, jnp.int32) for x in (sizes, numerators, denominators)))
    rows = zip(sizes.tolist(), numerators.tolist(), denominators.tolist(), strict=True)
    expected = [exactly(n, Fraction(a, b)) for n, a, b in rows]
    assert np.array_equal(np.stack(found, 1), expected)


def test_what_a_fraction_is_read_as():
    for whole in (10, 100, 1000, 10**4, 10**5, 10**6, 3, 6, 12, 64, 256):
        for part in {0, 1, whole // 3, whole // 2, whole - 1, whole}:
            assert Fraction(*counts.share(part / whole)) == Fraction(part, whole)
            assert Fraction(*counts.share(np.float32(part / whole))) == Fraction(part, whole)
    assert counts.share(jnp.bfloat16(0.5)).numerator * 2 == counts.PARTS
    assert [int(share(jnp.float32(x))) for x in (-1, 2, np.nan, np.inf)] == [0, 12_000_000] * 2


@many
@given(fractions)
def test_a_traced_fraction_is_the_same_fraction(fraction):
    found = counts.share(fraction).numerator
    assert type(found) is int and abs(found / counts.PARTS - fraction) <= 0.8 / counts.PARTS
    assert int(share(jnp.float32(fraction))) == found
    assert counts.share(jnp.float32(fraction)).numerator == found
    for few in (jnp.bfloat16, jnp.float16):
        value = jnp.asarray(fraction, few)
        assert int(share(value)) == counts.share(float(value)).numerator


def test_a_traced_fraction_with_64_bits():
    jax.config.update("jax_enable_x64", True)
    try:
        for fraction in (0.3, 0.1, 1 / 3, 0.123456789, 1 - 1e-9, 1e-12):
            value = jnp.asarray(fraction, jnp.float64)
            found = jax.jit(lambda f: counts.floor(jnp.int32(LARGEST), counts.share(f)))(value)
            assert value.dtype == jnp.float64 and found.dtype == jnp.int32
            assert int(found) == counts.floor(LARGEST, counts.share(fraction))
    finally:
        jax.config.update("jax_enable_x64", False)


def test_schedules_give_the_fractions_that_they_are_made_of():
    stop, steps = 1000, jnp.arange(1001, dtype=jnp.int32)
    cosine = jax.vmap(jaxsparse.schedules.cosine(0.3, stop, 0.005))(steps)
    linear = jax.vmap(jaxsparse.schedules.linear(0.3, stop, 0.1))(steps)
    constant = jaxsparse.schedules.constant(0.3)(steps[0])
    ends = [cosine[0], cosine[-1], linear[0], linear[-1], constant]
    read = [Fraction(int(share(value)), counts.PARTS) for value in ends]
    assert read == [Fraction(3, 10), Fraction(5, 1000), Fraction(3, 10), Fraction(1, 10), read[0]]
    for a in range(10, 400, 10):
        part = counts.share(constant)
        assert counts.ceil(jnp.int32(a), part) == counts.floor(jnp.int32(a), part) == a * 3 // 10


target_count = jax.jit(jaxsparse.target_count, static_argnums=0)


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(st.sampled_from([1, 5, 50, 235_200, 2**24 + 1, LARGEST]), st.floats(0, 1, exclude_max=True))
def test_target_count_is_the_same_for_a_traced_sparsity(size, sparsity):
    found = target_count(size, jnp.float32(sparsity))
    assert found.dtype == jnp.int32 and int(found) == jaxsparse.target_count(size, sparsity)


def test_target_count_is_what_it_was_but_for_halves_that_floats_miss():
    """`5 * (1 - 0.9)` is a half, which rounds up; in floats it is a little less."""
    missed = 0
    values = [k / 100 for k in range(100)] + [0.995, 0.998, 0.999, 0.9995, 0.125, 0.9375]
    for size in [*range(60), 144, 4_608, 25_088, 235_200, 2_359_296, 25_502_912, LARGEST]:
        for sparsity in values:
            found, before = jaxsparse.target_count(size, sparsity), size * (1 - sparsity) + 0.5
            assert found == reference.target_count(size, sparsity)
            if found != math.floor(before):
                half = size * (1 - Fraction(str(sparsity))) % 1
                assert half == Fraction(1, 2) and found == math.floor(before) + 1
                missed += 1
    assert missed < 200
    assert (jaxsparse.target_count(5, 0.9), jaxsparse.target_count(2**36 + 5, 0.9)) == (
        1,
        2**36 // 10 + 1,
    )


def test_a_traced_sparsity_of_more_weights_than_it_can_count():
    with pytest.raises(ValueError, match=r"2,147,483,647 weights, got 4,294,967,296; .*float"):
        jax.jit(lambda s: jaxsparse.target_count(2**32, s))(0.5)


def test_sparse_momentum_drops_as_many_as_are_meant():
    """`ceil(0.3 * 50)` is 15; what grows elsewhere shows it."""
    params = {"kernel": jnp.arange(1, 101, dtype=jnp.float32).reshape(10, 10)}
    tx = jaxsparse.sparse_momentum(
        optax.sgd(0.0), 0.5, key=0, every=1, start=0, drop_fraction=0.3, min_alive=0
    )
    _, state = jaxsparse.init(tx, params)
    grads = {"kernel": jnp.where(state.masks["kernel"], 0.0, 1.0)}
    _, state = jax.jit(tx.update)(grads, state, params)
    assert float(state.churn) == np.float32(0.3)


totals = st.lists(st.integers(0, LARGEST), min_size=1, max_size=40)
added = jax.jit(lambda a, b: counts.add_up(a), static_argnums=1)


def integer(total):
    return int(total.high) * 2**32 + int(total.low)


@settings(max_examples=100, deadline=None, database=None, derandomize=True)
@given(totals, st.integers(0, 2**41))
def test_totals(numbers, other):
    padded = np.zeros(40, np.int32)
    padded[: len(numbers)] = numbers
    a, b, exact = added(padded, None), counts.add_up(other), sum(numbers)
    assert integer(a) == exact and integer(b) == other
    assert integer(counts.smaller(a, b)) == min(exact, other)
    difference = counts.subtract(a, b)
    assert integer(difference) == (exact - other) % 2**64
    assert bool(counts.negative(difference)) == (exact < other)
    assert int(counts.clipped(difference)) == min(max(exact - other, 0), LARGEST)
    assert float(counts.as_float(difference)) == pytest.approx(exact - other, rel=2**-23)
    if exact <= other:
        assert 0 <= float(counts.ratio(padded, other)) <= 1
        assert float(counts.ratio(padded, other)) == pytest.approx(exact / max(other, 1), 2**-22)


def test_totals_of_arrays_lists_and_wide_integers():
    assert integer(counts.add_up([jnp.int32(LARGEST)] * 5)) == 5 * LARGEST
    assert integer(counts.add_up([])) == 0
    assert integer(counts.add_up(jnp.full((3, 7), LARGEST))) == 21 * LARGEST
    batched = jax.vmap(counts.add_up)(jnp.full((2, 9), LARGEST))
    assert batched.low.shape == (2,)
    assert integer(jax.tree.map(lambda x: x[1], batched)) == 9 * LARGEST
    jax.config.update("jax_enable_x64", True)
    try:
        assert integer(counts.add_up(jnp.array([2**40, 3]))) == 2**40 + 3
    finally:
        jax.config.update("jax_enable_x64", False)


def test_ratios_are_rounded_once():
    """Compiled, 41 / 41 is a little below 1, if the compiler knows the 41."""
    for n in (41, 82, 55, 2**24 + 1, 2**40 - 1):
        parts = [n] if n < 2**31 else [LARGEST] * (n // LARGEST) + [n % LARGEST]
        found = jax.jit(lambda parts, n=n: counts.ratio(parts, n))(jnp.array(parts, jnp.int32))
        assert float(found) == 1.0
    half = jax.jit(lambda part: counts.ratio(part, 82))(jnp.int32(41))
    assert float(half) == 0.5
    assert float(counts.ratio(0, 0)) == 0.0 and float(counts.ratio(0, 0, empty=1.0)) == 1.0


def everywhere(path, leaf):
    return True


def test_densities_stay_in_their_range():
    """One large leaf and many small ones, which float32 cannot add to it one by one."""
    large = jnp.ones((2**12, 2**12), bool)
    masks = {"large": large} | {f"small{i}": jnp.ones((1, 3), bool) for i in range(60)}
    none = jax.tree.map(jnp.zeros_like, masks)
    density, sparsity = (
        jax.jit(lambda masks, f=f: f(masks, everywhere))
        for f in (jaxsparse.density, jaxsparse.sparsity)
    )
    for tree, dense in ((masks, 1.0), (none, 0.0)):
        assert (float(density(tree)), float(sparsity(tree))) == (dense, 1 - dense)
    odd = masks | {"large": large.at[0, 0].set(False)}
    expected = np.float32((2**24 + 179) / (2**24 + 180))
    assert float(density(odd)) == pytest.approx(expected, abs=2**-23)
    assert float(jax.jit(jaxsparse.overlap)(odd, odd)) == 1.0
    found = jaxsparse.lottery.layer_densities(
        {"kernel": jnp.ones((1, 41), bool)}, prunable=everywhere
    )
    assert float(found["kernel"]) == 1.0


def test_the_log_says_that_all_weights_live():
    params = {f"kernel{i}": jnp.ones((2, 41)) for i in range(3)}
    tx = jaxsparse.gradual(optax.sgd(0.1), 0.9, start=5, stop=10)
    state = tx.init(params)
    assert float(jax.jit(lambda state: jaxsparse.metrics(state)["density"])(state)) == 1.0


def test_a_net_without_a_sparse_layer_counts_nothing():
    params = {"kernel": jnp.ones((4, 3))}
    for tx in (
        jaxsparse.rigl(optax.sgd(0.1), 0.0, key=0, every=1, start=0),
        jaxsparse.sparse_evolution(optax.sgd(0.1), 0.0, key=0, every=1, start=0, drop_by="sign"),
    ):
        _, state = tx.update(params, tx.init(params), params)
        assert state.masks["kernel"].all() and float(state.churn) == 0.0


def test_gradual_takes_a_traced_sparsity():
    """As under `optax.inject_hyperparams`: the same counts at every moment of the ramp."""
    params = {"kernel": jax.random.normal(jax.random.key(0), (99, 101))}

    def alive(sparsity):
        tx = jaxsparse.gradual(optax.sgd(0.1), sparsity, start=0, stop=9, every=1)

        def step(state, _):
            _, state = tx.update(params, state, params)
            return state, jnp.sum(state.masks["kernel"], dtype=jnp.int32)

        return jax.lax.scan(step, tx.init(params), length=10)[1]

    assert jax.jit(alive)(jnp.float32(0.83)).tolist() == jax.jit(partial(alive, 0.83))().tolist()
