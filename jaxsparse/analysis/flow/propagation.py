"""Signal propagation: how much of its input reaches the output of a network at initialization."""

from collections.abc import Callable, Sequence
from typing import Unpack

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse import prng
from jaxsparse.checks import check_choice, check_function, check_options, check_sparsity
from jaxsparse.initialization import sparse_init
from jaxsparse.masks import apply
from jaxsparse.pruning import random_masks
from jaxsparse.targets import PruneOptions
from jaxsparse.types import Array, Key, Params


def signal_propagation(
    forward: Callable[[Params], Array],
    params: Params,
    sparsities: Sequence[float],
    *,
    key: Key,
    init: str = "sparse",
    **options: Unpack[PruneOptions],
) -> Array:
    """The standard deviation of a network's output at initialization against its sparsity.

    If the initial weights ignore their masks, the signal vanishes as the sparsity grows; with
    `sparse_init` it is preserved.

    Args:
      forward: `(params) -> outputs` before the softmax, on a batch.
      params: a dense initialization: only its shapes matter, and for "dense" its values too.
      sparsities: of the random masks, each in [0, 1).
      key: draws masks and weights.
      init: "sparse", `jaxsparse.sparse_init`; "layer", the same with one factor for each layer; or
        "dense", the given values under the mask.
      **options: `distribution`, `prunable`, `pattern`, `axes`, `min_alive` of
        `jaxsparse.random_masks`.

    Returns:
      float32 `(len(sparsities),)`.

    Raises:
      ValueError: an argument is out of range.

    References:
      Evci et al. (2020), figure 3.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> kernel = jax.random.normal(jax.random.key(0), (400, 50)) * (2 / 400) ** 0.5
      >>> x = jax.random.normal(jax.random.key(1), (64, 400))
      >>> forward = lambda p: x @ p["kernel"]
      >>> dense = signal_propagation(forward, {"kernel": kernel}, [0.0, 0.9], key=2, init="dense")
      >>> sparse = signal_propagation(forward, {"kernel": kernel}, [0.0, 0.9], key=2)
      >>> bool(dense[1] < 0.5 * dense[0]), bool(abs(sparse[1] / sparse[0] - 1) < 0.2)
      (True, True)
    """
    check_function("forward", forward, "(params) -> outputs")
    check_choice("init", init, ("sparse", "layer", "dense"))
    check_options(signal_propagation, options)
    if not isinstance(sparsities, Sequence | jax.Array | np.ndarray) or not len(sparsities):
        raise TypeError(f"sparsities must be several numbers in [0, 1), got {sparsities!r}.")
    for sparsity in sparsities:
        check_sparsity(sparsity, "sparsities")
    key = prng.as_key(key)
    prunable, axes = options.get("prunable"), options.get("axes")
    found = []
    for number, sparsity in enumerate(sparsities):
        mask_key, weight_key = jax.random.split(jax.random.fold_in(key, number))
        masks = random_masks(mask_key, params, sparsity, **options)
        start = apply(params, masks)
        if init != "dense":
            fan = "fan_in" if init == "sparse" else "layer"
            start = sparse_init(weight_key, start, masks, fan=fan, prunable=prunable, axes=axes)
        found.append(jnp.std(forward(start).astype(jnp.float32)))
    return jnp.stack(found)
