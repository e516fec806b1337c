"""The methods of a study of gradient flow: what each starts from, and what it leaves behind.

results.json    accuracies and gradient norms, for every replicate
curves.npz      gradient norms during training
solutions.npz   trained parameters by method, the masks of the prunings, snapshots for the Hessian:
                large, and needed only for what has yet to be trained or measured
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxsparse
from experiments.common.study.content import (
    Content,
    named_arrays,
    read_arrays,
    read_results,
    tree_of,
)
from experiments.common.study.lab import begin_from, cut, stack
from experiments.common.study.study import Group
from experiments.common.training import loop, methods
from experiments.gradient_flow.lab import Examples, Flow, Tracked, next_masks
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
    ("snip", "grasp", "snip_global", "grasp_global", "synflow"),
)
"""Which methods are lanes of one program. Most of them need "prune"."""
WATCHED = ("scratch", "scratch_plus", "rigl", "ticket")
"""The methods of which the first replicate is kept during training, for the Hessian."""
_MEASURES = ("test_accuracy", "initial_gradient_norm", "final_gradient_norm")
_UPDATES = ("norm_before_update", "norm_after_update")


def content_of(name: str) -> Content:
    """What the folder holds of a method; `KeyError` for an unknown name."""
    if name not in (*METHODS, *SHARED):
        raise KeyError(name)
    numbers = dict.fromkeys(_MEASURES, [float]) | {"seconds": float}
    if algorithm(name) in ("set", "rigl"):
        numbers |= dict.fromkeys(_UPDATES, [[float]])
    large = {"solutions.npz": f"{name}/"} if algorithm(name) != "dense" else {}
    return Content(numbers, {"curves.npz": f"{name}/"}, large)


def groups(flow: Flow, left: Sequence[str]) -> list[Group]:
    """The methods that are not done yet, grouped by what is trained together."""
    together = [[name for name in names if name in left] for names in TOGETHER]
    return [
        Group(
            names,
            functools.partial(_finish, flow, names),
            functools.partial(_begin, flow, names),
            flow.settings.iterations,
            flow.settings.measure,
        )
        for names in together
        if names
    ]


def needs(name: str) -> tuple[str, ...]:
    """The methods that must be trained before one."""
    if name.startswith("shared_"):
        return ("prune", "scratch")
    alone = algorithm(name) in ("dense", "prune", "scored")
    return () if alone else ("prune",)


def starting_point(flow: Flow, name: str) -> tuple[Any, Any]:
    """The parameters and masks that a method starts from, replicates first.

    The masks are None if a method has its own: in dense networks and in pruning.
    """
    if name == "small_dense":
        return flow.new(0, "small"), None
    if algorithm(name) in ("dense", "prune"):
        return flow.new(0), None
    if algorithm(name) == "scored":
        params, masks = flow.new(0), _scored_masks(flow, name)
    elif name.startswith("shared_"):
        params, masks = _shared(flow, name), shared(flow, stored(flow, "prune/masks"))
    else:
        params, masks = flow.new(0 if name == "ticket" else 1), stored(flow, "prune/masks")
    if name.endswith("_plus"):
        return flow.draw_sparse(flow.keys_for(2), params, masks), masks
    return jaxsparse.apply(params, masks), masks


def stored(flow: Flow, name: str) -> Any:
    """A tree from the folder, replicates (or snapshots) first: "prune", "prune/masks", ..."""
    arrays = read_arrays(flow.lab.site.path / "solutions.npz")
    like = jax.eval_shape(flow.networks["large"].init_params, flow.keys[0])
    return tree_of(arrays, like, name)


def learned(results: Mapping[str, Any], name: str) -> np.ndarray:
    """Which replicates of a method reach more than half of the pruned network's accuracy."""
    own, pruned = (np.array(results[key]["test_accuracy"]) for key in (name, "prune"))
    return own > pruned / 2


def shared_replicate(flow: Flow) -> int:
    """The replicate whose pruning the group of `SHARED` is built around: the first one that learns
    from scratch, because a network that only guesses reveals nothing by its agreement."""
    return int(np.argmax(learned(read_results(flow.lab.site.path), "scratch")))


def shared(flow: Flow, tree: Any) -> Any:
    """That replicate of stacked trees, for every replicate."""
    chosen = shared_replicate(flow)
    return jax.tree.map(lambda leaf: leaf[chosen][None].repeat(len(flow.keys), 0), tree)


def _shared(flow: Flow, name: str) -> Any:
    return {
        "shared_ticket": lambda: shared(flow, flow.new(0)),
        "shared_scratch": lambda: shared(flow, flow.new(1)),
        "shared_scratch_new": lambda: flow.new(1),
        "shared_restart": lambda: shared(flow, stored(flow, "prune")),
    }[name]()


