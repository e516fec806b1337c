"""From one line of configuration to a mesh, and where parameters, masks and batches go on it."""

import re
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.common.training import loop

AXES = ("data", "model")
_KERNELS = {
    r"(query|key|value|gate|up|head)/kernel": ("data", "model"),
    r"(out|down)/kernel": ("model", "data"),
    r"tokens/embedding": ("model", "data"),
}
"""The last two axes of everything shaped like a kernel: products over `model` need one exchange per
pair of kernels, and over `data` every device holds its part of each (fully sharded)."""


def sizes(text: str) -> dict[str, int]:
    """The axes of a mesh from text.

    Raises:
      ValueError: the text has another form.

    >>> sizes("data:4,model:2")
    {'data': 4, 'model': 2}
    """
    found = dict(part.partition(":")[::2] for part in text.split(","))
    if not set(found) <= set(AXES) or not all(re.fullmatch(r"[1-9]\d*", n) for n in found.values()):
        raise ValueError(f"--mesh must be like data:4,model:2 or data:8, got {text!r}.")
    return {name: int(number) for name, number in found.items()}


def make_mesh(text: str) -> Mesh:
    """The mesh that a text describes, over the first devices.

    Raises:
      ValueError: the text has another form, or there are too few devices.
    """
    axes, devices = sizes(text), jax.devices()
    count = 1
    for size in axes.values():
        count *= size
    if count > len(devices):
        raise ValueError(
            f"--mesh {text} needs {count} devices, and there are {len(devices)}; on a CPU set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={count}."
        )
    kinds = (AxisType.Auto,) * len(axes)
    return jax.make_mesh(tuple(axes.values()), tuple(axes), kinds, devices=devices[:count])


def check_batch(batch_size: int, mesh: Mesh) -> None:
    """Raises ValueError if the axis `data` does not divide the batches."""
    parts = mesh.shape.get("data", 1)
    if batch_size % parts:
        raise ValueError(f"--batch-size must be a multiple of data:{parts}, got {batch_size}.")


def places(tree: Any, mesh: Mesh) -> Any:
    """Where the leaves of a tree belong: arrays shaped like a weight are sharded like it.

    Args:
      tree: parameters, an optimizer state, or both; arrays or shapes. Replicates may come first.
      mesh: with the axes `data` and `model`, or one of them.
    """

    def place(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
        wanted = next((w for end, w in _KERNELS.items() if re.search(f"{end}$", name)), ())
        if len(leaf.shape) < 2:
            wanted = ()
        ends = [
            axis if size % mesh.shape.get(axis, size + 1) == 0 else None
            for axis, size in zip(wanted, leaf.shape[-2:], strict=False)
        ]
        return NamedSharding(mesh, PartitionSpec(*[None] * (len(leaf.shape) - len(ends)), *ends))

    return jax.tree.map_with_path(place, tree)


def over_batch(mesh: Mesh | None) -> Callable[[jax.Array], jax.Array]:
    """Shards activations, or tokens, so that each part of a batch is on its own devices."""
    if mesh is None or "data" not in mesh.shape:
        return lambda stream: stream
    where = NamedSharding(mesh, PartitionSpec("data"))
    return lambda stream: jax.lax.with_sharding_constraint(stream, where)


def spread(trainer: loop.Trainer, keys: jax.Array, mesh: Mesh | None) -> loop.Trainer:
    """The same trainer with its state on a mesh, from the first array on."""
    if mesh is None:
        return trainer
    where = places(jax.eval_shape(trainer.init, keys), mesh)

    def advance(state: loop.TrainState, *args: Any) -> loop.TrainState:
        return trainer.advance(jax.device_put(state, where), *args)

    return trainer._replace(init=jax.jit(trainer.init, out_shardings=where), advance=advance)
