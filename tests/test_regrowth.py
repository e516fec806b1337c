"""Drop, grow and redistribute against loops written from the published rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxsparse
from tests import reference

SHAPES = {"a": (8, 12), "b": (12, 5)}
LAYERS = 4


def random_moves(seed):
    """Masks, and two trees of scores with ties; a bias that stays as it is."""
    draw = np.random.default_rng(seed)
    masks = {name: draw.random(shape) < 0.4 for name, shape in SHAPES.items()}
    scores = [
        {name: draw.integers(0, 9, shape).astype(np.float32) for name, shape in SHAPES.items()}
        for _ in range(2)
    ]
    return masks, *scores


def net(tree, bias):
    return {n: {"kernel": jnp.asarray(x), "bias": jnp.asarray(bias)} for n, x in tree.items()}


def test_drop_and_grow():
    """With a traced fraction; the bias stays as it is."""
    masks, drop, grow = random_moves(0)
    move = jax.jit(jaxsparse.drop_and_grow)
    trees = net(masks, np.ones(3, bool)), net(drop, np.ones(3)), net(grow, np.ones(3))
    for fraction in (0.0, 0.3, 0.5, 1.0):
        found = move(*trees, jnp.float32(fraction))
        for name in SHAPES:
            expected = reference.drop_and_grow(masks[name], drop[name], grow[name], fraction)
            assert np.array_equal(found[name]["kernel"], expected)
            assert found[name]["bias"].all()
            assert int(expected.sum()) == int(masks[name].sum())
            if fraction == 0:
                assert np.array_equal(expected, masks[name])


def test_nothing_to_drop_and_nowhere_to_grow():
    """Empty, full and nearly full layers keep their counts; no move is lost."""
    _, drop, grow = random_moves(1)
    for fill in (0, 1, 95, 96):
        mask = (np.arange(96) < fill).reshape(8, 12)
        masks = {"a": mask, "b": np.ones((12, 5), bool)}
        trees = (net(x, np.ones(3, bool)) for x in (masks, drop, grow))
        found = jaxsparse.drop_and_grow(*trees, 0.3)
        expected = reference.drop_and_grow(mask, drop["a"], grow["a"], 0.3)
        assert np.array_equal(found["a"]["kernel"], expected)
        assert found["b"]["kernel"].all()


def test_constant_fan_in_moves_over_the_whole_layer_and_refills_each_unit():
    """SRigL: the worst weights of the layer go; every unit grows back to its own fan-in."""
    draw = np.random.default_rng(2)
    drop, grow = (draw.permutation(96).reshape(8, 12).astype(np.float32) for _ in range(2))
    mask = reference.top_k_mask_along(draw.random((8, 12)), 3, 0)
    kept = reference.top_k_mask(drop, 36 - 18, mask)
    expected = kept | reference.top_k_mask_along(grow, 3 - kept.sum(0), 0, ~kept)
    trees = [{"kernel": jnp.asarray(x)} for x in (mask, drop, grow)]
    found = jaxsparse.drop_and_grow(*trees, 0.5, pattern=jaxsparse.fan_in)["kernel"]
    assert np.array_equal(found, expected)
    assert np.asarray(found).sum(0).tolist() == [3] * 12


split = jax.jit(jaxsparse.redistribute)


@pytest.mark.parametrize("capped", [False, True])
def test_redistribute_follows_the_rule_where_arithmetic_is_exact(capped):
    """Dyadic shares over four layers: every quota is exact, and counts agree to the weight."""
    draw = np.random.default_rng(3)
    cases = [((5, 0, 0, 0), (16, 0, 0, 0)), ((0, 0, 0, 7), (8, 8, 0, 0)), ((0,) * 4, (4,) * 4)]
    cases += [
        (draw.integers(0, 40, LAYERS), draw.multinomial(16, draw.dirichlet([0.5] * LAYERS)))
        for _ in range(60)
    ]
    for room, parts in cases:
        room, shares = np.array(room, np.int32), np.array(parts, np.float32) / 16
        cap = room * np.float32(0.75) if capped else None
        for total in {0, 1, int(room.sum() * 0.7), int(room.sum()), int(room.sum()) + 5}:
            found = split(np.int32(total), shares, room, cap)
            expected = reference.redistribute(
                total, shares.tolist(), room.tolist(), None if cap is None else cap.tolist()
            )
            # Under a cap quotas are halved and halved again, until float32 rounds them.
            assert np.abs(found - np.array(expected)).max() <= capped, (total, room, shares)
            assert int(found.sum()) == sum(expected)


@settings(max_examples=150, deadline=None, database=None, derandomize=True)
@given(
    st.lists(st.floats(0, 1e6, width=32), min_size=LAYERS, max_size=LAYERS),
    st.lists(st.integers(0, 10**8), min_size=LAYERS, max_size=LAYERS),
    st.integers(0, 4 * 10**8),
)
def test_redistribute_conserves_fits_and_is_proportional(shares, room, total):
    found = np.asarray(split(np.int32(total), np.float32(shares), np.int32(room), None))
    total = min(total, sum(room))
    assert found.dtype == np.int32 and found.sum() == total
    assert (found >= 0).all() and (found <= room).all()
    weights = np.array(shares, np.float64)
    quotas = total * (weights / weights.sum() if weights.sum() > 0 else np.full(LAYERS, 0.25))
    rounding = 1.01 + 1e-6 * total  # a whole weight, and what float32 knows of a quota
    if (quotas <= room).all():
        assert (np.abs(found - quotas) <= rounding).all()
    overfull = quotas > np.array(room) + rounding
    assert (found >= np.array(room) - rounding)[overfull].all()


@pytest.mark.parametrize("shares", [[0.0] * 4, [np.nan, 1, 1, 1], [np.inf, 1, 1, 1]], ids=str)
def test_shares_that_say_nothing_are_even(shares):
    room = np.full(4, 10, np.int32)
    assert split(np.int32(8), np.float32(shares), room, None).tolist() == [2, 2, 2, 2]


def test_redistribute_under_vmap_and_with_64_bits():
    room, shares = np.full((3, 4), 9, np.int32), np.full((3, 4), 0.25, np.float32)
    totals = np.array([4, 7, 40], np.int32)
    mapped = jax.vmap(jaxsparse.redistribute)(totals, shares, room)
    assert mapped.sum(1).tolist() == [4, 7, 36]
    jax.config.update("jax_enable_x64", True)
    try:
        wide = jaxsparse.redistribute(jnp.int32(7), jnp.asarray(shares[0]), jnp.asarray(room[0]))
    finally:
        jax.config.update("jax_enable_x64", False)
    assert wide.dtype == jnp.int32 and wide.tolist() == mapped[1].tolist()
