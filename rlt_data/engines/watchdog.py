"""Nothing waits for ever: engines give signs of life, and a run whose engines give none for too long is ended."""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

from rlt_data.errors import EngineError

T = TypeVar("T")

logger = logging.getLogger(__name__)

#: Seconds that an engine has for ending by itself, and rows in memory for getting to disk, before the process ends.
GRACE_SECONDS = 10.0
_LOOK_SECONDS = 0.5


class Heartbeat:
    """Signs of life of an engine."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._error: EngineError | None = None

    @property
    def idle(self) -> float:
        """Seconds since the last sign of life."""
        return time.monotonic() - self._last

    def touch(self) -> None:
        """Give a sign of life: something was computed, or came over the wire; from any thread."""
        self._last = time.monotonic()

    def touch_or_raise(self) -> None:
        """Give a sign of life from the thread that works.

        Raises:
            EngineError: the engine has been told to end.
        """
        self.touch()
        self.raise_if_stopped()

    def raise_if_stopped(self) -> None:
        """Raise EngineError if the engine has been told to end; for places that wait."""
        if self._error:
            raise self._error

    def stop(self, error: EngineError) -> None:
        """Tell the engine to end: its next :meth:`touch_or_raise` or :meth:`raise_if_stopped` raises ``error``."""
        self._error = error


def take(inbox: queue.SimpleQueue[T], heartbeat: Heartbeat, look: Callable[[], None] = lambda: None) -> T:
    """Return the next thing of a queue, once it is there.

    Args:
        inbox: the queue, filled by other threads.
        heartbeat: of the engine that waits.
        look: called twice a second while there is nothing.

    Raises:
        EngineError: the engine has been told to end.
    """
    while True:
        try:
            return inbox.get(timeout=_LOOK_SECONDS)
        except queue.Empty:
            look()
            heartbeat.raise_if_stopped()


@contextmanager
def watched(heartbeats: Sequence[Heartbeat], seconds: float, report: Callable[[], str]) -> Iterator[None]:
    """Watch over engines while a block works with them.

    Where none of them gives a sign of life for so long, the block gets an EngineError; where it cannot even take
    that, because it hangs inside another library, the process ends with the exit code of that error.

    Args:
        heartbeats: of the engines.
        seconds: the longest time without a sign.
        report: tells what was owed, for the message.
    """
    done = threading.Event()
    for heartbeat in heartbeats:
        heartbeat.touch_or_raise()
    thread = threading.Thread(target=_watch, args=(heartbeats, seconds, report, done), name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _watch(heartbeats: Sequence[Heartbeat], seconds: float, report: Callable[[], str], done: threading.Event) -> None:
    while not done.wait(min(1.0, seconds / 4)):
        if min(heartbeat.idle for heartbeat in heartbeats) < seconds:
            continue
        error = EngineError(f"no progress for {seconds:g} s (--stall-timeout); {report()}")
        logger.error("%s", error)
        for heartbeat in heartbeats:
            heartbeat.stop(error)
        if not done.wait(GRACE_SECONDS):
            print(f"error: {error}", file=sys.stderr, flush=True)
            os._exit(EngineError.exit_code)
        return


def check_all_returned(keys: Collection[str], log_tail: str) -> None:
    """Raise EngineError if rows are owed after an engine has given all its results."""
    if keys:
        raise EngineError(f"the engine ended too early; {describe_missing(keys, log_tail)}")


def describe_missing(keys: Collection[str], log_tail: str) -> str:
    """Say which rows are owed and how an engine's log ends; the keys go whole into the run's log."""
    logger.info("owed: %s", " ".join(keys))
    first = ", ".join(islice(keys, 5)) + (", ..." if len(keys) > 5 else "")
    message = f"{len(keys)} rows were in the engine's hands ({first}; all of them in run.log)"
    return message + (f"; its log ends with:\n{indented(log_tail)}" if log_tail else "")


def indented(text: str) -> str:
    """Indent each line, so that it reads as part of the message before it."""
    return "\n".join("  " + line for line in text.splitlines())
