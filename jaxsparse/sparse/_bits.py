"""Where the living weights of a mask are, found without a running sum over all its elements."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.types import Array

WORD = 32


class Bits(NamedTuple):
    """A flat mask as words of bits, with the number of living weights before each word.

    Attributes:
      words: uint32 `(ceil(size / 32),)`, the first place in the lowest bit.
      before: int32, of the same shape.
      alive: int32, how many live.
      size: of the mask.
    """

    words: Array
    before: Array
    alive: Array
    size: int

    @classmethod
    def of(cls, mask: Array) -> "Bits":
        """The bits of a mask, in the order of its elements."""
        flat = mask.reshape(-1)
        padded = jnp.pad(flat, (0, -flat.size % WORD)).reshape(-1, WORD)
        ones = jnp.left_shift(jnp.uint32(1), jnp.arange(WORD, dtype=jnp.uint32))
        words = jnp.sum(jnp.where(padded, ones, jnp.uint32(0)), 1, dtype=jnp.uint32)
        counts = jax.lax.population_count(words).astype(jnp.int32)
        ends = jnp.cumsum(counts, dtype=jnp.int32)
        return cls(words, ends - counts, jnp.sum(counts, dtype=jnp.int32), flat.size)

    def places(self, capacity: int) -> Array:
        """The places of living weights, ascending, int32 `(capacity,)`, filled up with `size`."""
        entries = jnp.arange(capacity, dtype=jnp.int32)
        filled = self.words != 0
        start = jnp.where(filled, self.before, capacity)
        numbers = jnp.arange(self.words.size, dtype=jnp.int32)
        # Every word marks where its weights begin; the entries after that belong to it too.
        firsts = jnp.zeros(capacity, jnp.int32).at[start].set(numbers, mode="drop")
        word = jax.lax.cummax(firsts)
        left = entries - self.before[word]
        bits, place = self.words[word], jnp.zeros(capacity, jnp.uint32)
        for width in (16, 8, 4, 2, 1):  # which half of the bits holds the one sought
            low = jnp.right_shift(bits, place) & jnp.uint32((1 << width) - 1)
            inside = jax.lax.population_count(low).astype(jnp.int32)
            above = left >= inside
            left = jnp.where(above, left - inside, left)
            place = jnp.where(above, place + jnp.uint32(width), place)
        found = word * WORD + place.astype(jnp.int32)
        return jnp.where(entries < self.alive, found, self.size)

    def rank(self, places: Array) -> Array:
        """How many weights live before each of these places."""
        word = jnp.minimum(places // WORD, self.words.size - 1)
        below = jnp.left_shift(jnp.uint32(1), (places % WORD).astype(jnp.uint32)) - jnp.uint32(1)
        return self.before[word] + jax.lax.population_count(self.words[word] & below).astype(
            jnp.int32
        )
