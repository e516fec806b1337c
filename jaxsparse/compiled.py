"""Compiled CPU kernels, built by the machine's own compiler when they are first used.

Nothing is downloaded, and nothing is built at installation: the headers come with jaxlib, and the
compiled libraries are kept in the user's cache.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxsparse.checks import check_choice

_SOURCES = Path(__file__).parent / "_cpu"
_FLAGS = (
    *("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-w"),
    # Sums may be reordered; unlike with -ffast-math, infinities and NaN keep their meaning.
    *("-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math"),
    "-ffp-contract=fast",
)
_KERNELS = ("auto", "compiled", "xla")
_PORTABLE = "portable"
_meant = jax.make_user_context(default_value="auto")


class Backend(NamedTuple):
    """What computes the products of a format on this machine.

    Attributes:
      compiled: whether it is a compiled kernel of this library.
      why: one human-readable line: the compiler, or why there is no compiled kernel.
    """

    compiled: bool
    why: str


class KernelError(RuntimeError):
    """A compiled kernel was requested by name, but none is available."""


_registered: set[str] = set()
"""Targets that XLA knows in this process; it refuses others of the same name."""


@functools.cache
def library(source: str, targets: tuple[str, ...]) -> Backend:
    """Builds and registers kernels, once per process. The environment variable `JAXSPARSE_CXX`
    selects another compiler; set to the empty string, it turns the kernels off.

    Args:
      source: the file in `_cpu` that contains them.
      targets: their names; XLA knows them with the prefix `jaxsparse_`.
    """
    if jax.default_backend() != "cpu":
        return Backend(False, f"the kernels need a CPU, and the backend is {jax.default_backend()}")
    wanted = os.environ.get("JAXSPARSE_CXX")
    if wanted == "":
        return Backend(False, "switched off by JAXSPARSE_CXX")
    compiler = shutil.which(wanted) if wanted else shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return Backend(False, f"no C++ compiler ({wanted or 'g++ or clang++'}) is installed")
    try:
        loaded = ctypes.CDLL(str(_built(compiler, _SOURCES / source)))
        for target in set(targets) - _registered:
            capsule = jax.ffi.pycapsule(getattr(loaded, target))
            jax.ffi.register_ffi_target(f"jaxsparse_{target}", capsule, platform="cpu")
            _registered.add(target)
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        lines = str(getattr(error, "stderr", None) or error).strip().splitlines()
        told = next((line for line in lines if "error" in line.lower()), (lines or ["?"])[0])
        return Backend(False, f"{compiler} failed: {told}")
    return Backend(True, f"built by {compiler}")


def kernels(kernel: str) -> AbstractContextManager[Any]:
    """Sets which kernel `via="auto"` means within a `with` block, also under `jit`.

    Args:
      kernel: "xla", "compiled" or "auto"; or "portable" for XLA operations only; "xla" may use
        jaxlib kernels, which an exported program cannot contain.

    Raises:
      ValueError: any other word.

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
    """Whether products without a compiled kernel are restricted to XLA operations."""
    return _meant.value == _PORTABLE


def choose(kernel: str, found: Callable[[], Backend]) -> bool:
    """Whether to use the compiled kernel.

    Args:
      kernel: "auto", "compiled" or "xla".
      found: reports what is available.

    Raises:
      KernelError: "compiled" was requested, and there is none.
      ValueError: any other word.
    """
    check_choice("via", kernel, _KERNELS)
    if kernel == "auto":
        kernel = _meant.value
    if kernel in ("xla", _PORTABLE):
        return False
    here = found()
    if kernel == "compiled" and not here.compiled:
        raise KernelError(f"via: there is no compiled kernel: {here.why}.")
    return here.compiled


def cache_folder() -> Path:
    """The folder that keeps what was built and measured on this machine."""
    return Path(os.environ.get("JAXSPARSE_CACHE") or Path.home() / ".cache" / "jaxsparse")


def _built(compiler: str, source: Path) -> Path:
    """The shared library of this source, built by this compiler for this processor."""
    command = [compiler, *_FLAGS, f"-I{jax.ffi.include_dir()}", str(source)]
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    what = [*command, version.stdout, _processor(), jax.__version__]
    files = [source, *sorted(source.parent.glob("*.h"))]
    text = b"".join(file.read_bytes() for file in files)
    digest = hashlib.sha256(text + "\n".join(what).encode()).hexdigest()[:16]
    folder = cache_folder()
    file = folder / f"{source.stem}-{digest}.so"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            part = Path(scratch) / file.name
            command += ["-o", str(part)]
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
            os.replace(part, file)  # atomic, in case another process builds it too
    return file


def _processor() -> str:
    """A text that differs between processors with different instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.node()}"
