"""DeepR as in the code of Mostafa & Wang (2019), with its settings for CIFAR-10.

The settings for their numbers on MNIST were not released. The temperature falls from 1e-5 to 1e-15
in three steps, and weights are rewired until 190 of 200 epochs are over.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

Array = jax.Array
ETA = 0.01
"""Their `DeepR_eta`, by default 0.001; it replaces the learning rate."""
OPTIONS = {"sign": "free", "temperature": 1e-5, "l1": 1e-5, "weight_decay": 0.0}
"""Options of `jaxsparse.deep_rewiring` and of `settings.method`."""
_FALLS = {1 / 8: 1e-3, 2 / 5: 1e-4, 7 / 10: 1e-3}


def noise(temperature: Any, steps: int) -> Callable[[Array], Array]:
    """`(count) -> standard deviation of gradient noise`, `sqrt(2 * ETA * temperature)` at first.

    Args:
      temperature: at the first step; may be traced.
      steps: of the whole run.
    """
    falls = {round(part * steps): scale for part, scale in _FALLS.items()}
    falling = optax.piecewise_constant_schedule(1.0, falls)
    return lambda count: jnp.sqrt(2 * ETA * temperature * falling(count))


def stop(steps: int) -> int:
    """The step from which on nothing is rewired."""
    return max(2, round(steps * 19 / 20))
