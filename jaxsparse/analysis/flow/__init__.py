"""Gradient flow: how large the gradients of living weights are, and what a step gains from them.

Names say what is squared: a `norm` is an L2 norm, a `squared_norm` its square.
"""

from jaxsparse.analysis.flow._norms import (
    Flow,
    effective_flow,
    first_order_change,
    gradient_flow,
)
from jaxsparse.analysis.flow.propagation import signal_propagation
from jaxsparse.analysis.flow.recording import RecordedFlow, flow_across_update, record_flow

__all__ = [
    "Flow",
    "RecordedFlow",
    "effective_flow",
    "first_order_change",
    "flow_across_update",
    "gradient_flow",
    "record_flow",
    "signal_propagation",
]
