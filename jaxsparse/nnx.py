"""For Flax NNX: a model that starts sparse. No other module imports this one."""

from typing import Any

from flax import nnx

from jaxsparse.masks import apply
from jaxsparse.states import get_masks, init

__all__ = ["start_sparse"]


def start_sparse(model: nnx.Module, optimizer: Any, *, wrt: Any = nnx.Param) -> None:
    """Sets the weights of a model off the masks to zero, in place.

    `nnx.Optimizer` draws the masks but cannot apply them, so without this call the first step, and
    any evaluation before it, see the dense model.

    Args:
      model: the model to train.
      optimizer: the `nnx.Optimizer` of the model, or the transformation from which a trainer will
        build one.
      wrt: the filter that the trainer will give to `nnx.Optimizer`; if `optimizer` is one, its own
        filter is used.

    Raises:
      TypeError: `optimizer` is neither.
      ValueError: it holds no sparse algorithm.

    Example:
      >>> import jaxsparse, optax
      >>> from flax import nnx
      >>> model = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
      >>> tx = jaxsparse.fixed(optax.sgd(0.1), sparsity=0.75, key=0)
      >>> optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
      >>> start_sparse(model, optimizer)
      >>> int((model.kernel[...] != 0).sum())
      8
    """
    if isinstance(optimizer, nnx.Optimizer):
        params = nnx.state(model, optimizer.wrt)
        params = apply(params, get_masks(optimizer, params))
    else:
        params, _ = init(optimizer, nnx.state(model, wrt))
    nnx.update(model, params)
