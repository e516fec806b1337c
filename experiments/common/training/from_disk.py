"""Training on images that stay on disk, such as ImageNet: what is known about them, and the loop.

Every step is a call of the compiled loop with one batch as the whole data set. Validation and test
images are used again and again, so they are cut to size once and kept in memory.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.common.data import datasets, records, tfds_reader, tfds_source
from experiments.common.data.stream import Batch, stream
from experiments.common.training import loop

PIXELS = (
    np.array([0.485, 0.456, 0.406], np.float32),
    np.array([0.229, 0.224, 0.225], np.float32),
)
"""Mean and standard deviation of ImageNet's training pixels in [0, 1], by channel."""
HOLDING = 256  # images decoded at once


class Images(NamedTuple):
    """A data set of images of which only the evaluation images are in memory.

    Attributes:
      dataset: its training arrays are empty, but have the shape of batches.
      steps_per_epoch: whole batches of the training images.
      batches: `(step) -> batches from that step on`, without end.
    """

    dataset: datasets.Dataset
    steps_per_epoch: int
    batches: Callable[[int], Iterator[Batch]]


def load(
    name: str,
    *,
    image_size: int,
    batch_size: int,
    validation: float,
    seed: int,
    data_dir: str | None = None,
    examples: int | None = None,
) -> Images:
    """A prepared data set of images with classes, cut to squares.

    The last training images are set aside for validation. The test set is the split "validation" if
    there is one, because the classes of ImageNet's "test" were never published.

    Args:
      name: of the data set, as for `datasets.stream`.
      image_size: side of the squares in pixels.
      batch_size: images per step.
      validation: fraction of the training images set aside, in (0, 1).
      seed: of the order and the crops in training.
      data_dir: folder of the prepared data sets.
      examples: how many to use of each split; None for all.

    Raises:
      DataNotFound: the data set is missing.
      ValueError: there are fewer training images than a batch, or more evaluation images than fit
        into memory; or the data set is of another kind.
    """
    prepared = tfds_source.locate(name, data_dir)
    splits = tfds_reader.open_split(prepared, None)
    test = next((split for split in ("validation", "test") if split in splits), None)
    if "train" not in splits or test is None:
        raise ValueError(
            f"data set {name!r} has the splits {', '.join(splits)}; expected 'train', and "
            "'validation' or 'test'"
        )
    info = splits["train"].dataset_info
    _, label = tfds_reader.image_features(info)
    total, tested = (
        len(splits[split]) if examples is None else min(examples, len(splits[split]))
        for split in ("train", test)
    )
    kept = total - max(1, round(total * validation))
    if batch_size > kept:
        raise ValueError(
            f"batch_size must be in [1, {kept}], the training images of {name!r}, got {batch_size}."
        )
    held = {"validation": ("train", kept, total), "test": (test, 0, tested)}
    size = (total - kept + tested) * 3 * image_size**2
    if size > tfds_reader.MEMORY_LIMIT:
        raise ValueError(
            f"the {total - kept + tested:,} images of {name!r} for evaluation take "
            f"{size / 2**30:.1f} GiB at {image_size} pixels, more than "
            f"{tfds_reader.MEMORY_LIMIT / 2**30:.0f}: choose smaller images, or fewer of them"
        )
    arrays = {}
    for part, (split, first, last) in held.items():
        inputs, labels = _hold(name, f"{split}[{first}:{last}]", last - first, image_size, data_dir)
        arrays |= {f"{part}_inputs": inputs, f"{part}_labels": labels}
    records.check_classes(splits[test], arrays["test_labels"])
    description = (
        f"{name}, images of {image_size}x{image_size}x3, tested on the split {test!r}"
        f"{'' if examples is None else f'; the first {examples:,} examples of each split'}"
    )
    dataset = datasets.Dataset(
        name,
        description,
        np.empty((0, image_size, image_size, 3), np.uint8),
        np.empty(0, np.int32),
        num_classes=info.features[label].num_classes,
        **arrays,
    )

    def batches(step: int) -> Iterator[Batch]:
        return stream(
            name,
            f"train[:{kept}]",
            batch_size,
            image_size=image_size,
            seed=seed,
            augment=True,
            start=step,
            data_dir=data_dir,
        )

    return Images(dataset, kept // batch_size, batches)


def make_trainer(
    apply: Callable[..., Any],
    init_params: Callable[..., Any],
    make_tx: Callable[..., Any],
    images: Images,
    *,
    batch_size: int,
    **options: Any,
) -> loop.Trainer:
    """`loop.make_trainer` for images from disk, cropped and mirrored at random.

    All replicates see the same batches; they differ in their weights and masks.

    Args:
      apply, init_params, make_tx, options: as for `loop.make_trainer`.
      images: what `load` returned.
      batch_size: the same as for `load`.
    """
    shape = images.dataset.train_inputs.shape[1:]
    blank = np.zeros((batch_size, *shape), np.uint8), np.zeros(batch_size, np.int32)
    one = loop.make_trainer(apply, init_params, make_tx, *blank, batch_size=batch_size, **options)
    return fed(one, images.batches)._replace(steps_per_epoch=images.steps_per_epoch)


def fed(one: loop.Trainer, batches: Callable[[int], Iterator[Batch]]) -> loop.Trainer:
    """A trainer that gets the next batch at every step.

    Args:
      one: a trainer whose examples are one batch.
      batches: `(step) -> batches from that step on`, without end.
    """

    def advance(state: loop.TrainState, first: int, last: int) -> loop.TrainState:
        with contextlib.closing(batches(first)) as left:
            for step in range(first, last):
                state = one.advance(state, step, step + 1, next(left))
                jax.block_until_ready(state.loss_sum)  # else batches would pile up on the device
        return state

    return one._replace(advance=advance)


def _hold(name: str, split: str, count: int, image_size: int, data_dir: str | None) -> Batch:
    inputs = np.empty((count, image_size, image_size, 3), np.uint8)
    labels = np.empty(count, np.int32)
    found = stream(name, split, HOLDING, image_size=image_size, data_dir=data_dir)
    for number, (images, classes) in enumerate(found):
        rows = slice(number * HOLDING, number * HOLDING + len(classes))
        inputs[rows], labels[rows] = images, classes
    return inputs, labels
