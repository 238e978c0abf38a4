"""The process of a pool: runs one engine core, takes jobs from a pipe and sends results back as they finish.

The pipe's descriptor is the process's argument. The first message names the function that makes the core; then come
jobs. What the core writes goes to stdout and stderr, which the pool keeps as a log. When the pool's process is gone
this one ends, with everything it started.
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

#: Seconds between two signs of life of a core that computes without finishing anything.
_ALIVE_SECONDS = 1.0


@dataclass(frozen=True)
class Job:
    """What is asked of a core: samples of a prompt, or the log-probs of a text at a temperature."""

    request: PromptRequest | SequenceRequest
    how: Sampling | float

    @property
    def keys(self) -> list[str]:
        """The keys of the results that are wanted."""
        if isinstance(self.request, SequenceRequest):
            return [self.request.key]
        return [sample.key for sample in self.request.samples]


@dataclass(frozen=True)
class Ready:
    """The core has loaded its model.

    Attributes:
        context_length: the most tokens of a text.
        window: results that should be asked for at a time, so that the core never waits.
    """

    context_length: int
    window: int


@dataclass(frozen=True)
class Refused:
    """The core cannot run its model, and why."""

    reason: str


@dataclass(frozen=True)
class Results:
    """Results with the numbers of their jobs; without any, a sign of life."""

    results: Sequence[tuple[int, Result]] = ()


class EngineCore(Protocol):
    """Runs one model, a step at a time."""

    context_length: int
    window: int

    @property
    def busy(self) -> bool:
        """Whether a job is not finished."""
        ...

    def add(self, number: int, job: Job) -> None:
        """Take a job.

        Raises:
            ValueError: the model cannot do it; others are not affected.
        """
        ...

    def step(self) -> list[tuple[int, Result]]:
        """Compute something, and return what has been finished by it, each with the number of its job."""
        ...


def main() -> None:
    """Run a core until the pool closes the pipe."""
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
        os._exit(1)  # an engine that is broken may hang when it is taken down


def _serve(core: EngineCore, connection: Connection, inbox: queue.SimpleQueue[tuple[int, Job]]) -> None:
    spoken = time.monotonic()
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
        if results or time.monotonic() - spoken > _ALIVE_SECONDS:
            connection.send(Results(results))
            spoken = time.monotonic()


def _receive(connection: Connection, inbox: queue.SimpleQueue[Any]) -> None:
    try:
        while True:
            inbox.put(connection.recv())
    except (EOFError, OSError):
        os.killpg(0, signal.SIGKILL)
