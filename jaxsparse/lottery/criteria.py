"""What decides which weights a round removes: `(key, initial, trained) -> scores`.

`initial` are the parameters that the round began with, `trained` those it ended with; the weights
with the lowest scores are removed. Any function of this form is a criterion, so every score of the
library is one too:

    criterion=lambda key, initial, trained: jaxsparse.snip(loss, trained, batches)

References:
  Zhou et al., "Deconstructing Lottery Tickets" (2019), section 2, compares all of these.
"""

import jax.numpy as jnp

from jaxsparse.scores import magnitude, random_scores
from jaxsparse.trees import check_tree, is_float, map_arrays
from jaxsparse.types import Array, Key, Params, Scores


def final_magnitude(key: Key, initial: Params, trained: Params) -> Scores:
    """The lottery ticket's own criterion: the size of a weight after training.

    Example:
      >>> import jax.numpy as jnp
      >>> final_magnitude(0, None, {"w": jnp.array([-2.0, 1.0])})["w"].tolist()
      [2.0, 1.0]
    """
    check_tree(trained, "trained")
    return magnitude(trained)


def least_magnitude(key: Key, initial: Params, trained: Params) -> Scores:
    """The reverse, as a control: the largest weights are removed.

    Example:
      >>> import jax.numpy as jnp
      >>> least_magnitude(0, None, {"w": jnp.array([-2.0, 1.0])})["w"].tolist()
      [-2.0, -1.0]
    """
    check_tree(trained, "trained")
    return map_arrays(lambda _, s: -s if is_float(s) else s, magnitude(trained))


def initial_magnitude(key: Key, initial: Params, trained: Params) -> Scores:
    """The size of a weight before training.

    Example:
      >>> import jax.numpy as jnp
      >>> initial_magnitude(0, {"w": jnp.array([-2.0, 1.0])}, None)["w"].tolist()
      [2.0, 1.0]
    """
    check_tree(initial, "initial")
    return magnitude(initial)


def magnitude_increase(key: Key, initial: Params, trained: Params) -> Scores:
    """How much larger a weight has become: `|trained| - |initial|`.

    Example:
      >>> import jax.numpy as jnp
      >>> initial, trained = {"w": jnp.array([-2.0, 1.0])}, {"w": jnp.array([1.0, 3.0])}
      >>> magnitude_increase(0, initial, trained)["w"].tolist()
      [-1.0, 2.0]
    """

    def increase(_: str, new: Array, old: Array) -> Array:
        return jnp.abs(new) - jnp.abs(old) if is_float(new) else new

    return map_arrays(increase, trained, initial, what="initial", first="trained")


def movement(key: Key, initial: Params, trained: Params) -> Scores:
    """How far a weight has moved: `|trained - initial|`.

    Example:
      >>> import jax.numpy as jnp
      >>> initial, trained = {"w": jnp.array([-2.0, 1.0])}, {"w": jnp.array([1.0, 3.0])}
      >>> movement(0, initial, trained)["w"].tolist()
      [3.0, 2.0]
    """

    def moved(_: str, new: Array, old: Array) -> Array:
        return jnp.abs(new - old) if is_float(new) else new

    return map_arrays(moved, trained, initial, what="initial", first="trained")


def chance(key: Key, initial: Params, trained: Params) -> Scores:
    """Random scores: pruning without any information.

    Example:
      >>> import jax.numpy as jnp
      >>> chance(0, None, {"w": jnp.ones((2, 3))})["w"].shape
      (2, 3)
    """
    check_tree(trained, "trained")
    return random_scores(key, trained)
