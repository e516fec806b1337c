"""What is measured of a job: the sparsity of its networks, their cost and their accuracy."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxsparse
from experiments.common.report.tables import STATISTICS, statistics
from experiments.common.training.loop import Metrics, TrainState
from experiments.common.training.methods import METHODS
from experiments.train.job import Job, weight_name
from jaxsparse import analysis, sparse

_METHOD = {"algorithm": str, "test_accuracy": STATISTICS} | dict.fromkeys(
    ("sparsity", "weights", "alive", "flops", "training_flops", "bytes_stored", "bytes_training"),
    float,
)
SUMMARY = _METHOD | {
    "dataset": str,
    "dataset_description": str,
    "model": str,
    "seconds": float,
    "dense": (_METHOD,),
}
"""What `summarize` returns, in the form that `files.check` takes."""


def masks_by_name(job: Job, method: str, state: TrainState) -> dict[str, jax.Array]:
    """The masks of the weights that may be sparse, replicates on the first axis."""
    params = jax.vmap(sparse.expand)(state.params)
    if METHODS[method].dense:
        masks = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), params)
    else:
        masks = jax.vmap(jaxsparse.get_masks)(state.opt_state, state.params)
    found = {}
    for (path, mask), leaf in zip(
        jax.tree.leaves_with_path(masks), jax.tree.leaves(params), strict=True
    ):
        name = weight_name(path)
        if job.prunable(name, jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)):
            found[name] = mask
    return found


def observer(job: Job, method: str) -> Callable[[TrainState], Metrics]:
    """A function that measures a state, by replicate: `density`, `churn`, `off_mask` (nonzero
    weights off the masks; there must be none) and `layer_density`."""

    @jax.jit
    def observe(state: TrainState) -> Metrics:
        masks = masks_by_name(job, method, state)
        alive = {name: mask.sum(range(1, mask.ndim)) for name, mask in masks.items()}
        total = sum(alive.values())
        found = {"churn": jnp.zeros(total.shape), "off_mask": jnp.zeros(total.shape, jnp.int32)}
        if not METHODS[method].dense:
            metrics = jax.vmap(
                lambda opt_state, params: jaxsparse.metrics(opt_state, params=params)
            )
            measured = metrics(state.opt_state, state.params)
            found = {name: measured[name] for name in found}
        return {
            "density": total / sum(mask[0].size for mask in masks.values()),
            **found,
            "layer_density": {name: alive[name] / mask[0].size for name, mask in masks.items()},
        }

    return observe


def summarize(
    job: Job,
    states: dict[str, TrainState],
    lines: Sequence[dict[str, Any]],
    seconds: float,
    paces: Mapping[str, Sequence[float]] = {},
) -> dict[str, Any]:
    """The summary of a finished job: its method, and the dense twin under `dense`.

    Args:
      job: the job.
      states: the last state of each method.
      lines: all metric lines.
      seconds: how long it took, all starts together.
      paces: by method, seconds of a step of one replicate, one number per call of the loop.
    """
    config = job.config
    found = {}
    for method, state in states.items():
        last = [line for line in lines if line["method"] == method and line["step"] == job.steps]
        found[method] = {"algorithm": method}
        for name in job.sets:
            accuracies = [line[f"{name}_accuracy"] for line in last]
            found[method][f"{name}_accuracy"] = statistics(accuracies)
        found[method] |= costs(job, method, state, lines)
    dense = found.get("dense") if config.method != "dense" else None
    return {
        "dataset": config.dataset,
        "dataset_description": job.dataset.description,
        "model": config.model,
        **found[config.method],
        "epochs": config.epochs,
        "steps": job.steps,
        "seconds": round(seconds, 2),
        "seconds_per_step": {name: float(np.median(pace)) for name, pace in paces.items() if pace},
        "dense": dense,
    }


def costs(
    job: Job, method: str, state: TrainState, lines: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Weights, FLOPs and bytes of a trained method, means over its replicates.

    Returns:
      `weights` that may be sparse, how many of them are `alive`, and their `sparsity`; `flops` of a
      forward pass and `training_flops` of a step, per example, living weights only; `bytes_stored`,
      the living weights with an index each or with one bit per weight, whichever is smaller;
      `bytes_training`, parameters, masks and optimizer state in the form of their arrays.
    """
    state = jax.device_get(state)
    masks = jax.device_get(masks_by_name(job, method, state))
    weights = sum(mask[0].size for mask in masks.values())
    alive = sum(mask.sum() for mask in masks.values()) / job.config.seeds
    found = []
    for i in range(job.config.seeds):
        one = jax.tree.map(lambda leaf: leaf[i], state)  # noqa: B023
        tree = None if METHODS[method].dense else jaxsparse.get_masks(one.opt_state, one.params)
        inputs = job.sets["test"].inputs[0, :1]
        params = sparse.expand(one.params)
        cost = analysis.flops(job.apply, params, tree, inputs)
        memory = analysis.memory(params, tree, one.opt_state)
        one_bit_each = memory.weights - 4 * round(weights - alive) + memory.packed_masks
        sparsities = [1 - line["density"] for line in lines if line["method"] == method]
        found.append(
            {
                "flops": cost.sparse,
                "training_flops": analysis.training_flops(
                    cost.dense,
                    cost.sparse,
                    METHODS[method].flops or method,
                    every=job.updates.every,
                    sparsities=sparsities,
                ),
                "bytes_stored": min(memory.weights, memory.living_weights, one_bit_each),
                "bytes_training": sparse.nbytes(one.params) + memory.optimizer,
            }
        )
    means = {key: _number(np.mean([one[key] for one in found])) for key in found[0]}
    return {
        "sparsity": float(1 - alive / weights),
        "weights": weights,
        "alive": _number(alive),
        **means,
    }


def _number(value: np.floating) -> int | float:
    return int(value) if value == int(value) else float(value)
