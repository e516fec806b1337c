"""One page per method; all of them go through `jaxsparse.sparsify`."""

from jaxsparse.algorithms.deep_rewiring import deep_rewiring
from jaxsparse.algorithms.dynamic_reparameterization import dynamic_reparameterization
from jaxsparse.algorithms.fixed import fixed
from jaxsparse.algorithms.gradual import gradual
from jaxsparse.algorithms.rigl import rigl
from jaxsparse.algorithms.sparse_evolution import sparse_evolution
from jaxsparse.algorithms.sparse_momentum import sparse_momentum

__all__ = [
    "deep_rewiring",
    "dynamic_reparameterization",
    "fixed",
    "gradual",
    "rigl",
    "sparse_evolution",
    "sparse_momentum",
]
