"""A pool of engine processes on one machine: stream jobs to them and results back, and restart processes that die.

Each job goes to the least loaded process that has capacity, so all processes stay busy until the last job, across
blocks. When a process dies, its unfinished jobs are sent again, to any process. From then on each of them runs with at
most half as many other jobs, so a job that kills engines soon runs alone and fails alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

from rlt_data.engines.protocol import (
    Failure,
    PromptRequest,
    Result,
    Sample,
    Sampling,
    SequenceBlock,
    SequenceLogprobs,
    groups_to_emit,
    prompts_to_emit,
)
from rlt_data.engines.watchdog import Heartbeat, indented, wait_for_item
from rlt_data.engines.worker import Job, Ready, Refused, Results
from rlt_data.errors import EngineError, ModelError
from rlt_data.interpreters import start_interpreter

logger = logging.getLogger(__name__)

#: Consecutive deaths without a result after which a process is not restarted: before its first result, and after it.
#: Twelve are enough to isolate one deadly job among several thousand.
MAX_DEATHS_AT_FIRST, MAX_DEATHS = 3, 12

_LOG_LINES = 15
#: A line of a log with an error of Python. The first one is usually the cause of all others.
_ERROR_LINE = re.compile(r"\b\w*(Error|Exception): \S")
_POLL_SECONDS = 0.01


@dataclass
class InFlightJob:
    """A job that is queued or running.

    Attributes:
        number: identifies the job in messages.
        job: the job.
        inbox: the queue for its results.
        pending: keys of missing results.
        max_concurrent: maximum number of jobs that its process may run together with it, itself included.
    """

    number: int
    job: Job
    inbox: queue.SimpleQueue[Result]
    pending: set[str]
    max_concurrent: int = sys.maxsize

    def finish(self, result: Result) -> None:
        """Deliver one result."""
        self.pending.discard(result.key)
        self.inbox.put(result)

    def pending_job(self) -> Job:
        """Return the job without its finished samples."""
        request = self.job.request
        if isinstance(request, PromptRequest):
            samples = [sample for sample in request.samples if sample.key in self.pending]
            return replace(self.job, request=replace(request, samples=samples))
        return self.job


class Pool:
    """An :class:`~rlt_data.engines.Engine` over several engine processes.

    Args:
        factory: the function that makes a core, as ``module:function``.
        arguments: the function's arguments.
        environments: one dictionary per process, added to this process's environment variables.
        name: the model's name, for messages and log files.
        logs: folder for the processes' logs; None keeps them only until the pool is closed.
        load_timeout: maximum seconds without progress while models load.

    Raises:
        ModelError: a core cannot run its model.
        EngineError: a process made no progress while loading.
    """

    def __init__(
        self,
        factory: str,
        arguments: tuple[Any, ...],
        environments: Sequence[Mapping[str, str]],
        *,
        name: str,
        logs: Path | None = None,
        load_timeout: float = 900.0,
    ) -> None:
        self.heartbeat = Heartbeat()
        self.name = name
        self._lock = threading.RLock()
        self._waiting: deque[InFlightJob] = deque()
        self._numbers = count()
        self._loaded = False
        self._failure: EngineError | None = None
        self._closed = False
        self.keeps_logs = logs is not None
        self._temporary = tempfile.TemporaryDirectory() if logs is None else None
        folder = Path(self._temporary.name) if self._temporary else Path(str(logs))
        folder.mkdir(parents=True, exist_ok=True)
        stem = Path(name).name
        self._workers = [
            WorkerProcess(self, (factory, arguments), environment, folder / f"{stem}-{index}.log")
            for index, environment in enumerate(environments)
        ]
        try:
            self._load(load_timeout)
        except BaseException:
            self.close()
            raise

    def _load(self, timeout: float) -> None:
        for worker in self._workers:
            worker.start()
        while not all(worker.ready for worker in self._workers):
            time.sleep(0.05)
            self._touch_if_loading()
            for worker in self._workers:
                if worker.refused:
                    raise ModelError(worker.refused + worker.log_end())
            if self._failure:
                raise ModelError(f"{self.name}: {self._failure}")
            if self.heartbeat.idle > timeout:
                ends = "".join(worker.log_end() for worker in self._workers)
                raise EngineError(f"{self.name}: loading made no progress for {timeout:g} s (--stall-timeout){ends}")
        self._loaded = True
        self.context_length = min(worker.ready.context_length for worker in self._workers if worker.ready)

    def generate(self, blocks: Iterable[Sequence[PromptRequest]], sampling: Sampling) -> Iterator[Sample | Failure]:
        """Sample completions; see :class:`~rlt_data.engines.Engine`."""
        jobs = (Job(prompt, sampling) for prompt in prompts_to_emit(blocks))
        return cast(Iterator[Sample | Failure], self._run(jobs))

    def logprobs(self, blocks: Iterable[SequenceBlock], temperature: float) -> Iterator[SequenceLogprobs | Failure]:
        """Score texts; see :class:`~rlt_data.engines.Engine`."""
        jobs = (Job(request, temperature) for request in chain.from_iterable(groups_to_emit(blocks)))
        return cast(Iterator[SequenceLogprobs | Failure], self._run(jobs))

    def log_tail(self) -> str:
        """Return the last lines of the processes' logs."""
        return "\n".join(line for worker in self._workers for line in worker.log_tail())

    def close(self) -> None:
        """Kill the processes."""
        self._closed = True
        for worker in self._workers:
            worker.kill()
        if self._temporary:
            self._temporary.cleanup()

    def _run(self, jobs: Iterator[Job]) -> Iterator[Result]:
        """Send jobs while a process has capacity, and yield results as they arrive."""
        inbox: queue.SimpleQueue[Result] = queue.SimpleQueue()
        pending = 0
        more = True
        while True:
            while more and self._has_capacity():
                job = next(jobs, None)
                more = job is not None
                if job is not None:
                    pending += len(job.keys)
                    with self._lock:
                        self._waiting.append(InFlightJob(next(self._numbers), job, inbox, set(job.keys)))
                        self._dispatch()
            if pending:
                yield wait_for_item(inbox, self.heartbeat, self._check_workers)
                pending -= 1
            elif not more:
                return
            else:  # all processes restart, or work for another iterator of this pool
                time.sleep(_POLL_SECONDS)
                self._check_workers()
                self.heartbeat.raise_if_stopped()

    def _check_workers(self) -> None:
        """Raise if no process is left; called while no result arrives."""
        if self._failure:
            raise self._failure
        self._touch_if_loading()

    def _touch_if_loading(self) -> None:
        """Count log output of a process that loads its model as progress."""
        if any([worker.log_has_grown() for worker in self._workers if not worker.ready]):
            self.heartbeat.touch()

    def _has_capacity(self) -> bool:
        with self._lock:
            return not self._waiting and any(worker.has_capacity() for worker in self._workers)

    def _dispatch(self) -> None:
        """Send waiting jobs to the least loaded processes."""
        with self._lock:
            while self._waiting:
                available = [worker for worker in self._workers if worker.has_capacity(self._waiting[0])]
                if not available:
                    return
                min(available, key=lambda worker: worker.load).send(self._waiting.popleft())

    # Called in the threads that read from the processes

    def handle_message(self, worker: WorkerProcess, message: Any) -> None:
        """Handle a message from a process."""
        self.heartbeat.touch()
        with self._lock:
            if isinstance(message, Ready):
                worker.ready = message
            elif isinstance(message, Refused):
                worker.refused = message.reason
            elif isinstance(message, Results) and message.results:
                worker.deaths, worker.productive = 0, True
                for number, result in message.results:
                    in_flight = worker.in_flight.get(number)
                    if in_flight and result.key in in_flight.pending:
                        in_flight.finish(result)
                        if not in_flight.pending:
                            del worker.in_flight[number]
            self._dispatch()

    def handle_death(self, worker: WorkerProcess) -> None:
        """Requeue the jobs of a process that has ended, and start it again."""
        with self._lock:
            if self._closed or worker.refused:
                return
            jobs, worker.in_flight = list(worker.in_flight.values()), {}
            worker.deaths += 1
            last_line = (worker.log_tail() or ["no log output"])[-1].strip()
            logger.warning("%s: an engine process died (%s); %d jobs are retried", self.name, last_line, len(jobs))
            for job in jobs:
                if job.max_concurrent == 1:
                    for key in list(job.pending):
                        job.finish(Failure(key, f"the engine died of this request, even alone ({last_line})"))
                job.max_concurrent = max(1, len(jobs) // 2)
            self._waiting.extendleft(job for job in reversed(jobs) if job.pending)
            worker.ready = None
            worker.abandoned = worker.deaths >= worker.max_deaths or not self._loaded
            if not worker.abandoned:
                worker.start()
            elif not self._loaded or all(other.abandoned for other in self._workers):
                times = f"{worker.deaths} times in a row" if self._loaded else "while it was starting"
                self._failure = EngineError(f"the engine died {times}{worker.log_end()}")
            self._dispatch()


class WorkerProcess:
    """A process of a pool.

    Args:
        pool: the pool.
        core: the function that makes the core, and its arguments.
        environment: environment variables added to those of this process.
        log: the process's log file.
    """

    def __init__(
        self, pool: Pool, core: tuple[str, tuple[Any, ...]], environment: Mapping[str, str], log: Path
    ) -> None:
        self.in_flight: dict[int, InFlightJob] = {}
        self.ready: Ready | None = None
        self.refused: str | None = None
        self.abandoned = False
        self.deaths = 0
        self.productive = False
        self._pool = pool
        self._core = core
        self._environment = environment
        self._log = log
        self._log_size = self._log_start = log.stat().st_size if log.exists() else 0  # skips earlier runs
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    @property
    def max_deaths(self) -> int:
        """Consecutive deaths after which the process is not restarted."""
        return MAX_DEATHS if self.productive else MAX_DEATHS_AT_FIRST

    @property
    def load(self) -> int:
        """Number of results that the process has not returned yet."""
        return sum(len(job.pending) for job in self.in_flight.values())

    def has_capacity(self, new_job: InFlightJob | None = None) -> bool:
        """Return whether the process can take one more job."""
        if self.ready is None:
            return False
        jobs = [*self.in_flight.values(), *([new_job] if new_job else [])]
        max_concurrent = min((job.max_concurrent for job in jobs), default=1)
        return self.load < self.ready.window and len(self.in_flight) < max_concurrent

    def start(self) -> None:
        """Start the process, and a thread that reads from it."""
        with self._log.open("ab") as log:
            self._process, self._connection = start_interpreter("rlt_data.engines.worker", log, self._environment)
        self._connection.send(self._core)
        threading.Thread(target=self._read, args=(self._connection,), daemon=True).start()

    def send(self, job: InFlightJob) -> None:
        """Send a job to the process."""
        assert self._connection is not None
        self.in_flight[job.number] = job
        with contextlib.suppress(OSError):  # the process has ended, and the reading thread handles that
            self._connection.send((job.number, job.pending_job()))

    def _read(self, connection: Connection) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._pool.handle_message(self, connection.recv())
        self.kill()
        self._pool.handle_death(self)

    def kill(self) -> None:
        """Kill the process and all its children."""
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def log_has_grown(self) -> bool:
        """Return whether the log has grown since the last call."""
        before, self._log_size = self._log_size, self._log.stat().st_size if self._log.exists() else 0
        return self._log_size > before

    def log_end(self) -> str:
        """Return the end of the log and its first error, to append to a message; empty if the process wrote nothing."""
        if not (tail := self.log_tail()):
            return ""
        name = f" ({self._log})" if self._pool.keeps_logs else ""
        end = f"; its log{name} ends with:\n" + indented("\n".join(tail))
        first = next(filter(_ERROR_LINE.search, self._log_lines()), tail[0])
        return end if first in tail else f"{end}\nThe first error in it:\n  {first}"

    def log_tail(self) -> list[str]:
        """Return the last lines of the log."""
        return self._log_lines(8192)[-_LOG_LINES:]

    def _log_lines(self, last_bytes: int | None = None) -> list[str]:
        """Return the lines of the log, without empty ones and those of earlier pools."""
        if not self._log.exists():
            return []
        with self._log.open("rb") as log:
            log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - last_bytes if last_bytes else 0))
            lines = log.read().decode(errors="replace").splitlines()
        return [line for line in lines if line.strip()]
