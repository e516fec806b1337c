"""Optimizers, sparse methods and patterns by their names on the command line."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import optax

import jaxsparse

STORAGES = ("masked", "compressed", "compressed_state")
OPTIMIZERS = ("sgd", "momentum", "adam", "adamw")
SCHEDULES = ("constant", "cosine", "step")
DISTRIBUTIONS = ("uniform", "erdos_renyi", "erk")
LEARNING_RATES = {"sgd": 0.1, "momentum": 0.1, "adam": 1e-3, "adamw": 1e-3}
"""The default learning rate of each optimizer."""


class Method(NamedTuple):
    """What the commands have to know about a method.

    Attributes:
      make: the function of `jaxsparse`; None for dense training.
      options: of `make`, which the commands fill in: "every", "start" and "stop" if its masks
        change at mask updates, "drop_fraction", "momentum", "noise".
      ramps: whether the network starts dense and reaches its sparsity at `stop`. The sparsity is
        then part of the mask update, so that no other sparsity shares its compiled program.
      redistributes: whether weights move from layer to layer.
      by_rows: more options of `make` for a pattern that fixes the count of every layer.
      own: options of `make` that belong to the method, whatever the command's are.
      compared: whether `compare` trains it by default.
      flops: the method whose costs `analysis.training_flops` uses for it; empty for its own name.
    """

    make: Callable[..., optax.GradientTransformationExtraArgs] | None
    options: tuple[str, ...] = ()
    ramps: bool = False
    redistributes: bool = False
    by_rows: Mapping[str, Any] = {}
    own: Mapping[str, Any] = {}
    compared: bool = False
    flops: str = ""

    @property
    def dense(self) -> bool:
        """Whether it has no masks."""
        return self.make is None

    @property
    def moves(self) -> bool:
        """Whether its masks change at mask updates."""
        return "every" in self.options


_WHEN = ("every", "start", "stop")
_DROPS = (*_WHEN, "drop_fraction")
METHODS = {
    "dense": Method(None),
    "fixed": Method(jaxsparse.fixed, compared=True),
    "gradual": Method(jaxsparse.gradual, _WHEN, ramps=True, compared=True),
    "sparse_evolution": Method(jaxsparse.sparse_evolution, _DROPS, compared=True),
    "rigl": Method(jaxsparse.rigl, _DROPS, compared=True),
    "sparse_momentum": Method(
        jaxsparse.sparse_momentum,
        (*_DROPS, "momentum"),
        redistributes=True,
        by_rows={"redistribution": "none"},
        compared=True,
    ),
    "srigl": Method(
        jaxsparse.rigl,
        _DROPS,
        own={"pattern": jaxsparse.fan_in, "min_salient": 0.3, "keep_units": "head"},
        flops="rigl",
    ),
    "dynamic_reparameterization": Method(
        jaxsparse.dynamic_reparameterization, _WHEN, redistributes=True
    ),
    "deep_rewiring": Method(jaxsparse.deep_rewiring, ("noise",)),
}
"""The methods by name: every command can train them (`srigl` where the last layer is prunable)."""


def optimizer(
    name: str, learning_rate: float, *, schedule: str, weight_decay: float, steps: int
) -> optax.GradientTransformation:
    """An Optax optimizer with its learning-rate schedule.

    Args:
      name: `sgd`; `momentum`, SGD with Nesterov momentum 0.9; `adam`; `adamw`.
      learning_rate: at the first step, above 0.
      schedule: `constant`; `cosine`, down to 0 at the last step; `step`, a tenth of the rate after
        half and a hundredth after three quarters of the steps.
      weight_decay: at least 0; added to the gradient, or with `adamw` to the update.
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
    """Which weights may be pruned: prunable ones whose path the regex `dense` does not match."""

    def chosen(path: str, leaf: Any) -> bool:
        kept = dense and re.search(dense, path)
        return not kept and jaxsparse.default_prunable(path, leaf)

    return chosen


class MaskUpdates(NamedTuple):
    """When masks change, in steps.

    Attributes:
      every: steps from one update to the next.
      start: the first update.
      stop: there is no update at or after it; gradual pruning reaches its sparsity there.
      drop_fraction: share of a layer's living weights that the first update replaces, annealed to
        0 at `stop` by a cosine; None leaves it to the method.
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
    axes: str = "flax",
    **own: Any,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer made sparse by one of `METHODS`; `dense` leaves it unchanged.

    Args:
      name: the method.
      inner: any optimizer.
      key: draws the masks; may be traced.
      sparsity: in [0, 1).
      distribution: one of `DISTRIBUTIONS`.
      pattern: a `jaxsparse` pattern.
      prunable: `(path, leaf) -> bool`.
      updates: when masks change, for the methods that change them.
      axes: of the kernels; "flax_stacked" for those of scanned layers.
      **own: more options of the method, which override those above.

    Raises:
      ValueError: the method does not support the combination.
    """
    method = METHODS[name]
    if method.make is None:
        return optax.with_extra_args_support(inner)
    options: dict[str, Any] = {}
    if method.moves:
        options = {"every": updates.every, "start": updates.start, "stop": updates.stop}
    if "drop_fraction" in method.options and updates.drop_fraction is not None:
        options["drop_fraction"] = jaxsparse.schedules.cosine(updates.drop_fraction, updates.stop)
    if pattern.by_rows:
        options |= method.by_rows
    options |= {
        "sparsity": sparsity,
        "key": key,
        "distribution": getattr(jaxsparse.distributions, distribution),
        "pattern": pattern,
        "prunable": prunable,
        "axes": axes,
    }
    return method.make(inner, **options | dict(method.own) | own)


def storage(name: str, pattern: str) -> str:
    """One of `STORAGES`, as the methods take it: blocks are stored in the shape of the pattern."""
    return f"compressed:{pattern}" if (name, pattern[:5]) == ("compressed", "block") else name


def pattern(text: str) -> Any:
    """A pattern from text: `unstructured`, `channel`, `fan_in`, `N:M` or `block:RxC`.

    Raises:
      ValueError: the text does not name a pattern.
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
