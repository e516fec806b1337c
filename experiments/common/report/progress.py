"""What the user sees of long work: an estimate of its time, then a bar with current metrics."""

import time
from types import TracebackType

from experiments.common.report.console import Bar, Console
from experiments.common.report.tables import duration

QUIET_SECONDS = 30  # a log file has no bar, and must not look dead


class Display:
    """A progress bar that starts with the estimate; use it as a context manager.

        with Display(console, what="3 replicates of rigl", total=1000) as display:
            display.estimate(seconds=12.0)
            display.update(done=500, metrics="rigl 97.10%")

    Args:
      console: where it is shown; occasional lines if that is not a terminal.
      what: the work, for the line with the estimate.
      total: units of work.
    """

    def __init__(self, console: Console, what: str, total: int):
        self.total = total
        self._console, self._what = console, what
        self._said, self._running = time.perf_counter(), False
        self._bar = Bar(console, total)

    def __enter__(self) -> "Display":
        self._console.print(f"{self._what}: compiling ...")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._running:
            self._bar.stop()

    def say(self, line: str) -> None:
        """A line above the bar."""
        self._console.print(line, soft_wrap=True)

    def estimate(self, seconds: float) -> None:
        """Says how long the work will take, and starts the bar; only the first call counts."""
        if not self._running:
            self._console.print(f"About {duration(seconds)} to go.")
            self._bar.start()
            self._running = True

    def update(self, done: int, metrics: str) -> None:
        """Shows how much is done and how well it goes."""
        self._bar.update(done, metrics)
        now = time.perf_counter()
        if not self._console.is_terminal and metrics and now - self._said > QUIET_SECONDS:
            self._console.print(f"{100 * done / self.total:.0f}%: {metrics}")
            self._said = now
