"""A data set of images in one file, for machines without tensorflow-datasets.

`NAME.npz` holds the encoded images unchanged, one after another; their common beginning (most of a
small JPEG is its tables) is stored once. NumPy and Pillow read it.
"""

import hashlib
import io
import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.common.data import tfds_reader, tfds_source
from experiments.common.data.cache import Arrays
from experiments.common.faults import DataNotFound, first_line

_DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
_OTHERWISE = "; decoded differently here than where it was packed, NOT the same pixels"


def write(name: str, folder: Path, data_dir: str | None = None) -> Path:
    """Packs a prepared data set; `folder` can then be the `TFDS_DATA_DIR` of another machine.

    Args:
      name: an image classification set of tensorflow-datasets.
      folder: created if it is missing.
      data_dir: folder of the prepared data sets; default `TFDS_DATA_DIR`.

    Returns:
      The file.

    Raises:
      DataNotFound: the data set is missing.
      ValueError: `datasets.load` cannot hold the data set in memory, or Pillow decodes its images
        to pixels other than those of tensorflow-datasets.
    """
    prepared = tfds_source.locate(name, data_dir)
    arrays = tfds_reader.read_images(prepared)
    splits = tfds_reader.open_split(prepared, None)
    image, _ = tfds_reader.image_features(splits["train"].dataset_info)
    uses = [use for use in ("train", "test") if f"{use}_inputs" in arrays]
    encoded = {}
    for use in uses:
        split = use if use in splits else "validation"
        source = tfds_reader.open_split(prepared, split, raw=(image,))
        encoded[use] = [example[image] for example in source.__getitems__(range(len(source)))]
    head = os.path.commonprefix([one for images in encoded.values() for one in images])
    kept = {"head": _bytes(head), "num_classes": arrays["num_classes"]}
    kept |= {"description": arrays["description"], "digest": np.array(_digest(arrays, uses))}
    for use, images in encoded.items():
        kept[f"{use}_lengths"] = np.array([len(one) - len(head) for one in images], np.uint32)
        kept[f"{use}_images"] = _bytes(b"".join(one[len(head) :] for one in images))
        kept[f"{use}_labels"] = arrays[f"{use}_labels"]
        kept[f"{use}_shape"] = np.array(arrays[f"{use}_inputs"].shape)
    file = folder / f"{prepared.name}.npz"
    part = file.with_suffix(".part.npz")
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(part, **kept)
    if difference(str(read(part)["description"])):
        raise ValueError(f"Pillow decodes {name!r} to pixels other than tensorflow-datasets")
    os.replace(part, file)
    return file


def find(name: str, data_dir: str | None = None) -> Path | None:
    """The packed file of a data set in the folder of the data sets; None if there is none."""
    file = tfds_source.folder(data_dir) / f"{name}.npz"
    return file if file.is_file() else None


def identity(file: Path) -> str:
    """Text that changes when the file is packed again."""
    stat = file.stat()
    return f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}"


def read(file: Path) -> Arrays:
    """The arrays of a packed file, as `tfds_reader.read_images` returns them.

    If this machine's Pillow decodes to other pixels, the description says so.

    Raises:
      DataNotFound: the file is damaged, or not a packed data set.
    """
    try:
        with np.load(file, allow_pickle=False) as stored:
            kept = dict(stored)
        found = {name: kept[name] for name in ("num_classes", "description")}
        uses = [use for use in ("train", "test") if f"{use}_images" in kept]
        for use in uses:
            pixels = _decode(kept["head"], kept[f"{use}_images"], kept[f"{use}_lengths"])
            found[f"{use}_inputs"] = pixels.reshape(kept[f"{use}_shape"])
            found[f"{use}_labels"] = kept[f"{use}_labels"]
        if _digest(found, uses) != str(kept["digest"]):
            found["description"] = np.array(f"{found['description']}{_OTHERWISE}")
    except _DAMAGE as error:
        raise DataNotFound(
            f"{file} is damaged, or not a packed data set ({first_line(error)}); pack it again"
        ) from error
    return found


def difference(description: str) -> str:
    """What `read` has added to a description; empty if the pixels are those that were packed."""
    return _OTHERWISE if description.endswith(_OTHERWISE) else ""


def _bytes(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.uint8)


def _decode(head: np.ndarray, images: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    import PIL.Image

    first, content = head.tobytes(), images.tobytes()
    ends = np.cumsum(lengths, dtype=np.int64).tolist()
    if ends[-1] != len(content):
        raise ValueError(f"{len(content)} bytes of images, {ends[-1]} expected")
    pixels = []
    for begin, end in zip([0, *ends], ends, strict=False):
        with PIL.Image.open(io.BytesIO(first + content[begin:end])) as image:
            pixels.append(np.asarray(image))
    return np.stack(pixels)


def _digest(arrays: Arrays, uses: Sequence[str]) -> str:
    found = hashlib.sha256()
    for use in uses:
        found.update(np.ascontiguousarray(arrays[f"{use}_inputs"]))
        found.update(np.ascontiguousarray(arrays[f"{use}_labels"]))
    return found.hexdigest()
