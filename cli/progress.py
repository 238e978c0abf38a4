"""Progress for people: a bar on a terminal, periodic lines in a log."""

from __future__ import annotations

import contextlib
import sys
import time
from datetime import timedelta
from typing import Any

from rlt_data.progress import SILENT, Progress, is_main_process

#: Seconds between lines in a log.
LOG_SECONDS = 10.0


def shown_progress() -> Progress:
    """Return a bar if stderr is a terminal, else lines; nothing in the other processes of a distributed training."""
    if not is_main_process():
        return SILENT
    return Bar() if sys.stderr.isatty() else Lines()


class Bar:
    """A progress bar with rate and time left."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._tokens = 0
        self._began = 0.0

    def start(self, task: str, total: int, done: int = 0) -> None:
        """Show the bar."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=Console(stderr=True))
        self._task = self._bar.add_task(task, total=total, completed=done, rate="")
        self._tokens, self._began = 0, time.monotonic()
        self._bar.start()

    def advance(self, rows: int = 1, tokens: int = 0) -> None:
        """Move the bar."""
        self._tokens += tokens
        rate = self._tokens / max(time.monotonic() - self._began, 1e-9)
        self._bar.update(self._task, advance=rows, rate=f"{rate:,.0f} tok/s" if self._tokens else "")

    def finish(self) -> None:
        """Stop updating the bar."""
        self._bar.stop()


class Lines:
    """A plain line every few seconds and at the end."""

    def __init__(self) -> None:
        self._task, self._total, self._done, self._new, self._tokens = "", 0, 0, 0, 0
        self._began = self._shown = 0.0

    def start(self, task: str, total: int, done: int = 0) -> None:
        """Start a task."""
        self._task, self._total, self._done, self._new, self._tokens = task, total, done, 0, 0
        self._began = self._shown = time.monotonic()

    def advance(self, rows: int = 1, tokens: int = 0) -> None:
        """Count rows, and print a line if the last one is old."""
        self._done, self._new, self._tokens = self._done + rows, self._new + rows, self._tokens + tokens
        if time.monotonic() - self._shown >= LOG_SECONDS:
            self._write()

    def finish(self) -> None:
        """Print the last line."""
        if self._new:
            self._write()

    def _write(self) -> None:
        now = time.monotonic()
        self._shown = now
        seconds = max(now - self._began, 1e-9)
        left = timedelta(seconds=round((self._total - self._done) * seconds / max(self._new, 1)))
        rate = f", {self._tokens / seconds:,.0f} tok/s" if self._tokens else ""
        percent = 100 * self._done // max(self._total, 1)
        end = f", {left} left" if self._done < self._total else f" in {seconds:.1f} s"
        with contextlib.suppress(BrokenPipeError):  # the reader may leave; the work continues
            print(f"{self._task}: {self._done}/{self._total} ({percent} %){rate}{end}", file=sys.stderr, flush=True)
