"""What all formats share: a kernel as a matrix, its checks, and its description of itself."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar, cast

import jax
import jax.numpy as jnp

from jaxsparse import trees
from jaxsparse.axes import kernel_axes
from jaxsparse.sparse import _windows
from jaxsparse.sparse._places import (
    Layer,
    Places,
    each,
    flat,
    one_layer,
    register_places,
    sizes,
    taps,
    unflat,
)
from jaxsparse.types import Array, Axes, AxesSpec

__all__ = [
    "Compressed",
    "Layer",
    "Places",
    "as_rows",
    "by_layer",
    "checked",
    "each",
    "flat",
    "is_compressed",
    "map_compressed",
    "nbytes",
    "one_layer",
    "register_places",
    "sizes",
    "taps",
    "unflat",
]


_Method = TypeVar("_Method", bound=Callable[..., Any])


_REMEDY = (
    "run the function through jaxsparse.sparse.accelerate, or get the dense kernel with to_dense()"
)


class Compressed:
    """One kernel as its living values and their places: the interface of all formats."""

    values: Array
    places: Any
    format: Any
    """The format string, as `compress` takes it."""

    def product(self, x: Array) -> Array:
        """`x @ kernel`."""
        raise NotImplementedError

    def product_transposed(self, g: Array) -> Array:
        """`g @ kernel.T`, without a dense kernel.

        Args:
          g: `(..., outputs)`, after the stacked axes of the kernel.

        Returns:
          `(..., inputs)`.

        Raises:
          ValueError: the shapes do not fit.
        """
        stacked, depth = self.places.stacked, self.places.depth
        inputs, outputs = sizes(self.places.shape, self.places.axes)
        if g.ndim <= depth or g.shape[:depth] != stacked or g.shape[-1] != outputs:
            raise ValueError(
                f"g must end with the {outputs} outputs of the kernel"
                f"{f' and begin with its layers {stacked}' if stacked else ''}, got {g.shape}."
            )
        g = g.astype(jnp.promote_types(g.dtype, self.dtype))
        x = jax.ShapeDtypeStruct((*g.shape[:-1], inputs), g.dtype)
        return jax.linear_transpose(self.product, x)(g)[0]

    def spread(self, values: Array) -> Array:
        """A dense kernel with one value in the place of each living one, and zeros elsewhere."""
        return self.places.spread(values)

    def gather(self, dense: Array) -> Array:
        """The values of a dense kernel at the places of this one, ordered as for `spread`."""
        return self.places.gather(dense)

    def moved(self, dense: Array, mask: Array) -> Self:
        """A dense kernel's living values in the same format and capacity, at free places."""
        places = self.places.of_same_room(mask)
        return dataclasses.replace(self, values=places.gather(dense), places=places)  # type: ignore[type-var]

    def layers(self) -> Self:
        """A kernel with stacked axes as a stack of kernels of one layer.

        Returns:
          The same arrays, each with one leading axis for every stacked axis, as a kernel with free
          places and the shape of one layer: `jax.lax.scan` and `jax.vmap` split it into layers.
        """
        return dataclasses.replace(self, places=self.places.layers())  # type: ignore[type-var]

    def check(self) -> None:
        """Raises an error if the arrays of this kernel, which may come from outside, are invalid.

        Raises:
          TypeError: the places are traced.
          ValueError: indices are out of range, unsorted or duplicate, places contradict each
            other, or the values have another shape.
        """
        self.places.check()
        dense = jax.ShapeDtypeStruct(self.shape, self.dtype)
        wanted = jax.eval_shape(self.places.gather, dense)
        if self.values.shape != wanted.shape:
            raise ValueError(f"values must be {wanted.shape}, got {self.values.shape}.")

    def convolve(
        self,
        x: Array,
        *,
        strides: Sequence[int] | None = None,
        padding: Sequence[tuple[int, int]] | None = None,
        via: str = "auto",
    ) -> Array:
        """The convolution of images with a kernel that has one or two spatial axes.

        Args:
          x: `(batch, height, width, inputs)`, or `(batch, width, inputs)`.
          strides: pixels from one window to the next, one number per spatial axis; None for 1.
          padding: zeros before and after, one pair per spatial axis; None for no padding.
          via: as for `product`. If the format has no kernel that reads images in place, its
            product gets their patches.

        Returns:
          `(batch, height', width', outputs)`.

        Raises:
          ValueError: the shapes, strides or padding do not fit.
          KernelError: "compiled" was requested, but there is no compiled kernel.

        Example:
          >>> import jax.numpy as jnp
          >>> from jaxsparse import sparse
          >>> mask = jnp.array([True, False, True]).reshape(3, 1, 1)
          >>> kernel = sparse.CSR.from_dense(jnp.ones((3, 1, 1)), mask)
          >>> x = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1)
          >>> kernel.convolve(x, padding=[(1, 1)]).ravel().tolist()
          [2.0, 4.0, 6.0, 3.0]
        """
        places = self.places
        found, shape = _windows.window(places.shape, places.axes, x.shape, strides, padding)
        return self._convolution(x, found, shape, via)

    def _convolution(
        self, x: Array, window: _windows.Window, shape: tuple[int, ...], via: str
    ) -> Array:
        del via
        return self.product(_windows.patches(x, window, shape[1:-1]))

    def to_dense(self) -> Array:
        """The dense kernel, zero where no weight lives."""
        return self.spread(self.values)

    @property
    def mask(self) -> Array:
        """Boolean, of the dense kernel's shape: where weights live."""
        return self.spread(jnp.ones(self.values.shape, bool))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the dense kernel."""
        return self.places.shape

    @property
    def dtype(self) -> Any:
        """The type of the values."""
        return self.values.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of storage: values and places."""
        return nbytes(self)

    def fix(self) -> Self:
        """The same kernel with fixed places; see `Places`."""
        return dataclasses.replace(self, places=self.places.fix())  # type: ignore[type-var]

    def free(self) -> Self:
        """The same kernel with free places; see `Places`."""
        return dataclasses.replace(self, places=self.places.free())  # type: ignore[type-var]

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{type(self).__name__} has no {name!r}; {_REMEDY}.")

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"a compressed kernel is not an array; {_REMEDY}.")

    def __rmatmul__(self, x: Array) -> Array:
        return self.product(x)

    def __matmul__(self, x: Array) -> Array:
        if x.ndim < 2:
            return self.product_transposed(x)
        return self.product_transposed(x.swapaxes(-1, -2)).swapaxes(-1, -2)


