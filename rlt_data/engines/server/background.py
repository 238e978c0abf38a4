"""An event loop in a thread of its own, and streams of jobs on it for threads that know nothing of it."""

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

#: Seconds that jobs have for ending when the loop is closed.
_CLOSE_SECONDS = 5.0


class Background:
    """The event loop; it runs until it is closed."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run_loop, name="server engine", daemon=True)
        self._thread.start()

    def run(self, job: Coroutine[Any, Any, T]) -> T:
        """Run one job and return its result."""
        return asyncio.run_coroutine_threadsafe(job, self._loop).result()

    def stream(self, jobs: Iterator[Coroutine[Any, Any, T]], window: int, heartbeat: Heartbeat) -> Iterator[T]:
        """Run jobs, and yield their results in the order in which they end.

        Jobs are taken in the thread that asks for results. Where it asks for no more, those that run are cancelled.

        Args:
            jobs: the jobs, made as they are taken.
            window: how many may run at a time.
            heartbeat: touched at every result; stopping it ends the stream.
        """
        running: set[Future[T]] = set()
        ended: queue.SimpleQueue[Future[T]] = queue.SimpleQueue()
        try:
            while True:
                for job in islice(jobs, window - len(running)):
                    future = asyncio.run_coroutine_threadsafe(job, self._loop)
                    running.add(future)
                    future.add_done_callback(ended.put)
                if not running:
                    return
                future = wait_for_item(ended, heartbeat)
                heartbeat.touch_or_raise()
                running.remove(future)
                yield future.result()
        finally:
            for future in running:
                future.cancel()

    def close(self, last: Callable[[], Awaitable[None]]) -> None:
        """Cancel all jobs, do a last thing, and end the thread."""

        async def end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await last()

        if self._thread.is_alive():
            with contextlib.suppress(TimeoutError):
                asyncio.run_coroutine_threadsafe(end(), self._loop).result(_CLOSE_SECONDS)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_CLOSE_SECONDS)

    def _run_loop(self) -> None:
        self._loop.run_forever()
        self._loop.close()


class Once(Generic[T]):
    """A job that several others wait for: the first of them starts it."""

    def __init__(self, job: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._job = job
        self._task: asyncio.Task[T] | None = None

    def start(self) -> asyncio.Task[T]:
        """Return the running job; to be awaited."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._job())
        return self._task
