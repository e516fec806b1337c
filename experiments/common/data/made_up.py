"""Synthetic data sets in the form of tensorflow-datasets: no download, no TensorFlow.

    python -m experiments.common.data.made_up FOLDER

writes `imagenet2012` into the folder (which must not contain it yet): 1,000 images with ImageNet's
features for training and 100 for validation, noisy greys in ten classes, the same ones every time.
With `--data-dir FOLDER` they show whether a preset for ImageNet runs, and how fast.
"""

import io
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common.faults import in_one_line

_FEATURES = "tensorflow_datasets.core.features."
Example = Mapping[str, bytes | int]


def image_feature(shape: Sequence[int | None], encoding: str = "png") -> dict[str, Any]:
    """An image feature; sizes of None vary from image to image."""
    dimensions = [str(size) if size else "-1" for size in shape]
    image = {"dtype": "uint8", "encodingFormat": encoding, "shape": {"dimensions": dimensions}}
    return {"pythonClassName": f"{_FEATURES}image_feature.Image", "image": image}


def label_feature(classes: int) -> dict[str, Any]:
    """A class."""
    label = {"numClasses": str(classes)}
    return {"pythonClassName": f"{_FEATURES}class_label_feature.ClassLabel", "classLabel": label}


def text_feature() -> dict[str, Any]:
    """A text."""
    return {"pythonClassName": f"{_FEATURES}text_feature.Text", "text": {}}


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """The encoded file of an image, uint8 `(height, width, 1 or 3)`."""
    import PIL.Image

    file = io.BytesIO()
    PIL.Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(file, kind)
    return file.getvalue()


def prepare(
    data_dir: pathlib.Path,
    name: str,
    features: Mapping[str, Any],
    splits: Mapping[str, Sequence[Example]],
    version: str = "1.0.0",
    supervised: Sequence[str] | None = ("image", "label"),
) -> pathlib.Path:
    """Writes a data set as tensorflow-datasets would.

    Args:
      data_dir: folder of all data sets.
      name: of the data set, with its configuration if it has one.
      features: what an example has, by name.
      splits: examples by name of the split.
      version: of the data set.
      supervised: the names of input and target; None if there are none.

    Returns:
      The folder that was written.
    """
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    folder = data_dir / name / version
    folder.mkdir(parents=True)
    short = name.split("/")[0]
    for split, examples in splits.items():
        path = folder / f"{short}-{split}.array_record-00000-of-00001"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for example in examples:
            record = tf_example_pb2.Example()
            for key, value in example.items():
                entry = record.features.feature[key]
                if isinstance(value, bytes):
                    entry.bytes_list.value.append(value)
                else:
                    entry.int64_list.value.append(value)
            writer.write(record.SerializeToString(deterministic=True))
        writer.close()
    info = {
        "name": short,
        "version": version,
        "description": f"Made for a test,\n  in two lines: {name}.",
        "fileFormat": "array_record",
        "moduleName": "__main__",
        "splits": [
            {
                "name": split,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "numBytes": "1",
                "shardLengths": [str(len(examples))],
            }
            for split, examples in splits.items()
        ],
    }
    if supervised:
        info["supervisedKeys"] = {"tuple": {"items": [{"featureKey": key} for key in supervised]}}
    if "/" in name:
        info["configName"] = name.split("/")[1]
    (folder / "dataset_info.json").write_text(json.dumps(info))
    kind = f"{_FEATURES}features_dict.FeaturesDict"
    tree = {"pythonClassName": kind, "featuresDict": {"features": features}}
    (folder / "features.json").write_text(json.dumps(tree))
    return folder


def imagenet(data_dir: pathlib.Path, splits: Mapping[str, Sequence[Example]]) -> pathlib.Path:
    """Writes examples under ImageNet's name, version and features; those of "test" lose their
    classes, as in ImageNet."""
    features = {
        "image": image_feature((None, None, 3), "jpeg"),
        "label": label_feature(1000),
        "file_name": text_feature(),
    }
    test = [example | {"label": -1} for example in splits["validation"]]
    return prepare(data_dir, "imagenet2012", features, {**splits, "test": test}, version="5.1.0")


def main(data_dir: str) -> None:
    """Writes the synthetic images of the command."""
    generator = np.random.default_rng(0)

    def example(i: int) -> Example:
        label, size = i % 10, generator.integers(64, 120, 2)
        pixels = 25 * label + 10 + generator.normal(0, 20, (*size, 3))
        image = encode(np.clip(pixels, 0, 255).astype(np.uint8), "JPEG")
        return {"image": image, "label": label, "file_name": f"n{i:08}.JPEG".encode()}

    train, validation = ([example(i) for i in range(count)] for count in (1000, 100))
    imagenet(pathlib.Path(data_dir), {"train": train, "validation": validation})


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python -m experiments.common.data.made_up FOLDER")
    with in_one_line():
        main(sys.argv[1])
