"""The methods of a study of gradient flow: what each begins from, and what it leaves behind.

results.json    accuracies and gradient norms, every replicate
curves.npz      gradient norms while training
solutions.npz   trained parameters by method, the masks of the prunings, snapshots for the Hessian
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxsparse
from experiments.common.study.study import (
    Content,
    Group,
    begin_from,
    named_arrays,
    read_arrays,
    read_results,
    tree_of,
    write_arrays,
)
from experiments.common.training import loop, methods
from experiments.gradient_flow.lab import Examples, Lab, Tracked, next_masks
from experiments.gradient_flow.settings import METHODS, SHARED, algorithm

Array = jax.Array
TOGETHER = (
    ("dense",),
    ("small_dense",),
    ("prune",),
    ("scratch", "scratch_plus"),
    ("ticket", "shared_ticket"),
    ("shared_scratch", "shared_scratch_new"),
    ("shared_restart",),
    ("set", "set_plus"),
    ("rigl", "rigl_plus"),
    ("snip", "grasp", "snip_global", "grasp_global"),
)
"""Which methods are lanes of one program. Most stand on "prune"."""
WATCHED = ("scratch", "scratch_plus", "rigl", "ticket")
"""The methods whose first replicate is kept along its training, for the Hessian."""
_MEASURES = ("test_accuracy", "initial_gradient_norm", "final_gradient_norm")
_UPDATES = ("norm_before_update", "norm_after_update")


def content_of(name: str) -> Content:
    """What the folder holds of a method; `KeyError` for what is no name of one."""
    if name not in (*METHODS, *SHARED):
        raise KeyError(name)
    numbers = dict.fromkeys(_MEASURES, [float]) | {"seconds": float}
    if algorithm(name) in ("set", "rigl"):
        numbers |= dict.fromkeys(_UPDATES, [[float]])
    arrays = {"curves.npz": f"{name}/"}
    if algorithm(name) != "dense":
        arrays["solutions.npz"] = f"{name}/"
    return Content(numbers, arrays)


def groups(lab: Lab, wanted: Sequence[str]) -> list[Group]:
    """The methods that are not done yet, as they are trained together."""
    done = read_results(lab.path)
    left = [[n for n in names if n in wanted and n not in done] for names in TOGETHER]
    return [
        Group(
            ", ".join(names),
            functools.partial(_begin, lab, names),
            functools.partial(_finish, lab, names),
            lab.settings.iterations,
            lab.settings.measure,
        )
        for names in left
        if names
    ]


def needs(name: str) -> tuple[str, ...]:
    """The methods that must be trained before one."""
    if name.startswith("shared_"):
        return ("prune", "scratch")
    alone = algorithm(name) in ("dense", "prune", "scored")
    return () if alone else ("prune",)


def starting_point(lab: Lab, name: str) -> tuple[Any, Any]:
    """The parameters and masks that a method begins from, replicates first.

    The masks are None where a method has its own: in dense networks and in pruning.
    """
    if name == "small_dense":
        return lab.new(0, "small"), None
    if algorithm(name) in ("dense", "prune"):
        return lab.new(0), None
    if algorithm(name) == "scored":
        params, masks = lab.new(0), _scored_masks(lab, name)
    elif name.startswith("shared_"):
        params, masks = _shared(lab, name), shared(lab, stored(lab, "prune/masks"))
    else:
        params, masks = lab.new(0 if name == "ticket" else 1), stored(lab, "prune/masks")
    if name.endswith("_plus"):
        return lab.draw_sparse(lab.keys_for(2), params, masks), masks
    return jaxsparse.apply(params, masks), masks


def stored(lab: Lab, name: str) -> Any:
    """A tree that the folder holds, replicates (or snapshots) first: "prune", "prune/masks", ..."""
    arrays = read_arrays(lab.path / "solutions.npz")
    like = jax.eval_shape(lab.networks["large"].init_params, lab.keys[0])
    return tree_of(arrays, like, name)


def learned(results: Mapping[str, Any], name: str) -> np.ndarray:
    """Which replicates of a method reach more than half of the pruned network's accuracy."""
    own, pruned = (np.array(results[key]["test_accuracy"]) for key in (name, "prune"))
    return own > pruned / 2


def shared_replicate(lab: Lab) -> int:
    """Which replicate's pruning the group of `SHARED` stands around: the first that learns from
    scratch, because what a network that only guesses has in common with others says nothing."""
    return int(np.argmax(learned(read_results(lab.path), "scratch")))


def shared(lab: Lab, tree: Any) -> Any:
    """That replicate of stacked trees, for every replicate."""
    chosen = shared_replicate(lab)
    return jax.tree.map(lambda leaf: leaf[chosen][None].repeat(len(lab.keys), 0), tree)


def _shared(lab: Lab, name: str) -> Any:
    return {
        "shared_ticket": lambda: shared(lab, lab.new(0)),
        "shared_scratch": lambda: shared(lab, lab.new(1)),
        "shared_scratch_new": lambda: lab.new(1),
        "shared_restart": lambda: shared(lab, stored(lab, "prune")),
    }[name]()


