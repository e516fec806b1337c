"""Times programs in turns within one run, so that other load on the machine affects all alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from experiments.common.training.execution import replicate_keys
from experiments.common.training.loop import Trainer
from jaxsparse import sparse

CALL_SECONDS = 0.2  # a call of a training loop lasts at least as long


def optimizer_step(tx: optax.GradientTransformation) -> Callable[..., Any]:
    """`(params, state, grads) -> (params, state)`, without a forward or backward pass."""

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def step_in_place(tx: optax.GradientTransformation) -> Callable[..., Any]:
    """The same for a compressed state, as in `jaxsparse.sparse.train_step`."""

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params, patches=True)
        return sparse.apply_updates(params, updates), state

    return step


def chain(
    program: Callable[..., Any], carry: tuple, *rest: Any, times: int = 1
) -> Callable[[], None]:
    """A call that runs `carry = program(*carry, *rest)` `times` times and waits for the result."""

    def call() -> None:
        nonlocal carry
        for _ in range(times):
            carry = program(*carry, *rest)
        jax.block_until_ready(carry)

    return call


def take_turns(
    calls: Mapping[str, Callable[[], None]], turns: Mapping[str, int] | int
) -> dict[str, list[float]]:
    """The seconds of every call, one of each per turn; those with fewer turns drop out."""
    if isinstance(turns, int):
        turns = dict.fromkeys(calls, turns)
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(max(turns.values())):
        for name, call in calls.items():
            if turn < turns[name]:
                began = time.perf_counter()
                call()
                spent[name].append(time.perf_counter() - began)
    return spent


def ratio(spent: list[float], base: list[float]) -> float:
    """The median of the ratios within a turn."""
    return statistics.median(a / b for a, b in zip(spent, base, strict=False))


def training_steps(trainers: Mapping[str, Trainer], turns: int) -> dict[str, list[float]]:
    """The seconds of a training step of one replicate, turn by turn; the loops take turns.

    Args:
      trainers: by name; the first one sets how many steps a call has.
      turns: timed calls of each trainer.
    """

    def loop(trainer: Trainer) -> Callable[[int], None]:
        state, done = trainer.init(replicate_keys(0, 1)), 0

        def call(count: int) -> None:
            nonlocal state, done
            state = jax.block_until_ready(trainer.advance(state, done, done + count))
            done += count

        return call

    loops = {name: loop(trainer) for name, trainer in trainers.items()}
    for call in loops.values():
        call(1)  # compiles
    first = next(iter(loops.values()))
    once = take_turns({"": lambda: first(1)}, 1)[""][0]
    count = max(1, round(CALL_SECONDS / once))
    calls = {name: lambda call=call: call(count) for name, call in loops.items()}
    spent = take_turns(calls, turns)
    return {name: [seconds / count for seconds in found] for name, found in spent.items()}
