"""How steps say how far they are. The library never prints; the command line hands in something that does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


def is_main_process() -> bool:
    """Whether this process is the first of those that ``accelerate launch`` started; the others are quiet."""
    return os.environ.get("RANK", "0") == "0"


class Progress(Protocol):
    """Told about the rows of a step as they get done."""

    def start(self, task: str, total: int, done: int = 0) -> None:
        """Begin a task of ``total`` rows, ``done`` of which were done before."""

    def advance(self, rows: int = 1, tokens: int = 0) -> None:
        """Count rows, and the tokens generated or scored for them."""

    def finish(self) -> None:
        """End the task."""


class Silent:
    """A progress that goes nowhere."""

    def start(self, task: str, total: int, done: int = 0) -> None:
        """Do nothing."""

    def advance(self, rows: int = 1, tokens: int = 0) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""


SILENT = Silent()


@contextmanager
def task(progress: Progress, name: str, total: int) -> Iterator[None]:
    """Begin a task, and end it however the work in it ends, so that no bar stays on the terminal."""
    progress.start(name, total)
    try:
        yield
    finally:
        progress.finish()
