"""The records of a prepared data set: read, counted and checked; faults name file and record.

A `source` is what `tfds_reader.open_split` returns for one split.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.common.faults import DamagedData, first_line

_AGAIN = "prepare the data set again"


def fetch(source: Any, rows: Sequence[int]) -> list[dict[str, Any]]:
    """The examples with these numbers.

    Raises:
      DamagedData: one of them cannot be read; the message names the first.
    """
    try:
        return source.__getitems__(rows)
    except Exception as error:  # The reader and the decoders raise whatever they like.
        for row in rows:
            try:
                source.__getitems__([row])
            except Exception as first:
                raise unreadable(source, row, first) from first
        raise unreadable(source, rows[0], error) from error


def unreadable(source: Any, row: int, error: Exception) -> DamagedData:
    """The error of a record that cannot be read or decoded."""
    return DamagedData(f"{place(source, row)} cannot be read ({first_line(error)}); {_AGAIN}")


def place(source: Any, row: int) -> str:
    """Where an example is stored, such as `mnist-train.array_record-00000-of-00001, record 7`."""
    for part in _parts(source):
        if row < part.take:
            return f"{os.path.basename(part.filename)}, record {part.skip + row},"
        row -= part.take
    raise IndexError(f"no record {row}")


def files(source: Any) -> str:
    """The files of a split: the first one, and how many more there are."""
    first, *more = (os.path.basename(part.filename) for part in _parts(source))
    return f"{first} and {len(more)} more" if more else first


def check_counts(source: Any) -> None:
    """Checks the number of records of each file against the description of the data set.

    Raises:
      DamagedData: they differ, or a file cannot be opened.
    """
    from array_record.python import array_record_module

    for part in _parts(source):
        try:
            reader = array_record_module.ArrayRecordReader(os.fspath(part.filename))
            count = reader.num_records()
            reader.close()
        except Exception as error:
            raise DamagedData(
                f"{part.filename} cannot be opened ({first_line(error)}); {_AGAIN}"
            ) from error
        if count != part.examples_in_shard:
            raise DamagedData(
                f"{part.filename} has {count} records, but dataset_info.json counts "
                f"{part.examples_in_shard}; {_AGAIN}"
            )


def check_labels(source: Any, rows: Sequence[int], labels: np.ndarray, classes: int) -> None:
    """Rejects labels that are not classes.

    Raises:
      DamagedData: a label is outside `[0, classes)`.
    """
    for i in np.flatnonzero((labels < 0) | (labels >= classes))[:1]:
        what = "is an image without a class" if labels[i] == -1 else f"has the label {labels[i]}"
        raise DamagedData(f"{place(source, rows[i])} {what}; labels must be in [0, {classes})")


def check_classes(source: Any, labels: np.ndarray) -> None:
    """Rejects a split from which nothing can be learnt.

    Raises:
      DamagedData: all labels are the same.
    """
    if len(np.unique(labels)) < 2:
        raise DamagedData(
            f"all {len(labels)} images of the split {source.split!r} ({files(source)}) have the "
            f"class {labels[0]}; a split must have at least two classes"
        )


def _parts(source: Any) -> list[Any]:
    return source.dataset_info.splits[source.split].file_instructions
