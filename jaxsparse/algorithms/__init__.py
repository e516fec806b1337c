"""One page per method; all of them go through `jaxsparse.sparsify`."""

from jaxsparse.algorithms.fixed import fixed
from jaxsparse.algorithms.gradual import gradual
from jaxsparse.algorithms.rigl import rigl
from jaxsparse.algorithms.sparse_evolution import sparse_evolution
from jaxsparse.algorithms.sparse_momentum import sparse_momentum

__all__ = ["fixed", "gradual", "rigl", "sparse_evolution", "sparse_momentum"]
