"""What a study of gradient flow measures of its trained networks: agreement, distances, paths.

Each analysis is a group that trains nothing; its results are stored with those of the methods.
"""

import concurrent.futures
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsparse
from experiments.common.data.batches import batch_indices
from experiments.common.models.network import trained
from experiments.common.study.content import Content
from experiments.common.study.study import Group
from experiments.common.training import evaluation, methods
from experiments.common.training.execution import fill, over_replicates, place
from experiments.gradient_flow import cells
from experiments.gradient_flow.cells import (
    WATCHED,
    shared,
    shared_replicate,
    starting_point,
    stored,
)
from experiments.gradient_flow.lab import Flow
from experiments.gradient_flow.settings import SHARED, Settings
from experiments.gradient_flow.spectra import spectrum, steps_of
from jaxsparse import analysis

Array = jax.Array
ALPHAS = np.arange(-4, 25) / 20
"""The 29 points of the paper on [-0.2, 1.2]; they include 0 and 1 exactly."""
BETWEEN = np.linspace(0.0, 1.0, 21)
"""Points on a Bezier path."""
SPARSITIES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
ENDS = ("shared_ticket", "shared_scratch", "scratch_plus")
"""The methods from whose solutions paths lead to the pruning solution: to the one that the shared
group is built around, or to that of the same replicate."""
NEEDS: dict[str, Sequence[str]] = {
    "signal": (),
    "agreement": (*SHARED, "prune"),
    "distances": (*SHARED, "prune"),
    "lines": (*ENDS, "prune"),
    "beziers": (*ENDS, "prune"),
    "spectra": WATCHED,
}
"""The analyses, and the methods that each uses."""
_ROWS = [[float]]
_QUADRATURE = dict.fromkeys(("eigenvalues", "weights"), [float])
_AGREEMENT = dict.fromkeys(("accuracies", "disagreement", "disagreement_with_pruned"), [float])
_AGREEMENT |= dict.fromkeys(("ensemble", "divergence"), float)
_CONTENT = {
    "signal": {"sparsities": [float]} | dict.fromkeys(("sparse", "layer", "dense"), _ROWS),
    "agreement": dict.fromkeys((*SHARED, "prune"), _AGREEMENT),
    "distances": {"names": [str], "distances": _ROWS, "map": _ROWS},
    "lines": {"alphas": [float], "dense_initial_loss": [float], "losses": {...: _ROWS}},
    "beziers": {"points": [float], "losses": {...: _ROWS}},
}


def content_of(name: str) -> Content:
    """What the folder holds of an analysis or a method; `KeyError` for an unknown name."""
    if name.startswith("spectrum-"):
        return Content({"step": int} | _QUADRATURE)
    return Content(_CONTENT[name]) if name in _CONTENT else cells.content_of(name)


def names(settings: Settings, kinds: Sequence[str]) -> list[str]:
    """The names of the analyses: one per kind, but for spectra one per method and snapshot."""
    found = [kind for kind in kinds if kind != "spectra"]
    if "spectra" in kinds:
        found += [f"spectrum-{name}-{step}" for name in WATCHED for step in steps_of(settings)]
    return found


def groups(flow: Flow, left: Sequence[str]) -> list[Group]:
    """The analyses that are not done yet."""
    devices = len(jax.local_devices())
    spectra = [name for name in left if name.startswith("spectrum-")]
    together = [[name] for name in left if name in _ANALYSES]
    together += [spectra[i : i + devices] for i in range(0, len(spectra), devices)]
    return [Group(names, functools.partial(_run, flow, names)) for names in together]


def _run(flow: Flow, names: Sequence[str], state: None) -> dict[str, Content]:
    if names[0] in _ANALYSES:
        return {name: Content(_ANALYSES[name](flow)) for name in names}
    # Each on a device of its own: two CPU devices that add up the parts of one product can
    # deadlock.
    with concurrent.futures.ThreadPoolExecutor() as pool:
        found = pool.map(functools.partial(spectrum, flow), names, jax.local_devices())
        return dict(zip(names, map(Content, found), strict=True))


