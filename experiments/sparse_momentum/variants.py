"""Variants of the methods, and the side studies that compare them.

A variant is written `method+option=value+...`, such as `sparse_momentum+growth=random`. Options are
those of the method in `jaxsparse`, and those that `settings.method` adds. A value with a decimal
point or an exponent is a float; variants that differ only in floats share a compiled program.
"""

import inspect
from collections.abc import Callable, Hashable
from typing import Any

import optax

OWN_LENGTHS = ("period",)
"""Floats that are compiled into the program, because they determine when something happens."""

_MOMENTA = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
_RATES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
STUDIES = {
    "main": (),
    "sensitivity": (
        *(f"{name}+momentum={m}" for name in ("sparse_momentum", "dense") for m in _MOMENTA),
        *(
            f"sparse_momentum+prune_schedule={schedule}+prune_rate={rate}"
            for schedule in ("cosine", "linear")
            for rate in _RATES
        ),
    ),
    "ablation": (
        "dense",
        "fixed",
        "sparse_momentum",
        *(f"sparse_momentum+redistribution={by}" for by in ("magnitude", "nonzero", "none")),
        *(f"sparse_momentum+growth={by}" for by in ("momentum_neuron", "global", "random")),
        *(
            f"sparse_momentum+growth=random+redistribution={by}"
            for by in ("magnitude", "nonzero", "none")
        ),
        *(f"sparse_momentum+drop_by={by}" for by in ("global", "sign")),
    ),
    "tuning": (
        *(f"sparse_momentum+prune_rate={rate}" for rate in (0.2, 0.5)),
        *(
            f"dynamic_reparameterization+period={period}+target={target}"
            for period in (0.25, 1.0)
            for target in (0.01, 0.03, 0.1, 0.3, 0.5)
        ),
    ),
}
"""The variants of every study; `main` compares the methods themselves."""


def parse(name: str) -> tuple[str, dict[str, Any]]:
    """The method of a variant, and its options.

    Raises:
      ValueError: the text is not a variant.

    >>> parse("sparse_momentum+growth=random+prune_rate=0.2")
    ('sparse_momentum', {'growth': 'random', 'prune_rate': 0.2})
    """
    method, *parts = name.split("+")
    options = {}
    for part in parts:
        option, equals, value = part.partition("=")
        if not (option.isidentifier() and equals and value):
            raise ValueError(
                f"a variant is written method+option=value+..., such as "
                f"sparse_momentum+growth=random; got {name!r}."
            )
        options[option] = _value(value)
    return method, options


def method_of(name: str) -> str:
    """The method of a variant."""
    return parse(name)[0]


def program(name: str) -> Hashable:
    """A key that two variants with a common compiled program share."""
    method, options = parse(name)
    rest = {key: None if _shared(key, value) else value for key, value in options.items()}
    return method, tuple(sorted(rest.items(), key=lambda item: item[0]))


def build(
    make: Callable[..., optax.GradientTransformationExtraArgs], options: dict[str, Any]
) -> optax.GradientTransformationExtraArgs:
    """`make(**options)`, with the floats in the optimizer's state instead of its program."""
    floats = {key: value for key, value in options.items() if _shared(key, value)}
    rest = {key: value for key, value in options.items() if key not in floats}
    if not floats:
        return make(**rest)

    def inner(**floats: Any) -> optax.GradientTransformationExtraArgs:
        return make(**rest, **floats)

    kind = inspect.Parameter.KEYWORD_ONLY
    inner.__signature__ = inspect.Signature([inspect.Parameter(key, kind) for key in floats])
    return optax.inject_hyperparams(inner)(**floats)


def _shared(option: str, value: Any) -> bool:
    return isinstance(value, float) and option not in OWN_LENGTHS


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
