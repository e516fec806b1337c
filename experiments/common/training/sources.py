"""Where the training examples of a study come from: memory, or batch by batch the disk."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from experiments.common.data import datasets
from experiments.common.training import from_disk, loop

Pixels = tuple[Any, Any] | tuple[()]


class Source(NamedTuple):
    """The examples of a study.

    Attributes:
      dataset: on the host; of images that stay on the disk without those for training.
      pixels: mean and standard deviation for `make_network`; () where they are floats already.
      make_trainer: as `loop.make_trainer`, the examples put in.
      steps_per_epoch: batches in one pass.
      held: inputs and labels from the training split to measure on, on the host; of images on the
        disk those that were set aside for validation.
    """

    dataset: datasets.Dataset
    pixels: Pixels
    make_trainer: Callable[..., loop.Trainer]
    steps_per_epoch: int
    held: tuple[Any, Any]


def in_memory(
    name: str,
    *,
    batch_size: int,
    validation: float = 0.0,
    normalize: bool = True,
    augment: bool = False,
    data_dir: str | None = None,
    examples: int | None = None,
) -> Source:
    """A data set that fits in memory, as floats on the device.

    Args:
      name: what `datasets.load` knows.
      batch_size: examples a step.
      validation: fraction of the training examples, the last ones, set aside; 0 for none.
      normalize: by the mean and deviation of all pixels; otherwise they are in [0, 1].
      augment: mirror images and crop them from 4 more pixels on each side.
      data_dir: folder of the prepared data sets.
      examples: how many to use of each part; None uses all.

    Raises:
      DataNotFound: the data set is not there.
      ValueError: fewer examples than a batch.
    """
    dataset = datasets.first(datasets.load(name, data_dir), examples)
    if validation:
        dataset = datasets.split_last(dataset, validation)
    dataset = datasets.as_floats(
        dataset, *(datasets.pixel_statistics(dataset) if normalize else ())
    )
    steps = len(dataset.train_labels) // batch_size
    if steps < 1:
        raise ValueError(
            f"batch_size must be in [1, {len(dataset.train_labels)}], the training examples, got "
            f"{batch_size}."
        )
    make_trainer = functools.partial(
        loop.make_trainer,
        inputs=jnp.asarray(dataset.train_inputs),
        labels=jnp.asarray(dataset.train_labels),
        batch_size=batch_size,
        augment=datasets.augment if augment else None,
    )
    held = dataset.train_inputs, dataset.train_labels
    return Source(dataset, (), make_trainer, steps, held)


def on_disk(name: str, *, batch_size: int, **options: Any) -> Source:
    """Images that stay on the disk, with the pixels of ImageNet.

    Args:
      name, batch_size, options: as for `from_disk.load`.

    Raises:
      DataNotFound, ValueError: as there.
    """
    images = from_disk.load(name, batch_size=batch_size, **options)
    make_trainer = functools.partial(from_disk.make_trainer, images=images, batch_size=batch_size)
    held = images.dataset.validation_inputs, images.dataset.validation_labels
    return Source(images.dataset, from_disk.PIXELS, make_trainer, images.steps_per_epoch, held)
