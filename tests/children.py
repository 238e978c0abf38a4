"""Commands in child processes that start in milliseconds, forked from a server that has imported the libraries.

killing.py starts commands in new processes instead, which Ray, vLLM and benchmarks need.
"""

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

#: Modules that most commands import. An import must not start a thread, because threads do not survive a fork.
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
    """A child process that runs rlt-data in the current folder and environment.

    Args:
        arguments: the arguments of rlt-data.
        prepare: a function to call before the command.
        unread: ``stdout`` or ``stderr`` if that stream is a pipe whose reader has closed it.
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
        """What the command has printed so far."""
        return self._outputs[0].read_text()

    @property
    def stderr(self) -> str:
        """Notices and errors so far."""
        return self._outputs[1].read_text()

    def wait(self) -> int:
        """Wait until the process ends, and return its exit code; the time limit is that of the test."""
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode

    def runs(self) -> bool:
        return self._process.is_alive()

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Wait until a condition is true; fail if the process ends before."""
        while not condition():
            assert self.runs(), self.stderr
            time.sleep(0.02)

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process with SIGKILL."""
        self._process.kill()
        self._process.join()


def run_child(*arguments: object, prepare: Callable[[], object] | None = None) -> Child:
    """Run a command, which must succeed."""
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


def write_slowly() -> None:
    """Write one row per 10 ms and flush every 50 ms, so that on any machine a kill finds some rows but not all."""
    from rlt_data.storage import writer

    writer.FLUSH_SECONDS = 0.05
    append = writer.TableWriter.append

    def slow(table: writer.TableWriter, *row: object, **columns: object) -> None:
        time.sleep(0.01)
        append(table, *row, **columns)  # type: ignore[arg-type]

    writer.TableWriter.append = slow  # type: ignore[method-assign]
