"""What all formats share: a kernel as a matrix, its checks, and what it says of itself."""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse import trees
from jaxsparse.axes import all_axes
from jaxsparse.checks import check_size
from jaxsparse.patterns import fan_in
from jaxsparse.types import Array, Axes, AxesSpec


class Places:
    """Where the living weights of one kernel are: integers, of which nothing is trained.

    Places are fixed or free. Fixed ones belong to the structure of the tree, as a shape does:
    `jax.grad` and Optax meet the values alone, and a compiled function has the places in it. Free
    ones are arrays, leaves of the tree beside the values, so that a compiled function takes other
    places without compiling again.
    """

    shape: tuple[int, ...]
    axes: Axes
    fixed: bool

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


class Compressed:
    """One kernel as its living values and their places: what every format says of itself."""

    values: Array
    places: Any

    def spread(self, values: Array) -> Array:
        """A dense kernel with one value in the place of each living one, and zeros elsewhere."""
        raise NotImplementedError

    def gather(self, dense: Array) -> Array:
        """The values that a dense kernel has at the places, and zeros where none lives."""
        raise NotImplementedError

    def moved(self, dense: Array, mask: Array) -> Self:
        """A dense kernel's living values in the same form and capacity, at free places."""
        raise NotImplementedError

    def product(self, x: Array) -> Array:
        """`x @ kernel`."""
        raise NotImplementedError

    def to_dense(self) -> Array:
        """The dense kernel, zero where no weight lives."""
        return self.spread(self.values)

    @property
    def mask(self) -> Array:
        """Boolean, of the dense kernel's shape: where weights live."""
        return self.spread(jnp.ones(self.values.shape, bool))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the dense kernel."""
        return self.places.shape

    @property
    def dtype(self) -> Any:
        """Of the values."""
        return self.values.dtype

    @property
    def nbytes(self) -> int:
        """Bytes that are kept: values and places."""
        return nbytes(self)

    def fix(self) -> Self:
        """The same kernel with fixed places; see `Places`."""
        return dataclasses.replace(self, places=self.places.fix())  # type: ignore[type-var]

    def free(self) -> Self:
        """The same kernel with free places; see `Places`."""
        return dataclasses.replace(self, places=self.places.free())  # type: ignore[type-var]

    def __rmatmul__(self, x: Array) -> Array:
        return self.product(x)


def is_compressed(leaf: Any) -> bool:
    """Whether it is a compressed kernel; the `is_leaf` of trees that hold some."""
    return isinstance(leaf, Compressed)


def map_compressed(function: Callable[[Any], Any], params: Any) -> Any:
    """The tree with every compressed kernel replaced by what the function makes of it."""
    return jax.tree.map(
        lambda leaf: function(leaf) if is_compressed(leaf) else leaf, params, is_leaf=is_compressed
    )


def nbytes(params: Any) -> int:
    """Bytes of all arrays, values and places, fixed ones among them."""
    free = map_compressed(lambda kernel: kernel.free(), params)
    return sum(leaf.nbytes for leaf in jax.tree.leaves(free))


def no_gradient(places: Any) -> Any:
    """The gradient of integers, as `jax.custom_vjp` wants it."""
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, jax.dtypes.float0), places)


def checked(
    values: Array, mask: Array, axes: AxesSpec, capacity: int | None, path: str
) -> tuple[Array, Array, Axes]:
    """The arrays and the axes of a kernel that is to be compressed.

    Raises:
      ValueError: another shape of the mask, or stacked axes.
      TypeError: a mask that is not boolean, or one that is traced, without a capacity.
    """
    values, mask = jnp.asarray(values), jnp.asarray(mask)
    trees.boolean(path, mask, "mask")
    if mask.shape != values.shape:
        raise ValueError(f"mask at {path!r} must have the shape {values.shape}, got {mask.shape}.")
    if capacity is None and isinstance(mask, jax.core.Tracer):
        raise TypeError(f"capacity must be given where the mask at {path!r} is traced.")
    named = all_axes(axes, {path: values})[path]
    if named.stacked:
        raise ValueError(f"{path!r} has stacked axes; compress its layers one by one, by vmap.")
    return values, mask, named


def room(alive: Array, capacity: int | None) -> int:
    """The capacity: by default as many as live.

    Raises:
      ValueError: less than that.
    """
    if isinstance(alive, jax.core.Tracer):
        check_size("capacity", capacity, 0)
        return int(capacity or 0)
    count = int(jnp.sum(alive))
    if capacity is None:
        return count
    check_size("capacity", capacity, 0)
    if capacity < count:
        raise ValueError(f"capacity must be at least {count}, what lives; got {capacity}.")
    return capacity


def flat(leaf: Array, axes: Axes) -> Array:
    """`(inputs, outputs)` of a kernel, spatial axes among the inputs."""
    found = fan_in.gather(leaf, axes)
    return found.reshape(-1, found.shape[-1]).T


def unflat(matrix: Array, places: Any) -> Array:
    """The kernel of a matrix `(inputs, outputs)`."""
    return fan_in.spread(matrix.T, places.shape, places.axes)


def sizes(shape: tuple[int, ...], axes: Axes) -> tuple[int, int]:
    """Inputs and outputs of a kernel of a shape."""
    outputs = math.prod(shape[a] for a in axes.outputs)
    return math.prod(shape) // max(outputs, 1), outputs


def as_rows(x: Array, inputs: int) -> Array:
    """`(batch, inputs)`.

    Raises:
      ValueError: the last axis is not the inputs.
    """
    if x.ndim < 1 or x.shape[-1] != inputs:
        raise ValueError(f"x must end with the {inputs} inputs of the kernel, got {x.shape}.")
    return x.reshape(-1, inputs)
