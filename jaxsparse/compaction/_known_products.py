"""What is known about the results of products and convolutions."""

import jax.numpy as jnp
import numpy as np

from jaxsparse.compaction._program import Step, Value
from jaxsparse.compaction._slices import Known, Slices, along_all


def product(facts: Known, step: Step, out: Value, axis: int) -> Slices | None:
    """For `dot_general`: a number where all that is summed is known or has zero weight."""
    contracted, batch = step.params["dimension_numbers"]
    frees = [
        [k for k in range(len(value.shape)) if k not in (*contracted[i], *batch[i])]
        for i, value in enumerate(step.inputs)
    ]
    count = len(batch[0])
    if axis < count:
        found = [facts.slices(step.inputs[i], batch[i][axis]).zero for i in (0, 1)]
        return Slices(found[0] | found[1], np.zeros(out.shape[axis], out.dtype))
    side = 0 if axis - count < len(frees[0]) else 1
    mine = frees[side][axis - count - (len(frees[0]) if side else 0)]
    kernel, other = step.inputs[side], step.inputs[1 - side]
    array = facts.array(kernel)
    if array is None or batch[0]:
        zero = facts.slices(kernel, mine).zero
        return Slices(zero, np.zeros(out.shape[axis], out.dtype))
    moved = np.moveaxis(np.asarray(array), [*contracted[side], mine], range(len(contracted[0]) + 1))
    given = along_all(facts, other, contracted[1 - side])
    return _of_kernel(facts, kernel, mine, moved, given)


def _of_kernel(facts: Known, kernel: Value, axis: int, moved: np.ndarray, x: Slices) -> Slices:
    """Outputs of a kernel `(inputs..., outputs, rest...)`: known where all inputs are known.

    The rest are other axes of outputs, over which a slice must be uniform: a zero slice is.
    """
    outputs = moved.shape[x.known.ndim]
    weights = moved.reshape(x.known.size, outputs, -1)
    unknown, numbers = ~x.known.reshape(-1), x.numbers.reshape(-1)
    known = ~(weights[unknown] != 0).any((0, 2))
    some = np.flatnonzero(numbers)
    sums = np.einsum("i,ior->or", *(_wide(a) for a in (numbers[some], weights[some])))
    known &= (sums == sums[:, :1]).all(1)
    return Slices(known, np.where(known, sums[:, 0], 0).astype(x.numbers.dtype))


def convolution(facts: Known, step: Step, out: Value, axis: int) -> Slices | None:
    """The same for a convolution; with padding, only zero is the same at the border as inside."""
    where = step.params["dimension_numbers"]
    if axis == where.out_spec[0]:
        return None
    x, kernel = step.inputs
    found = facts.slices(x, where.lhs_spec[1])
    padded = any(any(pair) for pair in step.params["padding"])
    if padded or any(n != 1 for n in step.params["lhs_dilation"]):
        found = Slices(found.zero, np.zeros_like(found.numbers))
    array = facts.array(kernel)
    if step.params["feature_group_count"] != 1:
        times = out.shape[axis] // len(found.known)
        dead = facts.slices(kernel, where.rhs_spec[0]).zero
        return Slices(np.repeat(found.zero, times) | dead, np.zeros(out.shape[axis], out.dtype))
    if array is None:
        dead = facts.slices(kernel, where.rhs_spec[0]).zero
        return Slices(dead, np.zeros(out.shape[axis], out.dtype))
    taps = np.moveaxis(np.asarray(array), [where.rhs_spec[1], where.rhs_spec[0]], [0, 1])
    taps = taps.reshape(*taps.shape[:2], -1)
    reached = ~found.known
    known = ~(taps[reached] != 0).any((0, 2)) if reached.any() else np.ones(taps.shape[1], bool)
    some = np.flatnonzero(found.numbers)
    sums = np.einsum("i,iot->o", *(_wide(a) for a in (found.numbers[some], taps[some])))
    known &= np.isfinite(sums)
    return Slices(known, np.where(known, sums, 0).astype(out.dtype))


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if jnp.issubdtype(array.dtype, jnp.floating) else array
