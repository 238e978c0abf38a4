"""Progress of a step: a bar on a terminal or in a notebook, a line every few seconds in a log, or nothing.

Steps report to a :class:`Progress`. The library shows nothing by default; ``progress=True`` in Python and the command
line choose the display that fits.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from typing import Any, Protocol

from rlt_data.errors import SettingsError

#: Seconds between two lines in a log, and between two updates in a notebook.
LOG_SECONDS = 10.0
NOTEBOOK_SECONDS = 0.2


def is_main_process() -> bool:
    """Return whether this is the main process of ``accelerate launch``; the others print nothing."""
    return os.environ.get("RANK", "0") == "0"


class Progress(Protocol):
    """Receives the rows of a step as they are finished."""

    def start(self, task: str, total: int, done: int = 0) -> None:
        """Start a task of ``total`` rows, ``done`` of which exist already."""

    def advance(self, rows: int = 1, tokens: int = 0) -> None:
        """Count finished rows, and the tokens generated or scored for them."""

    def finish(self) -> None:
        """End the task."""


class Silent:
    """Shows nothing."""

    def start(self, task: str, total: int, done: int = 0) -> None:
        """Do nothing."""

    def advance(self, rows: int = 1, tokens: int = 0) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""


SILENT = Silent()


def choose_progress(progress: bool | Progress) -> Progress:
    """Return the progress that a caller means.

    Args:
        progress: True for the display that fits: a bar in a notebook or on a terminal, else lines on stderr. False for
            none.

    Raises:
        SettingsError: it is neither a bool nor a :class:`Progress`.
    """
    if not isinstance(progress, bool):
        if not all(callable(getattr(progress, name, None)) for name in ("start", "advance", "finish")):
            raise SettingsError(f"progress: takes True, False or a Progress, not {type(progress).__name__}")
        return progress
    if not progress or not is_main_process():
        return SILENT
    if _in_notebook():
        return NotebookBar()
    return TerminalBar() if sys.stderr.isatty() else LogLines()


@contextmanager
def task(progress: Progress, name: str, total: int, done: int = 0) -> Iterator[None]:
    """Start a task, and end it even if the block raises, so that no live bar remains on the terminal."""
    progress.start(name, total, done)
    try:
        yield
    finally:
        progress.finish()


class _Counter:
    """Counts the rows and tokens of a task; subclasses show them."""

    def __init__(self) -> None:
        self._task, self._total, self._done, self._new, self._tokens = "", 0, 0, 0, 0
        self._began = self._shown = 0.0

    def start(self, task: str, total: int, done: int = 0) -> None:
        """Start a task."""
        self._task, self._total, self._done, self._new, self._tokens = task, max(total, done), done, 0, 0
        self._began = self._shown = time.monotonic()

    def advance(self, rows: int = 1, tokens: int = 0) -> None:
        """Count rows and tokens."""
        self._done, self._new, self._tokens = self._done + rows, self._new + rows, self._tokens + tokens
        self._total = max(self._total, self._done)

    def _is_due(self, interval: float) -> bool:
        """Return whether the last update is older than ``interval`` seconds, and count this one as an update if so."""
        now = time.monotonic()
        if now - self._shown < interval:
            return False
        self._shown = now
        return True

    @property
    def _seconds(self) -> float:
        return max(time.monotonic() - self._began, 1e-9)

    def _line(self) -> str:
        """Return the state of the task, such as ``score: 8/16 (50 %), 1,200 tok/s, 0:00:08 left``."""
        seconds = self._seconds
        left = timedelta(seconds=round((self._total - self._done) * seconds / max(self._new, 1)))
        rate = f", {self._tokens / seconds:,.0f} tok/s" if self._tokens else ""
        percent = 100 * self._done // max(self._total, 1)
        end = f", {left} left" if self._done < self._total else f" in {seconds:.1f} s"
        return f"{self._task}: {self._done}/{self._total} ({percent} %){rate}{end}"


class TerminalBar(_Counter):
    """A live bar with rate and time left."""

    _bar: Any = None
    _row: Any = None

    def start(self, task: str, total: int, done: int = 0) -> None:
        """Show the bar."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        super().start(task, total, done)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=Console(stderr=True))
        self._row = self._bar.add_task(task, total=self._total, completed=done, rate="")
        self._bar.start()

    def advance(self, rows: int = 1, tokens: int = 0) -> None:
        """Move the bar."""
        super().advance(rows, tokens)
        rate = f"{self._tokens / self._seconds:,.0f} tok/s" if self._tokens else ""
        self._bar.update(self._row, completed=self._done, total=self._total, rate=rate)

    def finish(self) -> None:
        """Stop updating; the bar remains on the terminal."""
        self._bar.stop()


class LogLines(_Counter):
    """A line every few seconds, and one at the end."""

    def advance(self, rows: int = 1, tokens: int = 0) -> None:
        """Count, and write a line if the last one is old."""
        super().advance(rows, tokens)
        if self._is_due(LOG_SECONDS):
            self._write()

    def finish(self) -> None:
        """Write the last line."""
        if self._new:
            self._write()

    def _write(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # the reader may close the pipe; the step continues
            print(self._line(), file=sys.stderr, flush=True)


class NotebookBar(_Counter):
    """A bar in a Jupyter notebook; needs no widgets, and stays in the saved notebook."""

    _output: Any = None

    def start(self, task: str, total: int, done: int = 0) -> None:
        """Show the bar below the cell."""
        super().start(task, total, done)
        self._output = self._ipython.display(self._html(), display_id=True)

    def advance(self, rows: int = 1, tokens: int = 0) -> None:
        """Move the bar."""
        super().advance(rows, tokens)
        if self._is_due(NOTEBOOK_SECONDS):
            self._output.update(self._html())

    def finish(self) -> None:
        """Show the last state."""
        self._output.update(self._html())

    @property
    def _ipython(self) -> Any:
        return import_module("IPython.display")

    def _html(self) -> Any:
        bar = f'<progress value="{self._done}" max="{max(self._total, 1)}"></progress>'
        return self._ipython.HTML(f"{bar} {self._line()}")


def _in_notebook() -> bool:
    """Return whether the code runs in a Jupyter kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and getattr(shell, "kernel", None) is not None