def _scored_masks(flow: Flow, name: str) -> Any:
    settings, apply = flow.settings, flow.lab.network.apply
    prunable = methods.prunable(settings.dense)
    softened = functools.partial(flow.loss, temperature=settings.grasp_temperature)
    kind, _, scope = name.partition("_")

    def by_flow(params: Any, batch: Examples) -> Any:
        blank = jnp.zeros((1, *batch[0].shape[1:]))
        synflow = lambda params: jaxsparse.synflow(apply, params, blank)  # noqa: E731
        return jaxsparse.prune_iteratively(synflow, params, settings.sparsity, prunable=prunable)

    def by_gradient(score: Any, loss: Any, params: Any, batch: Examples) -> Any:
        return jaxsparse.prune(
            score(loss, params, [batch]),
            settings.sparsity,
            scope=scope or "layer",
            prunable=prunable,
            signed=True,
        )

    one = {
        "snip": functools.partial(by_gradient, jaxsparse.snip, flow.loss),
        "grasp": functools.partial(by_gradient, jaxsparse.grasp, softened),
        "synflow": by_flow,
    }[kind]

    @jax.jit
    def masks(origin: Any, batch: Examples) -> Any:
        return jax.lax.map(lambda params: one(params, batch), origin)

    return masks(flow.new(0), flow.scoring())


def _begin(flow: Flow, now: Sequence[str]) -> tuple[loop.Trainer, loop.TrainState]:
    order = [name for names in TOGETHER for name in names]
    keys = [flow.keys_for(10 + order.index(name)) for name in now]
    starts = [starting_point(flow, name) for name in now]
    params, masks = stack(starts)
    trainer = _trainer(flow, now[0])
    state = trainer.init(jnp.concatenate(keys))
    if masks is None:
        return trainer, state._replace(params=params)
    return trainer, begin_from(state, params, masks)


def _finish(flow: Flow, now: Sequence[str], state: loop.TrainState) -> dict[str, Content]:
    test = flow.lab.sets["test"]
    accuracy = _trainer(flow, now[0]).evaluate(state.params, test)["accuracy"]
    return {
        name: _measured(flow, name, accuracy[mine], cut(state, mine))
        for name, mine in ((name, flow.lab.mine(i)) for i, name in enumerate(now))
    }


def _measured(flow: Flow, name: str, accuracy: np.ndarray, state: loop.TrainState) -> Content:
    params, tracked, masks, solutions = state.params, state.tracked, None, {}
    if algorithm(name) != "dense":
        masks = jax.vmap(jaxsparse.get_masks)(state.opt_state, params)
        solutions = named_arrays(params, name)
    start, norms = starting_point(flow, name), flow.norms(_size(name))
    begun, ended = norms(*start), norms(params, masks)
    curves = {}
    for layer, between in tracked.norms.items():
        ends = begun[layer][:, None], ended[layer][:, None]
        curves[f"{name}/{layer}"] = np.concatenate([ends[0], between, ends[1]], axis=1)
    numbers = {
        "test_accuracy": accuracy.tolist(),
        "initial_gradient_norm": np.asarray(begun["all"], float).tolist(),
        "final_gradient_norm": np.asarray(ended["all"], float).tolist(),
    }
    if algorithm(name) in ("set", "rigl"):
        numbers |= _across_updates(flow, algorithm(name), tracked)
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
    return Content(numbers, {"curves.npz": curves}, {"solutions.npz": solutions})


def _across_updates(flow: Flow, kind: str, tracked: Tracked) -> dict[str, list[Any]]:
    """The gradient norm before and after a mask update at each snapshot, by replicate."""
    steps = jnp.array(flow.settings.snapshots)

    def across(scoring: Examples, measured: Examples, inputs: Any) -> tuple[Array, Array]:
        step, params, masks, key = inputs
        grads = jax.grad(flow.loss)(params, scoring)
        after = next_masks(flow.settings, kind, step, params, masks, grads, key)
        loss = lambda params: flow.loss(params, measured)  # noqa: E731
        return jaxsparse.analysis.flow_across_update(loss, params, masks, after)

    @jax.jit
    def everywhere(lanes: Any, scoring: Examples, measured: Examples) -> tuple[Array, Array]:
        one = functools.partial(across, scoring, measured)

        def replicate(inputs: Any) -> tuple[Array, Array]:
            params, masks, key = inputs
            return jax.lax.map(one, (steps, params, masks, jax.random.split(key, len(steps))))

        return jax.lax.map(replicate, lanes)

    lanes = tracked.params, tracked.masks, flow.keys
    found = everywhere(lanes, flow.scoring(), flow.measured())
    return {name: np.asarray(v, float).tolist() for name, v in zip(_UPDATES, found, strict=True)}


def _trainer(flow: Flow, name: str) -> loop.Trainer:
    return flow.trainer(algorithm(name), _size(name))


def _size(name: str) -> str:
    return "small" if name == "small_dense" else "large"
