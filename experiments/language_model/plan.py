"""What a training step needs on each device, computed from shapes: nothing is allocated."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.common.report.tables import markdown, size
from experiments.common.training.evaluation import cross_entropy
from experiments.language_model import layout
from experiments.language_model.decoder import make_decoder
from experiments.language_model.settings import Cell, Settings

PLATFORMS = ("cuda", "tpu")
SHOWN = 2


def enough_devices(axes: Mapping[str, int]) -> None:
    """Makes the host look like as many devices as a mesh has, if JAX has not started yet."""
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", math.prod(axes.values()))


def text(settings: Settings, names: Sequence[str], sparsity: float, mesh: str | None) -> str:
    """A table of what the first methods need, and for which platforms their steps lower.

    Args:
      settings: of the study.
      names: of the methods.
      sparsity: of the sparse ones.
      mesh: as for `layout.make_mesh`; None for one device.

    Raises:
      ValueError: the mesh is impossible.
    """
    shape = settings.architecture
    rows = []
    for name in names[:SHOWN]:
        cell = Cell(name, None if name == "dense" else sparsity, 0)
        found = memory(settings, cell, mesh)
        total = sum(found.values())
        rows.append([name, *(size(found[key]) for key in found), size(total)])
    header = ["", "parameters", "masks", "optimizer", "temporary", "together"]
    return "\n".join(
        [
            f"{shape.weights:,} weights, {shape.sparse_weights:,} of them in kernels; a step of "
            f"{settings.batch_size} windows of {settings.context} bytes, {shape.compute}.",
            f"Bytes of each of the devices of {mesh or 'one device'}; temporary, gradients and "
            f"activations among it, as XLA plans it for {jax.default_backend()}, without fused "
            "attention.",
            "",
            markdown(header, rows),
            "",
            f"The steps lower for {' and '.join(PLATFORMS)}.",
        ]
    )


def memory(settings: Settings, cell: Cell, mesh: str | None) -> dict[str, int]:
    """Bytes per device of a training step, which is compiled here and lowered for `PLATFORMS`.

    Args:
      settings: of the study.
      cell: what is trained.
      mesh: as for `layout.make_mesh`; None for one device.
    """
    step, given = training_step(settings, cell, mesh)
    jax.export.export(step, platforms=PLATFORMS)(*given)
    compiled = step.lower(*given).compile()
    params, opt_state = given[:2]
    masks = {True: 0, False: 0}
    for path, leaf in jax.tree.leaves_with_path(opt_state):
        masks["masks" in jax.tree_util.keystr(path)] += _bytes(leaf)
    return {
        "parameters": sum(map(_bytes, jax.tree.leaves(params))),
        "masks": masks[True],
        "optimizer": masks[False],
        "temporary": compiled.memory_analysis().temp_size_in_bytes,
    }


def training_step(settings: Settings, cell: Cell, mesh: str | None) -> tuple[Any, tuple[Any, ...]]:
    """`(step, shapes of its arguments)`: a jitted step whose state is donated."""
    devices = None if mesh is None else layout.make_mesh(mesh)
    if devices is not None:
        layout.check_batch(settings.batch_size, devices)
    apply, init_params = make_decoder(settings.shape(cell), layout.over_batch(devices))
    tx = settings.method(cell, 0)
    params = jax.eval_shape(init_params, jax.random.key(0))
    state = params, jax.eval_shape(tx.init, params)
    tokens = jax.ShapeDtypeStruct((settings.batch_size, settings.context), jnp.int32)
    where = None
    if devices is not None:
        where = layout.places(state, devices)
        state = jax.tree.map(
            lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), state, where
        )

    def step(params: Any, opt_state: Any, tokens: jax.Array, labels: jax.Array) -> Any:
        tokens = layout.over_batch(devices)(tokens)
        loss = lambda params: cross_entropy(apply(params, tokens), labels).mean()  # noqa: E731
        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=where)
    return jitted, (*state, tokens, tokens)


def _bytes(leaf: Any) -> int:
    shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
    return math.prod(shape) * leaf.dtype.itemsize
