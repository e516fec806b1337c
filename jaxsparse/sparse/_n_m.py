"""N:M: at most N living weights in every run of M inputs, each with its position in the run."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxsparse import patterns
from jaxsparse.checks import check_size
from jaxsparse.sparse import _layout
from jaxsparse.sparse._trilinear import Shapes, Trilinear
from jaxsparse.types import Array, Axes, AxesSpec

_TILE = 1 << 17
"""How many weights are made dense at once."""


@_layout.register_places("inputs")
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class NMPlaces(_layout.Places):
    """Where the living weights of one kernel are.

    Attributes:
      inputs: uint8 `(outputs, runs, room)`: the position of each weight in its run, ascending; M
        where there is spare room. A run is M consecutive inputs of one output unit at one spatial
        position, as in the pattern `n_m`.
      shape: of the dense kernel.
      axes: what its axes mean.
      size: N and M.
      fixed: whether they belong to the structure of a tree.
    """

    inputs: Array
    shape: tuple[int, ...]
    axes: Axes
    size: tuple[int, ...]
    fixed: bool = False
    wants = "no run of M consecutive inputs of an output unit may have more than N living weights"

    @classmethod
    def held_of_layer(cls, alive: Array, layer: _layout.Layer) -> Array:
        runs = _runs(alive, layer)
        few = jnp.cumsum(runs, -1) <= layer.size[0]
        return _matrix(runs & few, layer)

    @classmethod
    def room_of_layer(cls, alive: Array, layer: _layout.Layer) -> Array:
        return jnp.full(1, layer.size[0], jnp.int32)

    @classmethod
    def of_layer(cls, alive: Array, room: tuple[int, ...], layer: _layout.Layer) -> "NMPlaces":
        runs = _runs(alive, layer)
        places = jnp.where(runs, jnp.arange(layer.size[1]), layer.size[1]).astype(jnp.uint8)
        return cls(jnp.sort(places, -1)[..., : room[0]], *layer)

    def room(self) -> tuple[int, ...]:
        return self.inputs.shape[-1:]

    @property
    def layer(self) -> _layout.Layer:
        return _layout.Layer(self.shape, self.axes, self.size)

    def gather_layer(self, matrix: Array) -> Array:
        return _values(_runs(matrix, self.layer), self.inputs)

    def spread_layer(self, values: Array) -> Array:
        return _matrix(_dense(values, self.inputs, self.size[1]), self.layer)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["values", "places"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class NM(_layout.Compressed):
    """One kernel of N:M sparsity, packed; `x @ kernel` is its product.

    Each weight needs one byte in addition to its value. Products make one tile of the kernel dense
    at a time, never all of it, and then compute the dense product. So the format saves memory, and
    it saves time only where reading the weights is the bottleneck.

    Attributes:
      values: `(outputs, runs, room)`, the trainable part; zero where there is spare room.
      places: where the weights are.
    """

    values: Array
    places: NMPlaces

    @property
    def format(self) -> str:
        """The format string, as `compress` takes it."""
        return f"n_m:{self.places.size[0]}:{self.places.size[1]}"

    @classmethod
    def from_dense(
        cls,
        values: Array,
        mask: Array,
        *,
        n: int,
        m: int,
        axes: AxesSpec = "flax",
        capacity: int | None = None,
        path: str = "kernel",
    ) -> "NM":
        """The living weights of a dense kernel, run by run.

        Args:
          values: the kernel, of any floating-point type.
          mask: boolean, of its shape; at most `n` of every `m` consecutive inputs of an output
            unit live, as the pattern `n_m` makes it.
          n: living weights per run, at least 1.
          m: length of a run, larger than `n` and at most 255; it divides the number of inputs.
          axes: what the axes of the kernel mean.
          capacity: how many values per run there is room for, at least `n` and at most `m`; the
            places are then free, and the mask may be traced. None for `n`, at fixed places.
          path: of the leaf, for error messages and for axes given by path.

        Raises:
          ValueError: the mask has another shape, `m` does not divide the inputs, or a run has more
            than `n` living weights.
          TypeError: the mask is not boolean, or it is traced and `capacity` is None.

        Example:
          >>> import jax.numpy as jnp
          >>> mask = jnp.array([[True], [False], [False], [True]])
          >>> kernel = NM.from_dense(jnp.arange(4.0).reshape(4, 1), mask, n=2, m=4)
          >>> kernel.values.tolist(), kernel.places.inputs.tolist()
          ([[[0.0, 3.0]]], [[[0, 3]]])
        """
        values, mask, named = _layout.checked(values, mask, axes, capacity, path)
        check_size("m", m, 2, 255)
        if capacity is not None:
            check_size("capacity", capacity, n, m)
        patterns.n_m(n, m).groups(path, values.shape, named)
        places = NMPlaces.of(mask, named, capacity, path, (n, m))
        return cls(places.gather(values), places)

    @_layout.by_layer
    def product(self, x: Array) -> Array:
        """`x @ kernel`, one tile of the kernel after another, in both directions.

        Args:
          x: `(..., inputs)`; several inputs and spatial axes of a kernel count as one axis.

        Returns:
          `(..., outputs)`.

        Raises:
          ValueError: the shapes do not fit.

        Example:
          >>> import jax.numpy as jnp
          >>> mask = jnp.array([[True], [False], [False], [True]])
          >>> kernel = NM.from_dense(jnp.arange(4.0).reshape(4, 1), mask, n=2, m=4)
          >>> kernel.product(jnp.array([1.0, 10.0, 100.0, 1000.0])).tolist()
          [3000.0]
        """
        places = self.places
        inputs, outputs = _layout.sizes(places.shape, places.axes)
        kind = jnp.promote_types(x.dtype, self.dtype)
        columns = _layout.as_rows(x, inputs).T.astype(kind)
        order = _layout.taps(places.shape, places.axes).ravel()
        shape = (outputs, columns.shape[1])
        y = _PRODUCT.product(None, shape, places, self.values.astype(kind), columns[order])
        return y.T.reshape(*x.shape[:-1], outputs)


def _forward(_: None, shapes: Shapes, places: NMPlaces, values: Array, x: Array) -> Array:
    """`(inputs, batch) -> (outputs, batch)`, inputs run by run; tiles consist of output units."""

    def of(unit: tuple[Array, Array]) -> Array:
        return _dense(*unit, places.size[1]).ravel() @ x

    return jax.lax.map(of, (values, places.inputs), batch_size=_tile(len(x)))


def _backward(_: None, shapes: Shapes, places: NMPlaces, values: Array, grads: Array) -> Array:
    """`(outputs, batch) -> (inputs, batch)`; tiles consist of runs."""
    m = places.size[1]

    def of(run: tuple[Array, Array]) -> Array:
        return _dense(*run, m).T @ grads

    runs = jnp.swapaxes(values, 0, 1), jnp.swapaxes(places.inputs, 0, 1)
    return jax.lax.map(of, runs, batch_size=_tile(m * len(grads))).reshape(shapes.x.shape)


def _of_values(_: None, shapes: Shapes, places: NMPlaces, x: Array, grads: Array) -> Array:
    def of(unit: tuple[Array, Array]) -> Array:
        g, inputs = unit
        return _values((x @ g).reshape(len(inputs), -1), inputs)

    return jax.lax.map(of, (grads, jnp.asarray(places.inputs)), batch_size=_tile(len(x)))


_PRODUCT = Trilinear("n_m_product", _forward, _backward, _of_values, folds=(1, 1))


def _tile(size: int) -> int:
    """How many units or runs are made dense at once."""
    return max(_TILE // max(size, 1), 1)


def _dense(values: Array, inputs: Array, m: int) -> Array:
    """`(..., room) -> (..., m)`: every value at its position in the run."""
    here = jnp.asarray(inputs)[..., None] == jnp.arange(m, dtype=inputs.dtype)
    return _pick(here, values[..., None], -2)


def _values(runs: Array, inputs: Array) -> Array:
    """`(..., m) -> (..., room)`: the values at the places, zero where there is no weight."""
    here = jnp.asarray(inputs)[..., None] == jnp.arange(runs.shape[-1], dtype=inputs.dtype)
    return _pick(here, runs[..., None, :], -1)


def _pick(here: Array, values: Array, axis: int) -> Array:
    found = jnp.where(here, values, jnp.zeros((), values.dtype))
    return jnp.sum(found, axis).astype(values.dtype)


def _runs(matrix: Array, layer: _layout.Layer) -> Array:
    """`(inputs, outputs) -> (outputs, runs, m)`."""
    order = _layout.taps(layer.shape, layer.axes).ravel()
    return matrix[order].T.reshape(matrix.shape[1], -1, layer.size[1])


def _matrix(runs: Array, layer: _layout.Layer) -> Array:
    """`(outputs, runs, m) -> (inputs, outputs)`."""
    order = _layout.taps(layer.shape, layer.axes).ravel()
    matrix = runs.reshape(len(runs), -1).T
    return jnp.zeros_like(matrix).at[order].set(matrix)
