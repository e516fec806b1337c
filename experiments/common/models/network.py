"""A network as pure functions of its parameters, for the training loop."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.common.models import registry
from jaxsparse import sparse

Array = jax.Array
VARIABLES = (nnx.Param, nnx.BatchStat)


class Task(Protocol):
    """What a network must know about a data set.

    Attributes:
      input_shape: of one example.
      num_classes: labels are in [0, num_classes).
    """

    @property
    def input_shape(self) -> Sequence[int]: ...

    @property
    def num_classes(self) -> int: ...


class Network(NamedTuple):
    """A network without its parameters.

    Attributes:
      apply: `(params, inputs) -> logits`, for evaluation.
      init_params: `(key) -> params`. They include the statistics of batch normalization, which
        have no gradient, and which a training step replaces.
      forward: `(params, key, inputs) -> (logits, moved)`, for training: with dropout, and with
        `moved` the new statistics in the structure of the parameters, None everywhere else. None
        if training does not differ.
      statistics: for each leaf, whether it is a statistic of batch normalization.
    """

    apply: Callable[[Any, Array], Array]
    init_params: Callable[[Array], Any]
    forward: Callable[[Any, Array, Array], tuple[Array, Any]] | None
    statistics: Sequence[bool]


def normalize(inputs: Array, mean: Array | float = 0.0, std: Array | float = 1.0) -> Array:
    """(inputs / 255 - mean) / std in float32 for uint8 images; anything else is returned unchanged.

    Meant for use inside a step, so that the device holds one byte per pixel.

    Args:
      inputs: uint8 images, channels last (or tokens, which are left unchanged).
      mean: mean of the pixels in [0, 1], for all or for each channel.
      std: their standard deviation, above 0.

    >>> normalize(jnp.array([0, 255], jnp.uint8)).tolist()
    [0.0, 1.0]
    """
    if inputs.dtype != jnp.uint8:
        return inputs
    return (inputs.astype(jnp.float32) / 255 - mean) / std


def trained(net: Network) -> Callable[[Any, Array], Array]:
    """`(params, inputs) -> logits` as in training: normalized by the batch, but without the
    randomness of dropout."""
    if net.forward is None:
        return net.apply
    return lambda params, inputs: net.forward(params, jax.random.key(0), inputs)[0]


def accelerated(network: Network) -> Network:
    """The same network for compressed parameters; its convolutions must have the form "conv"."""
    return network._replace(apply=sparse.accelerate(network.apply))


def make_network(
    name: str,
    task: Task,
    mean: float = 0.0,
    std: float = 1.0,
    *,
    dropout: float = 0.0,
    kernel_init: nnx.Initializer | None = None,
    bias_init: Callable[[Array, Array], Array] | None = None,
    convolution: str = "auto",
) -> Network:
    """A network for a task.

    Args:
      name: a key of `registry.MODELS`.
      task: for example a data set.
      mean: of the pixels in [0, 1]; uint8 images are normalised with it.
      std: their standard deviation.
      dropout, kernel_init, convolution: as for `registry.build`.
      bias_init: `(key, kernel) -> bias` of a layer; None leaves biases at zero.

    Raises:
      ValueError: the network does not fit the task.
    """

    def model(key: Any) -> nnx.Module:
        return registry.build(
            name,
            key_or_seed=key,
            input_shape=task.input_shape,
            num_classes=task.num_classes,
            dropout=dropout,
            kernel_init=kernel_init,
            convolution=convolution,
        )

    abstract = nnx.eval_shape(lambda: model(0))
    graphdef = nnx.graphdef(abstract)
    is_variable = lambda node: isinstance(node, nnx.Variable)  # noqa: E731
    statistics = [
        isinstance(variable, nnx.BatchStat)
        for variable in jax.tree.leaves(nnx.state(abstract, VARIABLES), is_leaf=is_variable)
    ]

    def apply(params: Any, inputs: Array) -> Array:
        return nnx.merge(graphdef, params)(normalize(inputs, mean, std))

    def forward(params: Any, key: Array, inputs: Array) -> tuple[Array, Any]:
        module = nnx.merge(graphdef, params)
        inputs = normalize(inputs, mean, std)
        logits = module(inputs, train=True, rngs=nnx.Rngs(dropout=key))
        leaves, treedef = jax.tree.flatten(nnx.state(module, VARIABLES))
        pairs = zip(leaves, statistics, strict=True)
        return logits, treedef.unflatten(leaf if moves else None for leaf, moves in pairs)

    def init_params(key: Array) -> Any:
        module = model(key)
        if bias_init is not None:
            _, key = jax.random.split(key)
            for index, (_, layer) in enumerate(nnx.iter_modules(module)):
                if hasattr(layer, "kernel") and layer.bias is not None:
                    layer.bias[...] = bias_init(jax.random.fold_in(key, index), layer.kernel[...])
        return nnx.state(module, VARIABLES)

    differs = dropout > 0 or any(statistics)
    return Network(apply, init_params, forward if differs else None, statistics)
