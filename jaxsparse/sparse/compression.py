"""Whole trees: turns kernels into living values and back, and gives the part that is trained."""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from jaxsparse import trees
from jaxsparse.axes import kernel_axes
from jaxsparse.checks import check_regexes, check_size
from jaxsparse.sparse._block import Block
from jaxsparse.sparse._channels import Channels
from jaxsparse.sparse._choice import choose
from jaxsparse.sparse._condensed import Condensed
from jaxsparse.sparse._csr import CSR
from jaxsparse.sparse._layout import Compressed, map_compressed
from jaxsparse.sparse._masked import Masked
from jaxsparse.sparse._n_m import NM
from jaxsparse.types import Array, AxesSpec, Masks, Params

_Maker = Callable[..., Compressed]


class _Format(NamedTuple):
    """How a format is written, and what makes a kernel in it.

    Attributes:
      regex: of the format string, with its numbers in groups.
      make: `(*numbers) -> from_dense`.
      weights: `(*numbers) -> weights` that one unit of capacity stands for; None if places of this
        format do not move.
    """

    regex: str
    make: Callable[..., _Maker]
    weights: Callable[..., int] | None = None


_FORMATS: Mapping[str, _Format] = {
    "csr": _Format("csr", lambda: CSR.from_dense, lambda: 1),
    "block:RxC": _Format(
        r"block:(\d+)x(\d+)",
        lambda r, c: functools.partial(Block.from_dense, size=(r, c)),
        lambda r, c: r * c,
    ),
    "condensed": _Format("condensed", lambda: Condensed.from_dense),
    "n_m:N:M": _Format(r"n_m:(\d+):(\d+)", lambda n, m: functools.partial(NM.from_dense, n=n, m=m)),
    "channels": _Format("channels", lambda: Channels.from_dense),
    "masked": _Format("masked", lambda: Masked.from_dense),
}


def compress(
    params: Params,
    masks: Masks,
    *,
    format: str | Mapping[str, str] = "csr",
    axes: AxesSpec = None,
    batch: int = 128,
) -> Params:
    """Parameters in which each leaf with dead weights is stored as its living values.

    Args:
      params: any pytree.
      masks: boolean arrays in its structure; leaves without dead weights stay arrays.
      format: "csr", for any mask; "block:RxC" for masks of the pattern `block(R, C)`; "condensed"
        for `fan_in`, also with output units without a weight; "n_m:N:M" for `n_m(N, M)`;
        "channels" for `channel`, also with dead input units. Or `{path regex: format}`; the first
        match counts, and each leaf with dead weights needs one. "auto" takes for each leaf the
        fastest format that holds its mask, according to a table of costs: the one that ships, or
        what `python -m benchmarks.sparse --tune` measured on this machine. It takes "masked", a
        dense product with a mask, where no other is faster. `explain` gives the reasons.
      axes: what the axes of the kernels mean. By default a matrix, a convolution over images and a
        kernel of Flax's attention are recognized by name and shape, and all others have the axes of
        Flax, `(spatial..., inputs, outputs)`. Layers along stacked axes share one format, with room
        for the fullest of them; `kernel.layers()` is what `scan` takes apart.
      batch: for "auto": examples per product, times positions of a convolution.

    Returns:
      The same structure, with compressed kernels at fixed places for sparse leaves: `jax.grad`,
      Optax and `jax.tree.map` see the living values alone. A function that multiplies by the
      kernels, `x @ kernel`, needs no change.

    Raises:
      ValueError: the format is unknown, a leaf has none, an expression matches no leaf, the trees
        differ, or the format cannot hold a mask.
      TypeError: masks are not boolean, or are traced.

    Example:
      >>> import jax, jax.numpy as jnp, jaxsparse, optax
      >>> params = {"kernel": jnp.arange(64.0).reshape(8, 8), "bias": jnp.ones(8)}
      >>> masks = jaxsparse.prune_by_magnitude(params, 0.75)
      >>> small = compress(params, masks)
      >>> small["kernel"].values.shape, small["bias"].shape
      ((16,), (8,))
      >>> loss = lambda params: jnp.sum((jnp.ones((2, 8)) @ params["kernel"]) ** 2)
      >>> tx = optax.adam(0.1)
      >>> updates, state = tx.update(jax.grad(loss)(small), tx.init(small), small)
      >>> optax.apply_updates(small, updates)["kernel"].shape
      (8, 8)
    """
    check_size("batch", batch, 1)
    find = _finder(
        format, batch, [trees.name(path) for path, _ in jax.tree.flatten_with_path(params)[0]]
    )

    def leaf(path: str, value: Any, mask: Any) -> Any:
        trees.boolean(path, mask)
        if not trees.is_float(value) or mask is None:
            return value
        if isinstance(mask, jax.core.Tracer):
            raise TypeError(
                "masks must not be traced: the number of living weights determines the shapes. "
                "Inside jit use from_dense of CSR or of another format, with a capacity."
            )
        if bool(mask.all()):
            return value
        return find(path)(value, mask, axes=axes, path=path)

    return trees.map_arrays(leaf, params, masks, what="masks")


