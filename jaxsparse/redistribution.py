"""Splitting a number of new weights over layers, exactly, in integers."""

import jax.numpy as jnp
from jax import lax

from jaxsparse.selection import top_k_mask
from jaxsparse.types import Array


def redistribute(total: Array, shares: Array, room: Array, cap: Array | None = None) -> Array:
    """Splits `total` new weights over layers in proportion to `shares`, exactly, in integers.

    Real quotas `share * total` are cut at `cap`; what exceeds it is spread evenly over all layers,
    again and again until less than one weight exceeds. The quotas are then rounded down, and what
    is left goes, one by one, to the largest remainders that have room.

    Args:
      total: int32 scalar; more than the sum of `room` fills every layer.
      shares: float32 of shape (layers,), not negative; all zero or not finite means even shares.
      room: int32 of shape (layers,): free places, never exceeded.
      cap: float32 of shape (layers,), at most `room`; defaults to it.

    Returns:
      int32 of shape (layers,), with the sum `total`.

    References:
      Dettmers & Zettlemoyer, "Sparse Networks from Scratch" (2019), section 3.

    Differs from the paper:
      The published code conserves the total in expectation only, by correcting later updates.

    Example:
      >>> import jax.numpy as jnp
      >>> room = jnp.array([10, 3, 10])
      >>> redistribute(jnp.int32(12), jnp.array([0.25, 0.5, 0.25]), room).tolist()
      [5, 3, 4]
    """
    layers = shares.shape[0]
    room = room.astype(jnp.int32)
    total = jnp.minimum(jnp.asarray(total, jnp.int32), _total(room))
    cap = room.astype(jnp.float32) if cap is None else cap
    usable = jnp.all(jnp.isfinite(shares)) & (jnp.sum(shares) > 0)
    shares = jnp.where(usable, shares / jnp.sum(shares), jnp.float32(1 / layers))

    def spread(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        quotas, _, turn = carry
        excess = jnp.sum(jnp.maximum(quotas - cap, 0))
        return jnp.minimum(quotas, cap) + excess / layers, excess, turn + 1

    def unfinished(carry: tuple[Array, Array, Array]) -> Array:
        return (carry[1] >= 1) & (carry[2] < 1000)

    start = (shares * total.astype(jnp.float32), jnp.float32(jnp.inf), jnp.int32(0))
    quotas, _, _ = lax.while_loop(unfinished, spread, start)
    counts = jnp.clip(jnp.floor(quotas).astype(jnp.int32), 0, room)
    return _settle(counts, quotas, room, total)


def _total(counts: Array) -> Array:
    return jnp.sum(counts, dtype=jnp.int32)


def _settle(counts: Array, quotas: Array, room: Array, total: Array) -> Array:
    """Adds or takes single weights until the sum is `total`, at the layers furthest off quota."""

    def settle(counts: Array) -> Array:
        left = total - _total(counts)
        able = jnp.where(left > 0, counts < room, counts > 0)
        each = jnp.abs(left) // jnp.maximum(_total(able), 1)
        owed = (quotas - counts.astype(jnp.float32)) * jnp.sign(left).astype(jnp.float32)
        first = top_k_mask(owed, jnp.abs(left), axis=0, where=able).astype(jnp.int32)
        moved = jnp.where(able, jnp.where(each > 0, each, first), 0)
        return jnp.clip(counts + jnp.sign(left) * moved, 0, room)

    return lax.while_loop(lambda counts: _total(counts) != total, settle, counts)
