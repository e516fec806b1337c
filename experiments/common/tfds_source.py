"""Where the prepared data sets of tensorflow-datasets lie, and how a missing one is fetched."""

import contextlib
import logging
import os
import pathlib
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any, NamedTuple

NETWORK_SECONDS = 8.0


class DataNotFound(Exception):
    """A data set is not on this machine; the message is one line and says what to set."""


class Prepared(NamedTuple):
    """A data set that lies on the disk, ready to be read.

    Attributes:
      name: name in tensorflow-datasets, with its configuration ("mnist", "glue/cola").
      version: for example "3.0.1".
      data_dir: folder that holds all data sets.
    """

    name: str
    version: str
    data_dir: pathlib.Path

    @property
    def info_file(self) -> pathlib.Path:
        return self.data_dir / self.name / self.version / "dataset_info.json"

    @property
    def identity(self) -> str:
        """Text that changes when the data set is prepared anew."""
        stat = self.info_file.stat()
        return f"{self.info_file.resolve()} {stat.st_size} {stat.st_mtime_ns}"


def locate(name: str, data_dir: str | None = None, download: bool = False) -> Prepared:
    """Where a prepared data set lies; looks at files only, so that it answers at once.

    Args:
      name: "name", "name/configuration", either with ":version"; the newest version by default.
      data_dir: folder of the data sets; default `TFDS_DATA_DIR`, then `~/tensorflow_datasets`.
      download: let tensorflow-datasets fetch and prepare a data set that is missing.

    Raises:
      DataNotFound: the data set is not there, or could not be fetched.
      ValueError: `name` is not the name of a data set at all.
    """
    match = re.fullmatch(r"(\w+(?:/[\w.\-]+)?)(?::([\w.]+))?", name)
    if match is None:
        raise ValueError(
            f"name is {name!r}; expected 'name', 'name/configuration' or either with ':version', "
            "for example 'mnist:3.0.1'"
        )
    here = folder(data_dir)
    prepared = _newest(here, *match.groups())
    if prepared is None and download:
        _fetch(name, here)
        prepared = _newest(here, *match.groups())
    if prepared is None:
        raise DataNotFound(_advice(name, here, bool(data_dir)))
    return prepared


def folder(data_dir: str | None = None) -> pathlib.Path:
    """The folder of the data sets: `data_dir`, `TFDS_DATA_DIR` or `~/tensorflow_datasets`."""
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return pathlib.Path(chosen).expanduser()


@contextlib.contextmanager
def quiet_tfds() -> Iterator[Any]:
    """The module `tensorflow_datasets`, imported late and without its chatter."""
    chatter = [logging.getLogger("absl"), logging.getLogger("urllib3")]
    levels = [logger.level for logger in chatter]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        for logger in chatter:
            logger.setLevel(logging.CRITICAL)
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise DataNotFound(
                f"tensorflow-datasets cannot be imported ({first_line(error)}); install this "
                "project's extra 'experiments'"
            ) from error
        yield tfds
    finally:
        for logger, level in zip(chatter, levels, strict=True):
            logger.setLevel(level)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, with its kind."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _newest(folder: pathlib.Path, name: str, version: str | None) -> Prepared | None:
    versions = [path.parent.name for path in (folder / name).glob("*/dataset_info.json")]
    if version is not None:
        versions = [found for found in versions if found == version]
    if not versions:
        return None
    newest = max(versions, key=lambda found: [int(part) for part in re.findall(r"\d+", found)])
    return Prepared(name, newest, folder)


def _advice(name: str, folder: pathlib.Path, chosen: bool) -> str:
    here = sorted({path.parents[1].relative_to(folder).as_posix() for path in _infos(folder)})
    setting = "data_dir" if chosen else "TFDS_DATA_DIR"
    return (
        f"data set {name!r} is not in {folder} ({'there: ' + ', '.join(here) if here else 'empty'})"
        f"; set {setting} to the folder that holds its array_record files, or allow its download"
    )


def _infos(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    yield from folder.glob("*/*/dataset_info.json")
    yield from folder.glob("*/*/*/dataset_info.json")


def _fetch(name: str, folder: pathlib.Path) -> None:
    with quiet_tfds() as tfds:
        try:
            builder = tfds.builder(
                name, data_dir=os.fspath(folder), try_gcs=False, file_format="array_record"
            )
            addresses = list(builder.url_infos)
        except Exception as error:
            raise DataNotFound(
                f"data set {name!r} cannot be fetched: {first_line(error)}"
            ) from error
        if addresses and not _reachable(addresses[0]):
            raise DataNotFound(
                f"data set {name!r} is not in {folder} and {addresses[0]} does not answer; set "
                "TFDS_DATA_DIR to a folder that holds the data set, or connect to the network"
            )
        try:
            builder.download_and_prepare()
        except (Exception, SystemExit) as error:
            raise DataNotFound(
                f"data set {name!r} could not be prepared in {folder}: {first_line(error)}; some "
                "sets need TensorFlow or files placed by hand for this one step"
            ) from error


def _reachable(address: str) -> bool:
    """Whether a server answers at all, within seconds: tfds itself would retry for minutes."""
    answered = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(address, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=NETWORK_SECONDS):
                answered.set()
        except urllib.error.HTTPError:
            answered.set()
        except (OSError, ValueError):
            pass

    # Name resolution has no timeout of its own, so the question runs in a thread left behind.
    asker = threading.Thread(target=ask, daemon=True)
    asker.start()
    asker.join(NETWORK_SECONDS)
    return answered.is_set()
