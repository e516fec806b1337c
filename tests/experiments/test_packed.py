"""A data set in one file: the same arrays as from its records, without tensorflow-datasets."""

import dataclasses
import sys

import numpy as np
import pytest

from experiments.common.data import datasets, packed

pytestmark = pytest.mark.usefixtures("own_cache")


def test_a_packed_data_set_needs_no_tensorflow_datasets(made, tmp_path, monkeypatch):
    whole = datasets.load("made", made[0])
    file = packed.write("made", tmp_path / "packed", made[0])
    assert [file.name] == [path.name for path in file.parent.iterdir()] == ["made.npz"]
    for module in ("tensorflow_datasets", "array_record"):
        monkeypatch.setitem(sys.modules, module, None)
    found = datasets.load("made", str(file.parent))
    for field in dataclasses.fields(datasets.Dataset):
        np.testing.assert_array_equal(getattr(whole, field.name), getattr(found, field.name))
    monkeypatch.setenv("TFDS_DATA_DIR", str(file.parent))
    np.testing.assert_array_equal(datasets.load("made").train_inputs, whole.train_inputs)


def test_a_packed_data_set_says_when_its_pixels_come_out_differently(made, tmp_path):
    file = packed.write("made", tmp_path, made[0])
    with np.load(file) as stored:
        np.savez(file, **{**stored, "digest": np.array("of other pixels")})
    assert "NOT the same pixels" in datasets.load("made", str(tmp_path)).description


@pytest.mark.parametrize("damage", ["cut", "other", "lengths"])
def test_a_damaged_packed_data_set_is_one_line(damage, made, tmp_path):
    file = packed.write("made", tmp_path, made[0])
    content = file.read_bytes()
    if damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "other":
        np.savez(file, something=np.zeros(3))
    else:
        with np.load(file) as stored:
            np.savez(file, **{**stored, "train_lengths": stored["train_lengths"] + 1})
    with pytest.raises(datasets.DataNotFound, match="made.npz is damaged") as caught:
        datasets.load("made", str(tmp_path))
    assert "\n" not in str(caught.value)
