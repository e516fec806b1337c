"""One process of a job of several: what `tests/test_processes.py` starts.

    python -m tests.processes ADDRESS COUNT NUMBER FOLDER JOB

Every process has two devices. A job trains a small network, and writes what came out to FOLDER.
"""

import functools
import os
import signal
import sys
import traceback
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec

import jaxsparse

SAVE, KILL, STOP = 3, 5, 8
"""Steps: of the checkpoint, of a sudden death, and the last one. Masks change at 2, 4 and 6."""

INNER = optax.adam(0.01)
METHODS = {
    "rigl": jaxsparse.rigl(INNER, 0.75, key=0, every=2),
    "sparse_evolution": jaxsparse.sparse_evolution(INNER, 0.75, key=0, every=2),
}
LAYOUTS = {
    "rows": (("data",), ("data", None)),
    "tensor": (("data", "model"), (None, "model")),
}
"""Fully sharded, and tensor parallel: the axes of the mesh, and how a kernel lies on it."""
WIDTH = 32  # of all layers: kernels of one shape compile once


def initial():
    """The same dense parameters in every process."""
    draw = np.random.default_rng(0)
    return {
        name: {
            "kernel": draw.normal(size=(WIDTH, WIDTH)).astype(np.float32),
            "bias": np.zeros(WIDTH, np.float32),
        }
        for name in ("fc1", "fc2")
    }


def batch(step):
    x = np.random.default_rng([1, step]).normal(size=(16, WIDTH)).astype(np.float32)
    return x, np.sin(x)


def train_step(method, shardings=None):
    """`(params, state, x, y) -> (params, state)`, compiled; it leaves all where it lies."""
    tx = METHODS[method]

    def step(params, state, x, y):
        def loss(params):
            hidden = jnp.tanh(x @ params["fc1"]["kernel"] + params["fc1"]["bias"])
            return jnp.mean((hidden @ params["fc2"]["kernel"] + params["fc2"]["bias"] - y) ** 2)

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, out_shardings=shardings)


def alone(method):
    """What a single device starts from, and comes to."""
    step = train_step(method)
    start = current = jaxsparse.init(METHODS[method], jax.tree.map(jnp.asarray, initial()))
    for count in range(STOP):
        current = step(*current, *batch(count))
    return start, current


def placed(layout):
    """The shardings of the parameters and of a batch, over the devices of all processes."""
    names, spec = LAYOUTS[layout]
    shape = (-1,) if len(names) == 1 else (jax.device_count() // 2, 2)
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(shape), names)
    at = functools.partial(NamedSharding, mesh)
    layer = {"kernel": at(PartitionSpec(*spec)), "bias": at(PartitionSpec())}
    return {"fc1": layer, "fc2": layer}, at(PartitionSpec("data"))


def spread(tree, shardings):
    """Arrays over all devices, of which every process has all the numbers."""

    def one(leaf, sharding):
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(one, tree, shardings)


class Run:
    """A method in a layout: where it begins, and its step."""

    def __init__(self, method, layout):
        shardings, self.over = placed(layout)
        self.start = jaxsparse.init(METHODS[method], spread(initial(), shardings))
        for tree in (self.start[0], self.start[1].masks, self.start[1].inner_state[0].mu):
            for leaf, sharding in zip(*map(jax.tree.leaves, (tree, shardings)), strict=True):
                if leaf.sharding != sharding:
                    raise ValueError(f"{method}: {leaf.sharding} is not {sharding}")
        self.step = train_step(method, jax.tree.map(lambda a: a.sharding, self.start))

    def train(self, current, first=0, stop=STOP, checkpoint=None):
        """What comes after the steps; at step `SAVE` a checkpoint is written."""
        for count in range(first, stop):
            if checkpoint and count == SAVE:
                save(checkpoint, current)
            current = self.step(*current, *spread(batch(count), (self.over, self.over)))
        return current


def save(path, tree):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)


def restore(path, like):
    """A checkpoint in the shardings of `like`."""
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), like)
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path, like)


def write(path, tree):
    """The numbers that are spread over all processes, by their paths."""
    everywhere = NamedSharding(tree[0]["fc1"]["bias"].sharding.mesh, PartitionSpec())
    whole = jax.jit(lambda tree: tree, out_shardings=everywhere)(tree)
    if jax.process_index() == 0:
        np.savez(path, **by_path(jax.device_get(whole)))


def by_path(tree):
    return {jax.tree_util.keystr(keys): leaf for keys, leaf in jax.tree.leaves_with_path(tree)}


def killed(folder):
    """The last process dies behind a checkpoint."""
    run = Run("rigl", "rows")
    current = run.train(run.start, stop=KILL, checkpoint=folder / "rigl")
    if jax.process_index() == jax.process_count() - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    run.train(current, KILL)


def restarted(folder):
    """The same without an interruption, and from the checkpoint that was left; other methods."""
    for method in METHODS:
        run = Run(method, "rows")
        write(folder / f"two {method}.npz", run.train(run.start))
        if method == "rigl":
            resumed = restore(folder / "rigl", run.start)
            write(folder / "resumed.npz", run.train(resumed, SAVE))


def wider(folder):
    """More processes and another layout: from the start, and from the same checkpoint."""
    run = Run("rigl", "tensor")
    write(folder / "four rigl.npz", run.train(run.start))
    resumed = restore(folder / "rigl", run.start)
    write(folder / "restored.npz", resumed)
    write(folder / "four from two.npz", run.train(resumed, SAVE))


JOBS = {job.__name__: job for job in (killed, restarted, wider)}


def main(address, count, number, folder, job):
    jax.distributed.initialize(
        address,
        int(count),
        int(number),
        initialization_timeout=60,
        coordinator_bind_address=address,
    )
    try:
        JOBS[job](Path(folder))
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # an ordinary end waits for the other processes


if __name__ == "__main__":
    main(*sys.argv[1:])
