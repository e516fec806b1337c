"""Splitting a number of new weights over layers, exactly, in integers."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsparse import counts
from jaxsparse.checks import check_array, traced
from jaxsparse.meshes import varying_like
from jaxsparse.selection import top_k_mask
from jaxsparse.types import Array


def redistribute(total: int | Array, shares: Array, room: Array, cap: Array | None = None) -> Array:
    """Splits `total` new weights over layers in proportion to `shares`, exactly, in integers.

    Real quotas `share * total` are limited to `cap`; the excess is spread evenly over all layers,
    repeatedly, until it is less than one weight. The quotas are then rounded down, and the
    remaining weights go, one by one, to the layers with the largest remainders that have room.

    Args:
      total: an int, or an integer array of any shape, which is summed, such as the number of
        weights that every layer has lost; the sum may exceed 2^31. If it exceeds the sum of `room`,
        every layer is filled. Traced numbers below 0 count as 0.
      shares: float32 of shape (layers,), not negative; if all are zero or one is not finite, the
        shares are even.
      room: int32 of shape (layers,): free places, never exceeded.
      cap: float32 of shape (layers,), at most `room`; defaults to it.

    Returns:
      int32 of shape (layers,), whose sum is exactly the smaller of `total` and the sum of `room`,
      however float32 rounds the quotas.

    Raises:
      ValueError: a total or a room below 0, or `shares` and `room` of different shapes.
      TypeError: arguments of another type.

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
    shares, room = check_array("shares", shares), check_array("room", room, jnp.integer)
    if shares.ndim != 1 or room.shape != shares.shape:
        raise ValueError(
            f"shares and room must be vectors of one length, got {shares.shape} and {room.shape}."
        )
    if not traced(room) and np.any(np.asarray(room) < 0):
        raise ValueError(f"room must be at least 0, got {room}.")
    layers = shares.shape[0]
    room = room.astype(jnp.int32)
    goal = counts.smaller(_checked(total), counts.add_up(room))
    cap = room.astype(jnp.float32) if cap is None else cap
    usable = jnp.all(jnp.isfinite(shares)) & (jnp.sum(shares) > 0)
    shares = jnp.where(usable, shares / jnp.sum(shares), jnp.float32(1 / layers))

    def spread(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        quotas, _, turn = carry
        excess = jnp.sum(jnp.maximum(quotas - cap, 0))
        return jnp.minimum(quotas, cap) + excess / layers, excess, turn + 1

    def unfinished(carry: tuple[Array, Array, Array]) -> Array:
        return (carry[1] >= 1) & (carry[2] < 1000)

    start = (shares * counts.as_float(goal), jnp.float32(jnp.inf), jnp.int32(0))
    start = varying_like(start, shares, goal, cap)
    quotas, _, _ = lax.while_loop(unfinished, spread, start)
    below = jnp.clip(jnp.floor(quotas).astype(jnp.int32), 0, room)
    return _settle(jnp.where(quotas < room.astype(jnp.float32), below, room), quotas, room, goal)


def _checked(total: int | Array) -> counts.Total:
    """The total in two words."""
    if not isinstance(total, int) or isinstance(total, bool):
        total = check_array("total", total, jnp.integer)
    if not traced(total) and np.any(np.asarray(total) < 0):
        raise ValueError(f"total must be at least 0, got {total}.")
    if not isinstance(total, jax.Array):
        return counts.add_up(int(np.sum(total)))
    return counts.add_up(jnp.maximum(total, 0))


def _settle(numbers: Array, quotas: Array, room: Array, total: counts.Total) -> Array:
    """Adds or removes weights at the layers furthest off quota, until the sum is `total`."""

    def left(numbers: Array) -> tuple[Array, Array]:
        """How many weights are missing, and how many are too many."""
        found = counts.add_up(numbers)
        missing, extra = counts.subtract(total, found), counts.subtract(found, total)
        return counts.clipped(missing), counts.clipped(extra)

    def settle(numbers: Array) -> Array:
        missing, extra = left(numbers)
        sign, amount = jnp.where(missing > 0, 1, -1).astype(jnp.int32), missing + extra
        able = jnp.where(missing > 0, room - numbers, numbers)  # no sum here, it might overflow
        each = amount // jnp.maximum(jnp.sum(able > 0, dtype=jnp.int32), 1)
        owed = (quotas - numbers.astype(jnp.float32)) * sign.astype(jnp.float32)
        first = top_k_mask(owed, amount, axis=0, where=able > 0).astype(jnp.int32)
        return numbers + sign * jnp.minimum(jnp.where(each > 0, each, first), able)

    return lax.while_loop(lambda numbers: sum(left(numbers)) > 0, settle, numbers)