def _scored_masks(lab: Lab, name: str) -> Any:
    settings = lab.settings
    kind, _, scope = name.partition("_")
    softened = functools.partial(lab.loss, temperature=settings.grasp_temperature)
    score = {
        "snip": functools.partial(jaxsparse.snip, lab.loss),
        "grasp": functools.partial(jaxsparse.grasp, softened),
    }[kind]

    @jax.jit
    def masks(origin: Any, batch: Examples) -> Any:
        def one(params: Any) -> Any:
            return jaxsparse.prune(
                score(params, [batch]),
                settings.sparsity,
                scope=scope or "layer",
                prunable=methods.prunable(settings.dense),
                signed=True,
            )

        return jax.lax.map(one, origin)

    return masks(lab.new(0), lab.scoring())


def _begin(lab: Lab, now: Sequence[str]) -> tuple[loop.Trainer, loop.TrainState]:
    order = [name for names in TOGETHER for name in names]
    keys = [lab.keys_for(10 + order.index(name)) for name in now]
    starts = [starting_point(lab, name) for name in now]
    params, masks = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *starts)
    trainer = _trainer(lab, now[0])
    state = trainer.init(jnp.concatenate(keys))
    if masks is None:
        return trainer, state._replace(params=params)
    return trainer, begin_from(state, params, masks)


def _finish(lab: Lab, now: Sequence[str], state: loop.TrainState, seconds: float) -> dict[str, Any]:
    accuracy = _trainer(lab, now[0]).evaluate(state.params, lab.test)["accuracy"]
    curves = read_arrays(lab.path / "curves.npz")
    solutions = read_arrays(lab.path / "solutions.npz")
    count, results = len(lab.keys), {}
    for i, name in enumerate(now):
        mine = slice(i * count, (i + 1) * count)
        params, opt_state, tracked = jax.tree.map(
            lambda leaf: jnp.asarray(np.asarray(leaf[mine])),  # noqa: B023
            (state.params, state.opt_state, state.tracked),
        )
        masks = None
        if algorithm(name) != "dense":
            masks = jax.vmap(jaxsparse.get_masks)(opt_state, params)
            solutions |= named_arrays(params, name)
        start, norms = starting_point(lab, name), lab.norms(_size(name))
        begun, ended = norms(*start), norms(params, masks)
        for layer, between in tracked.norms.items():
            ends = begun[layer][:, None], ended[layer][:, None]
            curves[f"{name}/{layer}"] = np.concatenate([ends[0], between, ends[1]], axis=1)
        results[name] = {
            "test_accuracy": accuracy[mine].tolist(),
            "initial_gradient_norm": np.asarray(begun["all"], float).tolist(),
            "final_gradient_norm": np.asarray(ended["all"], float).tolist(),
            "seconds": round(seconds / len(now), 1),
        }
        if algorithm(name) in ("set", "rigl"):
            results[name] |= _across_updates(lab, algorithm(name), tracked)
        if name == "prune":
            solutions |= named_arrays(masks, "prune/masks")
        if name in WATCHED:
            snapshots = jax.tree.map(
                lambda start, between, end: jnp.concatenate([start[:1], between[0], end[:1]]),
                start,
                (tracked.params, tracked.masks),
                (params, masks),
            )
            solutions |= named_arrays(snapshots[0], f"{name}/snapshots/params")
            solutions |= named_arrays(snapshots[1], f"{name}/snapshots/masks")
    write_arrays(lab.path / "curves.npz", curves)
    write_arrays(lab.path / "solutions.npz", solutions)
    return results


def _across_updates(lab: Lab, kind: str, tracked: Tracked) -> dict[str, list[Any]]:
    """The gradient norm before and after a mask update of every snapshot, by replicate."""
    steps = jnp.array(lab.settings.snapshots)

    def across(scoring: Examples, measured: Examples, inputs: Any) -> tuple[Array, Array]:
        step, params, masks, key = inputs
        grads = jax.grad(lab.loss)(params, scoring)
        after = next_masks(lab.settings, kind, step, params, masks, grads, key)
        loss = lambda params: lab.loss(params, measured)  # noqa: E731
        return jaxsparse.analysis.flow_across_update(loss, params, masks, after)

    @jax.jit
    def everywhere(lanes: Any, scoring: Examples, measured: Examples) -> tuple[Array, Array]:
        one = functools.partial(across, scoring, measured)

        def replicate(inputs: Any) -> tuple[Array, Array]:
            params, masks, key = inputs
            return jax.lax.map(one, (steps, params, masks, jax.random.split(key, len(steps))))

        return jax.lax.map(replicate, lanes)

    lanes = tracked.params, tracked.masks, lab.keys
    found = everywhere(lanes, lab.scoring(), lab.measured())
    return {name: np.asarray(v, float).tolist() for name, v in zip(_UPDATES, found, strict=True)}


def _trainer(lab: Lab, name: str) -> loop.Trainer:
    return lab.trainer(algorithm(name), _size(name))


def _size(name: str) -> str:
    return "small" if name == "small_dense" else "large"
