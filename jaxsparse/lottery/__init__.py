"""The lottery ticket hypothesis: find tickets, and test them against their controls.

- `rounds`: pruning in one shot and iteratively, with every way of rewinding.
"""

from jaxsparse.lottery._ladder import densities, ladder, prune_to
from jaxsparse.lottery.controls import shuffle_masks
from jaxsparse.lottery.rounds import Round, final_magnitude, find_tickets, trained

__all__ = [
    "Round",
    "densities",
    "final_magnitude",
    "find_tickets",
    "ladder",
    "prune_to",
    "shuffle_masks",
    "trained",
]
