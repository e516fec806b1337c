"""Streaming of images too many for memory, on made-up images with the features of ImageNet."""

import itertools
import threading
import time

import numpy as np
import pytest

from experiments.common.data import datasets, made_up
from experiments.common.data import stream as streaming


def test_evaluation_is_one_pass_in_order(imagenet):
    batches = list(
        datasets.stream("imagenet2012", "validation", 2, image_size=16, data_dir=imagenet)
    )
    assert [images.shape for images, _ in batches] == [(2, 16, 16, 3)] * 2 + [(1, 16, 16, 3)]
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    assert images.dtype == np.uint8 and labels.dtype == np.int32
    np.testing.assert_array_equal(labels, np.arange(5))
    grey = np.broadcast_to(10 * labels[:, None, None, None], images.shape)
    np.testing.assert_allclose(images.astype(int), grey, atol=3)


def test_training_goes_on_over_epochs_in_new_orders(imagenet):
    stream = datasets.stream(
        "imagenet2012", "train", 6, image_size=8, augment=True, data_dir=imagenet
    )
    epochs = []
    for _ in range(3):  # 15 images: two batches an epoch, three images left out
        batches = list(itertools.islice(stream, 2))
        epochs.append(np.concatenate([labels for _, labels in batches]))
        for images, labels in batches:
            grey = np.broadcast_to(10 * labels[:, None, None, None], images.shape)
            np.testing.assert_allclose(images.astype(int), grey, atol=3)
        assert np.bincount(epochs[-1], minlength=5).max() <= 3
    assert any((epochs[0] != other).any() for other in epochs[1:])


def test_a_run_continues_exactly_whatever_the_threads(imagenet, tmp_path, records):
    generator = np.random.default_rng(0)
    examples = [
        {"image": records.encode(generator.integers(0, 256, (30, 40, 3), np.uint8)), "label": 0}
        for _ in range(9)
    ]
    features = {"image": records.image((None, None, 3)), "label": records.label(2)}
    records.prepare(tmp_path, "noise", features, {"train": examples})

    def take(n, **options):
        stream = datasets.stream(
            "noise", "train", 4, image_size=12, augment=True, data_dir=str(tmp_path), **options
        )
        return np.stack([images for images, _ in itertools.islice(stream, n)])

    whole = take(7, workers=1)
    np.testing.assert_array_equal(take(7, workers=4), whole)
    for start in (1, 2, 5):
        np.testing.assert_array_equal(take(7 - start, start=start), whole[start:])
    assert (take(1, seed=1) != whole[0]).any()
    assert len({image.tobytes() for image in whole.reshape(-1, 12, 12, 3)}) == 28


def test_ending_the_iterator_ends_its_threads_without_waiting(imagenet, monkeypatch):
    # One worker: of two, one could hold up an image of the first batch.
    before = set(threading.enumerate())
    calls, go_on = itertools.count(), threading.Event()

    def crop(encoded, size, generator):
        if next(calls) >= 3:
            assert go_on.wait(30)
        return np.zeros((size, size, 3), np.uint8)

    monkeypatch.setattr(streaming, "crop", crop)
    stream = datasets.stream("imagenet2012", "train", 3, augment=True, data_dir=imagenet, workers=1)
    next(stream)
    threads = set(threading.enumerate()) - before
    assert len(threads) == 1
    begun = time.perf_counter()
    stream.close()
    assert time.perf_counter() - begun < 5
    go_on.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert next(calls) <= 3 + 1, "what no thread had begun is given up"


def gradient_image(records, height, width, kind):
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows * 255 / height, columns * 255 / width, 0 * rows + 128], -1)
    return records.encode(pixels.round().astype(np.uint8), kind)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_central_crop_is_seven_eighths_of_the_shorter_side(records, kind):
    image = streaming.crop(gradient_image(records, 400, 800, kind), 50, None).astype(float)
    # The middle 350 rows of 400 and 350 columns of 800, where brightness is position.
    rows = 255 * (25 + 7 * (np.arange(50) + 0.5)) / 400
    columns = 255 * (225 + 7 * (np.arange(50) + 0.5)) / 800
    np.testing.assert_allclose(image[:, :, 0], np.broadcast_to(rows[:, None], (50, 50)), atol=5)
    np.testing.assert_allclose(image[:, :, 1], np.broadcast_to(columns, (50, 50)), atol=5)


def test_random_crops_cover_the_areas_and_mirror_half(records):
    encoded = gradient_image(records, 200, 200, "PNG")
    areas, mirrored = [], []
    for seed in range(300):
        image = streaming.crop(encoded, 20, np.random.default_rng(seed)).astype(float)
        down = (image[-1, 10, 0] - image[0, 10, 0]) / 255 * 20 / 19
        across = (image[10, -1, 1] - image[10, 0, 1]) / 255 * 20 / 19
        areas.append(down * abs(across))
        mirrored.append(across < 0)
        assert down > 0 and 0.7 < abs(across) / down < 1.4
    assert 0.06 < min(areas) < 0.12 and max(areas) > 0.9
    assert 0.4 < np.mean(mirrored) < 0.6


@pytest.mark.parametrize("shape", [(1, 400), (400, 1), (30, 30)])
def test_grey_and_narrow_images_become_square_and_coloured(records, shape):
    encoded = records.encode(np.full((*shape, 1), 77, np.uint8), "JPEG")
    for generator in (None, np.random.default_rng(0)):
        image = streaming.crop(encoded, 24, generator)
        assert image.shape == (24, 24, 3)
        np.testing.assert_allclose(image.astype(int), 77, atol=2)


def test_the_made_up_images_of_the_command(tmp_path):
    made_up.main(str(tmp_path))
    source = datasets.stream("imagenet2012", "train", 500, image_size=8, data_dir=str(tmp_path))
    (images, labels), (_, more) = source
    np.testing.assert_array_equal(np.concatenate([labels, more]), np.arange(1000) % 10)
    means = [images[labels == label].mean() for label in range(10)]
    np.testing.assert_allclose(means, 10 + 25 * np.arange(10), atol=10)


def test_errors_come_at_the_call(imagenet, tmp_path, records):
    for options in ({"batch_size": 0}, {"image_size": 0}, {"seed": -1}, {"start": -1}):
        arguments = {"batch_size": 2, "data_dir": imagenet} | options
        with pytest.raises(ValueError, match=next(iter(options))):
            datasets.stream("imagenet2012", "train", **arguments)
    with pytest.raises(ValueError, match="batch_size is 16"):
        datasets.stream("imagenet2012", "train", 16, augment=True, data_dir=imagenet)
    with pytest.raises(ValueError, match="nosuchsplit"):
        datasets.stream("imagenet2012", "nosuchsplit", 2, data_dir=imagenet)
    with pytest.raises(datasets.DataNotFound, match="there: imagenet2012"):
        datasets.stream("imagenette", "train", 2, data_dir=imagenet)
    with pytest.raises(ValueError, match="differ in size.*stream"):
        datasets.load("imagenet2012", imagenet)
    splits = {"train": [{"text": b"a"}]}
    records.prepare(tmp_path, "words", {"text": records.text()}, splits, supervised=None)
    with pytest.raises(ValueError, match="not one of images"):
        datasets.stream("words", "train", 1, data_dir=str(tmp_path))
