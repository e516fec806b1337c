"""The plan of a net: for every leaf, whether it is sparse, in which pattern, and how many weights
live. Plans are made from shapes and Python numbers while tracing, so they add nothing to a step.

- `plan`: the plan of all leaves, which maps functions over the sparse ones.
- `_leaf`: the plan of one leaf.
- `_later`: arrays of one leaf that are computed where they are used.
"""

from jaxsparse.plans._leaf import LeafPlan
from jaxsparse.plans.plan import Counts, Plan, limited_to, remembered

__all__ = ["Counts", "LeafPlan", "Plan", "limited_to", "remembered"]
