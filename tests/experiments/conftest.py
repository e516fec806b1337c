"""Data sets as tensorflow-datasets prepares them, written here without it and without a network."""

import io
import json
import types

import numpy as np
import pytest

IMAGE = "tensorflow_datasets.core.features.image_feature.Image"
LABEL = "tensorflow_datasets.core.features.class_label_feature.ClassLabel"
TEXT = "tensorflow_datasets.core.features.text_feature.Text"
DICT = "tensorflow_datasets.core.features.features_dict.FeaturesDict"


def image_feature(shape, encoding="png"):
    dimensions = [str(size) if size else "-1" for size in shape]
    image = {
        "dtype": "uint8",
        "encodingFormat": encoding,
        "shape": {"dimensions": dimensions},
    }
    return {"pythonClassName": IMAGE, "image": image}


def label_feature(classes):
    return {"pythonClassName": LABEL, "classLabel": {"numClasses": str(classes)}}


def text_feature():
    return {"pythonClassName": TEXT, "text": {}}


def encode(pixels, kind="PNG"):
    import PIL.Image

    file = io.BytesIO()
    PIL.Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(file, kind)
    return file.getvalue()


def prepare(data_dir, name, features, splits, version="1.0.0", supervised=("image", "label")):
    """Writes `{split: [example, ...]}` as tensorflow-datasets would; values are bytes or ints."""
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
            writer.write(record.SerializeToString())
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
    tree = {"pythonClassName": DICT, "featuresDict": {"features": features}}
    (folder / "features.json").write_text(json.dumps(tree))
    return folder


def labelled(seed, n, shape=(5, 7, 3), classes=4):
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (n, *shape), np.uint8)
    labels = generator.integers(0, classes, n)
    examples = [
        {"image": encode(image), "label": int(label)}
        for image, label in zip(images, labels, strict=True)
    ]
    return images, labels, examples


FEATURES = {"image": image_feature((5, 7, 3)), "label": label_feature(4)}


@pytest.fixture
def records():
    """Functions that write record files, and the features of `labelled` images."""
    return types.SimpleNamespace(
        features=FEATURES,
        prepare=prepare,
        labelled=labelled,
        encode=encode,
        image=image_feature,
        label=label_feature,
        text=text_feature,
    )


@pytest.fixture
def imagenet(tmp_path):
    """ImageNet's features on five plain JPEG images of different sizes a split.

    Their grey is ten times their class; those of "test" have none.
    """
    features = {
        "image": image_feature((None, None, 3), "jpeg"),
        "label": label_feature(1000),
        "file_name": text_feature(),
    }
    sides = [(40, 60), (90, 50), (64, 64), (33, 70), (120, 100)]
    examples = [
        {
            "image": encode(np.full((*side, 3), 10 * label, np.uint8), "JPEG"),
            "label": label,
            "file_name": f"n{label:08}.JPEG".encode(),
        }
        for label, side in enumerate(sides)
    ]
    unknown = [example | {"label": -1} for example in examples]
    splits = {"train": examples * 3, "validation": examples, "test": unknown}
    prepare(tmp_path, "imagenet2012", features, splits, version="5.1.0")
    return str(tmp_path)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """An empty cache of decoded arrays, so that no test touches the user's."""
    monkeypatch.setenv("JAXSPARSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def made(tmp_path, own_cache):
    """A small image classification set: its folder, and (images, labels) of train and test."""
    *train, train_examples = labelled(0, 23)
    *test, test_examples = labelled(1, 11)
    splits = {"train": train_examples, "test": test_examples}
    prepare(tmp_path / "sets", "made", FEATURES, splits)
    return str(tmp_path / "sets"), train, test


@pytest.fixture
def call(capsys):
    """Runs a command: its exit code, standard output and standard error."""

    def run(main, *args):
        try:
            main(list(args))
            code = 0
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run
