"""A function with its parameters in one file, for processes without this library."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import export as jax_export

from jaxsparse import compiled
from jaxsparse.checks import check_choice, check_function
from jaxsparse.types import Params

_JAXLIB = "cpu_csr_sparse_dense_ffi"


def save(
    path: str | os.PathLike[str],
    fn: Callable[..., Any],
    params: Params,
    *args: Any,
    kernels: str = "portable",
    platforms: Sequence[str] | None = None,
) -> None:
    """Writes `fn(params, ...)` as a function of the other arguments, with the parameters included.

    The file is what `jax.export` serializes (StableHLO); its reader needs JAX only:

        jax.export.deserialize(bytearray(open(path, "rb").read())).call(*args)

    The compiled kernels of this library cannot be stored, because they are code for this machine;
    products are traced without them. It needs flatbuffers: `pip install 'jaxsparse[export]'`.

    Args:
      path: of the file, which is overwritten.
      fn: the function, `fn(params, *args)`.
      params: its parameters, compressed or not; they become constants of the program.
      *args: examples of the other arguments, arrays or `jax.ShapeDtypeStruct`, whose shapes may be
        symbolic (`jax.export.symbolic_shape`), for example to allow any batch size.
      kernels: "portable" for XLA operations only; for up to four examples they skip the zeros of a
        csr kernel, for more or a symbolic number of examples they make it dense, once, when the
        reader compiles. "xla" takes jaxlib's own sparse product on a CPU, which is fast for many
        examples; the reader must `import jax.experimental.sparse`, and JAX guarantees the product
        for no other version.
      platforms: such as ("cpu", "cuda", "tpu"); None for the platform of this process.

    Raises:
      ValueError: `kernels` is unknown; or `fn` asks for a compiled kernel by name, or calls other
        code that cannot be stored in a file.

    Example:
      >>> import tempfile, jax.numpy as jnp, jaxsparse
      >>> params = {"kernel": jnp.arange(16.0).reshape(4, 4)}
      >>> small = jaxsparse.sparse.compress(params, jaxsparse.prune_by_magnitude(params, 0.75))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save(f"{folder}/net", lambda p, x: x @ p["kernel"], small, jnp.ones((1, 4)))
      ...     load(f"{folder}/net")(jnp.ones((1, 4))).tolist()
      [[12.0, 13.0, 14.0, 15.0]]
    """
    check_function("fn", fn, "(params, *args)")
    check_choice("kernels", kernels, ("portable", "xla"))
    known = [jax_export.DisabledSafetyCheck.custom_call(_JAXLIB)] if kernels == "xla" else []

    def call(*args: Any) -> Any:
        return fn(params, *args)

    with compiled.kernels(kernels):
        try:
            program = jax_export.export(jax.jit(call), platforms=platforms, disabled_checks=known)
            exported = program(*args)
        except ValueError as error:
            if "custom call" not in str(error):
                raise
            raise ValueError(
                'fn calls compiled code, which a file cannot hold; leave out via="compiled". '
                f"JAX says: {error}"
            ) from None
    with open(path, "wb") as file:
        file.write(exported.serialize())


def load(path: str | os.PathLike[str]) -> Callable[..., Any]:
    """The function in a file that `save` wrote.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file has another format, or is damaged.
    """
    with open(path, "rb") as file:
        data = bytearray(file.read())
    try:
        return jax.jit(jax_export.deserialize(data).call)
    except Exception as error:  # the reader has no exception class of its own
        raise ValueError(
            f"{os.fspath(path)!r} is not a file of jax.export, or it is damaged: {error}."
        ) from None
