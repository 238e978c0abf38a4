"""Inject errors and signals at every disk call of a replacement, in a child process."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

#: Calls that change a disk, or make a change durable.
CALLS = ("rename", "replace", "fsync", "unlink", "rmdir", "mkdir", "link")
#: Faults at a call: an error in place of the call, or a signal before it.
FAULTS = {
    "no space": errno.ENOSPC,
    "input/output error": errno.EIO,
    "SIGINT": signal.SIGINT,
    "SIGTERM": signal.SIGTERM,
    "SIGKILL": signal.SIGKILL,
}


class Interrupted(BaseException):
    """Raised on SIGTERM, as in the command line."""


def run_with_fault(work: Callable[[], object], fault: str, number: int) -> tuple[bool, int]:
    """Run a function in a child process, with a fault at one of its disk calls.

    Args:
        work: the function. The parent must not have used polars, whose threads do not survive a fork.
        fault: a key of :data:`FAULTS`.
        number: index of the call with the fault, from 0.

    Returns:
        Whether the call was made, and the child's exit code (0: done, 1: an exception, negative: a signal).
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        code = 1
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, _interrupt)
            _inject(fault, number, lambda: os.write(writer, b"x"))
            sys.stdout = sys.stderr = io.StringIO()
            work()
            code = 0
        except BaseException:  # noqa: BLE001 - only the files on the disk matter
            pass
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        happened = bool(pipe.read())
    _, status = os.waitpid(child, 0)
    return happened, os.waitstatus_to_exitcode(status)


def in_child(work: Callable[[], object]) -> int:
    """Run a function in a child process, and return its exit code."""
    return exit_code(start_child(work))


def exit_code(child: int) -> int:
    """Wait for a child process, and return its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def start_child(work: Callable[[], object]) -> int:
    """Start a function in a child process, and return its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:  # noqa: BLE001 - the exit code tells
            print(repr(error), file=sys.__stderr__)
        finally:
            os._exit(code)
    return child


def _interrupt(number: int, frame: object) -> None:
    raise Interrupted


def _inject(fault: str, at: int, note: Callable[[], object]) -> None:
    count = -1
    code = FAULTS[fault]

    def wrap(call: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*args: object, **options: object) -> object:
            nonlocal count
            count += 1
            if count == at:
                note()
                if isinstance(code, signal.Signals):
                    os.kill(os.getpid(), code)
                else:
                    raise OSError(code, os.strerror(code), str(args[0]))
            return call(*args, **options)

        return wrapped

    for name in CALLS:
        setattr(os, name, wrap(getattr(os, name)))


def every_fault(
    work: Callable[[], object], prepare: Callable[[], object], step: int = 1, faults: Iterable[str] = FAULTS
) -> Iterator[tuple[str, int, int]]:
    """Run a function with each fault at each disk call, and yield fault, call number and exit code.

    Args:
        work: the function.
        prepare: is called before each run.
        step: test only every ``step``-th call.
        faults: keys of :data:`FAULTS`.
    """
    for fault in faults:
        for number in range(0, 10_000, step):
            prepare()
            happened, code = run_with_fault(work, fault, number)
            if not happened:
                break
            yield fault, number, code


def content_of(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder, except locks and logs."""
    ignored = {".lock", "run.log"}
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ignored
    }
