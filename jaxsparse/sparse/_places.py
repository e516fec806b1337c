"""Places: where the living weights of one kernel are, of every layer where its axes are stacked."""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse import trees
from jaxsparse.checks import check_size
from jaxsparse.patterns import fan_in
from jaxsparse.types import Array, Axes


class Layer(NamedTuple):
    """What a format is told of one layer beside its mask.

    Attributes:
      shape: of the dense kernel.
      axes: what its axes mean; none is stacked.
      size: of a block, or of the runs of N:M.
    """

    shape: tuple[int, ...]
    axes: Axes
    size: tuple[int, ...] = ()


class Places:
    """Where the living weights of one kernel are: integers, of which nothing is trained.

    Places are fixed or free. Fixed ones belong to the structure of the tree, as a shape does:
    `jax.grad` and Optax meet the values alone, and a compiled function has the places in it. Free
    ones are arrays, leaves of the tree beside the values, so that a compiled function takes other
    places without compiling again.

    Where the kernel has stacked axes, every array begins with one axis for each of them, in the
    order of `axes.stacked`. A format writes the functions that end in `layer`: they see one layer
    as a matrix `(inputs, outputs)`, spatial axes among the inputs.
    """

    arrays: ClassVar[tuple[str, ...]]
    wants: ClassVar[str] = ""
    shape: tuple[int, ...]
    axes: Axes
    fixed: bool

    @classmethod
    def of(
        cls,
        mask: Array,
        axes: Axes,
        capacity: int | None,
        path: str,
        size: tuple[int, ...] = (),
    ) -> Self:
        """The places of a mask: fixed ones, or free ones with a capacity.

        Args:
          mask: boolean, of the dense kernel's shape.
          axes: of the kernel.
          capacity: how much room there is in every layer; None for what lives, at fixed places.
          path: of the leaf, for messages.
          size: of a block, or of the runs of N:M.

        Raises:
          ValueError: a mask that the format cannot hold, or that has no room.
        """
        if not isinstance(mask, jax.core.Tracer):
            held, needs = _survey(cls, axes, size, mask)
            _refuse_other(mask, held, path, cls, size)
        else:
            needs = None
        found = _places_of(cls, axes, size, cls._room(needs, mask, axes, capacity, path), mask)
        return found.fix() if capacity is None else found

    def of_same_room(self, mask: Array) -> Self:
        """Free places of another mask, which there must be room for."""
        room, size = self.room()[-1], getattr(self, "size", ())
        return self.of(mask, self.axes, room, "kernel", size)

    @classmethod
    def _room(
        cls, needs: Array | None, mask: Array, axes: Axes, capacity: int | None, path: str
    ) -> tuple[int, ...]:
        most = None if needs is None else [int(need) for need in needs]
        if capacity is None:
            return tuple(most or ())
        check_size("capacity", capacity, 0)
        if most is not None and capacity < most[-1]:
            raise ValueError(
                f"capacity must be at least {most[-1]}, what lives at {path!r}; got {capacity}."
            )
        return (*cls.spare_of_layer(Layer(*one_layer(mask.shape, axes))), capacity)

    @classmethod
    def held_of_layer(cls, alive: Array, layer: Layer) -> Array:
        """The mask that the format makes of this one: the same where it fits."""
        return alive

    @classmethod
    def room_of_layer(cls, alive: Array, layer: Layer) -> Array:
        """int32 `(sizes,)`: how much room what lives takes; a capacity is the last of them."""
        raise NotImplementedError

    @classmethod
    def spare_of_layer(cls, layer: Layer) -> tuple[int, ...]:
        """The other sizes, where a capacity is given."""
        return ()

    @classmethod
    def of_layer(cls, alive: Array, room: tuple[int, ...], layer: Layer) -> Self:
        """Free places of a mask."""
        raise NotImplementedError

    def room(self) -> tuple[int, ...]:
        """The sizes that there is room for, in every layer."""
        raise NotImplementedError

    def gather_layer(self, matrix: Array) -> Array:
        """The values at the places, zeros where there is room to spare."""
        raise NotImplementedError

    def spread_layer(self, values: Array) -> Array:
        """The matrix with these values, and zeros elsewhere."""
        raise NotImplementedError

    def gather(self, dense: Array) -> Array:
        """The values of a dense kernel at the places, zeros where there is room to spare."""
        return _gather(self.layers(), self.axes, dense)

    def spread(self, values: Array) -> Array:
        """A dense kernel with one value in the place of each living one, and zeros elsewhere."""
        return _spread(self.layers(), self.shape, self.axes, values)

    def layers(self) -> Self:
        """The same arrays as free places of one layer, to be mapped over their leading axes."""
        shape, axes = one_layer(self.shape, self.axes)
        return dataclasses.replace(self.free(), shape=shape, axes=axes)  # type: ignore[type-var]

    @property
    def depth(self) -> int:
        """How many stacked axes there are."""
        return len(self.axes.stacked)

    @property
    def stacked(self) -> tuple[int, ...]:
        """The sizes of the stacked axes, which all arrays begin with."""
        return tuple(self.shape[axis] for axis in self.axes.stacked)

    def check(self, what: str = "places") -> None:
        """Raises unless they are what this class itself makes of the mask that they spread.

        Raises:
          TypeError: they are traced.
          ValueError: an array of another shape or type; indices that are out of range, unsorted or
            double, or arrays that contradict each other.
        """
        if any(isinstance(getattr(self, name), jax.core.Tracer) for name in self.arrays):
            raise TypeError(f"{what} that are traced cannot be checked; check them outside of jit.")

        def again(mask: Array) -> Any:
            size = getattr(self, "size", ())
            return _places_of(type(self), self.axes, size, self.room(), mask)

        wanted = jax.eval_shape(again, jax.ShapeDtypeStruct(self.shape, jnp.bool_))
        for name in self.arrays:
            got, want = getattr(self, name), getattr(wanted, name)
            if (got.shape, got.dtype) != (want.shape, want.dtype):
                raise ValueError(
                    f"{what}.{name} must be {want.dtype}{list(want.shape)}, got "
                    f"{got.dtype}{list(got.shape)}."
                )
        living = jax.eval_shape(self.gather, jax.ShapeDtypeStruct(self.shape, jnp.bool_))
        wanted = again(self.spread(jnp.ones(living.shape, bool)))
        for name in self.arrays:
            got, want = np.asarray(getattr(self, name)), np.asarray(getattr(wanted, name))
            if not np.array_equal(got, want):
                at = tuple(int(i) for i in np.argwhere(got != want)[0])
                raise ValueError(
                    f"{what}.{name} must be in range, sorted, without a double and in accord with "
                    f"the other arrays, got {got[at]} at {at} where {want[at]} is expected."
                )

    @functools.cached_property
    def digest(self) -> bytes:
        """What tells fixed places from others."""
        found = hashlib.sha256()
        for name, value in vars(self).items():
            found.update(f"{name} {getattr(value, 'shape', value)}".encode())
            if isinstance(value, np.ndarray):
                found.update(value.tobytes())
        return found.digest()

    def fix(self) -> Self:
        """The same places, fixed.

        Raises:
          TypeError: they are traced.
        """
        if any(isinstance(value, jax.core.Tracer) for value in vars(self).values()):
            raise TypeError("places that are traced cannot be fixed: they decide what is compiled.")
        return self._as(np.asarray, fixed=True)

    def free(self) -> Self:
        """The same places, free."""
        return self._as(jnp.asarray, fixed=False)

    def _as(self, kind: Any, *, fixed: bool) -> Self:
        arrays = {k: kind(v) for k, v in vars(self).items() if trees.is_array(v)}
        return dataclasses.replace(self, **arrays, fixed=fixed)  # type: ignore[type-var]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shape}, {'fixed' if self.fixed else 'free'})"

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, type(self)) and self.digest == other.digest)


