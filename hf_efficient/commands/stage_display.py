"""What a command is doing, on the screen: one line for each finished stage, and the progress of the current one."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class StageDisplay:
    """Prints a line for each stage when it finishes: its title, its duration and its result.

    On a terminal the current stage is shown below these lines, with a progress bar. Use it as a context manager: when
    it is left, the current stage is taken off the screen.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = Console() if console is None else console
        self._title = ""
        self._start_seconds = 0.0
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> StageDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._clear()

    def start(self, title: str, total: int | None = None) -> None:
        """Begin the stage `title`; `total` is the number of its steps, if they can be counted."""
        self._clear()
        self._title, self._start_seconds = title, time.perf_counter()
        columns = [TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn()]
        if total is not None:
            columns.insert(2, MofNCompleteColumn())
        self._progress = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        self._task = self._progress.add_task(title, total=total)
        self._progress.start()

    def update(self, completed: int) -> None:
        """Show that `completed` steps of the current stage are done."""
        if self._progress is not None:
            self._progress.update(self._task, completed=completed)

    def finish(self, result: str = "") -> None:
        """End the current stage and print its line."""
        seconds = time.perf_counter() - self._start_seconds
        self._clear()
        line = f"{self._title:<56} {seconds:>5.0f} s   {result}".rstrip()
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _clear(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
