"""Settings of the whole test run, and fixtures that more than one file uses."""

import functools
import os
import tempfile
from importlib import metadata

# Before jax is imported: sharding is tested on eight devices that share the host's cores, and the
# tests compile far longer than they compute.
flags = ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"]
if metadata.version("jaxlib").startswith("0.10."):
    # XLA's older emitters compile in half the time; later releases know neither them nor the flag.
    flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags]).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # A study that is killed and goes on, the worker beside this one and the processes that tests
    # start compile the same programs: what takes the compiler long is compiled once in a run.
    compiled = tempfile.TemporaryDirectory(prefix="jaxsparse-tests-")  # gone when this process ends
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import jax  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture(autouse=True)
def _strict_dtype_promotion(request):
    """A library must not lean on implicit promotion: its users may have forbidden it."""
    experiments = "experiments" in request.path.parts[-3:]
    if experiments or request.node.get_closest_marker("standard_promotion"):
        yield
    else:
        with jax.numpy_dtype_promotion("strict"):
            yield


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    """Compiled programs of one file are of no use to the next, and together fill the memory."""
    yield
    jax.clear_caches()


@pytest.fixture
def count_traces():
    """`count_traces(fn)` wraps `fn`; `.traces` of the result is how often its body has run.

    Jitted, a body runs once per trace: `step = count_traces(step); run = jax.jit(step)`.
    """

    def counted(fn):
        @functools.wraps(fn)
        def wrapper(*args, **kwargs):
            wrapper.traces += 1
            return fn(*args, **kwargs)

        wrapper.traces = 0
        return wrapper

    return counted
