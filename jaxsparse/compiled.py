"""The compiled CPU kernels: built by the machine's own compiler when they are first wanted.

Nothing is downloaded, and nothing is built at installation: the headers come with jaxlib, and the
libraries that the compiler makes are kept in the user's cache.
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
    # Sums may be taken in any order; unlike -ffast-math, infinities and NaN stay what they are.
    *("-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math"),
    "-ffp-contract=fast",
)
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
def library(source: str, targets: tuple[str, ...]) -> Backend:
    """Builds and registers kernels, once a process; the environment variable `JAXSPARSE_CXX` names
    another compiler, and the empty string leaves them out.

    Args:
      source: the file of `_cpu` that holds them.
      targets: their names; to XLA they are known with `jaxsparse_` before them.
    """
    if jax.default_backend() != "cpu":
        return Backend(False, f"the kernels are for a CPU, and this is a {jax.default_backend()}")
    wanted = os.environ.get("JAXSPARSE_CXX")
    if wanted == "":
        return Backend(False, "switched off by JAXSPARSE_CXX")
    compiler = shutil.which(wanted) if wanted else shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return Backend(False, f"no C++ compiler ({wanted or 'g++ or clang++'}) is installed")
    try:
        loaded = ctypes.CDLL(str(_built(compiler, _SOURCES / source)))
        for target in targets:
            capsule = jax.ffi.pycapsule(getattr(loaded, target))
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


def choose(kernel: str, found: Callable[[], Backend]) -> bool:
    """Whether the compiled kernel is taken.

    Args:
      kernel: "auto", "compiled" or "xla".
      found: says what there is.

    Raises:
      KernelError: "compiled", and there is none.
      ValueError: another word.
    """
    check_choice("via", kernel, _KERNELS)
    if kernel == "auto":
        kernel = _meant.value
    if kernel in ("xla", _PORTABLE):
        return False
    here = found()
    if kernel == "compiled" and not here.compiled:
        raise KernelError(f"via: there is no compiled one, because {here.why}.")
    return here.compiled


def cache_folder() -> Path:
    """Where what was built and measured on this machine is kept."""
    return Path(os.environ.get("JAXSPARSE_CACHE") or Path.home() / ".cache" / "jaxsparse")


def _built(compiler: str, source: Path) -> Path:
    """The shared library of this source, by this compiler, for this processor."""
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
            os.replace(part, file)  # whole at once, whoever else is building it
    return file


def _processor() -> str:
    """What tells processors apart that know other instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.node()}"
