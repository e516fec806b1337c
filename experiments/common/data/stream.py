"""Batches of images that are too many, or vary too much in size, for memory, as in ImageNet."""

import collections
import concurrent.futures
import io
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from experiments.common.data import records, tfds_reader, tfds_source

Batch = tuple[np.ndarray, np.ndarray]

CENTRE = 0.875  # side of the centre crop over the shorter side of the image: 224 / 256
AREAS = (0.08, 1.0)
ASPECTS = (3 / 4, 4 / 3)
BATCHES_AHEAD = 2


def stream(
    name: str,
    split: str,
    batch_size: int,
    *,
    image_size: int = 224,
    seed: int = 0,
    augment: bool = False,
    start: int = 0,
    data_dir: str | None = None,
    workers: int | None = None,
) -> Iterator[Batch]:
    """Batches of a prepared data set, decoded in threads while the device computes.

    With `augment`, the batches never end: every epoch has a new order and drops an incomplete last
    batch, and every image is cropped at random (8 to 100% of the area, aspect 3/4 to 4/3) and
    mirrored half the time. Without `augment`, they are one pass in the stored order over central
    crops, and the last batch may be smaller. Both depend only on the arguments, never on the
    threads, so `start` continues a run exactly.

    Args:
      name: data set of tensorflow-datasets with an image and a class, such as "imagenet2012".
      split: for example "train", "validation" or "train[:1%]".
      batch_size: images in a batch, at least 1.
      image_size: side of the returned square images, in pixels.
      seed: of the order, the crops and the mirroring.
      augment: for training; see above.
      start: number of batches to skip without decoding them.
      data_dir: folder of the data sets; default `TFDS_DATA_DIR`.
      workers: decoding threads; default one per core.

    Returns:
      An iterator over (images, labels): uint8 `(batch, image_size, image_size, 3)` and int32
      `(batch,)`. It raises `DamagedData` when it reaches a record that cannot be used.

    Raises:
      tfds_source.DataNotFound: the data set is missing.
      ValueError: an argument is out of range, the split does not exist, or the data set has no
          images with classes.
    """
    for argument, value, least in (
        ("batch_size", batch_size, 1),
        ("image_size", image_size, 1),
        ("seed", seed, 0),
        ("start", start, 0),
    ):
        if value < least:
            raise ValueError(f"{argument} is {value}; it must be at least {least}")
    prepared = tfds_source.locate(name, data_dir)
    info = tfds_reader.open_split(prepared, split).dataset_info
    image, label = tfds_reader.image_features(info)
    classes = info.features[label].num_classes
    source = tfds_reader.open_split(prepared, split, raw=(image,))
    records.check_counts(source)
    if augment and batch_size > len(source):
        raise ValueError(
            f"batch_size is {batch_size}; {split!r} of {name} has {len(source)} images"
        )

    def decode(example: dict[str, Any], epoch: int, index: int) -> np.ndarray:
        generator = np.random.default_rng((seed, epoch, index)) if augment else None
        try:
            return crop(example[image], image_size, generator)
        except (OSError, ValueError, SyntaxError) as error:
            raise records.unreadable(source, index, error) from error

    def batches() -> Iterator[Batch]:
        pool = concurrent.futures.ThreadPoolExecutor(workers or os.cpu_count())
        waiting: collections.deque = collections.deque()
        try:
            for epoch, indices in _order(len(source), batch_size, seed, augment, start):
                examples = records.fetch(source, indices)
                labels = np.array([example[label] for example in examples], np.int32)
                records.check_labels(source, indices, labels, classes)
                images = [
                    pool.submit(decode, example, epoch, index)
                    for example, index in zip(examples, indices, strict=True)
                ]
                waiting.append((images, labels))
                if len(waiting) > BATCHES_AHEAD:
                    yield _collect(*waiting.popleft())
            while waiting:
                yield _collect(*waiting.popleft())
        finally:
            # Never wait here: the garbage collector may end a forgotten iterator from any thread,
            # even one that holds the lock that the ending threads need.
            pool.shutdown(wait=False, cancel_futures=True)

    return batches()


def crop(encoded: bytes, size: int, generator: np.random.Generator | None) -> np.ndarray:
    """One encoded image as uint8 `(size, size, 3)`: a random crop, or the central crop without
    `generator`.
    """
    import PIL.Image

    with PIL.Image.open(io.BytesIO(encoded)) as image:
        width, height = image.size
        left, top, right, bottom = (
            _central_box(width, height)
            if generator is None
            else _random_box(generator, *image.size)
        )
        # A JPEG is decoded no larger than needed; this changes only the pixel size of the crop.
        scale = size / min(right - left, bottom - top)
        image.draft("RGB", (math.ceil(width * scale), math.ceil(height * scale)))
        across, down = image.size[0] / width, image.size[1] / height
        box = (left * across, top * down, right * across, bottom * down)
        pixels = image.convert("RGB").resize((size, size), PIL.Image.Resampling.BILINEAR, box=box)
    mirrored = generator is not None and generator.random() < 0.5
    return np.asarray(pixels)[:, ::-1] if mirrored else np.asarray(pixels)


def _central_box(width: int, height: int) -> tuple[float, float, float, float]:
    side = CENTRE * min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _random_box(
    generator: np.random.Generator, width: int, height: int
) -> tuple[float, float, float, float]:
    for _ in range(10):
        area = width * height * generator.uniform(*AREAS)
        aspect = math.exp(generator.uniform(*map(math.log, ASPECTS)))
        across, down = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < across <= width and 0 < down <= height:
            left = int(generator.integers(width - across + 1))
            top = int(generator.integers(height - down + 1))
            return left, top, left + across, top + down
    return _central_box(width, height)


def _order(
    n: int, batch_size: int, seed: int, augment: bool, start: int
) -> Iterator[tuple[int, Sequence[int]]]:
    if not augment:
        for first in range(start * batch_size, n, batch_size):
            yield 0, range(first, min(first + batch_size, n))
        return
    epoch, step = divmod(start, n // batch_size)
    while True:
        order = np.random.default_rng((seed, epoch)).permutation(n)
        for first in range(step * batch_size, n - batch_size + 1, batch_size):
            yield epoch, order[first : first + batch_size].tolist()
        epoch, step = epoch + 1, 0


def _collect(images: list[concurrent.futures.Future], labels: np.ndarray) -> Batch:
    return np.stack([image.result() for image in images]), labels
