"""Storage and products that skip the zeros: a kernel as its living values and their places."""

from jaxsparse.sparse._block import Block
from jaxsparse.sparse._csr import CSR
from jaxsparse.sparse._kernels import Backend, KernelError
from jaxsparse.sparse._kernels import compiled as compiled_kernels
from jaxsparse.sparse._layout import nbytes
from jaxsparse.sparse._values import expand, values, with_values
from jaxsparse.sparse.compression import compress, fix_places, free_places
from jaxsparse.sparse.training import apply_updates, fit, train_step

__all__ = [
    "CSR",
    "Backend",
    "Block",
    "KernelError",
    "apply_updates",
    "compiled_kernels",
    "compress",
    "expand",
    "fit",
    "fix_places",
    "free_places",
    "nbytes",
    "train_step",
    "values",
    "with_values",
]
