"""Damaged data sets, and those that cannot be: one line that names file and record."""

import http.server
import json
import threading
import time

import numpy as np
import pytest

from experiments.common import faults
from experiments.common.data import datasets, tfds_source
from experiments.common.faults import WRONG_VALUE
from experiments.train import __main__ as train

pytestmark = pytest.mark.usefixtures("own_cache")
TRAIN = "made-train.array_record-00000-of-00001"


def change(file, key, value):
    """The first split's entry in the description of a data set."""
    info = json.loads(file.read_text())
    info["splits"][0][key] = value
    file.write_text(json.dumps(info))


def flip(file, at):
    content = bytearray(file.read_bytes())
    content[at] ^= 0xFF
    file.write_bytes(content)


def cut(file, length):
    file.write_bytes(file.read_bytes()[:length])


FILES = {
    "flipped record": (lambda d: flip(d / TRAIN, 131), f"{TRAIN}, record 0, cannot be read"),
    "flipped index": (lambda d: flip(d / TRAIN, 65536), f"{TRAIN} cannot be opened"),
    "truncated": (lambda d: cut(d / TRAIN, 100_000), f"{TRAIN} cannot be opened"),
    "empty": (lambda d: cut(d / TRAIN, 0), f"{TRAIN} cannot be opened"),
    "missing": (lambda d: (d / TRAIN).unlink(), f"{TRAIN} cannot be opened"),
    "fewer counted": (
        lambda d: change(d / "dataset_info.json", "shardLengths", ["22"]),
        f"{TRAIN} has 23 records, but dataset_info.json counts 22",
    ),
    "more counted": (
        lambda d: change(d / "dataset_info.json", "shardLengths", ["24"]),
        f"{TRAIN} has 23 records, but dataset_info.json counts 24",
    ),
    "none counted": (
        lambda d: change(d / "dataset_info.json", "shardLengths", ["0"]),
        "the split 'train' of data set 'made' is empty",
    ),
} | {
    f"{name} {what}": (lambda d, name=name, text=text: (d / name).write_text(text), name)
    for name in ("dataset_info.json", "features.json")
    for what, text in {"empty": "", "cut": '{"a', "list": "[]", "nothing": "{}"}.items()
}


@pytest.mark.parametrize("case", FILES)
def test_damaged_files(call, tmp_path, made, case):
    damage, message = FILES[case]
    damage(tmp_path / "sets" / "made" / "1.0.0")
    args = ["--dataset", "made", "--data-dir", made[0], "--out", str(tmp_path / "out")]
    code, out, err = call(train.main, *args)
    assert code == 2 and out == "" and err.count("\n") == 1, err
    assert message in err
    assert not (tmp_path / "out").exists()


GOOD = np.full((5, 7, 3), 9, np.uint8)
RECORDS = {
    "a label too large": (GOOD, 4, r"record 2, has the label 4; labels must be in \[0, 4\)"),
    "a label below -1": (GOOD, -2, "record 2, has the label -2"),
    "no class": (GOOD, -1, "record 2, is an image without a class"),
    "another size": (GOOD[:4], 1, r"record 2, is an image of shape \(4, 7, 3\); .* \(5, 7, 3\)"),
    "another number of channels": (GOOD[..., :1], 1, "record 2, is an image of shape"),
    "no image": (b"letter", 1, "record 2, cannot be read"),
    "a truncated image": (None, 1, "record 2, cannot be read"),
}


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("case", RECORDS)
def test_records_that_are_not_what_the_description_says(tmp_path, records, split, case):
    image, label, message = RECORDS[case]
    splits = {name: records.labelled(0, 9)[2] for name in ("train", "test")}
    if image is None:
        image = splits[split][2]["image"][:60]
    elif not isinstance(image, bytes):
        image = records.encode(image)
    splits[split][2] = {"image": image, "label": label}
    records.prepare(tmp_path, "made", records.features, splits)
    with pytest.raises(datasets.DamagedData, match=f"made-{split}.*{message}"):
        datasets.load("made", str(tmp_path))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_of_one_class(tmp_path, records, split):
    splits = {name: records.labelled(0, 9)[2] for name in ("train", "test")}
    splits[split] = [example | {"label": 3} for example in splits[split]]
    records.prepare(tmp_path, "made", records.features, splits)
    message = f"all 9 images of the split '{split}' .made-{split}.* have the class 3"
    with pytest.raises(datasets.DamagedData, match=message):
        datasets.load("made", str(tmp_path))


