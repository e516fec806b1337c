"""Living values of an array of any shape by flat places: for optimizer state, without products."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse.sparse import _layout
from jaxsparse.sparse._bits import Bits
from jaxsparse.types import Array, Params


@_layout.register_places("indices")
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FlatPlaces(_layout.Places):
    """Where the living weights of one array are.

    Attributes:
      indices: int32 `(capacity,)`, ascending; those after the last living one are out of range.
      shape: of the array.
      fixed: whether they belong to the structure of a tree.
    """

    indices: Array
    shape: tuple[int, ...]
    fixed: bool = False

    @property
    def mask(self) -> Array:
        """Boolean, of the array's shape: where weights live."""
        return Flat(jnp.ones(self.indices.shape, bool), self).to_dense()


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["values", "places"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class Flat(_layout.Compressed):
    """An array as its living values, in their order in the array.

    Attributes:
      values: `(capacity,)`.
      places: where the values are.
    """

    values: Array
    places: FlatPlaces

    @classmethod
    def from_dense(cls, values: Array, mask: Array, *, capacity: int) -> "Flat":
        """The living values of an array, with room for `capacity` of them."""
        places = FlatPlaces(_indices(mask, capacity), values.shape)
        return cls(cls(values, places).gather(values), places)

    def spread(self, values: Array) -> Array:
        """An array with one value in the place of each living one, and zeros elsewhere."""
        return self.put(jnp.zeros(self.shape, values.dtype), values)

    def put(self, dense: Array, values: Array) -> Array:
        """The array with these values in the living places."""
        at = dense.reshape(-1).at[self.places.indices]
        new = at.set(values, indices_are_sorted=True, unique_indices=True, mode="drop")
        return new.reshape(self.shape)

    def gather(self, dense: Array) -> Array:
        """The values of an array at the places, and zeros where no weight lives."""
        at = dense.reshape(-1).at[self.places.indices]
        nothing = False if dense.dtype == jnp.bool_ else 0
        return at.get(indices_are_sorted=True, unique_indices=True, mode="fill", fill_value=nothing)

    def moved(self, dense: Array, mask: Array) -> "Flat":
        """An array's living values with the same capacity, at free places."""
        return self.from_dense(dense, mask, capacity=len(self.values))


@dataclasses.dataclass(frozen=True)
class Patch:
    """New values of an array, to be written over the old ones in place. It is not a pytree,
    because nothing may come between the step that makes it and `apply_updates`.

    Attributes:
      living: what lives from now on.
      died: where weights have to become zero; None if no weight ever dies.
    """

    living: Flat
    died: FlatPlaces | None

    def applied(self, dense: Array) -> Array:
        """The array with the new values."""
        # Dead places are written second: they depend on nothing, and if they were written first,
        # XLA would copy the array.
        new = self.living.put(dense, self.living.values.astype(dense.dtype))
        if self.died is None:
            return new
        at = new.reshape(-1).at[self.died.indices]
        nothing = jnp.zeros((), dense.dtype)
        return at.set(nothing, unique_indices=True, mode="drop").reshape(dense.shape)


def died(old: FlatPlaces, new: FlatPlaces) -> FlatPlaces:
    """The places that no longer hold a weight, in any order; the others are out of range."""
    alive = new.mask.reshape(-1).at[old.indices].get(mode="fill", fill_value=True)
    return dataclasses.replace(old, indices=jnp.where(alive, nowhere(old).indices, old.indices))


def nowhere(places: FlatPlaces) -> FlatPlaces:
    """As many places as these, all out of range."""
    size = math.prod(places.shape)
    return dataclasses.replace(
        places, indices=size + jnp.arange(len(places.indices), dtype=jnp.int32)
    )


@functools.partial(jax.jit, static_argnums=1)
def _indices(mask: Array, capacity: int) -> Array:
    found, entries = Bits.of(mask).places(capacity), jnp.arange(capacity, dtype=jnp.int32)
    # Indices out of range differ too, so that all are known to be unique.
    return jnp.where(found < mask.size, found, mask.size + entries)


def is_place(node: Any) -> bool:
    """Whether this is the places of an array; the `is_leaf` of what a state keeps as masks."""
    return isinstance(node, FlatPlaces)


def at_places(masks: Any, params: Params) -> Params:
    """The parameters with their living values where a tree of masks has places."""

    def leaf(place: Any, p: Any) -> Any:
        return Flat(Flat(p, place).gather(p), place) if is_place(place) else p

    return jax.tree.map(leaf, masks, params, is_leaf=is_place)
