"""Commands in child processes that start in milliseconds: forked from a server that has imported the libraries."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path

#: What most commands import. Importing must start no thread, as threads do not survive a fork.
PRELOADED = [
    "datasets",
    "polars",
    "pyarrow.parquet",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen2.modeling_qwen2",
    "rlt_data.cli.main",
    "rlt_data.cli.options",
    "rlt_data.engines.transformers",
    "rlt_data.steps.generate",
    "rlt_data.steps.score",
]


@cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


class Child:
    """A child process that runs a function, or by default the command line, in the current folder and environment.

    Args:
        arguments: of rlt-data.
        prepare: what to call first.
        unread: the stream, ``stdout`` or ``stderr``, whose reader has left.
    """

    def __init__(self, *arguments: object, prepare: Callable[[], object] | None = None, unread: str = "") -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._outputs = [Path(self._folder.name, name) for name in ("stdout", "stderr")]
        for path in self._outputs:
            path.touch()
        self._process = _context().Process(
            target=_run,
            args=(
                [str(argument) for argument in arguments],
                prepare,
                os.getcwd(),
                {**os.environ},
                self._outputs,
                unread,
            ),
            daemon=True,
        )
        self._process.start()
        assert self._process.pid
        self.pid = self._process.pid

    @property
    def stdout(self) -> str:
        """What it has written so far."""
        return self._outputs[0].read_text()

    @property
    def stderr(self) -> str:
        """What it has written so far."""
        return self._outputs[1].read_text()

    def wait(self, timeout: float = 240.0) -> int:
        """Wait for its end, and return its exit code."""
        self._process.join(timeout)
        assert self._process.exitcode is not None, self.stderr
        return self._process.exitcode

    def ends_within(self, seconds: float) -> bool:
        """Wait for its end, but not for longer, and return whether it has ended."""
        self._process.join(seconds)
        return not self.runs()

    def runs(self) -> bool:
        return self._process.is_alive()

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Wait until something holds; the process must not end before."""
        while not condition():
            assert self.runs(), self.stderr
            time.sleep(0.02)

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it without notice."""
        self._process.kill()
        self._process.join()


def run_child(*arguments: object, prepare: Callable[[], object] | None = None) -> Child:
    """Run a command to its end, which must be a good one."""
    child = Child(*arguments, prepare=prepare)
    assert child.wait() == 0, child.stderr
    return child


def _run(
    arguments: list[str],
    prepare: Callable[[], object] | None,
    folder: str,
    environment: dict[str, str],
    outputs: list[Path],
    unread: str,
) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(outputs, 1):
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        if unread == path.name:
            reader, file = os.pipe()
            os.close(reader)
        os.dup2(file, number)
        os.close(file)
    sys.argv = ["rlt-data", *arguments]
    if prepare:
        prepare()
    from rlt_data.cli.main import main

    main()


def flush_often() -> None:
    """Let tables reach the disk twenty times a second, so that a kill finds rows without waiting."""
    from rlt_data.storage import writer

    writer.FLUSH_SECONDS = 0.05


def write_slowly() -> None:
    """Let every row take ten milliseconds, so that a command is killed before its end on any machine."""
    from rlt_data.storage.writer import TableWriter

    flush_often()
    append = TableWriter.append

    def slow(writer: TableWriter, *row: object, **columns: object) -> None:
        time.sleep(0.01)
        append(writer, *row, **columns)  # type: ignore[arg-type]

    TableWriter.append = slow  # type: ignore[method-assign]
