"""Steps of an optimizer that sees only living values: `sparsify` for every storage but "masked"."""

from collections.abc import Callable

from jaxsparse.compressed._parts import Method, Outcome
from jaxsparse.compressed.parameters import check_compressed, step_of_parameters
from jaxsparse.compressed.state import step_of_state
from jaxsparse.state_tree import SparseState
from jaxsparse.types import Array, Params

__all__ = ["Method", "Outcome", "check_compressed", "step"]


def step(
    method: Method,
    key: Array,
    grads: Params,
    state: SparseState,
    params: Params,
    dense_grads: Callable[[Params], Params] | None,
    patches: bool,
) -> Outcome:
    """One step, for every way of storing the living values.

    Args:
      method: what performs the step.
      key: the random key of this step.
      grads: the gradients of the values of compressed parameters, or of dense parameters.
      state: the state before the step.
      params: the parameters, with kernels at free places, or dense.
      dense_grads: returns the gradient of dense parameters, if `grads` belongs to values.
      patches: whether the updates of sparse leaves are returned as `Patch`es when parameters are
        dense.
    """
    if method.storage.format is None:
        return step_of_state(method, key, grads, state, params, patches)
    return step_of_parameters(method, key, grads, state, params, dense_grads)
