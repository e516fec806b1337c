"""The configuration of a training job: its options, their defaults and their allowed values."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from experiments.common.models.registry import MODELS
from experiments.common.study.options import flag, identity, option
from experiments.common.training import methods


class Recipe(NamedTuple):
    """What is used where the command line says nothing."""

    optimizer: str
    epochs: int
    batch_size: int


RECIPES = {
    "digits": Recipe("momentum", 40, 24),
    "characters": Recipe("adamw", 4, 8),
    "other": Recipe("momentum", 20, 100),
}


def _default(name: str) -> str:
    digits, characters, other = (getattr(recipe, name) for recipe in RECIPES.values())
    first = "" if digits == other else f"{digits} on digits, "
    return f"default: {first}{characters} for characters, else {other}"


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains a sparse network together with its dense twin; shows what sparsity gains and costs."""

    dataset: str = option(
        "digits",
        "digits (needs no download), or any image classification set of tensorflow-datasets, "
        "such as mnist or cifar10",
    )
    model: str = option("lenet_300_100", "the network", choices=tuple(MODELS))
    method: str = option(
        "rigl", "how the network becomes sparse", choices=methods.METHODS, was="algorithm"
    )
    sparsity: float | None = option(
        None, "fraction of weights that are zero, in [0, 1) (default: 0.9; with N:M, 1 - N/M)"
    )
    distribution: str | None = option(
        None,
        "how the sparsity is spread over the layers (default: erk; with N:M, uniform)",
        choices=methods.DISTRIBUTIONS,
    )
    pattern: str = option(
        "unstructured",
        "which weights live or die together: unstructured, channel, fan_in, N:M such as 2:4, or "
        "block:RxC such as block:4x4",
    )
    storage: str = option(
        "masked",
        "how the living weights are stored: masked, dense arrays and masks; compressed, their "
        "values only, with products that skip zeros; compressed_state, in the optimizer only",
        choices=methods.STORAGES,
    )
    dense_layers: str = option(
        "", "regular expression; weights whose name it matches stay dense (default: none)"
    )
    every: int | None = option(
        None,
        "steps from one mask update to the next (default: a hundredth of the run, at least 10)",
    )
    start: int | None = option(None, "step of the first mask update (default: --every)")
    stop: int | None = option(
        None, "step from which the masks stay unchanged (default: three quarters of the run)"
    )
    drop_fraction: float | None = option(
        None,
        "share of the living weights that a mask update replaces at first, in [0, 1]; annealed to "
        "0 at --stop (default: the method's own)",
    )
    optimizer: str | None = option(
        None,
        f"momentum is SGD with Nesterov momentum 0.9 ({_default('optimizer')})",
        choices=methods.OPTIMIZERS,
    )
    learning_rate: float | None = option(
        None, "at the first step, above 0 (default: sgd and momentum 0.1, adam and adamw 0.001)"
    )
    schedule: str = option("cosine", "how the learning rate changes", choices=methods.SCHEDULES)
    weight_decay: float = option(5e-4, "added to the gradient; by adamw to the update")
    epochs: int | None = option(None, f"passes over the training set ({_default('epochs')})")
    batch_size: int | None = option(None, f"examples a step ({_default('batch_size')})")
    validation: int = option(0, "training examples to set aside and also evaluate on")
    seeds: int = option(3, "replicates, each with its own weights, masks and order of examples")
    seed: int = option(0, "seed of the first replicate; the others count up from it")
    dense_twin: bool = option(True, "leave out the dense network (default: it is trained too)")
    data_dir: str | None = option(
        None, "folder of the prepared data sets (default: $TFDS_DATA_DIR)", identity=False
    )
    download: bool = option(
        False, "let tensorflow-datasets fetch a data set that is missing", identity=False
    )
    out: str | None = option(
        None, "output folder (default: runs/ and a name made of the options)", identity=False
    )
    resume: bool = option(
        False,
        "resume the stopped run in --out, or print the finished one (default: only in the "
        "default folder)",
        identity=False,
    )
    checkpoint_every: float = option(
        5.0, "seconds from one checkpoint to the next, at least", identity=False
    )


