"""Places: where the living weights of one kernel are, for each layer if its axes are stacked."""

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
    """What a format is told about one layer besides its mask.

    Attributes:
      shape: of the dense kernel.
      axes: what its axes mean; none of them is stacked.
      size: of a block, or of the runs of N:M.
    """

    shape: tuple[int, ...]
    axes: Axes
    size: tuple[int, ...] = ()


class Places:
    """Where the living weights of one kernel are: integers, none of which is trained.

    Places are fixed or free. Fixed ones belong to the structure of the tree, as a shape does:
    `jax.grad` and Optax see the values alone, and a compiled function contains the places as
    constants. Free ones are arrays, leaves of the tree next to the values, so that a compiled
    function accepts other places without being compiled again.

    If the kernel has stacked axes, every array begins with one axis for each of them, in the
    order of `axes.stacked`. A format implements the functions whose names end in `layer`: they see
    one layer as a matrix `(inputs, outputs)`, with spatial axes among the inputs.
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
          capacity: how much room each layer has; None for exactly what lives, at fixed places.
          path: of the leaf, for error messages.
          size: of a block, or of the runs of N:M.

        Raises:
          ValueError: the format cannot hold the mask, or the capacity is too small for it.
        """
        if not isinstance(mask, jax.core.Tracer):
            held, needs = _survey(cls, axes, size, mask)
            _refuse_other(mask, held, path, cls, size)
        else:
            needs = None
        found = _places_of(cls, axes, size, cls._room(needs, mask, axes, capacity, path), mask)
        return found.fix() if capacity is None else found

    def of_same_room(self, mask: Array) -> Self:
        """Free places of another mask, which must fit into the same room."""
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
                f"capacity must be at least {most[-1]} for the mask at {path!r}, got {capacity}."
            )
        return (*cls.spare_of_layer(Layer(*one_layer(mask.shape, axes))), capacity)

    @classmethod
    def held_of_layer(cls, alive: Array, layer: Layer) -> Array:
        """What the format can hold of this mask: all of it if the mask fits the format."""
        return alive

    @classmethod
    def room_of_layer(cls, alive: Array, layer: Layer) -> Array:
        """int32 `(sizes,)`: how much room the living weights take; the last one is the capacity."""
        raise NotImplementedError

    @classmethod
    def spare_of_layer(cls, layer: Layer) -> tuple[int, ...]:
        """The other sizes if a capacity is given."""
        return ()

    @classmethod
    def of_layer(cls, alive: Array, room: tuple[int, ...], layer: Layer) -> Self:
        """Free places of a mask."""
        raise NotImplementedError

    def room(self) -> tuple[int, ...]:
        """The sizes that there is room for, in each layer."""
        raise NotImplementedError

    def gather_layer(self, matrix: Array) -> Array:
        """The values at the places, zeros where there is spare room."""
        raise NotImplementedError

    def spread_layer(self, values: Array) -> Array:
        """The matrix with these values, and zeros elsewhere."""
        raise NotImplementedError

    def gather(self, dense: Array) -> Array:
        """The values of a dense kernel at the places, zeros where there is spare room."""
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
        """The sizes of the stacked axes, with which all arrays begin."""
        return tuple(self.shape[axis] for axis in self.axes.stacked)

    def check(self, what: str = "places") -> None:
        """Raises an error unless the places equal those that this class makes of their own mask.

        Raises:
          TypeError: the places are traced.
          ValueError: an array has another shape or type, indices are out of range, unsorted or
            duplicate, or arrays contradict each other.
        """
        if any(isinstance(getattr(self, name), jax.core.Tracer) for name in self.arrays):
            raise TypeError(f"traced {what} cannot be checked; check them outside jit.")

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
                    f"{what}.{name} must be in range, sorted, without duplicates and consistent "
                    f"with the other arrays, got {got[at]} at {at} where {want[at]} is expected."
                )

    @functools.cached_property
    def digest(self) -> bytes:
        """A hash that identifies fixed places."""
        found = hashlib.sha256()
        for name, value in vars(self).items():
            found.update(f"{name} {getattr(value, 'shape', value)}".encode())
            if isinstance(value, np.ndarray):
                found.update(value.tobytes())
        return found.digest()

    def fix(self) -> Self:
        """The same places, fixed.

        Raises:
          TypeError: the places are traced.
        """
        if any(isinstance(value, jax.core.Tracer) for value in vars(self).values()):
            raise TypeError("traced places cannot be fixed: what is compiled depends on them.")
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
    """Makes a frozen dataclass of places a pytree with these leaves while they are free."""

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


# Operations on a concrete mask are compiled together: one by one, they would compile dozens of
# small programs for every new shape.
@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _survey(cls: Any, axes: Axes, size: tuple[int, ...], mask: Array) -> tuple[Array, Array]:
    """What a format can hold of this mask, and the room that the fullest layer takes."""
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
    """Free places of a mask, with this much room."""
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
    """Applies the function to each layer: maps it over `depth` leading axes of its arguments."""
    for _ in range(depth):
        function = jax.vmap(function)
    return function(*args)


def one_layer(shape: tuple[int, ...], axes: Axes) -> tuple[tuple[int, ...], Axes]:
    """The shape and the axes of one layer: without the stacked axes."""
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
    """The kernel with these matrices as its layers."""
    layer, one = one_layer(shape, axes)
    found = each(len(axes.stacked), lambda matrix: fan_in.spread(matrix.T, layer, one), matrices)
    return jnp.moveaxis(found, range(len(axes.stacked)), axes.stacked)


def sizes(shape: tuple[int, ...], axes: Axes) -> tuple[int, int]:
    """Inputs and outputs of one layer of a kernel."""
    outputs = math.prod(shape[a] for a in axes.outputs)
    stacked = math.prod(shape[a] for a in axes.stacked)
    return math.prod(shape) // max(outputs * stacked, 1), outputs


def taps(shape: tuple[int, ...], axes: Axes) -> np.ndarray:
    """`(spatial positions, inputs)`: the row of each of them in the matrix of one layer."""
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
            f"hold that at {path!r}: {kind.wants}; {other.sum()} weights violate this, the "
            f"first at {first}. CSR holds any mask."
        )
