"""The compiled CPU kernels: built by the machine's own compiler when they are first wanted.

Nothing is downloaded, and nothing is built at installation: the headers come with jaxlib, and the
library that the compiler makes is kept in the user's cache.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.checks import check_choice
from jaxsparse.types import Array

_SOURCE = Path(__file__).parent / "_cpu" / "kernels.cc"
_FLAGS = (
    *("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-w"),
    # Sums may be taken in any order; unlike -ffast-math, infinities and NaN stay what they are.
    *("-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math"),
    "-ffp-contract=fast",
)
_TARGETS = ("csr_forward", "csr_transposed", "csr_values", "block_product", "block_values")
_KERNELS = ("auto", "compiled", "xla")
_PORTABLE = "portable"
_meant = jax.make_user_context(default_value="auto")


class Backend(NamedTuple):
    """What computes the products of a format here.

    Attributes:
      compiled: whether it is a compiled kernel of this library.
      why: one line for a person: the compiler, or why there is none.
    """

    compiled: bool
    why: str


class KernelError(RuntimeError):
    """A compiled kernel was asked for by name, and there is none."""


@functools.cache
def compiled() -> Backend:
    """Builds and registers the kernels, once a process; the environment variable `JAXSPARSE_CXX`
    names another compiler, and the empty string leaves them out."""
    if jax.default_backend() != "cpu":
        return Backend(False, f"the kernels are for a CPU, and this is a {jax.default_backend()}")
    wanted = os.environ.get("JAXSPARSE_CXX")
    if wanted == "":
        return Backend(False, "switched off by JAXSPARSE_CXX")
    compiler = shutil.which(wanted) if wanted else shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return Backend(False, f"no C++ compiler ({wanted or 'g++ or clang++'}) is installed")
    try:
        library = ctypes.CDLL(str(_built(compiler)))
        for target in _TARGETS:
            capsule = jax.ffi.pycapsule(getattr(library, target))
            jax.ffi.register_ffi_target(f"jaxsparse_{target}", capsule, platform="cpu")
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        lines = str(getattr(error, "stderr", None) or error).strip().splitlines()
        told = next((line for line in lines if "error" in line.lower()), (lines or ["?"])[0])
        return Backend(False, f"{compiler} failed: {told}")
    return Backend(True, f"built by {compiler}")


def kernels(kernel: str) -> AbstractContextManager[Any]:
    """Which kernel `via="auto"` means within a `with` block, also under `jit`.

    Args:
      kernel: "xla", "compiled" or "auto"; or "portable" for operations of XLA alone. The form "xla"
        may take kernels of jaxlib, which an exported program cannot hold.

    Raises:
      ValueError: another word.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsparse import sparse
      >>> kernel = sparse.CSR.from_dense(jnp.ones((2, 2)), jnp.eye(2, dtype=bool))
      >>> with sparse.kernels("portable"):
      ...     (jnp.ones((1, 2)) @ kernel).tolist()
      [[1.0, 1.0]]
    """
    check_choice("kernel", kernel, (*_KERNELS, _PORTABLE))
    return _meant(kernel)


def portable() -> bool:
    """Whether products that are not compiled keep to operations of XLA."""
    return _meant.value == _PORTABLE


def backends() -> dict[str, Backend]:
    """What computes the products of every format here.

    Example:
      >>> sorted(backends())
      ['block', 'channels', 'condensed', 'csr', 'masked', 'n_m']
    """
    dense = {
        "channels": "a dense product of what is left",
        "masked": "a dense product beside a mask",
        "n_m": "dense products of one tile of the kernel at a time",
    }
    found = dict.fromkeys(("block", "condensed", "csr"), compiled())
    return found | {format: Backend(False, what) for format, what in dense.items()}


def choose(kernel: str) -> bool:
    """Whether a product takes the compiled kernel.

    Args:
      kernel: "auto", "compiled" or "xla".

    Raises:
      KernelError: "compiled", and there is none.
      ValueError: another word.
    """
    check_choice("via", kernel, _KERNELS)
    if kernel == "auto":
        kernel = _meant.value
    if kernel in ("xla", _PORTABLE):
        return False
    found = compiled()
    if kernel == "compiled" and not found.compiled:
        raise KernelError(f"via: there is no compiled one, because {found.why}.")
    return found.compiled


def call(target: str, shape: Any, *operands: Array, batched: Sequence[int], **given: Any) -> Array:
    """The result of a kernel.

    Args:
      target: its name.
      shape: of the result.
      operands: in its order.
      batched: the operands whose first axis numbers examples, which is the fastest in memory; -1
        for the result.
      given: its attributes.
    """

    def order(ndim: int, last: bool) -> tuple[int, ...]:
        return (ndim - 1, *range(1, ndim - 1), 0) if last else tuple(range(ndim))

    function = jax.ffi.ffi_call(
        f"jaxsparse_{target}",
        shape,
        vmap_method="sequential",
        input_layouts=[order(x.ndim, i in batched) for i, x in enumerate(operands)],
        output_layouts=order(len(shape.shape), -1 in batched),
    )
    return function(*operands, **given)


def accumulator(dtype: Any) -> Any:
    """The type that products of this one are computed in."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def cache_folder() -> Path:
    """Where what was built and measured on this machine is kept."""
    return Path(os.environ.get("JAXSPARSE_CACHE") or Path.home() / ".cache" / "jaxsparse")


def _built(compiler: str) -> Path:
    """The shared library of this source, by this compiler, for this processor."""
    command = [compiler, *_FLAGS, f"-I{jax.ffi.include_dir()}", str(_SOURCE)]
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    what = [*command, version.stdout, _processor(), jax.__version__]
    source = b"".join(file.read_bytes() for file in sorted(_SOURCE.parent.glob("*.[ch]*")))
    digest = hashlib.sha256(source + "\n".join(what).encode()).hexdigest()[:16]
    folder = cache_folder()
    file = folder / f"kernels-{digest}.so"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            part = Path(scratch) / file.name
            command += ["-o", str(part)]
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
            os.replace(part, file)  # whole at once, whoever else is building it
    return file


def _processor() -> str:
    """What tells processors apart that know other instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.node()}"
