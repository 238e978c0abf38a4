"""Stop runs that hang: engines report progress, and a run without progress for too long ends with an error."""

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

#: Seconds for an engine to stop by itself, and for rows in memory to reach the disk, before the process exits.
GRACE_SECONDS = 10.0
_POLL_SECONDS = 0.5


class Heartbeat:
    """The time of an engine's last progress, and whether the engine has to stop."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._error: EngineError | None = None

    @property
    def idle(self) -> float:
        """Seconds since the last progress."""
        return time.monotonic() - self._last

    def touch(self) -> None:
        """Report progress: something was computed or received. May be called in any thread."""
        self._last = time.monotonic()

    def touch_or_raise(self) -> None:
        """Report progress in the thread that computes.

        Raises:
            EngineError: the engine has been stopped.
        """
        self.touch()
        self.raise_if_stopped()

    def raise_if_stopped(self) -> None:
        """Raise the error given to :meth:`stop`, if any; for threads that wait."""
        if self._error:
            raise self._error

    def stop(self, error: EngineError) -> None:
        """Make the next :meth:`touch_or_raise` or :meth:`raise_if_stopped` raise ``error``."""
        self._error = error


def wait_for_item(inbox: queue.SimpleQueue[T], heartbeat: Heartbeat, poll: Callable[[], None] = lambda: None) -> T:
    """Wait for the next item of a queue and return it.

    Args:
        inbox: the queue, filled by other threads.
        heartbeat: the heartbeat of the waiting engine.
        poll: called twice a second while the queue is empty.

    Raises:
        EngineError: the engine has been stopped.
    """
    while True:
        try:
            return inbox.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            poll()
            heartbeat.raise_if_stopped()


@contextmanager
def watched(heartbeats: Sequence[Heartbeat], seconds: float, report: Callable[[], str]) -> Iterator[None]:
    """Watch engines while the block runs.

    If no engine makes progress for too long, all of them are stopped, which raises EngineError in the block. If the
    block hangs inside another library and cannot raise, the process exits with that error's exit code.

    Args:
        heartbeats: the engines' heartbeats.
        seconds: maximum time without progress.
        report: returns a description of the missing rows, for the message.
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
    """Raise EngineError if an engine has finished without returning these rows."""
    if keys:
        raise EngineError(f"the engine ended too early; {describe_missing(keys, log_tail)}")


def describe_missing(keys: Collection[str], log_tail: str) -> str:
    """Describe the rows that an engine did not return and the end of its log; write all keys to the run's log."""
    logger.info("missing rows: %s", " ".join(keys))
    first = ", ".join(islice(keys, 5)) + (", ..." if len(keys) > 5 else "")
    message = f"{len(keys)} rows were still in the engine ({first}; all keys in run.log)"
    return message + (f"; its log ends with:\n{indented(log_tail)}" if log_tail else "")


def indented(text: str) -> str:
    """Indent each line, so that the text reads as part of the message above it."""
    return "\n".join("  " + line for line in text.splitlines())
