"""Engine processes on one machine: jobs stream to them, results stream back, and one that dies is started again.

A job goes to the process with the least to do, as soon as one has room, so all of them stay busy until the last job
whatever the blocks the jobs came in. When a process dies its unfinished jobs go to the others and to its successor,
from then on at most half as many together: so a job that kills engines is soon alone, and fails alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
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
from multiprocessing import Pipe
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
from rlt_data.engines.watchdog import Heartbeat, indented, take
from rlt_data.engines.worker import Job, Ready, Refused, Results
from rlt_data.errors import EngineError, ModelError

logger = logging.getLogger(__name__)

#: Deaths in a row, without any result between, after which a process is given up: for an engine that has never given
#: one, and for one that has (time enough to find a job that kills engines among some thousand).
MOST_DEATHS_AT_FIRST, MOST_DEATHS = 3, 12

_LOG_LINES = 15


@dataclass
class InFlightJob:
    """A job on its way.

    Attributes:
        number: its name on the wire.
        job: what is asked.
        inbox: where its results go.
        pending: keys of the results that are not there yet.
        company: the most orders of a process that it may be one of.
    """

    number: int
    job: Job
    inbox: queue.SimpleQueue[Result]
    pending: set[str]
    max_concurrent: int = sys.maxsize

    def finish(self, result: Result) -> None:
        """Pass a result on."""
        self.pending.discard(result.key)
        self.inbox.put(result)

    def rest(self) -> Job:
        """Return the job without what is finished."""
        request = self.job.request
        if isinstance(request, PromptRequest):
            left = [sample for sample in request.samples if sample.key in self.pending]
            return replace(self.job, request=replace(request, samples=left))
        return self.job


class Pool:
    """Engine processes that share the work; an :class:`~rlt_data.engines.Engine`.

    Args:
        factory: the function that makes a core, as ``module:function``.
        arguments: its arguments.
        environments: environment variables of each process, beside those of this one.
        name: of the model, for messages and log files.
        logs: folder for what the processes write.
        patience: seconds without a sign of life after which loading is given up.

    Raises:
        ModelError: a core cannot run its model.
        EngineError: a process stood still while it loaded.
    """

    def __init__(
        self,
        factory: str,
        arguments: tuple[Any, ...],
        environments: Sequence[Mapping[str, str]],
        *,
        name: str,
        logs: Path | None = None,
        patience: float = 900.0,
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
            self._load(patience)
        except BaseException:
            self.close()
            raise

    def _load(self, patience: float) -> None:
        for worker in self._workers:
            worker.start()
        while not all(worker.ready for worker in self._workers):
            time.sleep(0.05)
            self._note_loading()
            for worker in self._workers:
                if worker.refused:
                    raise ModelError(worker.refused + worker.log_end())
            if self._failure:
                raise ModelError(f"{self.name}: {self._failure}")
            if self.heartbeat.idle > patience:
                ends = "".join(worker.log_end() for worker in self._workers)
                raise EngineError(f"{self.name}: loading made no progress for {patience:g} s (--stall-timeout){ends}")
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
        """Return the last lines that the processes wrote."""
        return "\n".join(line for worker in self._workers for line in worker.log_tail())

    def close(self) -> None:
        """End the processes."""
        self._closed = True
        for worker in self._workers:
            worker.kill()
        if self._temporary:
            self._temporary.cleanup()

    def _run(self, jobs: Iterator[Job]) -> Iterator[Result]:
        """Hand out jobs as there is room for them, and yield results as they come."""
        inbox: queue.SimpleQueue[Result] = queue.SimpleQueue()
        owed = 0
        more = True
        while True:
            while more and self._has_room():
                job = next(jobs, None)
                more = job is not None
                if job is not None:
                    owed += len(job.keys)
                    self._enqueue(job, inbox)
            if not owed:
                return
            yield take(inbox, self.heartbeat, self._look)
            owed -= 1

    def _look(self) -> None:
        """Look after the processes while there is no result."""
        if self._failure:
            raise self._failure
        self._note_loading()

    def _note_loading(self) -> None:
        """Take what a process writes while it loads its model for a sign of life."""
        if any([worker.log_has_grown() for worker in self._workers if not worker.ready]):
            self.heartbeat.touch()

    def _enqueue(self, job: Job, inbox: queue.SimpleQueue[Result]) -> None:
        with self._lock:
            self._waiting.append(InFlightJob(next(self._numbers), job, inbox, set(job.keys)))
            self._dispatch()

    def _has_room(self) -> bool:
        with self._lock:
            return not self._waiting and any(worker.has_room() for worker in self._workers)

    def _dispatch(self) -> None:
        """Send waiting orders to the processes that have the least to do."""
        with self._lock:
            while self._waiting:
                free = [worker for worker in self._workers if worker.has_room(self._waiting[0])]
                if not free:
                    return
                min(free, key=lambda worker: worker.load).send(self._waiting.popleft())

    # What the processes report, each in the thread that reads from it

    def received(self, worker: WorkerProcess, message: Any) -> None:
        """Take a message of a process."""
        self.heartbeat.touch()
        with self._lock:
            if isinstance(message, Ready):
                worker.ready = message
            elif isinstance(message, Refused):
                worker.refused = message.reason
            elif isinstance(message, Results) and message.results:
                worker.deaths, worker.productive = 0, True
                for number, result in message.results:
                    order = worker.orders.get(number)
                    if order and result.key in order.pending:
                        order.finish(result)
                        if not order.pending:
                            del worker.orders[number]
            self._dispatch()

    def lost(self, worker: WorkerProcess) -> None:
        """Take note that a process has ended, hand its orders on, and start it again."""
        with self._lock:
            if self._closed or worker.refused:
                return
            orders, worker.orders = list(worker.orders.values()), {}
            worker.deaths += 1
            last = (worker.log_tail() or ["no word"])[-1].strip()
            logger.warning("%s: an engine process died (%s); %d of its jobs wait", self.name, last, len(orders))
            for order in orders:
                if order.max_concurrent == 1:
                    for key in list(order.pending):
                        order.finish(Failure(key, f"the engine died of it, again when it was alone ({last})"))
                order.max_concurrent = max(1, len(orders) // 2)
            self._waiting.extendleft(order for order in reversed(orders) if order.pending)
            worker.ready = None
            worker.gone = worker.deaths >= worker.most_deaths or not self._loaded
            if not worker.gone:
                worker.start()
            elif not self._loaded or all(each.gone for each in self._workers):
                times = f"{worker.deaths} times in a row" if self._loaded else "when it was started"
                self._failure = EngineError(f"the engine died {times}{worker.log_end()}")
            self._dispatch()


class WorkerProcess:
    """A process of a pool.

    Args:
        pool: the pool.
        core: the function that makes the core, and its arguments.
        environment: environment variables beside those of this process.
        log: where the process writes.
    """

    def __init__(
        self, pool: Pool, core: tuple[str, tuple[Any, ...]], environment: Mapping[str, str], log: Path
    ) -> None:
        self.orders: dict[int, InFlightJob] = {}
        self.ready: Ready | None = None
        self.refused: str | None = None
        self.gone = False
        self.deaths = 0
        self.productive = False
        self._pool = pool
        self._core = core
        self._environment = environment
        self._log = log
        self._log_size = self._log_start = log.stat().st_size if log.exists() else 0  # of earlier runs
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    @property
    def most_deaths(self) -> int:
        """Deaths in a row after which it is given up."""
        return MOST_DEATHS if self.productive else MOST_DEATHS_AT_FIRST

    @property
    def load(self) -> int:
        """Results that it owes."""
        return sum(len(order.pending) for order in self.orders.values())

    def has_room(self, order: InFlightJob | None = None) -> bool:
        """Whether it can take an order more."""
        if self.ready is None:
            return False
        max_concurrent = min(
            (each.max_concurrent for each in [*self.orders.values(), *([order] if order else [])]), default=1
        )
        return self.load < self.ready.window and len(self.orders) < max_concurrent

    def start(self) -> None:
        """Start the process, and a thread that reads from it."""
        self._connection, theirs = Pipe()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                # Not by -m: what is pickled there must not belong to __main__.
                [sys.executable, "-c", "from rlt_data.engines.worker import main; main()", str(theirs.fileno())],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for this process, and killpg for that one with all it started
            )
        theirs.close()
        self._connection.send(self._core)
        threading.Thread(target=self._read, args=(self._connection,), daemon=True).start()

    def send(self, order: InFlightJob) -> None:
        """Hand an order to the process."""
        assert self._connection is not None
        self.orders[order.number] = order
        with contextlib.suppress(OSError):  # it is gone, and the thread that reads will say so
            self._connection.send((order.number, order.rest()))

    def _read(self, connection: Connection) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._pool.received(self, connection.recv())
        self.kill()
        self._pool.lost(self)

    def kill(self) -> None:
        """End the process and everything it started."""
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def log_has_grown(self) -> bool:
        """Whether the process has written something since this was last asked."""
        before, self._log_size = self._log_size, self._log.stat().st_size if self._log.exists() else 0
        return self._log_size > before

    def log_end(self) -> str:
        """Return how the process's log ends, to be added to a message; empty where it wrote nothing."""
        tail = "\n".join(self.log_tail())
        name = f" ({self._log})" if self._pool.keeps_logs else ""
        return f"; its log{name} ends with:\n{indented(tail)}" if tail else ""

    def log_tail(self) -> list[str]:
        """Return the last lines that the process wrote."""
        if not self._log.exists():
            return []
        with self._log.open("rb") as log:
            log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - 8192))
            lines = log.read().decode(errors="replace").splitlines()
        return [line for line in lines if line.strip()][-_LOG_LINES:]
