"""Sparse networks for other programs: matrices, files, and compiled functions.

- `matrices`: to and from `jax.experimental.sparse` and SciPy.
- `packed`: one file of living values and masks with one bit per weight (safetensors).
- `semi_structured`: 2:4 as values and two-bit indices.
- `programs`: a function in a file that JAX runs without this library.
"""

from jaxsparse.sparse.export.matrices import from_matrix, to_bcoo, to_bcsr, to_scipy
from jaxsparse.sparse.export.packed import load_packed, save_packed
from jaxsparse.sparse.export.programs import load, save
from jaxsparse.sparse.export.semi_structured import SemiStructured, from_2_4, to_2_4

__all__ = [
    "SemiStructured",
    "from_2_4",
    "from_matrix",
    "load",
    "load_packed",
    "save",
    "save_packed",
    "to_2_4",
    "to_bcoo",
    "to_bcsr",
    "to_scipy",
]
