"""Where the weights of a ticket are, and how many of them the tickets of two replicates share."""

import itertools
from typing import Any

import jax
import numpy as np

import jaxsparse
from experiments.common.study.content import named_arrays
from experiments.lottery_ticket.settings import Prunable
from jaxsparse import lottery


def places(masks: Any, prunable: Prunable) -> dict[str, Any]:
    """What `results.json` says about the places of weights.

    Args:
      masks: of a ticket, replicates first.
      prunable: which layers can be pruned.

    Returns:
      The density of each layer, over all replicates; and for each pair of replicates the Jaccard
      overlap over all layers, and the overlap expected from independent masks.
    """
    sizes = {
        name.removesuffix("/value"): leaf[0].size for name, leaf in named_arrays(masks).items()
    }
    replicates = [
        jax.tree.map(lambda leaf: leaf[i], masks)  # noqa: B023
        for i in range(len(jax.tree.leaves(masks)[0]))
    ]
    densities = [
        {name: float(value) for name, value in found.items()}
        for found in (lottery.layer_densities(one, prunable=prunable) for one in replicates)
    ]
    found: dict[str, Any] = {
        "layers": {
            name.removesuffix("/kernel"): float(np.mean([one[name] for one in densities]))
            for name in densities[0]
        }
    }
    pairs = list(itertools.combinations(range(len(replicates)), 2))
    found["overlap"] = [float(jaxsparse.overlap(replicates[a], replicates[b])) for a, b in pairs]
    found["overlap_by_chance"] = [_by_chance(densities[a], densities[b], sizes) for a, b in pairs]
    return found


def _by_chance(one: dict[str, float], other: dict[str, float], sizes: dict[str, int]) -> float:
    both = sum(one[name] * other[name] * sizes[name] for name in one)
    return both / (sum((one[name] + other[name]) * sizes[name] for name in one) - both)