def signal(flow: Flow) -> dict[str, Any]:
    """Figure 3: the deviation of the output at initialization, for each way of drawing the weights.

    The inputs are training images; in the paper's notebook they are N(0, 1) noise.
    """
    inputs, _ = flow.measured()
    apply = trained(flow.networks["large"])
    shapes = jax.tree.map(lambda leaf: leaf[0], flow.new(0))
    everywhere = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), shapes)
    params = jaxsparse.sparse_init(0, shapes, everywhere, axes="flax")
    found = {"sparsities": list(SPARSITIES)}
    for init in ("sparse", "layer", "dense"):
        values = [
            analysis.signal_propagation(
                lambda p: apply(p, inputs),
                params,
                SPARSITIES,
                key=seed,
                init=init,
                axes="flax",
                prunable=methods.prunable(flow.settings.dense),
            )
            for seed in range(len(flow.keys))
        ]
        found[init] = np.asarray(jnp.stack(values), float).tolist()
    return found


def agreement(flow: Flow) -> dict[str, Any]:
    """Table 2: accuracy, ensemble and disagreement of the shared group and of the prunings."""
    everyone = {name: stored(flow, name) for name in (*SHARED, "prune")}
    apply, test = flow.networks["large"].apply, flow.lab.sets["test"]
    logits_of = _each(
        flow, lambda params, inputs: jax.lax.map(lambda batch: apply(params, batch), inputs)
    )
    labels = test.labels.reshape(-1)
    counts = labels >= 0
    logits = {}
    for name, params in everyone.items():
        found = np.asarray(logits_of((params,), test.inputs))
        logits[name] = found.reshape(len(flow.keys), len(labels), -1)[:, counts]
    chosen, truth = shared_replicate(flow), labels[counts]
    pruned = jnp.asarray(logits["prune"][chosen])
    rows = {}
    for name, own in logits.items():
        own = jnp.asarray(own)
        found = analysis.agreement(own, truth)
        pairs = np.asarray(jax.vmap(lambda one, own=own: analysis.disagreement(own, one))(own))
        others = jnp.delete(own, chosen, 0) if name == "prune" else own
        rows[name] = {
            "accuracies": np.asarray(found.accuracies, float).tolist(),
            "ensemble": float(found.ensemble),
            "divergence": float(found.divergence),
            "disagreement": pairs[np.triu_indices(len(own), 1)].astype(float).tolist(),
            "disagreement_with_pruned": np.asarray(
                analysis.disagreement(others, pruned), float
            ).tolist(),
        }
    return rows


def distances(flow: Flow) -> dict[str, Any]:
    """L2 distances between starts and solutions around one pruning, and a map of them."""
    chosen = shared_replicate(flow)
    points = {"pruning solution": jax.tree.map(lambda leaf: leaf[chosen], stored(flow, "prune"))}
    for name in SHARED[:3]:
        start = starting_point(flow, name)[0]
        alone = name != "shared_scratch_new"  # the others start from one point
        for i in range(1 if alone else len(flow.keys)):
            points[f"{name}, start {i}"] = jax.tree.map(lambda leaf: leaf[i], start)  # noqa: B023
        end = stored(flow, name)
        for i in range(len(flow.keys)):
            points[f"{name}, end {i}"] = jax.tree.map(lambda leaf: leaf[i], end)  # noqa: B023
    matrix = analysis.distances(list(points.values()))
    return {
        "names": list(points),
        "distances": np.asarray(matrix, float).round(4).tolist(),
        "map": np.asarray(analysis.multidimensional_scaling(matrix), float).round(4).tolist(),
    }


