"""Data sets: exact arrays out of record files made here, the real ones where they lie, and errors.

The record files are written as tensorflow-datasets prepares them, so reading them needs no network.
"""

import dataclasses
import os
import pathlib
import sys
import time

import numpy as np
import pytest

from experiments.common.data import cache, datasets, tfds_source

pytestmark = pytest.mark.usefixtures("own_cache")


def real(name):
    """Skips where the real data set does not lie in `TFDS_DATA_DIR`."""
    if not os.environ.get("TFDS_DATA_DIR"):
        pytest.skip("TFDS_DATA_DIR is not set")
    try:
        tfds_source.locate(name)
    except datasets.DataNotFound as error:
        pytest.skip(str(error))


def test_images_and_labels_come_back_exactly(made):
    data_dir, (images, labels), (test_images, test_labels) = made
    found = datasets.load("made", data_dir)
    np.testing.assert_array_equal(found.train_inputs, images)
    np.testing.assert_array_equal(found.train_labels, labels)
    np.testing.assert_array_equal(found.test_inputs, test_images)
    np.testing.assert_array_equal(found.test_labels, test_labels)
    assert found.train_inputs.dtype == np.uint8 and found.train_labels.dtype == np.int32
    assert found.num_classes == 4 and found.name == "made"
    assert found.description == "made: Made for a test, in two lines: made."
    assert "tensorflow" not in sys.modules


