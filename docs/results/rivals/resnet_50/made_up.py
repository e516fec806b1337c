"""Writes made-up images with ImageNet's features: noisy greys of ten classes, the seed 0.

PYTHONPATH=tests/experiments python docs/results/rivals/resnet_50/made_up.py FOLDER
"""

import pathlib
import sys

import conftest
import numpy as np

generator = np.random.default_rng(0)
features = {
    "image": conftest.image_feature((None, None, 3), "jpeg"),
    "label": conftest.label_feature(1000),
    "file_name": conftest.text_feature(),
}


def example(i: int) -> dict:
    label, size = i % 10, generator.integers(64, 120, 2)
    pixels = 25 * label + 10 + generator.normal(0, 20, (*size, 3))
    image = conftest.encode(np.clip(pixels, 0, 255).astype(np.uint8), "JPEG")
    return {"image": image, "label": label, "file_name": f"n{i:08}.JPEG".encode()}


train, validation = ([example(i) for i in range(count)] for count in (1000, 100))
test = [one | {"label": -1} for one in validation]
splits = {"train": train, "validation": validation, "test": test}
conftest.prepare(pathlib.Path(sys.argv[1]), "imagenet2012", features, splits, version="5.1.0")
