"""jaxsparse: sparse training for JAX, on any Optax optimizer and any pytree.

Masks are a pytree beside the parameters; every function that makes or changes them is pure; one
Optax wrapper applies them, so the whole train step stays a single jitted function.
"""

from typing import TYPE_CHECKING

from jaxsparse import (
    analysis,
    distributions,
    lottery,
    plot,
    schedules,
    scores,
    selection,
    sparse,
)
from jaxsparse.algorithms import (
    deep_rewiring,
    deep_rewiring_rule,
    dynamic_reparameterization,
    dynamic_reparameterization_rule,
    fixed,
    fixed_rule,
    gradual,
    gradual_rule,
    rigl,
    rigl_rule,
    sparse_evolution,
    sparse_evolution_rule,
    sparse_momentum,
    sparse_momentum_rule,
)
from jaxsparse.analysis import summary
from jaxsparse.compaction import Compacted, compact
from jaxsparse.distributions import erdos_renyi, erk, target_count
from jaxsparse.initialization import sparse_init, sparse_initializer
from jaxsparse.masks import apply, density, overlap, pack, sparsity, unpack
from jaxsparse.patterns import Pattern, block, channel, fan_in, n_m, unstructured
from jaxsparse.pruning import prune, prune_by_magnitude, prune_iteratively, random_masks
from jaxsparse.recognition import default_prunable
from jaxsparse.redistribution import redistribute
from jaxsparse.regrowth import drop_and_grow
from jaxsparse.scores import grasp, magnitude, random_scores, saliency, snip, synflow
from jaxsparse.state_tree import SparseState
from jaxsparse.states import get_masks, init, metrics, reset, set_masks
from jaxsparse.takeover import take_over
from jaxsparse.transform import sparsify
from jaxsparse.types import Axes, Rule

__version__ = "0.1.0"

__all__ = [
    "Axes",
    "Compacted",
    "Pattern",
    "Rule",
    "SparseState",
    "analysis",
    "apply",
    "block",
    "channel",
    "compact",
    "deep_rewiring",
    "deep_rewiring_rule",
    "default_prunable",
    "density",
    "distributions",
    "drop_and_grow",
    "dynamic_reparameterization",
    "dynamic_reparameterization_rule",
    "erdos_renyi",
    "erk",
    "fan_in",
    "fixed",
    "fixed_rule",
    "get_masks",
    "gradual",
    "gradual_rule",
    "grasp",
    "init",
    "lottery",
    "magnitude",
    "metrics",
    "n_m",
    "overlap",
    "pack",
    "plot",
    "prune",
    "prune_by_magnitude",
    "prune_iteratively",
    "random_masks",
    "random_scores",
    "redistribute",
    "reset",
    "rigl",
    "rigl_rule",
    "saliency",
    "schedules",
    "scores",
    "selection",
    "set_masks",
    "snip",
    "sparse",
    "sparse_evolution",
    "sparse_evolution_rule",
    "sparse_init",
    "sparse_initializer",
    "sparse_momentum",
    "sparse_momentum_rule",
    "sparsify",
    "sparsity",
    "summary",
    "synflow",
    "take_over",
    "target_count",
    "unpack",
    "unstructured",
]

_MOVED = {name: room for room in (schedules, distributions, scores) for name in room.__all__}

if not TYPE_CHECKING:

    def __getattr__(name):
        """Names that say too little on their own live in a module that gives them context."""
        if name in _MOVED:
            home = f"{_MOVED[name].__name__}.{name}"
            raise AttributeError(f"jaxsparse.{name} is called {home} now")
        raise AttributeError(f"module 'jaxsparse' has no attribute {name!r}")