def fix_places(params: Params) -> Params:
    """Compressed parameters with fixed places: part of the structure of the tree, as `compress`
    makes them.

    Raises:
      TypeError: the places are traced.
    """
    return map_compressed(lambda kernel: kernel.fix(), params)


def free_places(params: Params) -> Params:
    """Compressed parameters with free places: arrays, leaves of the tree.

    Use them to save whole kernels in a checkpoint, as arguments of a compiled function that must
    accept other places without compiling again, and for parameters stacked under `scan` or `vmap`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxsparse
      >>> dense = {"kernel": jnp.arange(16.0).reshape(4, 4)}
      >>> params = compress(dense, jaxsparse.prune_by_magnitude(dense, 0.75))
      >>> len(jax.tree.leaves(params)), len(jax.tree.leaves(free_places(params)))
      (1, 6)
    """
    return map_compressed(lambda kernel: kernel.free(), params)


def movable(format: str) -> Callable[..., Compressed]:
    """The function that makes kernels of a format whose places move.

    Returns:
      `(values, mask, *, axes, path, weights) -> kernel`, at free places, with room for this many
      weights.

    Raises:
      ValueError: the format is unknown, or its places do not move.
    """
    found, numbers = _read(format)
    if found.weights is None:
        known = ", ".join(name for name, form in _FORMATS.items() if form.weights)
        raise ValueError(f"places of the format {format!r} do not move; those of {known} do.")
    make, each = found.make(*numbers), found.weights(*numbers)

    def kernel(values: Array, mask: Array, *, axes: AxesSpec, path: str, weights: int) -> Any:
        return make(values, mask, axes=axes, path=path, capacity=-(-weights // each))

    return kernel


def _finder(
    format: str | Mapping[str, str], batch: int, paths: list[str]
) -> Callable[[str], _Maker]:
    """A function that gives the maker of the kernel at a path."""
    if not isinstance(format, Mapping):
        maker = _maker(format, batch)
        return lambda path: maker
    check_regexes("format", format)
    makers = {regex: _maker(name, batch) for regex, name in format.items()}
    for regex in makers:
        if not any(re.search(regex, path) for path in paths):
            raise ValueError(f"format: {regex!r} matches none of {', '.join(paths)}.")

    def find(path: str) -> _Maker:
        found = next((maker for regex, maker in makers.items() if re.search(regex, path)), None)
        if found is None:
            raise ValueError(
                f'format: no expression matches {path!r}, which has dead weights; add ".*": "csr" '
                "for all others."
            )
        return found

    return find


def _maker(format: str, batch: int) -> _Maker:
    if format == "auto":
        return functools.partial(_fastest, batch)
    found, numbers = _read(format)
    return found.make(*numbers)


def _fastest(batch: int, values: Array, mask: Array, *, axes: AxesSpec, path: str) -> Any:
    format = choose(mask, kernel_axes(axes, path, values), batch).format
    return _maker(format, batch)(values, mask, axes=axes, path=path)


def _read(format: str) -> tuple[_Format, list[int]]:
    for known in _FORMATS.values():
        found = re.fullmatch(known.regex, format) if isinstance(format, str) else None
        if found:
            return known, [int(number) for number in found.groups()]
    raise ValueError(
        f"format must be auto or one of {', '.join(_FORMATS)} with numbers, such as block:32x32 "
        f"and n_m:2:4, or {{path regex: format}}; got {format!r}."
    )
