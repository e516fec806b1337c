"""A file of living values and masks with one bit per weight, in the safetensors format."""

import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse import trees
from jaxsparse.sparse import _layout
from jaxsparse.types import Masks, Params

_FORMAT = "jaxsparse-packed-1"
_BITS = ".mask"
_TYPES = {"BF16": "bfloat16", "BOOL": "bool"} | {
    f"{kind}{bits}": f"{name}{bits}"
    for kind, name in (("F", "float"), ("I", "int"), ("U", "uint"))
    for bits in (8, 16, 32, 64)
    if (kind, bits) != ("F", 8)
}


def save_packed(path: str | os.PathLike[str], params: Params, masks: Masks | None = None) -> None:
    """Writes parameters as their living values, and one bit per weight for where they are.

    Any reader of safetensors opens the file. A leaf without dead weights is stored whole, under its
    path. Any other leaf is stored as its living values in row-major order, under its path, and as
    bits, under its path and ".mask": `ceil(size / 8)` bytes, as `numpy.packbits` makes them of the
    mask in that order. The shape of the leaf is in the metadata, under "shapes". It needs
    safetensors: `pip install 'jaxsparse[export]'`.

    Args:
      path: of the file, which is overwritten.
      params: dense parameters, or compressed ones; leaves that are not arrays are left out.
      masks: boolean arrays in the structure of `params`, None for a leaf without dead weights; or
        None if `params` are compressed.

    Raises:
      ValueError: the masks have another structure or shape, two leaves have the same name, or the
        format does not support a type.
      TypeError: the masks are not boolean.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> params = {"kernel": jnp.arange(6.0), "bias": jnp.ones(2)}
      >>> masks = {"kernel": jnp.arange(6) > 3, "bias": None}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_packed(f"{folder}/net.safetensors", params, masks)
      ...     load_packed(f"{folder}/net.safetensors")[0]["kernel"].tolist()
      [0.0, 0.0, 0.0, 0.0, 4.0, 5.0]
    """
    import safetensors.numpy

    found = jax.tree.leaves_with_path(params, is_leaf=_layout.is_compressed)
    alive = [None] * len(found) if masks is None else trees.check_same(params, masks, "masks")
    tensors: dict[str, np.ndarray] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for (key, leaf), mask in zip(found, alive, strict=True):
        name = trees.name(key) or "params"
        if _layout.is_compressed(leaf):
            leaf, mask = leaf.to_dense(), leaf.mask
        if not trees.is_array(leaf):
            continue
        if name in tensors or name.removesuffix(_BITS) in shapes:
            raise ValueError(f"params has two leaves with the name {name!r}.")
        leaf, mask = np.asarray(leaf), trees.boolean(name, mask)
        if mask is None or (alive_here := np.asarray(mask)).all():
            tensors[name] = leaf
            continue
        tensors[name] = leaf[alive_here]
        tensors[name + _BITS] = np.packbits(alive_here.reshape(-1))
        shapes[name] = leaf.shape
    metadata = {"format": _FORMAT, "shapes": json.dumps(shapes)}
    data = safetensors.numpy.save(tensors, metadata)
    with open(path, "wb") as file:
        file.write(data)


def load_packed(path: str | os.PathLike[str], like: Params | None = None) -> tuple[Any, Any]:
    """Reads what `save_packed` wrote.

    Args:
      path: of the file.
      like: a tree of arrays or `jax.ShapeDtypeStruct`; None for flat dicts by path.

    Returns:
      Dense parameters, zero where no weight lives, and their masks, in the structure of `like`.
      Leaves of `like` that are not arrays are kept. `jaxsparse.sparse.compress` turns the result
      into compressed parameters.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file has another format, is damaged, or its parameters do not fit `like`.
    """
    import safetensors

    with open(path, "rb") as file:
        data = file.read()
    try:
        stored = safetensors.deserialize(data)
        head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(
            f"{os.fspath(path)!r} is not a safetensors file, or it is damaged: {error}."
        ) from None
    metadata = head.get("__metadata__") or {}
    if metadata.get("format") != _FORMAT:
        raise ValueError(
            f"{os.fspath(path)!r} is a safetensors file, but was not written by save_packed: its "
            f'format is {metadata.get("format")!r}, not "{_FORMAT}".'
        )
    try:
        shapes = {name: tuple(shape) for name, shape in json.loads(metadata["shapes"]).items()}
        params, masks = {name: _array(tensor) for name, tensor in stored}, {}
        for name, shape in shapes.items():
            size = int(np.prod(shape, dtype=np.int64))
            bits = np.unpackbits(params.pop(name + _BITS), count=size).astype(bool)
            dense = np.zeros(size, params[name].dtype)
            dense[bits] = params[name]
            params[name], masks[name] = dense.reshape(shape), bits.reshape(shape)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{os.fspath(path)!r} is damaged: {error!r}.") from None
    masks = {name: masks.get(name, np.ones(leaf.shape, bool)) for name, leaf in params.items()}
    if like is None:
        return jax.tree.map(jnp.asarray, (params, masks))
    return _in_structure(path, like, params), _in_structure(path, like, masks)


def _array(tensor: Any) -> np.ndarray:
    kind = np.dtype(_TYPES[tensor["dtype"]])  # JAX has registered bfloat16 with NumPy
    return np.frombuffer(tensor["data"], kind).reshape(tensor["shape"])


def _in_structure(path: Any, like: Params, found: dict[str, Any]) -> Any:
    leaves, left = [], set(found)
    paths, treedef = jax.tree.flatten_with_path(like)
    for key, leaf in paths:
        name = trees.name(key) or "params"
        if trees.is_array(leaf):
            if name not in found or found[name].shape != leaf.shape:
                have = found[name].shape if name in found else "nothing"
                raise ValueError(
                    f"like: {os.fspath(path)!r} has {have} at {name!r}, not {leaf.shape}."
                )
            left.discard(name)
        leaves.append(jnp.asarray(found[name]) if trees.is_array(leaf) else leaf)
    if left:
        raise ValueError(f"like has no leaf {min(left)!r}, but {os.fspath(path)!r} does.")
    return treedef.unflatten(leaves)
