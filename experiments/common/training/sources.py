"""Where the training examples of a study come from: from memory, or batch by batch from disk."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.common.data import datasets
from experiments.common.training import from_disk, loop

Pixels = tuple[Any, Any] | tuple[()]


class Source(NamedTuple):
    """The examples of a study.

    Attributes:
      dataset: on the host; for images that stay on disk, without the training images.
      pixels: mean and standard deviation for `make_network`; () if pixels are already floats.
      make_trainer: `loop.make_trainer` with the examples filled in.
      steps_per_epoch: batches in one pass.
      held: inputs and labels from the training split to measure on, on the host; for images on
        disk, those that were set aside for validation.
    """

    dataset: datasets.Dataset
    pixels: Pixels
    make_trainer: Callable[..., loop.Trainer]
    steps_per_epoch: int
    held: tuple[Any, Any]


def load(
    name: str,
    *,
    batch_size: int,
    image_size: int | None = None,
    validation: float = 0,
    key: Any = None,
    data_dir: str | None = None,
    examples: int | None = None,
    **in_memory: Any,
) -> Source:
    """A data set in memory as floats on the device; or, cut to a size, on disk.

    Args:
      name: a name that `datasets.load` accepts.
      batch_size: examples per step.
      image_size: None for data in memory; else the side in pixels to which the images are cut,
        which stay on disk in training and are normalized with the pixel statistics of ImageNet.
      validation: what to set aside from the training examples. A float: that fraction, the last
        ones. An int, in memory: that many at random, unless the data set has its own.
      key: of the order and the crops of images on disk.
      data_dir: folder of the prepared data sets.
      examples: how many to use of each part; None for all.
      **in_memory: `normalize`, by the mean and deviation of all pixels (the default); otherwise
        they are in [0, 1]. And `augment`: mirror images and crop them after padding by 4 pixels on
        each side, in a mode of `datasets.augment`: "reflect" or "constant"; None for no
        augmentation.
    Raises:
      DataNotFound: the data set is missing.
      ValueError: there are fewer examples than a batch; or as for `from_disk.load`.
    """
    if image_size is None:
        dataset = datasets.first(datasets.load(name, data_dir), examples)
        return _in_memory(_set_aside(dataset, validation), batch_size, **in_memory)
    images = from_disk.load(
        name,
        image_size=image_size,
        batch_size=batch_size,
        validation=validation,
        seed=int(jax.random.bits(key)),
        data_dir=data_dir,
        examples=examples,
    )
    make_trainer = functools.partial(from_disk.make_trainer, images=images, batch_size=batch_size)
    held = images.dataset.validation_inputs, images.dataset.validation_labels
    return Source(images.dataset, from_disk.PIXELS, make_trainer, images.steps_per_epoch, held)


def _set_aside(dataset: datasets.Dataset, validation: float) -> datasets.Dataset:
    if not validation or (isinstance(validation, int) and dataset.validation_inputs is not None):
        return dataset
    if isinstance(validation, int):
        return datasets.split_validation(dataset, validation, seed=0)
    return datasets.split_last(dataset, validation)


def _in_memory(
    dataset: datasets.Dataset,
    batch_size: int,
    *,
    normalize: bool = True,
    augment: str | None = None,
) -> Source:
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
        augment=functools.partial(datasets.augment, mode=augment) if augment else None,
    )
    held = dataset.train_inputs, dataset.train_labels
    return Source(dataset, (), make_trainer, steps, held)
