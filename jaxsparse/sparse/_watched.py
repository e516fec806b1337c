"""Watched: a kernel multiplied by its living weights only, with the gradient of all weights.

A mask update reads this gradient. The network runs forward and backward on sparse products; only
the gradient of the kernel itself is computed as for a dense one.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse.sparse import _kernels, _layout, _windows
from jaxsparse.sparse._trilinear import Shapes, Trilinear
from jaxsparse.sparse._windows import Window
from jaxsparse.types import Array


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["values", "places"], meta_fields=["kind"]
)
@dataclasses.dataclass(frozen=True)
class Watched(_layout.Compressed):
    """One kernel whose values are a dense matrix, of which products read only the living ones.

    Attributes:
      values: `(*stacked, inputs, outputs)`; its gradient is that of the dense kernel.
      places: where weights live.
      kind: the class of the compressed kernel.
    """

    values: Array
    places: Any
    kind: Any
    format = "watched"

    @classmethod
    def of(cls, kernel: _layout.Compressed, dense: Array) -> "Watched":
        """A compressed kernel with its dense counterpart."""
        matrix = _layout.flat(dense, kernel.places.axes)
        return cls(matrix, kernel.places, type(kernel))

    @_layout.by_layer
    def product(self, x: Array) -> Array:
        """`x @ kernel`: `(..., inputs) -> (..., outputs)`."""
        rows = _layout.as_rows(x, self.values.shape[0])
        found = self._bound(rows, Window(), (rows.shape[0], self.values.shape[1]))
        return found.reshape(*x.shape[:-1], -1)

    def _convolution(self, x: Array, window: Window, shape: tuple[int, ...], via: str) -> Array:
        return self._bound(x, window, shape)

    def _bound(self, x: Array, window: Window, shape: tuple[int, ...]) -> Array:
        kind = jnp.promote_types(x.dtype, self.dtype)
        matrix = self.values.astype(kind)
        return _PRODUCT.product((self.kind, window), shape, self.places, matrix, x.astype(kind))

    def to_dense(self) -> Array:
        """The dense kernel, including the values at dead places."""
        return _layout.unflat(self.values, self.places.shape, self.places.axes)


_Static = tuple[Any, Window]


def _forward(static: _Static, shapes: Shapes, places: Any, matrix: Array, x: Array) -> Array:
    kind, window = static
    kernel = kind(places.gather_layer(matrix), places)
    if not window.sizes:
        return kernel.product(x)
    return kernel._convolution(x, window, shapes.g.shape, "auto")


def _backward(static: _Static, shapes: Shapes, places: Any, matrix: Array, g: Array) -> Array:
    def forward(x: Array) -> Array:
        return _forward(static, shapes, places, matrix, x)

    return jax.linear_transpose(forward, shapes.x)(g)[0]


def _of_values(static: _Static, shapes: Shapes, places: Any, x: Array, g: Array) -> Array:
    _, window = static
    if not window.sizes:
        return x.T @ g
    if x.dtype != jnp.float32 or not _kernels.choose("auto"):
        return _windows.gradient(x, g, window)
    sizes = window.numbers()
    return _kernels.call("window_values", shapes.values, x, g, batched=(0, 1), sizes=sizes)


_PRODUCT = Trilinear("watched_product", _forward, _backward, _of_values)