def test_too_few_images_to_hold_a_test_out(tmp_path, records):
    records.prepare(tmp_path, "made", records.features, {"train": records.labelled(0, 6)[2]})
    with pytest.raises(ValueError, match="no test split"):
        datasets.load("made", str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test": "brief"}, "the split 'test' .* has 5 characters; it must have more than 128"),
        ({"test": "or not? " * 50}, "the split 'test' .* has the character '[?]'"),
        ({"validation": None}, "the split 'validation' .* has 0 characters"),
    ],
)
def test_texts(tmp_path, records, change, message):
    texts = dict.fromkeys(("train", "validation", "test"), "or not " * 50) | change
    splits = {name: [{"text": text.encode()}] for name, text in texts.items() if text}
    features = {"text": records.text()}
    records.prepare(tmp_path, "tiny_shakespeare", features, splits, supervised=None)
    with pytest.raises(ValueError, match=message):
        datasets.load("tiny_shakespeare", str(tmp_path))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"image": b"letter"}, "record 4, cannot be read"),
        ({"label": 1000}, r"record 4, has the label 1000; labels must be in \[0, 1000\)"),
        ({"label": -1}, "record 4, is an image without a class"),
    ],
)
def test_streams(tmp_path, records, record, message):
    generator = np.random.default_rng(0)
    examples = [
        {"image": records.encode(generator.integers(0, 256, (9, 8, 3), np.uint8)), "label": i}
        for i in range(6)
    ]
    examples[4] |= record
    features = {"image": records.image((None, None, 3)), "label": records.label(1000)}
    records.prepare(tmp_path, "made", features, {"train": examples})
    for split, augment in (("train", True), ("train[3:]", False)):
        stream = datasets.stream(
            "made", split, 3, image_size=8, augment=augment, data_dir=str(tmp_path)
        )
        with pytest.raises(datasets.DamagedData, match=f"{TRAIN}, {message}"):
            for _ in range(3):
                next(stream)
    change(tmp_path / "made" / "1.0.0" / "dataset_info.json", "shardLengths", ["7"])
    with pytest.raises(datasets.DamagedData, match="has 6 records"):
        datasets.stream("made", "train", 3, data_dir=str(tmp_path))


@pytest.mark.parametrize("error", [faults.DamagedData, faults.DataNotFound, faults.FolderError])
def test_what_is_found_in_the_middle_of_a_run_is_one_line_too(capsys, error):
    with pytest.raises(SystemExit) as end, faults.in_one_line():
        raise error("record 7\n is damaged")
    assert end.value.code == 1 and capsys.readouterr().err == "error: record 7 is damaged\n"
    for bug in (ValueError, KeyError):
        with pytest.raises(bug), faults.in_one_line():
            raise bug("mine")
    with pytest.raises(SystemExit) as end, faults.in_one_line(ValueError):
        raise ValueError("--epochs must be positive")
    assert end.value.code == WRONG_VALUE


def test_a_download_without_network_gives_up_at_once(tmp_path, monkeypatch):
    asked = []

    def nobody(addresses):
        asked.extend(addresses)
        return addresses[0]

    monkeypatch.setattr(tfds_source, "_silent", nobody)
    with pytest.raises(datasets.DataNotFound) as caught:
        datasets.load("mnist", str(tmp_path), download=True)
    assert "\n" not in str(caught.value) and "TFDS_DATA_DIR" in str(caught.value)
    assert asked and asked[0].startswith("http")
    with pytest.raises(datasets.DataNotFound, match="cannot be fetched"):
        datasets.load("nosuchset", str(tmp_path), download=True)


class Gateway(http.server.BaseHTTPRequestHandler):
    """What stands between a machine and the network, and has none itself."""

    status = 503

    def do_GET(self):
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_who_gives_nothing_out_is_noticed_quickly(monkeypatch):
    begun = time.perf_counter()
    assert tfds_source._silent(["http://127.0.0.1:9/file"])
    with http.server.HTTPServer(("127.0.0.1", 0), Gateway) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/file"
        assert tfds_source._silent([address]) == address
        monkeypatch.setattr(Gateway, "status", 206)
        assert tfds_source._silent([address]) is None
        assert tfds_source._silent([address, "http://127.0.0.1:9/file"])
        server.shutdown()
    assert time.perf_counter() - begun < tfds_source.NETWORK_SECONDS