def register_places(*leaves: str) -> Callable[[type], type]:
    """Makes a frozen dataclass of places a pytree with these leaves, while they move."""

    def register(cls: Any) -> type:
        cls.arrays = leaves
        rest = [field.name for field in dataclasses.fields(cls) if field.name not in leaves]

        def flatten(places: Any) -> tuple[Any, Any]:
            if places.fixed:
                return (), places
            children = [(jax.tree_util.GetAttrKey(name), getattr(places, name)) for name in leaves]
            return children, tuple(getattr(places, name) for name in rest)

        def unflatten(aux: Any, children: Any) -> Any:
            if isinstance(aux, cls):
                return aux
            return cls(**dict(zip((*leaves, *rest), (*children, *aux), strict=True)))

        jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
        return cls

    return register


# What is done with a concrete mask is compiled as a whole: operation by operation, every new shape
# would compile dozens of small programs.
@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _survey(cls: Any, axes: Axes, size: tuple[int, ...], mask: Array) -> tuple[Array, Array]:
    """The mask that a format makes of this one, and the room that the fullest layer takes."""
    alive, layer = flat(mask, axes), Layer(*one_layer(mask.shape, axes), size)
    depth = len(axes.stacked)
    held = each(depth, lambda alive: cls.held_of_layer(alive, layer), alive)
    needs = each(depth, lambda alive: cls.room_of_layer(alive, layer), alive)
    most = jnp.max(needs.reshape(-1, needs.shape[-1]), 0, initial=0)
    return unflat(held, mask.shape, axes), most


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _places_of(
    cls: Any, axes: Axes, size: tuple[int, ...], room: tuple[int, ...], mask: Array
) -> Any:
    """Free places of a mask, with so much room."""
    alive, layer = flat(mask, axes), Layer(*one_layer(mask.shape, axes), size)
    found = each(len(axes.stacked), lambda alive: cls.of_layer(alive, room, layer), alive)
    return dataclasses.replace(found, shape=mask.shape, axes=axes)


