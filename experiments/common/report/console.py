"""Where text goes: rich's console and progress bar, or plain lines if rich is not installed."""

from collections.abc import Sequence
from typing import Any

try:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table
except ImportError:
    Table = None

    class Console:  # type: ignore[no-redef]
        """Prints lines. Accepts the arguments of rich's console, and has no terminal."""

        is_terminal = False

        def __init__(self, quiet: bool = False, **options: Any):
            self.quiet = quiet

        def print(self, *parts: Any, **options: Any) -> None:
            """Like the built-in one, but flushes at once."""
            if not self.quiet:
                print(*parts, flush=True)


__all__ = ["Bar", "Console", "print_table"]


class Bar:
    """A progress bar; does nothing without rich.

    Args:
      console: where it is shown.
      total: units of work.
    """

    def __init__(self, console: Console, total: int):
        self._bar = None
        if Table is not None:
            self._bar = Progress(
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
                console=console,
            )
            self._task = self._bar.add_task("", total=total)

    def start(self) -> None:
        """Shows it."""
        if self._bar is not None:
            self._bar.start()

    def stop(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, text: str) -> None:
        """Advances the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=text)


def print_table(
    console: Console, title: str, header: Sequence[str], rows: Sequence[Sequence[str]], plain: str
) -> None:
    """A table with all columns but the first aligned to the right.

    Args:
      console: where it is shown.
      title: shown above it.
      header: of the columns.
      rows: of texts.
      plain: the same table as text, used if rich is not installed.
    """
    if Table is None:
        console.print(f"{title}\n{plain}")
        return
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
