"""An event loop in a background thread, for callers that are not asynchronous."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future
from itertools import islice
from typing import Any, Generic, TypeVar

from rlt_data.engines.watchdog import Heartbeat, wait_for_item

T = TypeVar("T")

#: Seconds for jobs to end when the loop is closed.
_CLOSE_SECONDS = 5.0


class EventLoopThread:
    """An event loop that runs in a thread until it is closed."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run_loop, name="server engine", daemon=True)
        self._thread.start()

    def run(self, job: Coroutine[Any, Any, T]) -> T:
        """Run a job and return its result."""
        return asyncio.run_coroutine_threadsafe(job, self._loop).result()

    def stream(self, jobs: Iterator[Coroutine[Any, Any, T]], window: int, heartbeat: Heartbeat) -> Iterator[T]:
        """Run jobs, and yield results in the order in which the jobs finish.

        Jobs are read in the thread that iterates over the results. When it stops iterating, running jobs are cancelled.

        Args:
            jobs: the jobs, created when they are read.
            window: maximum number of jobs that run at a time.
            heartbeat: touched at every result; stopping it ends the stream.
        """
        running: set[Future[T]] = set()
        finished: queue.SimpleQueue[Future[T]] = queue.SimpleQueue()
        try:
            while True:
                for job in islice(jobs, window - len(running)):
                    future = asyncio.run_coroutine_threadsafe(job, self._loop)
                    running.add(future)
                    future.add_done_callback(finished.put)
                if not running:
                    return
                future = wait_for_item(finished, heartbeat)
                heartbeat.touch_or_raise()
                running.remove(future)
                yield future.result()
        finally:
            for future in running:
                future.cancel()

    def close(self, clean_up: Callable[[], Awaitable[None]]) -> None:
        """Cancel all jobs, run ``clean_up`` on the loop and end the thread."""

        async def shut_down() -> None:
            jobs = asyncio.all_tasks() - {asyncio.current_task()}
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)
            await clean_up()

        if self._thread.is_alive():
            with contextlib.suppress(TimeoutError):
                asyncio.run_coroutine_threadsafe(shut_down(), self._loop).result(_CLOSE_SECONDS)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_CLOSE_SECONDS)

    def _run_loop(self) -> None:
        self._loop.run_forever()
        self._loop.close()


class SharedJob(Generic[T]):
    """A job that several other jobs wait for; the first of them starts it."""

    def __init__(self, job: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._job = job
        self._task: asyncio.Task[T] | None = None

    def start(self) -> asyncio.Task[T]:
        """Start the job, unless it runs already, and return its task."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._job())
        return self._task
