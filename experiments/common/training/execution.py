"""How a model runs on a backend: the only place where that is decided, based on measurements."""

import contextlib
import ctypes
import os
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.common.models.layers import Form, form_on
from experiments.common.models.registry import MODELS

REPLICATES = "replicates"
_MMAP_MAX, _TRIM_THRESHOLD = -4, -1  # their numbers in malloc.h


class Execution(NamedTuple):
    """The form in which the training of a model is compiled.

    Attributes:
      convolution: as `layers.form_on` returns it.
      replicates: "vmap" (all on a device at once) or "map" (one after another).
      by_steps: whether each step of a single replicate is a call of its own.
    """

    convolution: Form
    replicates: Literal["vmap", "map"]
    by_steps: bool = False


def execution(model_name: str, backend: str) -> Execution:
    """The fastest form of a model on a backend.

    On a CPU, `map` runs the replicates of a device one after another; there, `vmap` makes
    convolutional networks slower, by 1.7 to 2.4 in an earlier form of the patches, and
    lenet_300_100 and the transformer by less than a tenth.

    Replicates are spread over the devices if they divide evenly. With every core as a device of its
    own (`use_every_core`), lenet_300_100 takes 0.47 ms instead of 0.68.

    On one H100, in float32 and inside the loop, a step of lenet_5_caffe with sparse momentum takes
    1.86 ms for 9 replicates under `vmap` and 0.33 ms for one: 1.6 times the speed. Large networks
    fill the device alone, so their replicates run one after another; that choice is based on
    reasoning, not on a measurement.

    Inside a loop on a CPU, XLA uses one core for work that it spreads over all cores outside: a
    step of VGG-16-D with compressed kernels takes 1.9 s there and 0.9 s as a call of its own.

    Args:
      model_name: a key of `registry.MODELS`.
      backend: what `jax.default_backend()` returns: "cpu", "gpu", "tpu", ...

    Raises:
      ValueError: there is no such model.

    >>> execution("lenet_5", "cpu")
    Execution(convolution='patches', replicates='map', by_steps=False)
    """
    if model_name not in MODELS:
        raise ValueError(f"model_name is {model_name!r}; it must be one of {', '.join(MODELS)}")
    small = MODELS[model_name].small
    at_once = backend != "cpu" and small
    return Execution(form_on(backend), "vmap" if at_once else "map", backend == "cpu" and not small)


def use_every_core() -> None:
    """Makes every CPU core a device of its own, so that replicates run side by side.

    Call it before JAX is first used; later, or if the user has set the number of devices, it does
    nothing.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", _cores())


def keep_memory() -> None:
    """Lets the process keep the memory of freed arrays for later ones.

    glibc returns large blocks to the system, which clears every page of the next ones: `x + 1` of
    32 MiB takes 19 ms instead of 4 on a virtual machine with two cores (medians of 40 calls). With
    another C library it does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def compiled_once(function: Callable) -> Callable:
    """`jax.jit` for code that runs once: on a CPU, optimizing it takes longer than running it."""
    level = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    compiled = jax.jit(function, compiler_options=level)

    def run(*args: Any) -> Any:
        # Options are for the outermost function; inside another one, such as an abstract
        # evaluation, there is nothing to compile.
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(args))
        return (function if traced else compiled)(*args)

    return run


def replicate_keys(seed: int, count: int) -> jax.Array:
    """One key per replicate: those of the seeds `seed, seed + 1, ...`."""
    return jax.vmap(jax.random.key)(seed + jnp.arange(count))


def over_replicates(function: Callable, form: str) -> Callable:
    """`(stacked, *shared) -> stacked`: applies the function to each replicate, over all devices.

    Args:
      function: its first arguments, as many as the tuple `stacked` holds, have a replicate axis.
      form: "vmap" or "map", for the replicates on one device.
    """

    def local(stacked: Any, *shared: Any) -> Any:
        if form == "vmap":
            return jax.vmap(lambda one: function(*one, *shared))(stacked)
        return jax.lax.map(lambda one: function(*one, *shared), stacked)

    def everywhere(stacked: Any, *shared: Any) -> Any:
        mesh = _mesh(len(jax.tree.leaves(stacked)[0]))
        if mesh is None:
            return local(stacked, *shared)
        stacked_spec, shared_spec = PartitionSpec(REPLICATES), PartitionSpec()
        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(stacked_spec, *[shared_spec] * len(shared)),
            out_specs=stacked_spec,
            check_vma=False,
        )(stacked, *shared)

    return everywhere


def place(stacked: Any, *shared: Any) -> tuple[Any, ...]:
    """Places arrays for `over_replicates`: the stacked ones sharded, the others replicated."""
    mesh = _mesh(len(jax.tree.leaves(stacked)[0]))
    if mesh is None:
        return stacked, *shared
    spread, everywhere = (NamedSharding(mesh, PartitionSpec(*a)) for a in ((REPLICATES,), ()))
    return jax.device_put(stacked, spread), *jax.device_put(shared, everywhere)


def fill(stacked: Any) -> Any:
    """The same lanes, with the last one repeated until they spread evenly over the devices.

    If there are fewer lanes than devices, they are unchanged.
    """
    leaves, devices = jax.tree.leaves(stacked), len(jax.local_devices())
    lanes = len(leaves[0]) if leaves else 0
    more = -lanes % devices
    if not more or lanes < devices:
        return stacked
    rows = np.minimum(np.arange(lanes + more), lanes - 1)
    return jax.tree.map(lambda leaf: leaf[rows], stacked)


def _cores() -> int:
    # The cores that this process may use; not every system can tell.
    here = getattr(os, "sched_getaffinity", None)
    return len(here(0)) if here else os.cpu_count() or 1


def _mesh(replicates: int) -> Mesh | None:
    devices = jax.local_devices()
    count = max(n for n in range(1, len(devices) + 1) if replicates % n == 0)
    return None if count == 1 else Mesh(np.array(devices[:count]), (REPLICATES,))
