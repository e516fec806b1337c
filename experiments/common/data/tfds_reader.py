"""Prepared data sets of tensorflow-datasets as NumPy arrays, read without TensorFlow."""

import io
import json
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.common.data import records
from experiments.common.data.tfds_source import Prepared, quiet_tfds
from experiments.common.faults import DamagedData, DataNotFound, first_line

MEMORY_LIMIT = 8 * 2**30  # most bytes of pixels of a data set in memory
RECORDS_AT_ONCE = 2000


def open_split(prepared: Prepared, split: str | None, raw: Sequence[str] = ()) -> Any:
    """Random access to the examples of a split.

    Args:
      prepared: what `tfds_source.locate` returned.
      split: for example "train" or "train[:10%]"; None for a dict of all splits.
      raw: features to leave encoded (an image remains the bytes of its JPEG or PNG).

    Raises:
      DataNotFound: the files are not array_record files, or cannot be read.
      DamagedData: the description of the data set is damaged, or the split is empty.
      ValueError: the split does not exist.
    """
    _check_description(prepared, split)
    with quiet_tfds() as tfds:
        try:
            return tfds.data_source(
                f"{prepared.name}:{prepared.version}",
                split=split,
                data_dir=os.fspath(prepared.data_dir),
                download=False,
                decoders={feature: tfds.decode.SkipDecoding() for feature in raw} or None,
            )
        except NotImplementedError as error:
            kind = json.loads(prepared.info_file.read_text()).get("fileFormat", "unknown")
            raise DataNotFound(
                f"data set {prepared.name!r} in {prepared.data_dir} has files of the kind {kind}, "
                "which need TensorFlow; prepare it again as array_record files"
            ) from error
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"split {split!r} of data set {prepared.name!r}: {first_line(error)}"
            ) from error
        except Exception as error:
            raise DataNotFound(
                f"data set {prepared.name!r} in {prepared.data_dir} cannot be opened: "
                f"{first_line(error)}"
            ) from error


def image_features(info: Any) -> tuple[str, str]:
    """Names of the image and of the class in the examples of an image classification set.

    Args:
      info: the `dataset_info` of a split.

    Raises:
      ValueError: the data set is of a different kind.
    """
    with quiet_tfds() as tfds:
        kinds = tfds.features.Image, tfds.features.ClassLabel
        keys = info.supervised_keys or ()
        features = [info.features[key] for key in keys if isinstance(key, str)]
    if len(features) != 2 or not all(map(isinstance, features, kinds)):
        raise ValueError(f"data set {info.name!r} is not one of images with one class each")
    return tuple(keys)


def read_images(prepared: Prepared) -> dict[str, np.ndarray]:
    """All images of a data set in memory, with its description.

    Returns:
      Arrays by name: `{train,test}_inputs` uint8 `(n, height, width, channels)`,
      `{train,test}_labels` int32 `(n,)`, `num_classes` and `description` without axes. If no split
      is called "test", "validation" takes its place; if there is neither, its arrays are
      missing.

    Raises:
      ValueError: the data set has no images with classes, or does not fit into memory;
        `DamagedData` if a record does not match the description.
    """
    splits = open_split(prepared, None)
    if "train" not in splits:
        raise ValueError(f"data set {prepared.name!r} has no split 'train', only {[*splits]}")
    info = splits["train"].dataset_info
    image, label = image_features(info)
    shape, dtype = info.features[image].shape, np.dtype(info.features[image].np_dtype)
    if None in shape:
        raise ValueError(
            f"the images of {prepared.name!r} differ in size; read them with data.stream"
        )
    if dtype != np.uint8:
        raise ValueError(f"the images of {prepared.name!r} are {dtype}; only uint8 is read")
    test = next((split for split in ("test", "validation") if split in splits), None)
    wanted = {"train": "train"} | ({"test": test} if test else {})
    size = sum(len(splits[split]) for split in wanted.values()) * math.prod(shape)
    if size > MEMORY_LIMIT:
        raise ValueError(
            f"the images of {prepared.name!r} take {size / 2**30:.0f} GiB, more than "
            f"{MEMORY_LIMIT / 2**30:.0f}; read them with data.stream"
        )
    arrays = {
        "num_classes": np.array(info.features[label].num_classes),
        "description": np.array(_one_line(prepared.name, info.description)),
    }
    for use, split in wanted.items():
        source = open_split(prepared, split, raw=(image,))
        inputs = np.empty((len(source), *shape), np.uint8)
        labels = np.empty(len(inputs), np.int32)
        with quiet_tfds():
            records.check_counts(source)
            for first in range(0, len(inputs), RECORDS_AT_ONCE):
                rows = range(first, min(first + RECORDS_AT_ONCE, len(inputs)))
                for row, example in zip(rows, records.fetch(source, rows), strict=True):
                    inputs[row] = _pixels(source, row, info.features[image], example[image])
                    labels[row] = example[label]
        records.check_labels(source, range(len(labels)), labels, int(arrays["num_classes"]))
        records.check_classes(source, labels)
        arrays |= {f"{use}_inputs": inputs, f"{use}_labels": labels}
    return arrays


def _pixels(source: Any, row: int, feature: Any, encoded: bytes) -> np.ndarray:
    # Check the file itself: decoders silently convert what differs from the description.
    import PIL.Image

    try:
        with PIL.Image.open(io.BytesIO(encoded)) as opened:
            shape = opened.height, opened.width, len(opened.getbands())
        if shape == feature.shape:
            return feature.decode_example_np(encoded)
    except Exception as error:
        raise records.unreadable(source, row, error) from error
    raise DamagedData(
        f"{records.place(source, row)} is an image of shape {shape}; the data set says "
        f"{feature.shape}"
    )


def read_texts(prepared: Prepared) -> dict[str, str]:
    """The whole text of every split of a text data set.

    Raises:
      DamagedData: a record cannot be read.
    """
    texts = {}
    for split, source in open_split(prepared, None).items():
        records.check_counts(source)
        texts[split] = ""
        for row in range(len(source)):
            [example] = records.fetch(source, [row])
            try:
                texts[split] += example["text"].decode()
            except (KeyError, UnicodeDecodeError) as error:
                raise records.unreadable(source, row, error) from error
    return texts


def _check_description(prepared: Prepared, split: str | None) -> None:
    # For files that it cannot understand, tfds raises long errors of many kinds.
    found: dict[str, Any] = {}
    for file in (prepared.folder / "features.json", prepared.info_file):
        try:
            found = json.loads(file.read_bytes()) if file.exists() else {"": None}
        except (OSError, ValueError) as error:
            raise DamagedData(
                f"{file} is damaged ({first_line(error)}); prepare the data set again"
            ) from error
        if not (isinstance(found, dict) and found):
            raise DamagedData(f"{file} is not a description; prepare the data set again")
    for one in found.get("splits", ()):
        asked = split is None or split.split("[")[0] == one["name"]
        if asked and not sum(map(int, one.get("shardLengths", ()))):
            raise DamagedData(
                f"the split {one['name']!r} of data set {prepared.name!r} is empty, says "
                f"{prepared.info_file}; it must have records"
            )


def _one_line(name: str, description: str) -> str:
    line = " ".join(description.split())
    return f"{name}: {line}" if len(line) <= 120 else f"{name}: {line[:117]}..."
