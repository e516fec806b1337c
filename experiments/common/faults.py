"""Faults outside the program: errors of one line, and the one place that prints them."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import NoReturn

WRONG_VALUE = 2
"""Exit code for an invalid value, the same as argparse's."""


class FolderError(Exception):
    """A folder or a file of a run cannot be used; the message is one line for the user."""


class DataNotFound(Exception):
    """A data set is missing on this machine; the message is one line and says what to set."""


class DamagedData(ValueError):
    """The files of a data set do not hold what they should; the message names file and record."""


def stop(message: str, code: int = WRONG_VALUE) -> NoReturn:
    """Ends the program with one line on stderr."""
    print("error: " + " ".join(str(message).split()), file=sys.stderr)
    raise SystemExit(code)


@contextlib.contextmanager
def in_one_line(*wrong: type[Exception], interrupted: str = "stopped") -> Iterator[None]:
    """Ends the program with one line on stderr, instead of a traceback, for what is not a bug.

    Args:
      *wrong: errors that mean that a value of the command line cannot be used; exit code 2, then
        also for data sets. Without them, a data set that cannot be read gives exit code 1, like
        every fault of a folder, a file or a disk.
      interrupted: what to print when the user stops the program; exit code 130.
    """
    try:
        yield
    except KeyboardInterrupt:
        stop(interrupted, code=130)
    except FolderError as error:
        stop(str(error), code=1)
    except (DataNotFound, DamagedData, *wrong) as error:
        stop(str(error), code=WRONG_VALUE if wrong else 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        stop(f"{where}{error.strerror or first_line(error)}.", code=1)


@contextlib.contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Silences loggers; what they would say is raised as well."""
    chatter = [logging.getLogger(name) for name in loggers]
    levels = [logger.level for logger in chatter]
    try:
        for logger in chatter:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(chatter, levels, strict=True):
            logger.setLevel(level)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, with its kind."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
