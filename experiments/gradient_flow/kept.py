"""What the folder of a study of gradient flow holds of every cell, to be held against its files."""

from experiments.common.study.study import Kept
from experiments.gradient_flow.settings import METHODS, SHARED, algorithm

_MEASURES = ("test_accuracy", "initial_gradient_norm", "final_gradient_norm")
_ROWS = [[float]]
_UPDATES = dict.fromkeys(("norm_before_update", "norm_after_update"), _ROWS)
_QUADRATURE = dict.fromkeys(("eigenvalues", "weights"), [float])
_AGREEMENT = dict.fromkeys(("accuracies", "disagreement", "disagreement_with_pruned"), [float])
_AGREEMENT |= dict.fromkeys(("ensemble", "divergence"), float)
_ANALYSES = {
    "signal": {"sparsities": [float]} | dict.fromkeys(("sparse", "layer", "dense"), _ROWS),
    "agreement": dict.fromkeys((*SHARED, "prune"), _AGREEMENT),
    "distances": {"names": [str], "distances": _ROWS, "map": _ROWS},
    "lines": {"alphas": [float], "dense_initial_loss": [float], "losses": {...: _ROWS}},
    "beziers": {"points": [float], "losses": {...: _ROWS}},
}


def kept(name: str) -> Kept:
    """What is kept of the cell of a name; `KeyError` for what is no name of one."""
    if name.startswith("spectrum-"):
        return Kept({"step": int} | _QUADRATURE)
    if name in _ANALYSES:
        return Kept(_ANALYSES[name])
    if name not in (*METHODS, *SHARED):
        raise KeyError(name)
    numbers = dict.fromkeys(_MEASURES, [float]) | {"seconds": float}
    if algorithm(name) in ("set", "rigl"):
        numbers |= _UPDATES
    arrays = {"curves.npz": f"{name}/"}
    if algorithm(name) != "dense":
        arrays["solutions.npz"] = f"{name}/"
    return Kept(numbers, arrays)
