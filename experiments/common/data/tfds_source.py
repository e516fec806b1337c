"""Where the prepared data sets of tensorflow-datasets are, and how a missing one is fetched."""

import contextlib
import http.client
import os
import pathlib
import re
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from experiments.common.faults import DataNotFound, first_line, quiet

NETWORK_SECONDS = 8.0


class Prepared(NamedTuple):
    """A data set on disk, ready to be read.

    Attributes:
      name: name in tensorflow-datasets, with its configuration ("mnist", "glue/cola").
      version: for example "3.0.1".
      data_dir: folder that holds all data sets.
    """

    name: str
    version: str
    data_dir: pathlib.Path

    @property
    def folder(self) -> pathlib.Path:
        return self.data_dir / self.name / self.version

    @property
    def info_file(self) -> pathlib.Path:
        return self.folder / "dataset_info.json"

    @property
    def identity(self) -> str:
        """Text that changes when the data set is prepared again."""
        stat = self.info_file.stat()
        return f"{self.info_file.resolve()} {stat.st_size} {stat.st_mtime_ns}"


def locate(name: str, data_dir: str | None = None, download: bool = False) -> Prepared:
    """Where a prepared data set is; looks only at files, so that it answers at once.

    Args:
      name: "name", "name/configuration", either with ":version"; the newest version by default.
      data_dir: folder of the data sets; default `TFDS_DATA_DIR`, then `~/tensorflow_datasets`.
      download: let tensorflow-datasets fetch and prepare a data set that is missing.

    Raises:
      DataNotFound: the data set is missing, or could not be fetched.
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
    """The module `tensorflow_datasets`, imported late and without its log output."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with quiet("absl", "urllib3"):
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise DataNotFound(
                f"tensorflow-datasets cannot be imported ({first_line(error)}); install this "
                "project's extra 'experiments'"
            ) from error
        yield tfds


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
            addresses = list(builder.url_infos or ())
        except Exception as error:
            raise DataNotFound(
                f"data set {name!r} cannot be fetched: {first_line(error)}"
            ) from error
        silent = _silent(addresses)
        if silent:
            raise DataNotFound(
                f"data set {name!r} is not in {folder} and {silent} does not serve it; set "
                "TFDS_DATA_DIR to a folder that holds the data set, or connect to the network"
            )
        try:
            builder.download_and_prepare()
        except (Exception, SystemExit) as error:
            raise DataNotFound(
                f"data set {name!r} could not be prepared in {folder}: {first_line(error)}; some "
                "sets need TensorFlow or files placed by hand for this one step"
            ) from error


def _silent(addresses: Sequence[str]) -> str | None:
    """The first address whose host does not answer within seconds; tfds would retry for minutes.

    One address of each host is tried.
    """
    hosts = {urllib.parse.urlsplit(address).netloc: address for address in reversed(addresses)}
    answered: set[str] = set()

    def ask(address: str) -> None:
        # A proxy without a network also answers, but with an error.
        request = urllib.request.Request(address, headers={"Range": "bytes=0-0"})
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
            with urllib.request.urlopen(request, timeout=NETWORK_SECONDS):
                answered.add(address)

    # Name resolution has no timeout of its own, so the requests run in threads left behind.
    askers = [threading.Thread(target=ask, args=(a,), daemon=True) for a in hosts.values()]
    for asker in askers:
        asker.start()
    deadline = time.monotonic() + NETWORK_SECONDS
    for asker in askers:
        asker.join(max(0.0, deadline - time.monotonic()))
    return next((address for address in hosts.values() if address not in answered), None)
