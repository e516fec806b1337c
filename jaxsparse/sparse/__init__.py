"""Storage and products that skip the zeros: a kernel as its living values and their places."""

from jaxsparse.compiled import Backend, KernelError, kernels
from jaxsparse.sparse import export
from jaxsparse.sparse._accelerate import accelerate
from jaxsparse.sparse._block import Block
from jaxsparse.sparse._channels import Channels
from jaxsparse.sparse._choice import costs_file, machine
from jaxsparse.sparse._condensed import Condensed
from jaxsparse.sparse._csr import CSR
from jaxsparse.sparse._kernels import backends
from jaxsparse.sparse._layout import is_compressed, nbytes
from jaxsparse.sparse._masked import Masked
from jaxsparse.sparse._n_m import NM
from jaxsparse.sparse._values import expand, values, with_values
from jaxsparse.sparse.compression import compress, fix_places, free_places
from jaxsparse.sparse.explain import Explanation, Row, explain
from jaxsparse.sparse.training import apply_updates, fit, train_step

__all__ = [
    "CSR",
    "NM",
    "Backend",
    "Block",
    "Channels",
    "Condensed",
    "Explanation",
    "KernelError",
    "Masked",
    "Row",
    "accelerate",
    "apply_updates",
    "backends",
    "compress",
    "costs_file",
    "expand",
    "explain",
    "export",
    "fit",
    "fix_places",
    "free_places",
    "is_compressed",
    "kernels",
    "machine",
    "nbytes",
    "train_step",
    "values",
    "with_values",
]
