"""Small made-up data sets, and commands as their user calls them."""

import types

import numpy as np
import pytest

from experiments.common.data import made_up


def labelled(seed, n, shape=(5, 7, 3), classes=4):
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (n, *shape), np.uint8)
    labels = generator.integers(0, classes, n)
    examples = [
        {"image": made_up.encode(image), "label": int(label)}
        for image, label in zip(images, labels, strict=True)
    ]
    return images, labels, examples


FEATURES = {"image": made_up.image_feature((5, 7, 3)), "label": made_up.label_feature(4)}


@pytest.fixture
def records():
    """Functions that write record files, and the features of `labelled` images."""
    return types.SimpleNamespace(
        features=FEATURES,
        prepare=made_up.prepare,
        labelled=labelled,
        encode=made_up.encode,
        image=made_up.image_feature,
        label=made_up.label_feature,
        text=made_up.text_feature,
    )


@pytest.fixture
def imagenet(tmp_path):
    """ImageNet's features on five plain JPEG images of different sizes a split.

    Their grey is ten times their class; those of "test" have none.
    """
    sides = [(40, 60), (90, 50), (64, 64), (33, 70), (120, 100)]
    examples = [
        {
            "image": made_up.encode(np.full((*side, 3), 10 * label, np.uint8), "JPEG"),
            "label": label,
            "file_name": f"n{label:08}.JPEG".encode(),
        }
        for label, side in enumerate(sides)
    ]
    made_up.imagenet(tmp_path, {"train": examples * 3, "validation": examples})
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
    made_up.prepare(tmp_path / "sets", "made", FEATURES, splits)
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
