"""Curvature: the Hessian of the loss restricted to living weights, by Lanczos or exactly.

Losses are means over the examples of a batch. Over several batches of equal size, the Hessian is
the mean of theirs, computed batch by batch in one compiled program.
"""

from jaxsparse.analysis.curvature._base import Spectrum, hessian_product
from jaxsparse.analysis.curvature.exact import exact_hessian, exact_spectrum
from jaxsparse.analysis.curvature.quadrature import lanczos, spectrum, spectrum_across_update

__all__ = [
    "Spectrum",
    "exact_hessian",
    "exact_spectrum",
    "hessian_product",
    "lanczos",
    "spectrum",
    "spectrum_across_update",
]
