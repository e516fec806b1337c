"""A compressed kernel as a model sees it: transposed and reshaped, but never made dense."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxsparse.sparse._layout import Compressed
from jaxsparse.types import Array


class Atom(NamedTuple):
    """One factor of the size of an axis of a kernel.

    Attributes:
      axis: of the dense kernel.
      stride: how many elements of that axis one step advances.
      size: how many steps there are.
    """

    axis: int
    stride: int
    size: int


@dataclasses.dataclass(frozen=True)
class View:
    """A kernel whose axes were permuted, split and merged.

    Attributes:
      name: the path of the leaf.
      kernel: the leaf; its values may have been cast or scaled.
      dims: for each axis of the view the factors that make it up, the slowest first.
    """

    name: str
    kernel: Any
    dims: tuple[tuple[Atom, ...], ...]

    @classmethod
    def of(cls, name: str, kernel: Compressed) -> "View":
        """The unchanged kernel."""
        return cls(name, kernel, tuple(_whole(axis, n) for axis, n in enumerate(kernel.shape)))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that the function sees."""
        return tuple(math.prod(atom.size for atom in dim) for dim in self.dims)

    @property
    def whole(self) -> bool:
        """Whether no axis was permuted, split or merged."""
        return self.dims == View.of(self.name, self.kernel).dims

    def on(self, kernel: Any) -> "View":
        """The same view of another kernel of this shape."""
        return dataclasses.replace(self, kernel=kernel)

    def with_values(self, values: Array) -> "View":
        """The same view of a kernel with other values."""
        return self.on(dataclasses.replace(self.kernel, values=values))

    def with_dims(self, dims: Sequence[tuple[Atom, ...]]) -> "View":
        """Another view of the same kernel."""
        return dataclasses.replace(self, dims=tuple(dims))

    def reshaped(self, sizes: Sequence[int]) -> "View | None":
        """The reshaped view; None if an axis would have to be cut within one of its factors."""
        left = [atom for dim in self.dims for atom in dim][::-1]
        dims = []
        for size in sizes:
            taken = []
            while size > 1:
                atom = left.pop()
                if size % atom.size == 0:
                    taken.append(atom)
                    size //= atom.size
                elif atom.size % size == 0:
                    rest = atom.size // size
                    taken.append(Atom(atom.axis, atom.stride * rest, size))
                    left.append(Atom(atom.axis, atom.stride, rest))
                    size = 1
                else:
                    return None
            dims.append(tuple(taken))
        return self.with_dims(dims)

    def layer(self, kernel: Compressed) -> "View | None":
        """The view of one layer of a kernel stacked along its first axis only, whatever was
        done to the other axes; None if the stacked axis is no longer the first."""
        first, *rest = self.dims
        if self.kernel.places.axes.stacked != (0,) or first != _whole(0, self.kernel.shape[0]):
            return None
        dims = [tuple(a._replace(axis=a.axis - 1) for a in dim) for dim in rest]
        return View(self.name, kernel, tuple(dims))

    def dense(self) -> Array:
        """The dense array that the view stands for."""
        atoms = [atom for dim in self.dims for atom in dim]
        order = sorted(atoms, key=_order)
        split = self.kernel.to_dense().reshape([atom.size for atom in order])
        return jnp.transpose(split, [order.index(a) for a in atoms]).reshape(self.shape)

    def times(
        self, x: Array, contracted: tuple[Sequence[int], Sequence[int]], batch: tuple[Any, Any]
    ) -> Array | None:
        """The result of `lax.dot_general` for the view and an array.

        Args:
          x: the array.
          contracted: axes of the view and of x that are summed over.
          batch: axes of the view and of x that are batch axes of the product.

        Returns:
          An array whose axes are the batch axes, the remaining axes of the view, and those of x;
          None where the product contracts neither all inputs nor all outputs.
        """
        free = [d for d in range(len(self.dims)) if d not in (*contracted[0], *batch[0])]
        summed, common, kept = (
            [atom for d in dims for atom in self.dims[d]]
            for dims in (contracted[0], batch[0], free)
        )
        product, stack, left = self._product(summed, common, kept)
        if product is None:
            return None
        others = [d for d in range(x.ndim) if d not in (*contracted[1], *batch[1])]
        rest = [x.shape[d] for d in others]
        x = jnp.transpose(x, (*batch[1], *others, *contracted[1]))
        x = x.reshape(*(a.size for a in common), math.prod(rest), *(a.size for a in summed))
        count = len(common)
        last = [count + 1 + i for i in _sorting(summed)]
        x = jnp.transpose(x, (*_sorting(common), count, *last))
        if not common:  # all layers read the same input
            x = jnp.broadcast_to(x, (*(a.size for a in stack), *x.shape))
        sizes = [self.kernel.shape[a] for a in self.kernel.places.axes.stacked]
        y = product(x.reshape(*sizes, math.prod(rest), math.prod(a.size for a in summed)))
        y = y.reshape(*(a.size for a in stack), math.prod(rest), *(a.size for a in left))
        found = [*stack, None, *left]
        y = jnp.transpose(y, [found.index(atom) for atom in (*common, *kept, None)])
        return y.reshape(*(self.shape[d] for d in (*batch[0], *free)), *rest)

    def _product(
        self, summed: list[Atom], common: list[Atom], kept: list[Atom]
    ) -> tuple[Callable[..., Array] | None, list[Atom], list[Atom]]:
        """The kernel's own product for these factors, and the factors of its layers and of its
        result, in the order of the axes of the result."""
        axes, shape = self.kernel.places.axes, self.kernel.shape
        inputs = {a for a in range(len(shape)) if a not in axes.outputs + axes.stacked}
        layers = common or [atom for atom in kept if atom.axis in axes.stacked]
        left = [atom for atom in kept if atom not in layers]
        stack, left = sorted(layers, key=_order), sorted(left, key=_order)
        if _covers(layers, set(axes.stacked), shape):
            if _covers(summed, inputs, shape) and _covers(left, set(axes.outputs), shape):
                return self.kernel.product, stack, left
            if _covers(summed, set(axes.outputs), shape) and _covers(left, inputs, shape):
                return self.kernel.product_transposed, stack, left
        return None, [], []


def _whole(axis: int, size: int) -> tuple[Atom, ...]:
    return (Atom(axis, 1, size),) if size > 1 else ()


def _order(atom: Atom) -> tuple[int, int]:
    return atom.axis, -atom.stride


def _sorting(atoms: list[Atom]) -> list[int]:
    return sorted(range(len(atoms)), key=lambda i: _order(atoms[i]))


def _covers(atoms: list[Atom], axes: set[int], shape: tuple[int, ...]) -> bool:
    """Whether these factors make up exactly these axes."""
    size = math.prod(atom.size for atom in atoms)
    return {atom.axis for atom in atoms} <= axes and size == math.prod(shape[a] for a in axes)
