"""Data sets as arrays in memory: scikit-learn's digits, and the sets of tensorflow-datasets.

    dataset = load("mnist")
    dataset = split_validation(dataset, 5000, seed=0)

`stream` is for sets that do not fit into memory, such as ImageNet; `augment` and `batch_indices`
work inside the compiled step.
"""

import dataclasses

import numpy as np

from experiments.common.data import cache, packed, tfds_reader, tfds_source
from experiments.common.data.batches import augment, batch_indices
from experiments.common.data.stream import stream
from experiments.common.faults import DamagedData, DataNotFound

__all__ = [
    "DamagedData",
    "DataNotFound",
    "Dataset",
    "as_floats",
    "augment",
    "batch_indices",
    "first",
    "load",
    "pixel_statistics",
    "split_last",
    "split_validation",
    "stream",
]

CONTEXT = 128  # characters that the transformer sees at once
DESCRIPTIONS = {
    "mnist": "MNIST: handwritten digits, 28x28x1, the original pixels",
    "cifar10": "CIFAR-10: photographs in 10 classes, 32x32x3, the original pixels",
    "cifar10_jpeg75": "CIFAR-10, every image re-encoded as JPEG of quality 75, 32x32x3: NOT the "
    "original pixels, compare only with numbers measured on the same copy",
}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One task in memory, as NumPy arrays.

    Attributes:
      name: as given to `load`.
      description: one line, shown with every number measured on it.
      train_inputs: uint8 `(n, height, width, channels)`, or int32 tokens `(n, context)`.
      train_labels: int32 `(n,)`, or the next tokens `(n, context)`.
      test_inputs: as `train_inputs`.
      test_labels: as `train_labels`.
      num_classes: labels are in [0, num_classes).
      validation_inputs: as `train_inputs`; None until `split_validation`, unless the set has them.
      validation_labels: as `train_labels`.
      vocabulary: the characters of the tokens 0, 1, ...; empty for images. The windows of a text
        are adjacent: `train_inputs.reshape(-1)` is the text itself.
    """

    name: str
    description: str
    train_inputs: np.ndarray
    train_labels: np.ndarray
    test_inputs: np.ndarray
    test_labels: np.ndarray
    num_classes: int
    validation_inputs: np.ndarray | None = None
    validation_labels: np.ndarray | None = None
    vocabulary: str = ""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return self.train_inputs.shape[1:]


def load(name: str, data_dir: str | None = None, download: bool = False) -> Dataset:
    """A data set by its name; decoded images are cached, so that only the first call is slow.

    Args:
      name: "digits" (needs no files), "mnist", "cifar10" (the original), "cifar10_jpeg75",
          "tiny_shakespeare" (characters), or any image classification set of tensorflow-datasets,
          optionally with "/configuration" and ":version".
      data_dir: folder of the data sets; default `TFDS_DATA_DIR`, then `~/tensorflow_datasets`. A
          file `NAME.npz` in it, from `packed.write`, needs no tensorflow-datasets.
      download: let tensorflow-datasets fetch a set that is missing.

    Raises:
      DataNotFound: the data set is missing; the message is one line and says what to set.
      ValueError: the data set has no images with classes, or does not fit into memory.
    """
    if name == "digits":
        return _digits()
    file = packed.find(name, data_dir)
    if file is not None:
        arrays = cache.cached(name, packed.identity(file), lambda: packed.read(file))
        return _images(name, name, arrays)
    prepared = tfds_source.locate(name, data_dir, download)
    if prepared.name == "tiny_shakespeare":
        return _characters(name, prepared)
    arrays = cache.cached(
        f"{prepared.name}-{prepared.version}",
        prepared.identity,
        lambda: tfds_reader.read_images(prepared),
    )
    return _images(name, prepared.name, arrays)


def split_validation(dataset: Dataset, count: int, seed: int) -> Dataset:
    """The same data set with `count` random training examples set aside for validation.

    Args:
      dataset: what `load` returned.
      count: validation examples, in [1, n - 1] for n training examples.
      seed: of the random choice; the same seed gives the same choice on every machine.

    Raises:
      ValueError: `count` is out of range, or the data set has its own validation examples.
    """
    if dataset.validation_inputs is not None:
        raise ValueError(f"data set {dataset.name!r} already has validation examples")
    n = len(dataset.train_labels)
    if not 1 <= count < n:
        raise ValueError(
            f"count is {count}; it must be in [1, {n - 1}], fewer than all training examples"
        )
    # RandomState, not Generator: only the streams of RandomState are guaranteed never to change.
    order = np.random.RandomState(seed).permutation(n)
    validation, train = np.sort(order[:count]), np.sort(order[count:])
    return dataclasses.replace(
        dataset,
        train_inputs=dataset.train_inputs[train],
        train_labels=dataset.train_labels[train],
        validation_inputs=dataset.train_inputs[validation],
        validation_labels=dataset.train_labels[validation],
    )


def split_last(dataset: Dataset, fraction: float) -> Dataset:
    """The same data set with the last training examples set aside for validation.

    Args:
      dataset: what `load` returned, without validation examples.
      fraction: of the training examples, in (0, 1).

    Raises:
      ValueError: `fraction` is out of range.
    """
    n = len(dataset.train_labels)
    kept = n - round(n * fraction)
    if not 0 < kept < n:
        raise ValueError(f"fraction is {fraction}; it must leave some of the {n} examples, not all")
    return dataclasses.replace(
        dataset,
        train_inputs=dataset.train_inputs[:kept],
        train_labels=dataset.train_labels[:kept],
        validation_inputs=dataset.train_inputs[kept:],
        validation_labels=dataset.train_labels[kept:],
    )


def first(dataset: Dataset, count: int | None) -> Dataset:
    """The same data set with at most `count` examples of each part; None keeps all."""
    if count is None:
        return dataset
    parts = [
        f"{n}_{what}" for n in ("train", "validation", "test") for what in ("inputs", "labels")
    ]
    found = {name: getattr(dataset, name) for name in parts}
    cut = {name: None if part is None else part[:count] for name, part in found.items()}
    description = f"{dataset.description}; the first {count:,} examples of each part"
    return dataclasses.replace(dataset, description=description, **cut)


def pixel_statistics(dataset: Dataset) -> tuple[float, float]:
    """Mean and standard deviation of the training pixels in [0, 1]; (0, 1) for other data."""
    pixels = dataset.train_inputs
    if pixels.dtype != np.uint8:
        return 0.0, 1.0
    return float(pixels.mean() / 255), float(pixels.std() / 255)


def as_floats(dataset: Dataset, mean: float = 0.0, std: float = 1.0) -> Dataset:
    """The same data set with its images as float32, normalised once.

    On a CPU, normalising inside the step takes a fifth of a step of LeNet-300-100.

    Args:
      dataset: inputs other than uint8 are left unchanged.
      mean: of the pixels in [0, 1]; it is subtracted.
      std: they are then divided by it.
    """

    def floats(inputs: np.ndarray | None) -> np.ndarray | None:
        if inputs is None or inputs.dtype != np.uint8:
            return inputs
        return (inputs.astype(np.float32) / 255 - np.float32(mean)) / np.float32(std)

    parts = [f"{name}_inputs" for name in ("train", "validation", "test")]
    return dataclasses.replace(dataset, **{name: floats(getattr(dataset, name)) for name in parts})


def _digits() -> Dataset:
    import sklearn.datasets

    digits = sklearn.datasets.load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    train, test = _hold_out(images, digits.target.astype(np.int32))
    description = (
        "the digits of scikit-learn: handwritten, 8x8x1, every fifth of a class is the test"
    )
    return Dataset("digits", description, *train, *test, 10)


def _images(name: str, known: str, arrays: cache.Arrays) -> Dataset:
    description = str(arrays["description"])
    if known in DESCRIPTIONS:
        description = DESCRIPTIONS[known] + packed.difference(description)
    train, test = (arrays["train_inputs"], arrays["train_labels"]), None
    if "test_inputs" in arrays:
        test = arrays["test_inputs"], arrays["test_labels"]
    else:
        description += " (no test split: every fifth training image of each class is the test)"
        train, test = _hold_out(*train)
        if not len(test[1]):
            raise ValueError(
                f"data set {name!r} has no test split, and no class has at least the five training "
                "images from which one can be held out"
            )
    return Dataset(name, description, *train, *test, int(arrays["num_classes"]))


def _hold_out(inputs: np.ndarray, labels: np.ndarray, nth: int = 5) -> tuple:
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        held[np.flatnonzero(labels == label)[nth - 1 :: nth]] = True
    return (inputs[~held], labels[~held]), (inputs[held], labels[held])


def _characters(name: str, prepared: tfds_source.Prepared) -> Dataset:
    texts = tfds_reader.read_texts(prepared)
    for split in ("train", "validation", "test"):
        text = texts.get(split, "")
        if len(text) <= CONTEXT:
            raise ValueError(
                f"the split {split!r} of {name!r} in {prepared.folder} has {len(text)} characters; "
                f"it must have more than {CONTEXT}"
            )
        unknown = sorted(set(text) - set(texts["train"]))
        if unknown:
            raise ValueError(
                f"the split {split!r} of {name!r} in {prepared.folder} has the character "
                f"{unknown[0]!r}, but the training text does not contain it"
            )
    vocabulary = "".join(sorted(set(texts["train"])))
    code = {character: token for token, character in enumerate(vocabulary)}

    def windows(text: str) -> tuple[np.ndarray, np.ndarray]:
        tokens = np.array([code[character] for character in text], np.int32)
        whole = (len(tokens) - 1) // CONTEXT * CONTEXT
        inputs, labels = tokens[:whole], tokens[1 : whole + 1]
        return inputs.reshape(-1, CONTEXT), labels.reshape(-1, CONTEXT)

    description = (
        f"Tiny Shakespeare: {len(vocabulary)} characters, windows of {CONTEXT}, next character"
    )
    return Dataset(
        name,
        description,
        *windows(texts["train"]),
        *windows(texts["test"]),
        len(vocabulary),
        *windows(texts["validation"]),
        vocabulary,
    )
