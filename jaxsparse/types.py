"""The vocabulary of the library: type aliases and the data that every part agrees on."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax

Array = jax.Array
Key = Any
"""A random key: a Python int, a typed key (`jax.random.key`) or raw key data, traced or not."""

Params = Any
"""Any pytree. Floating arrays can be sparse; every other leaf is left alone."""

Masks = Any
"""A pytree of boolean arrays with the structure of its params; True = the weight is alive."""

Scores = Any
"""A pytree of floating arrays with the structure of its params; higher = kept or grown first."""

Sparsity = float | Array | Mapping[str, float]
"""The fraction of zeros in [0, 1), traced or not, or `{path regex: sparsity}`."""

Sparsities = Any
"""A pytree of Python floats in [0, 1) with the structure of its params; 0.0 = a dense leaf."""

Schedule = Callable[[Array], Array]
"""A function of the step count, a traced int32 scalar."""

Prunable = Callable[[str, Any], bool]
"""`(path, leaf) -> bool`: may this leaf be sparse? A path reads like `"fc1/kernel"`."""

Distribution = Callable[..., Sparsities]
"""`(params, sparsity) -> Sparsities`; may take the keywords `prunable` and `axes` too."""


class Axes(NamedTuple):
    """What the axes of one leaf mean. An axis that is not named is spatial (a kernel axis).

    Attributes:
      inputs: axes over which one output unit sums.
      outputs: axes that number the output units.
      stacked: axes along which independent layers are stacked (scanned or vmapped layers).
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    stacked: tuple[int, ...] = ()


AxesSpec = str | Axes | Mapping[str, Any] | Callable[[str, Any], Axes] | None
"""A preset's name, one `Axes`, `{path regex: preset or Axes}`, or `(path, leaf) -> Axes`."""


class RuleInit(Protocol):
    """The masks that training starts from, and what the rule keeps from step to step."""

    def __call__(self, key: Key, params: Params, /) -> tuple[Masks, Any]: ...


class RuleUpdate(Protocol):
    """New masks and the new state of the rule; `params` are zero off the masks."""

    def __call__(
        self,
        key: Key,
        count: Array,
        masks: Masks,
        params: Params,
        grads: Params,
        rule_state: Any,
        /,
    ) -> tuple[Masks, Any]: ...


class RuleObserve(Protocol):
    """What the rule keeps after it has seen the dense gradients of one step."""

    def __call__(
        self, rule_state: Any, grads: Params, masks: Masks, params: Params, count: Array, /
    ) -> Any: ...


class RuleAdjust(Protocol):
    """The gradients as the inner optimizer sees them, on living weights."""

    def __call__(
        self,
        key: Key,
        count: Array,
        masks: Masks,
        params: Params,
        grads: Params,
        rule_state: Any,
        /,
    ) -> Params: ...


class RuleAlive(Protocol):
    """How many weights live after the update at `count`: a tree of ints, or their total."""

    def __call__(self, params: Params, count: int, /) -> Any: ...


class RuleLeaves(Protocol):
    """A choice of leaves, as a tree of bools; it must not depend on the parameters' values."""

    def __call__(self, params: Params, /) -> Any: ...


class Rule(NamedTuple):
    """A sparse training method as data: pure functions, put to work by `jaxsparse.sparsify`.

    Only `init` must be given; a rule whose masks move has `update` and `fires` too. All trees have
    the structure of the parameters. `count` is the number of updates done before this one, a traced
    int32. Functions are traced once; what they keep lives in `rule_state`. Pass fields by name.

    Attributes:
      init: `(key, params) -> (masks, rule_state)`.
      update: `(key, count, masks, params, grads, rule_state) -> (masks, rule_state)`, when the
        rule fires. `params` are zero off the masks.
      fires: `(count) -> bool` array: when the masks change; None means never, and costs nothing.
      observe: `(rule_state, grads, masks, params, count) -> rule_state`, at every step, with the
        dense gradients; None leaves the rule state alone.
      alive: `(params, count) -> living weights` that the masks hold after the update at `count`:
        a tree of ints, or one int where only the total is fixed. For tests and reports; never
        traced. None means what the masks of `init` hold.
      sparse: `(params) -> tree of bool`: the leaves that may be sparse. The others cost nothing.
        None means those that `jaxsparse.default_prunable` accepts.
      grows: whether `update` may bring weights to life.
      adjust: `(key, count, masks, params, grads, rule_state) -> grads` as the inner optimizer sees
        them, on living weights; None leaves them alone. For methods that add noise or a penalty.
      prunable: `(params) -> tree of bool`: the leaves that count in a density, even if one of them
        stays dense; None means those of `sparse`.
      gradients: whether `update` looks at `grads`.
      window: how many steps before a mask update `observe` must see, if dense gradients are not
        computed at every step (`storage="compressed"`); None means all.
      reads_dead: whether `update` looks at parameters off the masks. If so, it is given a copy in
        which they are zero; otherwise they may be anything.
      reads_packed: whether `update` takes and returns masks in the form in which the state stores
        them, which may be bits; otherwise it sees booleans.
    """

    init: RuleInit
    update: RuleUpdate | None = None
    fires: Schedule | None = None
    observe: RuleObserve | None = None
    alive: RuleAlive | None = None
    sparse: RuleLeaves | None = None
    grows: bool = True
    adjust: RuleAdjust | None = None
    prunable: RuleLeaves | None = None
    gradients: bool = True
    window: int | None = None
    reads_dead: bool = True
    reads_packed: bool = False
