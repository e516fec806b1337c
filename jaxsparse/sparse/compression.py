"""Whole trees: kernels to their living values and back, and the part of them that is trained."""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxsparse import trees
from jaxsparse.checks import check_regexes
from jaxsparse.sparse._block import Block
from jaxsparse.sparse._channels import Channels
from jaxsparse.sparse._condensed import Condensed
from jaxsparse.sparse._csr import CSR
from jaxsparse.sparse._layout import Compressed, is_compressed, map_compressed
from jaxsparse.sparse._n_m import NM
from jaxsparse.types import AxesSpec, Masks, Params

_Maker = Callable[..., Compressed]


_FORMATS: Mapping[str, tuple[str, Callable[..., _Maker]]] = {
    "csr": (r"csr", lambda: CSR.from_dense),
    "block:RxC": (
        r"block:(\d+)x(\d+)",
        lambda r, c: functools.partial(Block.from_dense, size=(int(r), int(c))),
    ),
    "condensed": (r"condensed", lambda: Condensed.from_dense),
    "n_m:N:M": (
        r"n_m:(\d+):(\d+)",
        lambda n, m: functools.partial(NM.from_dense, n=int(n), m=int(m)),
    ),
    "channels": (r"channels", lambda: Channels.from_dense),
}
"""Every format as it is written: what reads it, and what makes a kernel of it."""


def compress(
    params: Params,
    masks: Masks,
    *,
    format: str | Mapping[str, str] = "csr",
    axes: AxesSpec = "flax",
) -> Params:
    """Parameters in which every leaf with dead weights is kept as its living values.

    Args:
      params: any pytree.
      masks: boolean arrays in its structure; leaves that are whole stay arrays.
      format: "csr", for any mask; "block:RxC" for masks of the pattern `block(R, C)`; "condensed"
        for `fan_in`, also with output units without a weight; "n_m:N:M" for `n_m(N, M)`;
        "channels" for `channel`, also with dead input units. Or `{path regex: format}`; the first
        that matches counts, and every leaf with dead weights needs one.
      axes: what the axes of the kernels mean. Layers along stacked axes have one format and room
        for as much as the fullest of them; `kernel.layers()` is what `scan` takes apart.

    Returns:
      The same structure, compressed kernels at fixed places where a leaf is sparse: `jax.grad`,
      Optax and `jax.tree.map` meet the living values alone. A function that multiplies by the
      kernels, `x @ kernel`, needs no change.

    Raises:
      ValueError: an unknown format, a leaf without one, an expression that matches no leaf, trees
        that differ, or a mask that the format cannot hold.
      TypeError: masks that are not boolean, or that are traced.

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
    find = _finder(format, [trees.name(path) for path, _ in jax.tree.flatten_with_path(params)[0]])

    def leaf(path: str, value: Any, mask: Any) -> Any:
        trees.boolean(path, mask)
        if not trees.is_float(value) or mask is None:
            return value
        if isinstance(mask, jax.core.Tracer):
            raise TypeError(
                "masks must not be traced: how many weights live decides the shapes. Inside jit "
                "use CSR.from_dense, or that of another format, with a capacity."
            )
        if bool(mask.all()):
            return value
        return find(path)(value, mask, axes=axes, path=path)

    return trees.map_arrays(leaf, params, masks, what="masks")


def expand(params: Params) -> Params:
    """The dense parameters again, zero where no weight lives."""
    return map_compressed(lambda kernel: kernel.to_dense(), params)


def fix_places(params: Params) -> Params:
    """Compressed parameters with fixed places: part of the structure of the tree, as `compress`
    makes them.

    Raises:
      TypeError: places are traced.
    """
    return map_compressed(lambda kernel: kernel.fix(), params)


def free_places(params: Params) -> Params:
    """Compressed parameters with free places: arrays, leaves of the tree.

    For saving whole kernels in a checkpoint, for arguments of a compiled function that is to take
    other places without compiling again, and for parameters stacked under `scan` or `vmap`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxsparse
      >>> dense = {"kernel": jnp.arange(16.0).reshape(4, 4)}
      >>> params = compress(dense, jaxsparse.prune_by_magnitude(dense, 0.75))
      >>> len(jax.tree.leaves(params)), len(jax.tree.leaves(free_places(params)))
      (1, 6)
    """
    return map_compressed(lambda kernel: kernel.free(), params)


def values(params: Params) -> Params:
    """The living values in the place of compressed leaves, whether places are fixed or free.

    What is differentiated and optimized where places are free: `jax.grad` takes no integers.

    Example:
      >>> import jax, jax.numpy as jnp, jaxsparse, optax
      >>> dense = {"kernel": jnp.arange(16.0).reshape(4, 4)}
      >>> params = free_places(compress(dense, jaxsparse.prune_by_magnitude(dense, 0.75)))
      >>> x, tx = jnp.ones((2, 4)), optax.adam(0.1)
      >>> loss = lambda living: jnp.sum((x @ with_values(params, living)["kernel"]) ** 2)
      >>> living = values(params)
      >>> updates, state = tx.update(jax.grad(loss)(living), tx.init(living), living)
      >>> updates["kernel"].shape
      (4,)
    """
    return map_compressed(lambda kernel: kernel.values, params)


def with_values(params: Params, values: Params) -> Params:
    """Compressed parameters with other living values, at the same places.

    Args:
      params: what `compress` returned; only the places of its compressed leaves are looked at.
      values: in the structure that the function `values` gives.
    """
    return jax.tree.map(
        lambda leaf, new: type(leaf)(new, leaf.places) if is_compressed(leaf) else new,
        params,
        values,
        is_leaf=is_compressed,
    )


def _finder(format: str | Mapping[str, str], paths: list[str]) -> Callable[[str], _Maker]:
    """What makes the kernel of a path."""
    if not isinstance(format, Mapping):
        maker = _maker(format)
        return lambda path: maker
    check_regexes("format", format)
    makers = {regex: _maker(name) for regex, name in format.items()}
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


def _maker(format: str) -> _Maker:
    for pattern, make in _FORMATS.values():
        found = re.fullmatch(pattern, format) if isinstance(format, str) else None
        if found:
            return make(*found.groups())
    raise ValueError(
        f"format must be one of {', '.join(_FORMATS)} with numbers, such as block:32x32 and "
        f"n_m:2:4, or {{path regex: format}}; got {format!r}."
    )
