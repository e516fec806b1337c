"""Measuring sparse networks and their training.

- `collapse`: units and layers that pruning has cut off.
- `cost`: FLOPs of a forward pass and of training, bytes.
- `curvature`: the Hessian of living weights, its spectrum by Lanczos or exactly.
- `flow`: gradient norms, what a step gains, the flow across a mask update.
- `landscape`: the loss between two solutions, along lines and along trained curves.
- `solutions`: distances between networks, and how alike their predictions are.
- `speedup`: the sparse momentum paper's estimate of a speed-up, from densities.
- `summaries`: a table of a sparse net.
"""

from jaxsparse.analysis.collapse import EmptyUnits, empty_units
from jaxsparse.analysis.cost import Cost, LeafCost, Memory, flops, memory, training_flops
from jaxsparse.analysis.curvature import (
    Spectrum,
    exact_hessian,
    exact_spectrum,
    hessian_product,
    lanczos,
    spectrum,
    spectrum_across_update,
)
from jaxsparse.analysis.flow import (
    Flow,
    RecordedFlow,
    effective_flow,
    first_order_change,
    flow_across_update,
    gradient_flow,
    record_flow,
    signal_propagation,
)
from jaxsparse.analysis.landscape import (
    Bezier,
    barrier,
    instability,
    interpolation,
    train_bezier,
)
from jaxsparse.analysis.solutions import (
    Agreement,
    agreement,
    disagreement,
    distances,
    divergence,
    multidimensional_scaling,
)
from jaxsparse.analysis.speedup import LayerShares, SpeedupEstimate, estimated_speedup
from jaxsparse.analysis.summaries import summary

__all__ = [
    "Agreement",
    "Bezier",
    "Cost",
    "EmptyUnits",
    "Flow",
    "LeafCost",
    "LayerShares",
    "Memory",
    "RecordedFlow",
    "Spectrum",
    "SpeedupEstimate",
    "agreement",
    "barrier",
    "disagreement",
    "distances",
    "divergence",
    "effective_flow",
    "estimated_speedup",
    "empty_units",
    "exact_hessian",
    "exact_spectrum",
    "first_order_change",
    "flops",
    "flow_across_update",
    "gradient_flow",
    "hessian_product",
    "instability",
    "interpolation",
    "lanczos",
    "memory",
    "multidimensional_scaling",
    "record_flow",
    "signal_propagation",
    "spectrum",
    "spectrum_across_update",
    "summary",
    "train_bezier",
    "training_flops",
]