def lines(flow: Flow) -> dict[str, Any]:
    """The training loss on the line from a solution to a pruning solution, by replicate."""
    along = _each(
        flow,
        lambda a, b, examples: analysis.interpolation(
            lambda p: loss(flow, p, examples), a, b, jnp.asarray(ALPHAS, jnp.float32)
        ),
    )
    examples = landscape(flow)
    start = _each(flow, functools.partial(loss, flow))((flow.new(0),), examples)
    found = {
        "alphas": ALPHAS.tolist(),
        "dense_initial_loss": np.asarray(start, float).tolist(),
        "losses": {},
    }
    for name in ENDS:
        losses = along(_ends(flow, name), examples)
        found["losses"][name.removeprefix("shared_")] = np.asarray(losses, float).tolist()
    return found


def beziers(flow: Flow) -> dict[str, Any]:
    """The training loss on a trained Bezier path to a pruning solution, by replicate."""
    chosen, n = flow.settings, len(flow.lab.source.held[1])
    inputs, labels = flow.examples(0, n)
    optimizer = optax.sgd(
        optax.cosine_decay_schedule(chosen.learning_rate / 5, chosen.path_steps), momentum=0.9
    )
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 3))(flow.keys)

    def path(within: bool, a: Any, b: Any, key: Array, everything: Any, examples: Any) -> Array:
        inputs, labels = everything
        epochs = -(-chosen.path_steps // (n // chosen.batch_size))
        orders = [
            batch_indices(jax.random.fold_in(key, e), n, chosen.batch_size) for e in range(epochs)
        ]
        rows = jnp.concatenate(orders)[: chosen.path_steps]
        masks = jax.tree.map(lambda x, y: (x != 0) | (y != 0), a, b) if within else None
        curve = analysis.train_bezier(
            lambda p, row: flow.loss(p, (inputs[row], labels[row])), a, b, rows, optimizer,
            key=jax.random.fold_in(key, epochs), masks=masks,
        )  # fmt: skip
        return curve.values(lambda p: loss(flow, p, examples), jnp.asarray(BETWEEN, jnp.float32))

    found: dict[str, Any] = {"points": BETWEEN.tolist(), "losses": {}}
    spaces = {s: _each(flow, functools.partial(path, s == "sparse")) for s in ("sparse", "dense")}
    examples = landscape(flow)
    for name in ENDS[:2]:
        ends, label = _ends(flow, name), name.removeprefix("shared_")
        for space, paths in spaces.items():
            losses = paths((*ends, keys), (inputs, labels), examples)
            found["losses"][f"{label}, {space}"] = np.asarray(losses, float).tolist()
    return found


def _ends(flow: Flow, name: str) -> tuple[Any, Any]:
    """The solutions of a method, and the pruning solutions that paths from them lead to."""
    pruned = stored(flow, "prune")
    return stored(flow, name), shared(flow, pruned) if name.startswith("shared_") else pruned


def landscape(flow: Flow) -> evaluation.EvaluationSet:
    """The training examples on which paths are measured."""
    return evaluation.evaluation_set(*flow.examples(0, flow.settings.landscape_examples))


def loss(flow: Flow, params: Any, examples: evaluation.EvaluationSet) -> Array:
    """The mean cross-entropy, computed batch by batch."""
    apply = trained(flow.networks["large"])
    total, _, counts = evaluation.sums(apply, evaluation.cross_entropy, params, examples).sum(0)
    return total / counts


def _each(flow: Flow, function: Callable[..., Array]) -> Callable[..., Array]:
    """`(stacked, *shared) -> found`, compiled once: applies the function to each replicate, on all
    devices."""
    compiled = jax.jit(over_replicates(function, flow.lab.execution.replicates))

    def each(stacked: tuple, *shared: Any) -> Array:
        return compiled(*place(fill(stacked), *shared))[: len(flow.keys)]

    return each


_ANALYSES = {
    "signal": signal,
    "agreement": agreement,
    "distances": distances,
    "lines": lines,
    "beziers": beziers,
}
