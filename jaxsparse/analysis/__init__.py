"""Measuring sparse networks and their training.

- `cost`: FLOPs of a forward pass and of training, bytes.
- `landscape`: the loss between two solutions.
- `summaries`: a table of a sparse net.
"""

from jaxsparse.analysis.cost import Cost, LeafCost, Memory, flops, memory, training_flops
from jaxsparse.analysis.landscape import instability, interpolation
from jaxsparse.analysis.summaries import summary

__all__ = [
    "Cost",
    "LeafCost",
    "Memory",
    "flops",
    "instability",
    "interpolation",
    "memory",
    "summary",
    "training_flops",
]
