"""The lottery ticket hypothesis: find tickets, and test them against their controls.

- `rounds`: one-shot and iterative pruning, with every way of rewinding.
- `criteria`: what decides which weights are removed.
- `controls`: the same masks with other weights, the same weights with other masks.
- `measures`: when a ticket has learned, where its weights are, how far they moved.
"""

from jaxsparse.lottery._pruning_levels import densities, ladder, prune_to
from jaxsparse.lottery.controls import add_noise, invert_masks, keep_signs, shuffle_masks
from jaxsparse.lottery.criteria import (
    chance,
    final_magnitude,
    initial_magnitude,
    least_magnitude,
    magnitude_increase,
    movement,
)
from jaxsparse.lottery.measures import Distance, distance, early_stop, layer_densities
from jaxsparse.lottery.rounds import Round, find_tickets, trained

__all__ = [
    "Distance",
    "Round",
    "add_noise",
    "chance",
    "densities",
    "distance",
    "early_stop",
    "final_magnitude",
    "find_tickets",
    "initial_magnitude",
    "invert_masks",
    "keep_signs",
    "ladder",
    "layer_densities",
    "least_magnitude",
    "magnitude_increase",
    "movement",
    "prune_to",
    "shuffle_masks",
    "trained",
]
