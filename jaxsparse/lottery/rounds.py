"""The rounds of lottery tickets: train, prune, rewind; in one shot or iteratively."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from jaxsparse import prng, trees
from jaxsparse.checks import check_function
from jaxsparse.lottery._pruning_levels import LadderOptions, densities, ladder, prune_to
from jaxsparse.masks import apply, full_masks
from jaxsparse.patterns import Pattern, unstructured
from jaxsparse.scores import magnitude
from jaxsparse.types import AxesSpec, Key, Masks, Params, Prunable, Scores

REWINDS = ("init", "continue", "learning_rate")


class Round(NamedTuple):
    """One round: a ticket and the result of its training.

    Attributes:
      density: living weights over all weights of the prunable leaves, a float in (0, 1].
      masks: which weights live in this round; all of them in round 0.
      params: the parameters that training began with, zero off the masks.
      result: what `train` returned.
    """

    density: float
    masks: Masks
    params: Params
    result: Any


def find_tickets(
    train: Callable[..., Any],
    params: Params,
    key: Key,
    *,
    rounds: int,
    rates: float | Mapping[str, float] = 0.2,
    rewind: str | int = "init",
    steps: int | None = None,
    criterion: Callable[[Any, Params, Params], Scores] | None = None,
    scope: str = "layer",
    prunable: Prunable | None = None,
    pattern: Pattern = unstructured,
    axes: AxesSpec = None,
    min_alive: int | str = 1,
) -> tuple[Round, ...]:
    """Iterative pruning: round r trains the ticket that the rounds before it have left.

    Round 0 trains the dense network, round `rounds` the last ticket; between two rounds, the
    weights with the lowest scores are removed and the survivors rewound. `rounds=1` is one-shot
    pruning at the given rate. Works under `vmap` over replicates. If `train` is jitted, it compiles
    once.

    Args:
      train: `(key, params, masks) -> result`, a pure function (or one that logs and checkpoints).
        The result is the trained parameters, or a tuple (or NamedTuple) that begins with them.
      params: the initialization.
      key: an int, a typed key or raw key data; `train` gets a different one in each round.
      rounds: how many times to prune, at least 1.
      rates: the fraction of the living weights that each pruning removes; see `ladder`.
      rewind: which values the survivors continue from: "init", their initial values; "continue",
        their trained values, and only the last ticket starts from its initial values (Frankle &
        Carbin, appendix B); "learning_rate", their trained values, also at the end, while `train`
        restarts its learning-rate schedule (Renda et al.); or a step k in [1, steps), their values
        after k steps of training. With a step k, `train` is called as
        `train(key, params, masks, start=0, stop=k)` once, on the dense network, and as
        `train(key, params, masks, start=k, stop=steps)` in each round.
      steps: the number of training steps, only for a step k.
      criterion: `(key, initial, trained) -> scores`, from the parameters that the round began with
        and those it ended with.
      scope, prunable, pattern, axes, min_alive: as for `ladder`.

    Returns:
      The `rounds + 1` rounds, the dense one first.

    Raises:
      ValueError: an argument out of range; a rewind step at or beyond the end of training.
      TypeError: `train` returned neither the parameters nor a tuple that begins with them.

    References:
      Frankle & Carbin (2018), section 1 and appendix B; Frankle et al., "Linear Mode Connectivity
      and the Lottery Ticket Hypothesis" (2020) for steps; Renda et al., "Comparing Rewinding and
      Fine-tuning" (2020).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def train(key, params, masks):  # towards a known optimum, on the living weights
      ...     target = jnp.array([[1.0, -3.0], [2.0, 0.5]])
      ...     return {"kernel": jnp.where(masks["kernel"], target, 0.0)}
      >>> tickets = find_tickets(train, {"kernel": jnp.ones((2, 2))}, 0, rounds=2, rates=0.5)
      >>> [ticket.density for ticket in tickets]
      [1.0, 0.5, 0.25]
      >>> tickets[1].params["kernel"].tolist()
      [[0.0, 1.0], [1.0, 0.0]]
    """
    target: LadderOptions = {
        "scope": scope,
        "prunable": prunable,
        "pattern": pattern,
        "axes": axes,
        "min_alive": min_alive,
    }
    check_function("train", train, "(key, params, masks) -> result")
    if criterion is not None:
        check_function("criterion", criterion, "(key, initial, trained) -> scores")
    _check_rewind(rewind, steps)
    counts = ladder(params, rounds, rates, **target)
    shares = densities(params, rounds, rates, **target)
    key = prng.as_key(key)
    masks, options = full_masks(params), {}
    origin = params
    if not isinstance(rewind, str):
        first = jax.random.fold_in(key, rounds + 1)
        early = train(first, params, masks, start=0, stop=rewind)
        origin, options = trained(early, params), {"start": rewind, "stop": steps}
    found, start = [], origin
    for number in range(rounds + 1):
        round_key = jax.random.fold_in(key, number)
        start = apply(start, masks)
        result = train(round_key, start, masks, **options)
        found.append(Round(shares[number], masks, start, result))
        if number == rounds:
            break
        end = trained(result, params)
        if criterion is None:
            scores = magnitude(end)
        else:
            scores = criterion(jax.random.fold_in(round_key, 1), start, end)
        masks = prune_to(scores, counts[number + 1], within=masks, **target)
        keeps = rewind == "learning_rate" or (rewind == "continue" and number + 1 < rounds)
        start = end if keeps else origin
    return tuple(found)


def trained(result: Any, params: Params) -> Params:
    """Extracts the trained parameters from what `train` returned.

    Raises:
      TypeError: they are not there.
    """
    trees.check_tree(params)
    structure = jax.tree.structure(params)
    if jax.tree.structure(result) == structure:
        return result
    if isinstance(result, tuple) and result and jax.tree.structure(result[0]) == structure:
        return result[0]
    raise TypeError(
        "result: train must return the trained parameters, or a tuple that begins with them, "
        f"in the structure of the params that it was given; got {type(result).__name__}."
    )


def _check_rewind(rewind: Any, steps: Any) -> None:
    if isinstance(rewind, str):
        if rewind not in REWINDS:
            raise ValueError(
                f"rewind must be one of {', '.join(REWINDS)} or a step, got {rewind!r}."
            )
        return
    if isinstance(rewind, bool) or not isinstance(rewind, int):
        raise TypeError(f"rewind must be a name or an int, got {rewind!r}.")
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"rewind to a step needs steps=, the length of training, got {steps!r}.")
    if not 1 <= rewind < steps:
        raise ValueError(f"rewind must be a step in [1, {steps}), before the end, got {rewind}.")
