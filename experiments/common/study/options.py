"""A frozen dataclass as the command line of an experiment, with errors of one line.

Every field is made with `option`: its default, its help text and, if only some values are allowed,
those values. `parse` turns the fields into options, `identity` into the values that make two runs
the same run.
"""

import argparse
import dataclasses
import shlex
import shutil
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from experiments.common.faults import stop

Config = TypeVar("Config")


def option(
    default: Any,
    help: str,
    *,
    choices: Collection[str] | None = None,
    identity: bool = True,
    was: str | None = None,
    meant: str = "",
    later: bool = False,
) -> Any:
    """A dataclass field that is also an option of the command line.

    Args:
      default: its value when the option is not given.
      help: one sentence for `--help`, to which the default is appended unless the text states it.
      choices: the only allowed values.
      identity: whether another value makes another run. False for where things are stored and how
        they are shown.
      was: the former name of the field. Files keep it, and a command line that uses it is told the
        new name.
      meant: what such a command line is told about its value, if that has another meaning now.
      later: whether older files lack this field: they contain it only if it is given.
    """
    metadata = {"help": help, "choices": choices, "identity": identity, "was": was}
    metadata |= {"meant": meant, "later": later}
    return dataclasses.field(default=default, metadata=metadata)


def parse(config: type[Config], prog: str, args: Sequence[str] | None = None) -> Config:
    """The dataclass filled from the command line; ends the program on `--help` or a wrong value.

    Args:
      config: a dataclass whose fields are made with `option`; its docstring is the description.
      prog: the command, as the user types it.
      args: the arguments; by default those of the process.
    """
    width = max(60, min(shutil.get_terminal_size().columns, 100))
    parser = _Parser(
        prog=prog,
        description=config.__doc__,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
            prog, max_help_position=26, width=width
        ),
    )
    kinds = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        _add(parser, field, kinds[field.name])
        if field.metadata["was"] is not None:
            old = flag(field.metadata["was"])
            renamed(parser, old, flag(field.name), field.metadata["meant"])
    return config(**vars(parser.parse_args(args)))


def identity(config: Any) -> dict[str, Any]:
    """The fields that make two runs the same run, as JSON values, by their names in files."""
    found = {}
    for field in dataclasses.fields(config):
        value, about = getattr(config, field.name), field.metadata
        if about["identity"] and not (about["later"] and value == field.default):
            found[about["was"] or field.name] = value
    return found


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """The differences of two identities, as `field there != here`, in the order of the fields."""
    names = list(dict.fromkeys([*wanted, *stored]))
    missing = object()
    return [
        f"{name} {_shown(stored.get(name, missing), missing)}"
        f" there, {_shown(wanted.get(name, missing), missing)} here"
        for name in names
        if stored.get(name, missing) != wanted.get(name, missing)
    ]


def command_line(config: Any) -> str:
    """The part of the command line that makes this run: every option that is not its default."""
    fields = [field for field in dataclasses.fields(config) if field.metadata["identity"]]
    given = [field.name for field in fields if getattr(config, field.name) != field.default]
    return "".join(f" {flag(name)} {shlex.quote(str(getattr(config, name)))}" for name in given)


def flag(name: str) -> str:
    """The option of a field: `batch_size` is `--batch-size`."""
    return "--" + name.replace("_", "-")


def renamed(parser: argparse.ArgumentParser, old: str, new: str, meant: str = "") -> None:
    """Lets a parser answer the old name of an option with one line that names the new one.

    Args:
      parser: of the command.
      old, new: such as `--densities` and `--sparsity`.
      meant: what has become of the value, if it has another meaning now.
    """

    class Told(argparse.Action):
        def __call__(self, *_: Any) -> NoReturn:
            stop(f"{old} is called {new} now" + (f"; {meant}" if meant else ""))

    hidden = argparse.SUPPRESS
    parser.add_argument(old, action=Told, nargs="?", dest=hidden, default=hidden, help=hidden)


class _Parser(argparse.ArgumentParser):
    """argparse without the usage lines before an error."""

    def error(self, message: str) -> NoReturn:
        stop(f"{message} (see {self.prog} --help)")


def _add(parser: argparse.ArgumentParser, field: dataclasses.Field, kind: Any) -> None:
    help = field.metadata["help"].replace("%", "%%")
    if "default" not in help:
        help += f" (default: {_shown(field.default)})"
    if kind is bool:
        on = field.default is False
        parser.add_argument(
            flag(field.name) if on else flag("no_" + field.name),
            dest=field.name,
            action="store_true" if on else "store_false",
            default=field.default,
            help=help,
        )
        return
    if isinstance(kind, types.UnionType):
        (kind,) = (part for part in typing.get_args(kind) if part is not type(None))
    parser.add_argument(
        flag(field.name),
        type=kind,
        default=field.default,
        choices=field.metadata["choices"],
        metavar=kind.__name__.upper() if field.metadata["choices"] is None else None,
        help=help,
    )


def _shown(value: Any, missing: Any = None) -> str:
    if value is missing:
        return "not set"
    return str(value).lower() if isinstance(value, bool) else str(value)