@functools.partial(jax.jit, static_argnums=1)
def _gather(layers: Any, axes: Axes, dense: Array) -> Array:
    return each(len(axes.stacked), type(layers).gather_layer, layers, flat(dense, axes))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _spread(layers: Any, shape: tuple[int, ...], axes: Axes, values: Array) -> Array:
    matrices = each(len(axes.stacked), type(layers).spread_layer, layers, values)
    return unflat(matrices, shape, axes)


def each(depth: int, function: Callable[..., Any], *args: Any) -> Any:
    """The function of every layer: mapped over this many leading axes of its arguments."""
    for _ in range(depth):
        function = jax.vmap(function)
    return function(*args)


def one_layer(shape: tuple[int, ...], axes: Axes) -> tuple[tuple[int, ...], Axes]:
    """The shape and the axes of one layer: without what is stacked."""
    rest = [axis for axis in range(len(shape)) if axis not in axes.stacked]
    inputs, outputs = (tuple(rest.index(a) for a in named) for named in (axes.inputs, axes.outputs))
    return tuple(shape[axis] for axis in rest), Axes(inputs, outputs)


def flat(leaf: Array, axes: Axes) -> Array:
    """`(*stacked, inputs, outputs)` of a kernel, spatial axes among the inputs."""
    _, one = one_layer(leaf.shape, axes)
    layers = jnp.moveaxis(leaf, axes.stacked, range(len(axes.stacked)))

    def matrix(layer: Array) -> Array:
        found = fan_in.gather(layer, one)
        return found.reshape(-1, found.shape[-1]).T

    return each(len(axes.stacked), matrix, layers)


def unflat(matrices: Array, shape: tuple[int, ...], axes: Axes) -> Array:
    """The kernel of the matrices of its layers."""
    layer, one = one_layer(shape, axes)
    found = each(len(axes.stacked), lambda matrix: fan_in.spread(matrix.T, layer, one), matrices)
    return jnp.moveaxis(found, range(len(axes.stacked)), axes.stacked)


def sizes(shape: tuple[int, ...], axes: Axes) -> tuple[int, int]:
    """Inputs and outputs of one layer of a kernel."""
    outputs = math.prod(shape[a] for a in axes.outputs)
    stacked = math.prod(shape[a] for a in axes.stacked)
    return math.prod(shape) // max(outputs * stacked, 1), outputs


def taps(shape: tuple[int, ...], axes: Axes) -> np.ndarray:
    """`(spatial positions, inputs)`: which row of the matrix of one layer each of them is."""
    rows = [axis for axis in range(len(shape)) if axis not in axes.outputs]
    spatial = [axis for axis in rows if axis not in axes.inputs]
    index = np.arange(sizes(shape, axes)[0]).reshape([shape[axis] for axis in rows])
    index = index.transpose([rows.index(axis) for axis in (*spatial, *sorted(axes.inputs))])
    return index.reshape(math.prod(shape[axis] for axis in spatial), -1)


def _refuse_other(mask: Array, held: Array, path: str, kind: type[Places], size: Any) -> None:
    other = np.asarray(mask != held)
    if other.any():
        first = tuple(int(i) for i in np.argwhere(other)[0])
        raise ValueError(
            f"mask: {kind.__name__.removesuffix('Places')}{f' of {size}' if size else ''} cannot "
            f"hold that at {path!r}: {kind.wants}; {other.sum()} weights stand against it, the "
            f"first at {first}. CSR holds any mask."
        )
