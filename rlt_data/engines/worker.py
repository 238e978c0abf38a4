"""The worker process of a pool: run one engine core, receive jobs over a pipe and send back results as they finish.

The process's argument is the pipe's file descriptor. The first message names the function that makes the core; all
later messages are jobs. The pool writes the process's stdout and stderr to a log. When the pool's process ends, this
process ends too, with every process it started.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any, Protocol

from rlt_data.engines.protocol import Failure, PromptRequest, Result, Sampling, SequenceRequest
from rlt_data.errors import RltDataError

#: Seconds between heartbeats of a core that computes without finishing a result.
_HEARTBEAT_SECONDS = 1.0


@dataclass(frozen=True)
class Job:
    """Work for a core.

    Attributes:
        request: a prompt to sample from, or a text to score.
        parameters: sampling parameters for a prompt, the temperature for a text.
    """

    request: PromptRequest | SequenceRequest
    parameters: Sampling | float

    @property
    def keys(self) -> list[str]:
        """The keys of the job's results."""
        if isinstance(self.request, SequenceRequest):
            return [self.request.key]
        return [sample.key for sample in self.request.samples]


@dataclass(frozen=True)
class Ready:
    """Message: the core has loaded its model.

    Attributes:
        context_length: maximum number of tokens of a text.
        window: number of results to request at a time, so that the core never waits.
    """

    context_length: int
    window: int


@dataclass(frozen=True)
class Refused:
    """Message: the core cannot run its model."""

    reason: str


@dataclass(frozen=True)
class Results:
    """Message: results with the numbers of their jobs. An empty message is a heartbeat."""

    results: Sequence[tuple[int, Result]] = ()


class EngineCore(Protocol):
    """Runs one model, one step at a time."""

    context_length: int
    window: int

    @property
    def busy(self) -> bool:
        """Whether any job is unfinished."""
        ...

    def add(self, number: int, job: Job) -> None:
        """Add a job.

        Raises:
            ValueError: the model cannot run this job; other jobs are not affected.
        """
        ...

    def step(self) -> list[tuple[int, Result]]:
        """Compute one step and return the results that it finished, each with the number of its job."""
        ...


def main() -> None:
    """Make a core and run it until the pool closes the pipe."""
    connection = Connection(int(sys.argv[1]))
    factory, arguments = connection.recv()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    inbox: queue.SimpleQueue[tuple[int, Job]] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, inbox), daemon=True).start()
    try:
        module, function = factory.split(":")
        core: EngineCore = getattr(import_module(module), function)(*arguments)
    except RltDataError as error:
        sys.stdout.flush()  # the pool shows the end of the log
        connection.send(Refused(str(error)))
        return
    connection.send(Ready(core.context_length, core.window))
    try:
        _serve(core, connection, inbox)
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # the shutdown of a broken engine may hang


def _serve(core: EngineCore, connection: Connection, inbox: queue.SimpleQueue[tuple[int, Job]]) -> None:
    last_message = time.monotonic()
    while True:
        results: list[tuple[int, Result]] = []
        while not (core.busy and inbox.empty()) and not results:
            number, job = inbox.get()
            try:
                core.add(number, job)
            except ValueError as error:
                reason = " ".join(str(error).split())
                results += [(number, Failure(key, reason)) for key in job.keys]
        if core.busy:
            results += core.step()
        if results or time.monotonic() - last_message > _HEARTBEAT_SECONDS:
            connection.send(Results(results))
            last_message = time.monotonic()


def _receive(connection: Connection, inbox: queue.SimpleQueue[Any]) -> None:
    try:
        while True:
            inbox.put(connection.recv())
    except (EOFError, OSError):
        os.killpg(0, signal.SIGKILL)
