"""One module per method; all of them go through `jaxsparse.sparsify`."""

from jaxsparse.algorithms.deep_rewiring import deep_rewiring, deep_rewiring_rule
from jaxsparse.algorithms.dynamic_reparameterization import (
    dynamic_reparameterization,
    dynamic_reparameterization_rule,
)
from jaxsparse.algorithms.fixed import fixed, fixed_rule
from jaxsparse.algorithms.gradual import gradual, gradual_rule
from jaxsparse.algorithms.rigl import rigl, rigl_rule
from jaxsparse.algorithms.sparse_evolution import sparse_evolution, sparse_evolution_rule
from jaxsparse.algorithms.sparse_momentum import sparse_momentum, sparse_momentum_rule

__all__ = [
    "deep_rewiring",
    "deep_rewiring_rule",
    "dynamic_reparameterization",
    "dynamic_reparameterization_rule",
    "fixed",
    "fixed_rule",
    "gradual",
    "gradual_rule",
    "rigl",
    "rigl_rule",
    "sparse_evolution",
    "sparse_evolution_rule",
    "sparse_momentum",
    "sparse_momentum_rule",
]
