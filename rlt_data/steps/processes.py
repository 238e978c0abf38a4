"""Call a function in worker processes, as soon as that pays, with the results of calling it in this one.

Workers are new interpreters and not forks, because threads of torch and CUDA do not survive a fork; and not those of
``multiprocessing``, which would run the user's script again in each.
"""

from __future__ import annotations

import logging
import os
import pickle
import queue
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from rlt_data.errors import one_line
from rlt_data.interpreters import start_interpreter
from rlt_data.signals.parallel import cores

logger = logging.getLogger(__name__)

J = TypeVar("J")
R = TypeVar("R")

#: Workers start once calls have taken this many seconds of CPU time, about what it costs to start them, ...
START_SECONDS = 15.0
#: ... and this share of the time since the first call. Below it, whoever reads the results is the limit.
START_SHARE = 0.25
#: With more, the process that reads the results is the limit.
MAX_WORKERS = 4


def compute(function: Callable[[J], R], jobs: Iterable[J]) -> Generator[R, None, None]:
    """Yield the result of a function for each job, in order.

    Args:
        function: a function whose result depends on nothing but the job.
        jobs: read in this process, with workers up to one more ahead than there are workers.

    Raises:
        Exception: what the function raises.
    """
    jobs = iter(jobs)
    # One core is for the process that reads the results. Other systems cannot pass a pipe to a program.
    workers = min(cores() - 1, MAX_WORKERS) if os.name == "posix" else 0
    began, spent = time.monotonic(), 0.0
    for job in jobs:
        start = time.process_time()  # on a busy machine, workers would only wait as well
        result = function(job)
        spent += time.process_time() - start
        yield result
        if workers and spent >= START_SECONDS and spent >= START_SHARE * (time.monotonic() - began):
            yield from _compute_in_workers(function, jobs, workers)


def _compute_in_workers(function: Callable[[J], R], jobs: Iterator[J], workers: int) -> Generator[R, None, None]:
    ahead: deque[tuple[J, Future[R]]] = deque()
    try:
        pool = _Workers(pickle.dumps(function), workers)
    except Exception as error:  # noqa: BLE001 - objects of plug-ins raise anything
        reason = f"{type(error).__name__}: {one_line(error)}"
    else:
        try:
            with pool:
                for job in jobs:
                    ahead.append((job, pool.submit(job)))
                    if len(ahead) > workers:
                        yield ahead[0][1].result()
                        ahead.popleft()
                while ahead:
                    yield ahead[0][1].result()
                    ahead.popleft()
            return
        except _WorkerError as error:
            reason = str(error)
    logger.warning("the rest is prepared in this process alone: %s", reason)
    yield from map(function, chain((job for job, _ in ahead), jobs))


class _WorkerError(Exception):
    """A worker has ended, or cannot do its work; the message is the reason."""


class _Workers:
    """Worker processes, each with a thread of this process that talks to it."""

    def __init__(self, function: bytes, count: int) -> None:
        self._threads = ThreadPoolExecutor(count)
        self._workers = [_Worker(function) for _ in range(count)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.kill()
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.connection.close()

    def submit(self, job: Any) -> Future[Any]:
        return self._threads.submit(self._call, job)

    def _call(self, job: Any) -> Any:
        worker = self._idle.get()  # there are as many threads as workers
        try:
            return worker.call(job)
        finally:
            self._idle.put(worker)


class _Worker:
    def __init__(self, function: bytes) -> None:
        environment = {
            "TOKENIZERS_PARALLELISM": "false",  # each worker uses one core
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        self._process, self.connection = start_interpreter(__name__, subprocess.DEVNULL, environment)
        self._function: bytes | None = function

    def call(self, job: Any) -> Any:
        try:
            if self._function is not None:  # not earlier, because a worker reads only after its imports
                self.connection.send_bytes(self._function)
                self._function = None
            self.connection.send(job)
            error, result = self.connection.recv()
        except (EOFError, OSError):
            raise _WorkerError(f"a worker process ended with exit status {self._process.wait()}") from None
        if error:
            raise _WorkerError(f"a worker process failed: {error}")
        return result

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def main() -> None:
    """Run a worker: read the function, then jobs, from the pipe whose file descriptor is the argument."""
    connection = Connection(int(sys.argv[1]))
    function: Callable[[Any], Any] | None = None
    with suppress(EOFError, OSError):  # the other process has ended
        pickled = connection.recv_bytes()
        while True:
            job = connection.recv()
            reply: tuple[str | None, Any]
            try:
                function = pickle.loads(pickled) if function is None else function
                reply = None, function(job)
            except Exception as error:  # noqa: BLE001 - the other process calls the function too, and raises it there
                reply = f"{type(error).__name__}: {one_line(error)}", None
            connection.send(reply)