def is_compressed(leaf: Any) -> bool:
    """Whether this is a compressed kernel; the `is_leaf` of trees that hold such kernels."""
    return isinstance(leaf, Compressed)


def map_compressed(function: Callable[[Any], Any], params: Any) -> Any:
    """The tree with every compressed kernel replaced by the function's result for it."""
    return jax.tree.map(
        lambda leaf: function(leaf) if is_compressed(leaf) else leaf, params, is_leaf=is_compressed
    )


def nbytes(params: Any) -> int:
    """Bytes of all arrays, values and places, including fixed places."""
    free = map_compressed(lambda kernel: kernel.free(), params)
    return sum(leaf.nbytes for leaf in jax.tree.leaves(free))


def by_layer(method: _Method) -> _Method:
    """Makes a product of one layer work for kernels with stacked axes too.

    Its first operand and its result then begin with these axes, in the order of `axes.stacked`.
    """

    @functools.wraps(method)
    def product(self: Any, x: Array, **options: Any) -> Array:
        stacked, depth = self.places.stacked, self.places.depth
        if not stacked:
            return method(self, x, **options)
        if x.shape[:depth] != stacked:
            raise ValueError(f"x must begin with the layers {stacked}, got {x.shape}.")
        return each(depth, lambda kernel, x: method(kernel, x, **options), self.layers(), x)

    return cast(_Method, product)


def checked(
    values: Array, mask: Array, axes: AxesSpec, capacity: int | None, path: str
) -> tuple[Array, Array, Axes]:
    """The arrays and the axes of a kernel that is to be compressed.

    Raises:
      ValueError: the mask has another shape.
      TypeError: the values are not floating-point, or the mask is not boolean, or it is traced and
        `capacity` is None.
    """
    values, mask = jnp.asarray(values), jnp.asarray(mask)
    if not trees.is_float(values):
        raise TypeError(f"values at {path!r} must be floating, got {values.dtype}.")
    trees.boolean(path, mask, "mask")
    if mask.shape != values.shape:
        raise ValueError(f"mask at {path!r} must have the shape {values.shape}, got {mask.shape}.")
    if capacity is None and isinstance(mask, jax.core.Tracer):
        raise TypeError(f"capacity must be given, because the mask at {path!r} is traced.")
    return values, mask, kernel_axes(axes, path, values)


def as_rows(x: Array, size: int, name: str = "x", what: str = "inputs") -> Array:
    """The array as `(batch, size)`.

    Raises:
      ValueError: the last axis is not of this size.
    """
    if x.ndim < 1 or x.shape[-1] != size:
        raise ValueError(f"{name} must end with the {size} {what} of the kernel, got {x.shape}.")
    return x.reshape(-1, size)
