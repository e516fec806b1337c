"""From arrays on the device to batches inside the compiled step: order and augmentation."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

Array = jax.Array


@functools.partial(jax.jit, static_argnums=(1, 2))
def batch_indices(key: Array, n: int, batch_size: int) -> Array:
    """One epoch in a new order: row t holds the examples of step t.

    The `n % batch_size` examples at the end of the order are not used in this epoch.

    Args:
      key: random key of the epoch.
      n: number of examples.
      batch_size: examples per step, in [1, n].

    Returns:
      int32 `(n // batch_size, batch_size)`, all entries distinct.

    Raises:
      ValueError: `batch_size` is outside [1, n].

    >>> batch_indices(jax.random.key(0), 10, 3).shape
    (3, 3)
    """
    if not 1 <= batch_size <= n:
        raise ValueError(f"batch_size is {batch_size}; it must be in [1, {n}] for {n} examples")
    steps = n // batch_size
    order = jax.random.permutation(key, n).astype(jnp.int32)
    return order[: steps * batch_size].reshape(steps, batch_size)


def augment(
    key: Array, images: Array, pad: int = 4, mode: Literal["reflect", "constant"] = "reflect"
) -> Array:
    """Pads each image, crops it back to its size at a random place, and mirrors it half the time.

    Args:
      key: random key of the batch.
      images: `(batch, height, width, channels)`, any data type.
      pad: pixels on each side, in [0, min(height, width) - 1].
      mode: how to pad: "reflect" with the mirrored image, or "constant" with zeros.

    Returns:
      An array of the shape and data type of `images`.

    Raises:
      ValueError: `pad` or `mode` is out of range.
    """
    batch, height, width, _ = images.shape
    if not 0 <= pad < min(height, width):
        raise ValueError(f"pad is {pad}; it must be in [0, {min(height, width) - 1}]")
    if mode not in ("reflect", "constant"):
        raise ValueError(f"mode is {mode!r}; it must be 'reflect' or 'constant'")
    shift_key, flip_key = jax.random.split(key)
    shift = jax.random.randint(shift_key, (2, batch, 1), -pad, pad + 1)
    flip = jax.random.bernoulli(flip_key, shape=(batch, 1))
    rows = shift[0] + jnp.arange(height)
    columns = shift[1] + jnp.arange(width)
    columns = jnp.where(flip, columns[:, ::-1], columns)
    # One gather over source pixels: a slice per image costs ten times as much inside a scan.
    across = (_reflect(rows, height)[:, :, None], _reflect(columns, width)[:, None, :])
    moved = images[jnp.arange(batch)[:, None, None], *across]
    if mode == "reflect":
        return moved
    inside_rows = (rows >= 0) & (rows < height)
    inside_columns = (columns >= 0) & (columns < width)
    inside = inside_rows[:, :, None, None] & inside_columns[:, None, :, None]
    return jnp.where(inside, moved, jnp.zeros((), images.dtype))


def _reflect(place: Array, size: int) -> Array:
    place = jnp.abs(place)
    return jnp.where(place >= size, 2 * (size - 1) - place, place)
