"""The Hessian's spectrum during the training of a study of gradient flow."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.gradient_flow.cells import stored
from experiments.gradient_flow.lab import Flow, next_masks
from experiments.gradient_flow.settings import Settings
from jaxsparse import analysis


def steps_of(settings: Settings) -> tuple[int, ...]:
    """The steps at which the networks of `WATCHED` are kept."""
    return (0, *settings.snapshots, settings.iterations)


def spectrum(flow: Flow, cell: str, device: jax.Device) -> dict[str, Any]:
    """The Hessian of living weights by Lanczos, at one step of the first replicate."""
    _, name, step = cell.split("-")
    with jax.default_device(device):
        return _spectrum_at(flow, name, int(step))


def _spectrum_at(flow: Flow, name: str, step: int) -> dict[str, Any]:
    chosen, at = flow.settings, steps_of(flow.settings).index(step)
    params, masks = (
        jax.tree.map(lambda leaf: leaf[at], stored(flow, f"{name}/snapshots/{part}"))
        for part in ("params", "masks")
    )
    masks = _without_statistics(flow, masks)
    batches, options, moved = _batches(flow), {"steps": 80, "key": 0}, None
    if name == "rigl" and step in chosen.snapshots:
        grads = jax.jit(jax.grad(flow.loss))(params, flow.scoring())
        after = next_masks(chosen, "rigl", jnp.int32(step), params, masks, grads, flow.keys[0])
        result, moved = analysis.spectrum_across_update(
            flow.loss, params, batches, masks, after, **options
        )
    else:
        result = analysis.spectrum(flow.loss, params, batches, masks, **options)
    found = {"step": step, **_quadrature(result)}
    return found if moved is None else found | {"after_update": _quadrature(moved)}


def _quadrature(found: analysis.Spectrum) -> dict[str, list[float]]:
    values, weights = found.eigenvalues[0], found.weights[0]
    return {
        "eigenvalues": np.asarray(values, float).tolist(),
        "weights": np.asarray(weights, float).tolist(),
    }


def _without_statistics(flow: Flow, masks: Any) -> Any:
    # The training loss does not depend on them: they would add zeros to the spectrum.
    leaves, treedef = jax.tree.flatten(masks)
    pairs = zip(leaves, flow.networks["large"].statistics, strict=True)
    return treedef.unflatten(jnp.zeros_like(m) if moves else m for m, moves in pairs)


def _batches(flow: Flow) -> Any:
    # Small, because a product with the Hessian keeps the outputs of all layers for a batch.
    size = min(flow.settings.landscape_examples, len(flow.lab.source.held[1]))
    count = max(1, size // 100)
    return tuple(
        jnp.asarray(part[: size - size % count]).reshape(count, -1, *part.shape[1:])
        for part in flow.lab.source.held
    )
