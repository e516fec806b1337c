"""Storage and products that skip the zeros: a kernel as its living values and their places."""

from jaxsparse.sparse._block import Block
from jaxsparse.sparse._csr import CSR
from jaxsparse.sparse._kernels import Backend, KernelError, backends
from jaxsparse.sparse._layout import nbytes
from jaxsparse.sparse.compression import (
    compress,
    expand,
    fix_places,
    free_places,
    values,
    with_values,
)

__all__ = [
    "CSR",
    "Backend",
    "Block",
    "KernelError",
    "backends",
    "compress",
    "expand",
    "fix_places",
    "free_places",
    "nbytes",
    "values",
    "with_values",
]
