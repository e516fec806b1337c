"""How a model runs on a backend: the one place where that is decided, by measurement."""

from typing import Literal, NamedTuple


class Execution(NamedTuple):
    """The form in which the training of a model is compiled.

    Attributes:
      convolution: "patches" (slices and one matrix product) or "conv" (XLA's own convolution).
      loop: "scan" (many steps in one compiled loop) or "step" (one compiled, donated step for each
        call, replicates one after the other from Python).
      replicates: "vmap" (all at once) or "map" (one after the other in the compiled program).
    """

    convolution: Literal["patches", "conv"]
    loop: Literal["scan", "step"]
    replicates: Literal["vmap", "map"]


_ON_CPU = {
    "lenet_300_100": Execution("patches", "scan", "vmap"),
    "lenet_5": Execution("patches", "scan", "map"),
    "lenet_5_caffe": Execution("patches", "scan", "map"),
    "conv_2": Execution("patches", "scan", "map"),
    "conv_4": Execution("patches", "scan", "map"),
    "conv_6": Execution("patches", "scan", "map"),
    "character_transformer": Execution("patches", "scan", "map"),
}


def execution(model_name: str, backend: str) -> Execution:
    """The fastest form of a model on a backend.

    Milliseconds per training step and replicate (SGD with momentum, float32, 2 shared CPU cores,
    fastest of several interleaved runs, so that only numbers of one row compare):

    | model, batch, replicates     | patches, vmap | patches, map | patches, step | conv, step |
    |------------------------------|---------------|--------------|---------------|------------|
    | lenet_300_100, 60, 3         | 0.56          | 0.66         | 0.95          | -          |
    | lenet_5, 128, 3              | 31            | 13           | 15            | 18         |
    | lenet_5_caffe, 100, 3        | 55            | 33           | 53            | 43         |
    | conv_2, 60, 1                | -             | 159          | 204           | 258        |
    | conv_4, 60, 2                | -             | 271          | 359           | 371        |
    | conv_6, 60, 1                | -             | 365          | -             | 518        |
    | character_transformer, 16, 2 | 144           | 134          | 177           | -          |

    A convolution inside a loop is no choice at all: there XLA:CPU falls back to a naive one (68 ms
    for lenet_5, 94 under `vmap`). On another machine of two cores conv_2 took 131 ms as "conv,
    step" and 163 to 205 ms as patches in a loop: measure again before relying on its row.
    Accelerators have no such fallback, so they get the plain convolution in a loop; that choice is
    reasoned, not measured.

    Args:
      model_name: a key of `models.MODELS`.
      backend: what `jax.default_backend()` returns: "cpu", "gpu", "tpu", ...

    Raises:
      ValueError: nothing is known about the model.

    >>> execution("lenet_5", "cpu")
    Execution(convolution='patches', loop='scan', replicates='map')
    """
    if model_name not in _ON_CPU:
        raise ValueError(f"model_name is {model_name!r}; it must be one of {', '.join(_ON_CPU)}")
    if backend == "cpu":
        return _ON_CPU[model_name]
    return Execution("conv", "scan", "vmap")
