"""Optimizers, sparse methods and patterns by the names that a command line knows them by."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import optax

import jaxsparse

OPTIMIZERS = ("sgd", "momentum", "adam", "adamw")
SCHEDULES = ("constant", "cosine", "step")
ALGORITHMS = (
    "dense",
    "fixed",
    "gradual",
    "sparse_evolution",
    "rigl",
    "sparse_momentum",
    "dynamic_reparameterization",
    "deep_rewiring",
)
DROPPING = ("sparse_evolution", "rigl", "sparse_momentum")
"""The algorithms that drop a fraction of the living weights at a mask update."""
DISTRIBUTIONS = ("uniform", "erdos_renyi", "erk")
LEARNING_RATES = {"sgd": 0.1, "momentum": 0.1, "adam": 1e-3, "adamw": 1e-3}
"""What each optimizer starts from where nothing else is asked for."""


def optimizer(
    name: str, learning_rate: float, *, schedule: str, weight_decay: float, steps: int
) -> optax.GradientTransformation:
    """An Optax optimizer with its learning-rate schedule.

    Args:
      name: `sgd`; `momentum`, SGD with Nesterov momentum 0.9; `adam`; `adamw`.
      learning_rate: at the first step, above 0.
      schedule: `constant`; `cosine`, down to 0 at the last step; `step`, a tenth of it after half
        and a hundredth after three quarters of the steps.
      weight_decay: at least 0; added to the gradient, by `adamw` to the update.
      steps: of the whole run.
    """
    rate = {
        "constant": lambda: learning_rate,
        "cosine": lambda: optax.cosine_decay_schedule(learning_rate, steps),
        "step": lambda: optax.piecewise_constant_schedule(
            learning_rate, {steps // 2: 0.1, steps * 3 // 4: 0.1}
        ),
    }[schedule]()
    if name == "adamw":
        return optax.adamw(rate, weight_decay=weight_decay)
    plain = {
        "sgd": lambda: optax.sgd(rate),
        "momentum": lambda: optax.sgd(rate, momentum=0.9, nesterov=True),
        "adam": lambda: optax.adam(rate),
    }[name]()
    return optax.chain(optax.add_decayed_weights(weight_decay), plain) if weight_decay else plain


def prunable(dense: str = "") -> Callable[[str, Any], bool]:
    """Which weights may be pruned: those that can be, but for what the path regex `dense` finds."""

    def chosen(path: str, leaf: Any) -> bool:
        kept = dense and re.search(dense, path)
        return not kept and jaxsparse.default_prunable(path, leaf)

    return chosen


class MaskUpdates(NamedTuple):
    """When masks change, in steps.

    Attributes:
      every: steps from one update to the next.
      start: the first update.
      stop: no update comes at or after it; gradual pruning reaches its sparsity there.
      drop_fraction: share of a layer's living weights that the first update replaces, annealed to
        0 at `stop` by a cosine; None leaves it to the algorithm.
    """

    every: int
    start: int
    stop: int
    drop_fraction: float | None


def sparse_method(
    name: str,
    inner: optax.GradientTransformation,
    *,
    key: Any,
    sparsity: float,
    distribution: str,
    pattern: Any,
    prunable: Callable[[str, Any], bool],
    updates: MaskUpdates,
    **own: Any,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer made sparse by one of `ALGORITHMS`; `dense` leaves it as it is.

    Args:
      name: the algorithm.
      inner: any optimizer.
      key: draws the masks; may be traced.
      sparsity: in [0, 1).
      distribution: one of `DISTRIBUTIONS`.
      pattern: a `jaxsparse` pattern.
      prunable: `(path, leaf) -> bool`.
      updates: when masks change, for the algorithms whose masks do.
      **own: more options of the algorithm, which come before those above.

    Raises:
      ValueError: a combination that the algorithm does not know.
    """
    if name == "dense":
        return optax.with_extra_args_support(inner)
    options: dict[str, Any] = {}
    if name not in ("fixed", "deep_rewiring"):
        options = {"every": updates.every, "start": updates.start, "stop": updates.stop}
    if name in DROPPING and updates.drop_fraction is not None:
        options["drop_fraction"] = jaxsparse.cosine(updates.drop_fraction, updates.stop)
    if name == "sparse_momentum" and pattern.by_rows:
        options["redistribution"] = "none"  # such a pattern fixes the count of every layer
    return getattr(jaxsparse, name)(
        inner,
        sparsity=sparsity,
        key=key,
        distribution=getattr(jaxsparse, distribution),
        pattern=pattern,
        prunable=prunable,
        axes="flax",
        **options | own,
    )


def pattern(text: str) -> Any:
    """A pattern from text: `unstructured`, `channel`, `fan_in`, `N:M` or `block:RxC`.

    Raises:
      ValueError: the text names no pattern.
    """
    if text in ("unstructured", "channel", "fan_in"):
        return getattr(jaxsparse, text)
    if found := re.fullmatch(r"(\d+):(\d+)", text):
        return jaxsparse.n_m(*map(int, found.groups()))
    if found := re.fullmatch(r"block:(\d+)x(\d+)", text):
        return jaxsparse.block(*map(int, found.groups()))
    raise ValueError(
        f"pattern must be unstructured, channel, fan_in, N:M (such as 2:4) or block:RxC (such as "
        f"block:4x4), got {text!r}."
    )
