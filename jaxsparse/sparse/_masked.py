"""Masked: a dense kernel with its mask, for cases in which a dense product is faster."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxsparse.sparse import _layout
from jaxsparse.sparse._windows import Window
from jaxsparse.types import Array, Axes, AxesSpec


@_layout.register_places("alive")
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class MaskedPlaces(_layout.Places):
    """Which weights of one kernel live.

    Attributes:
      alive: boolean `(inputs, outputs)`.
      shape: of the dense kernel.
      axes: what its axes mean.
      fixed: whether they belong to the structure of a tree.
    """

    alive: Array
    shape: tuple[int, ...]
    axes: Axes
    fixed: bool = False

    @classmethod
    def room_of_layer(cls, alive: Array, layer: _layout.Layer) -> Array:
        return jnp.full(1, alive.size, jnp.int32)

    @classmethod
    def of_layer(cls, alive: Array, room: tuple[int, ...], layer: _layout.Layer) -> "MaskedPlaces":
        return cls(alive, layer.shape, layer.axes)

    def room(self) -> tuple[int, ...]:
        return (self.alive.shape[-2] * self.alive.shape[-1],)

    def gather_layer(self, matrix: Array) -> Array:
        return jnp.where(self.alive, matrix, jnp.zeros((), matrix.dtype))

    def spread_layer(self, values: Array) -> Array:
        return self.gather_layer(values)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["values", "places"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class Masked(_layout.Compressed):
    """One kernel as a dense matrix and its mask; `x @ kernel` is a dense product.

    It saves neither time nor memory. `compress(format="auto")` takes it where a dense product is
    the fastest. Dead weights stay zero, whatever the optimizer does.

    Attributes:
      values: `(inputs, outputs)`, zero where no weight lives.
      places: where weights live.
    """

    values: Array
    places: MaskedPlaces
    format = "masked"

    @classmethod
    def from_dense(
        cls,
        values: Array,
        mask: Array,
        *,
        axes: AxesSpec = "flax",
        capacity: int | None = None,
        path: str = "kernel",
    ) -> "Masked":
        """The kernel itself, zero off the mask; see `CSR.from_dense`.

        Example:
          >>> import jax.numpy as jnp
          >>> kernel = Masked.from_dense(jnp.ones((2, 2)), jnp.eye(2, dtype=bool))
          >>> (jnp.array([[1.0, 10.0]]) @ kernel).tolist()
          [[1.0, 10.0]]
        """
        values, mask, named = _layout.checked(values, mask, axes, capacity, path)
        places = MaskedPlaces.of(mask, named, capacity, path)
        return cls(places.gather(values), places)

    @_layout.by_layer
    def product(self, x: Array) -> Array:
        """`x @ kernel`: `(..., inputs) -> (..., outputs)`."""
        rows = _layout.as_rows(x, self.values.shape[0])
        return (rows @ self.places.gather_layer(self.values)).reshape(*x.shape[:-1], -1)

    def _convolution(self, x: Array, window: Window, shape: tuple[int, ...], via: str) -> Array:
        del via
        axes, letters = self.places.axes, "0123456789"[: len(window.sizes)]
        names = dict(zip((*axes.inputs, *axes.outputs), "IO", strict=True))
        spatial = iter(letters)
        order = "".join(names.get(a) or next(spatial) for a in range(len(self.shape)))
        padding = [
            (low, (n - 1) * stride + size - low - pixels)
            for low, n, stride, size, pixels in zip(
                window.pads, shape[1:-1], window.strides, window.sizes, x.shape[1:-1], strict=True
            )
        ]
        numbers = (f"N{letters}C", order, f"N{letters}C")
        return jax.lax.conv_general_dilated(
            x, self.to_dense(), window.strides, padding, dimension_numbers=numbers
        )