def resolve(config: Config) -> Config:
    """The configuration with its defaults filled in and its values checked; reads no data.

    Raises:
      ValueError: a value is invalid; the message names the allowed ones.
    """
    for field in dataclasses.fields(config):
        value, choices = getattr(config, field.name), field.metadata["choices"]
        if value is not None and choices is not None and value not in choices:
            raise ValueError(
                f"{flag(field.name)} must be one of {', '.join(choices)}, got {value!r}."
            )
    method = methods.METHODS[config.method]
    without = [name for name in _UPDATES if name not in method.options]
    without += [name for name in _SPARSE if name in method.own]
    for name in (*_SPARSE, *without) if method.dense else without:
        if getattr(config, name) not in (_DEFAULTS[name], 0.0):
            raise ValueError(f"{flag(name)} cannot be used with --method {config.method}.")
    methods.pattern(config.pattern)
    n_of_m = re.fullmatch(r"(\d+):(\d+)", config.pattern)
    sparsity = config.sparsity
    if method.dense:
        sparsity = 0.0
    elif sparsity is None:
        sparsity = 1 - int(n_of_m[1]) / int(n_of_m[2]) if n_of_m else 0.9
    characters = config.model == "character_transformer"
    kind = "digits" if config.dataset == "digits" else "characters" if characters else "other"
    recipe = RECIPES[kind]
    optimizer = _given(config.optimizer, recipe.optimizer)
    config = dataclasses.replace(
        config,
        sparsity=sparsity,
        distribution=_given(config.distribution, "uniform" if n_of_m else "erk"),
        optimizer=optimizer,
        learning_rate=_given(config.learning_rate, methods.LEARNING_RATES[optimizer]),
        epochs=_given(config.epochs, recipe.epochs),
        batch_size=_given(config.batch_size, recipe.batch_size),
    )
    for name, fits, allowed in _RANGES:
        value = getattr(config, name)
        if value is not None and not fits(value):
            raise ValueError(f"{flag(name)} must be {allowed}, got {value}.")
    try:
        re.compile(config.dense_layers)
    except re.error as error:
        raise ValueError(
            f"{flag('dense_layers')} must be a regular expression, got {config.dense_layers!r} "
            f"({error})."
        ) from None
    return config


def default_folder(config: Config) -> Path:
    """`runs/dataset-model-method-sparsity`, and whatever else differs from the defaults."""
    start = {"dataset": config.dataset, "model": config.model, "method": config.method}
    plain = identity(resolve(Config(**start, sparsity=config.sparsity)))
    parts = [*start.values(), f"{config.sparsity:.4g}"]
    parts += [f"{name}_{value}" for name, value in identity(config).items() if value != plain[name]]
    return Path("runs") / re.sub(r"[^\w.-]+", "_", "-".join(parts))


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Config)}
_SPARSE = ("sparsity", "distribution", "pattern", "storage", "dense_layers")
_UPDATES = ("every", "start", "stop", "drop_fraction")
_RANGES = (
    ("sparsity", lambda s: 0 <= s < 1, "in [0, 1)"),
    ("drop_fraction", lambda f: 0 <= f <= 1, "in [0, 1]"),
    ("learning_rate", lambda x: 0 < x < math.inf, "above 0"),
    ("weight_decay", lambda x: 0 <= x < math.inf, "at least 0"),
    ("checkpoint_every", lambda x: x >= 0, "at least 0"),
    ("seed", lambda n: 0 <= n < 2**31, "in [0, 2^31)"),
    ("start", lambda n: n >= 0, "at least 0"),
    ("validation", lambda n: n >= 0, "at least 0"),
    *(
        (name, lambda n: n >= 1, "at least 1")
        for name in ("every", "stop", "epochs", "batch_size", "seeds")
    ),
)