def test_the_folder_comes_from_the_environment(made, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", made[0])
    assert len(datasets.load("made").train_inputs) == 23


def test_the_cache_is_used_and_follows_the_data(made, own_cache, monkeypatch):
    first = datasets.load("made", made[0])
    assert [path.suffix for path in own_cache.iterdir()] == [".npz"]
    with monkeypatch.context() as patch:
        patch.setattr(
            datasets.tfds_reader, "read_images", lambda prepared: pytest.fail("read again")
        )
        again = datasets.load("made", made[0])
    for field in dataclasses.fields(datasets.Dataset):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(again, field.name))
    os.utime(pathlib.Path(made[0], "made/1.0.0/dataset_info.json"), ns=(1, 1))
    monkeypatch.setattr(datasets.tfds_reader, "read_images", lambda prepared: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        datasets.load("made", made[0])


def test_a_broken_cache_file_is_replaced(made, own_cache):
    datasets.load("made", made[0])
    [path] = own_cache.iterdir()
    whole = path.read_bytes()
    for broken in (b"", b"no archive", whole[: len(whole) // 2]):
        path.write_bytes(broken)
        np.testing.assert_array_equal(datasets.load("made", made[0]).train_inputs, made[1][0])
        assert len(path.read_bytes()) == len(whole)


@pytest.mark.parametrize("place", ["", "file"])
def test_a_cache_that_cannot_be_written_is_done_without(made, tmp_path, monkeypatch, place):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("JAXSPARSE_CACHE", place and str(tmp_path / "file" / "cache"))
    np.testing.assert_array_equal(datasets.load("made", made[0]).train_inputs, made[1][0])


def test_an_interrupted_write_leaves_nothing(own_cache, monkeypatch):
    monkeypatch.setattr(np, "savez", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        cache.cached("name", "identity", lambda: {"a": np.zeros(3)})
    assert list(own_cache.iterdir()) == []


def test_versions_and_configurations(tmp_path, records):
    for version, n in (("1.9.0", 5), ("1.10.0", 6)):
        splits = {"train": records.labelled(0, n)[2], "test": records.labelled(1, 2)[2]}
        records.prepare(tmp_path, "made/small", records.features, splits, version)
    assert len(datasets.load("made/small", str(tmp_path)).train_inputs) == 6
    assert len(datasets.load("made/small:1.9.0", str(tmp_path)).train_inputs) == 5
    with pytest.raises(datasets.DataNotFound, match="there: made/small"):
        datasets.load("made", str(tmp_path))


def test_without_a_test_split_every_fifth_of_a_class_is_held_out(tmp_path, records):
    images, labels, examples = records.labelled(0, 60)
    records.prepare(tmp_path, "made", records.features, {"train": examples})
    found = datasets.load("made", str(tmp_path))
    assert "no test split" in found.description
    for label in range(4):
        mine = images[labels == label]
        np.testing.assert_array_equal(found.test_inputs[found.test_labels == label], mine[4::5])
    assert len(found.train_inputs) + len(found.test_inputs) == 60


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("text", "not one of images"),
        ("no classes named", "not one of images"),
        ("label of -1", "without a class"),
        ("sizes differ", "differ in size.*stream"),
        ("no train split", "no split 'train'"),
    ],
)
def test_sets_that_cannot_be_loaded_say_why(tmp_path, records, change, match):
    features, example = records.features, records.labelled(0, 1)[2][0]
    supervised, train = ("image", "label"), "train"
    if change == "text":
        features, example, supervised = {"text": records.text()}, {"text": b"a"}, None
    elif change == "no classes named":
        supervised = None
    elif change == "label of -1":
        example = example | {"label": -1}
    elif change == "sizes differ":
        features = features | {"image": records.image((None, None, 3))}
    else:
        train = "extra"
    splits = {train: [example], "test": [example]}
    records.prepare(tmp_path, "made", features, splits, supervised=supervised)
    with pytest.raises(ValueError, match=match):
        datasets.load("made", str(tmp_path))


def test_a_set_larger_than_memory_is_refused(made, monkeypatch):
    monkeypatch.setattr(datasets.tfds_reader, "MEMORY_LIMIT", 1000)
    with pytest.raises(ValueError, match="stream"):
        datasets.load("made", made[0])


@pytest.mark.parametrize("name", ["mnist", "nosuchset", "made/nosuchconfiguration", "made:9.9.9"])
def test_a_missing_set_is_one_line_at_once(made, name):
    begun = time.perf_counter()
    with pytest.raises(datasets.DataNotFound) as caught:
        datasets.load(name, made[0])
    assert time.perf_counter() - begun < 2
    message = str(caught.value)
    assert "\n" not in message and made[0] in message and "data_dir" in message
    assert "there: made" in message


def test_a_missing_folder_names_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(datasets.DataNotFound, match="nowhere.*set TFDS_DATA_DIR"):
        datasets.load("mnist")
    assert not (tmp_path / "nowhere").exists()


def test_a_name_that_leaves_the_folder_is_refused():
    with pytest.raises(ValueError, match="name"):
        datasets.load("../elsewhere")


def test_digits():
    digits = datasets.load("digits")
    from sklearn.datasets import load_digits

    original = load_digits()
    assert digits.train_inputs.shape[1:] == (8, 8, 1) and digits.train_inputs.dtype == np.uint8
    assert digits.train_labels.dtype == np.int32 and digits.num_classes == 10
    every = np.concatenate([digits.train_inputs, digits.test_inputs])
    assert len(every) == len(original.images) == 1797
    back = np.sort(np.round(every[..., 0] * (16 / 255)).reshape(1797, -1) @ np.arange(1, 65))
    np.testing.assert_allclose(back, np.sort(original.images.reshape(1797, -1) @ np.arange(1, 65)))
    assert every.max() == 255 and every.min() == 0
    share = np.bincount(digits.test_labels) / np.bincount(original.target)
    assert (abs(share - 0.2) < 0.01).all()
    again = datasets.load("digits")
    np.testing.assert_array_equal(digits.test_inputs, again.test_inputs)


def test_characters_are_windows_end_to_end(tmp_path, records):
    texts = {
        "train": "To be, or not to be.\n" * 40,
        "validation": "or not " * 50,
        "test": "be, To " * 60,
    }
    splits = {split: [{"text": text.encode()}] for split, text in texts.items()}
    features = {"text": records.text()}
    records.prepare(tmp_path, "tiny_shakespeare", features, splits, supervised=None)
    found = datasets.load("tiny_shakespeare", str(tmp_path))
    assert found.vocabulary == "".join(sorted(set(texts["train"])))
    assert found.num_classes == len(found.vocabulary)

    def text(tokens):
        return "".join(found.vocabulary[token] for token in tokens.reshape(-1))

    for split, inputs, labels in (
        ("train", found.train_inputs, found.train_labels),
        ("validation", found.validation_inputs, found.validation_labels),
        ("test", found.test_inputs, found.test_labels),
    ):
        whole = (len(texts[split]) - 1) // 128 * 128
        assert inputs.shape == labels.shape == (whole // 128, 128)
        assert inputs.dtype == labels.dtype == np.int32
        assert text(inputs) == texts[split][:whole]
        assert text(labels) == texts[split][1 : whole + 1]
    with pytest.raises(ValueError, match="already"):
        datasets.split_validation(found, 1, seed=0)


def test_split_validation_parts_the_training_set():
    digits = datasets.load("digits")
    split = datasets.split_validation(digits, 200, seed=3)
    assert len(split.validation_inputs) == len(split.validation_labels) == 200
    np.testing.assert_array_equal(split.test_inputs, digits.test_inputs)

    def rows(inputs, labels):
        flat = np.concatenate([inputs.reshape(len(inputs), -1), labels[:, None]], axis=1)
        return flat[np.lexsort(flat.T)]

    joined = rows(
        np.concatenate([split.train_inputs, split.validation_inputs]),
        np.concatenate([split.train_labels, split.validation_labels]),
    )
    np.testing.assert_array_equal(joined, rows(digits.train_inputs, digits.train_labels))
    same, other = (datasets.split_validation(digits, 200, seed=seed) for seed in (3, 4))
    np.testing.assert_array_equal(split.validation_inputs, same.validation_inputs)
    assert (split.validation_inputs != other.validation_inputs).any()
    for count in (0, len(digits.train_labels)):
        with pytest.raises(ValueError, match="count"):
            datasets.split_validation(digits, count, seed=0)


def test_the_real_mnist():
    real("mnist")
    begun = time.perf_counter()
    mnist = datasets.load("mnist")
    assert time.perf_counter() - begun < 60
    assert mnist.train_inputs.shape == (60000, 28, 28, 1) and mnist.num_classes == 10
    assert mnist.test_inputs.shape == (10000, 28, 28, 1)
    # Facts about the published data set: its classes, its mean pixel and its spread.
    classes = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(mnist.train_labels).tolist() == classes
    assert abs(mnist.train_inputs.mean() / 255 - 0.1307) < 1e-4
    assert abs(mnist.train_inputs.std() / 255 - 0.3081) < 1e-4
    begun = time.perf_counter()
    again = datasets.load("mnist")
    assert time.perf_counter() - begun < 5
    np.testing.assert_array_equal(again.test_inputs, mnist.test_inputs)


def test_the_real_cifar10_jpeg75_says_what_it_is():
    real("cifar10_jpeg75")
    cifar10 = datasets.load("cifar10_jpeg75")
    assert "JPEG" in cifar10.description and "NOT the original" in cifar10.description
    assert cifar10.train_inputs.shape == (50000, 32, 32, 3)
    assert np.bincount(cifar10.train_labels).tolist() == [5000] * 10
    assert np.bincount(cifar10.test_labels).tolist() == [1000] * 10
    mean = cifar10.train_inputs.mean((0, 1, 2)) / 255
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=0.002)


def test_the_real_tiny_shakespeare():
    real("tiny_shakespeare")
    text = datasets.load("tiny_shakespeare")
    assert text.num_classes == 65
    first = "".join(text.vocabulary[token] for token in text.train_inputs[0])
    assert first.startswith("First Citizen:\nBefore we proceed any further, hear me speak.")
