"""One training job, assembled from a configuration: data, network and methods."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxsparse
from experiments.common.data import datasets
from experiments.common.models.network import accelerated, make_network
from experiments.common.training import evaluation, loop, methods
from experiments.common.training.execution import execution, replicate_keys
from experiments.train.config import Config


class Job(NamedTuple):
    """Everything that training needs.

    Attributes:
      config: the resolved configuration.
      dataset: the examples, on the host.
      trainers: by method, the dense twin first.
      sets: what they are evaluated on, by name, on the device.
      steps: of each method.
      apply: `(params, inputs) -> logits`.
      prunable: `(path, leaf) -> bool`.
      updates: when masks change.
    """

    config: Config
    dataset: datasets.Dataset
    trainers: dict[str, loop.Trainer]
    sets: dict[str, evaluation.EvaluationSet]
    steps: int
    apply: Callable[[Any, jax.Array], jax.Array]
    prunable: Callable[[str, Any], bool]
    updates: methods.MaskUpdates


def build(config: Config) -> Job:
    """Loads the data and assembles a job; everything that can be wrong is found here.

    Args:
      config: what `config.resolve` returned.

    Raises:
      DataNotFound: the data set is missing.
      ValueError: values are incompatible, such as a pattern that does not fit the network.
    """
    dataset = datasets.load(config.dataset, config.data_dir, config.download)
    if config.validation:
        dataset = datasets.split_validation(dataset, config.validation, config.seed)
    n = len(dataset.train_labels)
    if config.batch_size > n:
        raise ValueError(
            f"--batch-size must be in [1, {n}], the training examples, got {config.batch_size}."
        )
    steps = config.epochs * (n // config.batch_size)
    updates = mask_updates(config, steps)
    pixels = datasets.pixel_statistics(dataset)
    network = make_network(config.model, dataset, *pixels)
    prunable = methods.prunable(config.dense_layers)
    if not any(
        prunable(weight_name(path), leaf)
        for path, leaf in jax.tree.leaves_with_path(
            jax.eval_shape(network.init_params, jax.random.key(0))
        )
    ):
        raise ValueError(f"--dense-layers {config.dense_layers!r} leaves no weight to be sparse.")
    examples = jnp.asarray(dataset.train_inputs), jnp.asarray(dataset.train_labels)
    pattern = methods.pattern(config.pattern)

    def trainer(method: str) -> loop.Trainer:
        inner = methods.optimizer(
            config.optimizer,
            config.learning_rate,
            schedule=config.schedule,
            weight_decay=config.weight_decay,
            steps=steps,
        )

        def make_tx(key: Any) -> Any:
            return methods.sparse_method(
                method,
                inner,
                key=key,
                sparsity=config.sparsity,
                distribution=config.distribution,
                pattern=pattern,
                prunable=prunable,
                updates=updates,
                **({} if dense else {"storage": methods.storage(config.storage, config.pattern)}),
            )

        dense = methods.METHODS[method].dense
        compressed = config.storage == "compressed" and not dense
        chosen = network
        if compressed:
            chosen = accelerated(make_network(config.model, dataset, *pixels, convolution="conv"))
        made = loop.make_trainer(
            chosen.apply,
            chosen.init_params,
            make_tx,
            *examples,
            batch_size=config.batch_size,
            execution=execution(config.model, jax.default_backend()),
            start=loop.start_dense if dense else jaxsparse.init,
            forward=chosen.forward,
            compressed=compressed,
        )
        try:
            begin = made.init if compressed else functools.partial(jax.eval_shape, made.init)
            begin(keys_of(config)[:1])
        except ValueError as error:  # a pattern or a sparsity that does not fit the network
            raise ValueError(str(error).replace("prunable=", "--dense-layers")) from error
        return made

    names = dict.fromkeys(["dense"] * config.dense_twin + [config.method])
    return Job(
        config,
        dataset,
        {name: trainer(name) for name in names},
        evaluation.sets_of(dataset, ("test", "validation")),
        steps,
        network.apply,
        prunable,
        updates,
    )


def mask_updates(config: Config, steps: int) -> methods.MaskUpdates:
    """When masks change in a run of this many steps.

    Raises:
      ValueError: no update would ever happen, or the last one would be too late.
    """
    every = max(10, steps // 100) if config.every is None else config.every
    start = every if config.start is None else config.start
    stop = steps * 3 // 4 if config.stop is None else config.stop
    method = methods.METHODS[config.method]
    if method.moves and not start < min(stop, steps):
        raise ValueError(
            f"--start must be below --stop and the {steps} steps of the run, or no mask update "
            f"happens; got --every {every}, --start {start}, --stop {stop}."
        )
    if method.ramps and stop >= steps:
        raise ValueError(
            f"--stop must be below the {steps} steps of the run, or {config.method} does not reach "
            f"its sparsity, got {stop}."
        )
    return methods.MaskUpdates(every, start, stop, config.drop_fraction)


def keys_of(config: Config) -> jax.Array:
    """One key per replicate."""
    return replicate_keys(config.seed, config.seeds)


def weight_name(path: tuple[Any, ...]) -> str:
    """A key path as text, such as `fc1/kernel`; the `value` of a Flax variable is left out."""
    return jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
