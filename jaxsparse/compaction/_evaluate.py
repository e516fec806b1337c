"""One operation on arrays, in NumPy where possible: a compilation takes longer than the work."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxsparse.compaction._program import Step

_NUMPY: dict[str, Any] = {
    "abs": np.abs,
    "add": np.add,
    "add_any": np.add,
    "copy": np.copy,
    "eq": np.equal,
    "exp": np.exp,
    "ge": np.greater_equal,
    "gt": np.greater,
    "le": np.less_equal,
    "log": np.log,
    "lt": np.less,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "ne": np.not_equal,
    "neg": np.negative,
    "sqrt": np.sqrt,
    "square": np.square,
    "stop_gradient": np.copy,
    "sub": np.subtract,
    "tanh": np.tanh,
    "squeeze": lambda x, dimensions: np.squeeze(x, tuple(dimensions)),
    "transpose": lambda x, permutation: np.transpose(x, permutation),
}


def run(step: Step, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """The results of an operation on arrays."""
    if step.name == "reshape" and step.params["dimensions"] is None:
        return [arrays[0].reshape(step.params["new_sizes"])]
    if step.name == "convert_element_type":
        return [arrays[0].astype(step.outputs[0].dtype)]
    if step.name == "rsqrt":
        return [(1 / np.sqrt(arrays[0])).astype(arrays[0].dtype)]
    if step.name in _NUMPY:
        names = ("permutation", "dimensions")
        return [_NUMPY[step.name](*arrays, **{k: v for k, v in step.params.items() if k in names})]
    found = step.eqn.primitive.bind(*map(jnp.asarray, arrays), **step.params)
    return list(map(np.asarray, found if step.eqn.primitive.multiple_results else [found]))
