"""Engines on the machines of a Ray cluster: the same steps, with Ray Data carrying work to them and results back.

    feed (an actor beside this process) ──▶ Ray Data: batches of requests ──▶ pool of engine actors ──▶ results

Steps see one engine more; rows are written by this process into the same run folder under the same keys, so a run
that was begun on one machine is finished on a cluster and the other way round. The feed keeps a batch until its
results are here. Ray Data runs a batch again where an actor or its node has died, and gets the same batch; results that
come twice are dropped.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import count
from typing import Any, cast

from rlt_data.engines.protocol import (
    Engine,
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
from rlt_data.engines.watchdog import Heartbeat, take
from rlt_data.errors import EngineError, ModelError, RltDataError, SettingsError, first_line
from rlt_data.settings import ModelSettings

#: Results of a batch, about: enough that Ray's work for a batch is little, few enough to spread over many engines.
BATCH = 64
#: Batches that an engine has at hand, so that it never waits for the next one.
_BATCHES_AHEAD = 2
#: Seconds between two signs of life of an engine that computes without finishing a batch.
_ALIVE_SECONDS = 5.0
#: Seconds that Ray Data has for ending.
_GRACE_SECONDS = 10.0


@dataclass(frozen=True)
class Work:
    """A batch on its way: requests, and how they are to be answered."""

    requests: Sequence[PromptRequest] | SequenceBlock
    how: Sampling | float


class RayEngine:
    """A pool of engines on a Ray cluster; an :class:`~rlt_data.engines.Engine`.

    Args:
        settings: how the model is run.
        open_engine: opens the model's engine where an actor runs; can be pickled.
        context_length: the most tokens of a text.
        share: of the cluster that this engine may use.

    Raises:
        ModelError: Ray is not installed.
        EngineError: there is no cluster at the address.
        SettingsError: the cluster is too small.
    """

    def __init__(
        self, settings: ModelSettings, open_engine: Callable[[], Engine], *, context_length: int, share: float
    ) -> None:
        self.heartbeat = Heartbeat()
        self.context_length = context_length
        self._open_engine = open_engine
        # Batches that an engine works on at the same time: one, where it batches within a batch alone.
        self._concurrency = 4 if settings.engine == "vllm" else 1
        self._owns_connection = _connect(str(settings.ray))
        try:
            self._gpus, self._engines = _shares(settings, share)
        except BaseException:
            self.close()
            raise

    def generate(self, blocks: Iterable[Sequence[PromptRequest]], sampling: Sampling) -> Iterator[Sample | Failure]:
        """Sample completions; see :class:`~rlt_data.engines.Engine`."""
        batches = _batches(prompts_to_emit(blocks), lambda prompt: len(prompt.samples))
        return cast(Iterator[Sample | Failure], self._run(Work(batch, sampling) for batch in batches))

    def logprobs(self, blocks: Iterable[SequenceBlock], temperature: float) -> Iterator[SequenceLogprobs | Failure]:
        """Score texts; see :class:`~rlt_data.engines.Engine`."""
        batches = _batches(groups_to_emit(blocks), len)
        return cast(Iterator[SequenceLogprobs | Failure], self._run(Work(batch, temperature) for batch in batches))

    def log_tail(self) -> str:
        """Return nothing: what engines write is in Ray's own logs, which its dashboard shows."""
        return ""

    def close(self) -> None:
        """Leave the cluster; its engines end."""
        import ray

        if self._owns_connection:
            ray.shutdown()

    def _run(self, works: Iterator[Work]) -> Iterator[Result]:
        """Hand out batches as there is room for them, and yield results as they come."""
        import ray

        feed = ray.remote(Feed).options(num_cpus=0, **_here()).remote()
        inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        arguments = self._dataset(feed), inbox
        collector = threading.Thread(target=_collect, args=arguments, name="ray-results", daemon=True)
        collector.start()
        try:
            yield from self._exchange(works, feed, inbox)
        finally:
            ray.kill(feed)  # where work is left, Ray Data stops at its lack of input
            collector.join(_GRACE_SECONDS)

    def _exchange(self, works: Iterator[Work], feed: Any, inbox: queue.SimpleQueue[Any]) -> Iterator[Result]:
        import ray

        owed: set[int] = set()
        room, tickets, more = self._engines * (self._concurrency + _BATCHES_AHEAD), 0, True

        def look() -> None:
            if ray.get(feed.idle.remote()) < 2 * _ALIVE_SECONDS:
                self.heartbeat.touch()

        while True:
            while more and len(owed) < room:
                work = next(works, None)
                more = work is not None
                if more:
                    owed.add(tickets)
                    feed.put.remote(tickets, [ray.put(pickle.dumps(work))])
                    tickets += 1
                else:
                    feed.close.remote(tickets)  # the last results come only at the end of Ray Data's input
            if not owed:
                return
            found = take(inbox, self.heartbeat, look)
            if isinstance(found, Exception):
                raise found
            self.heartbeat.touch_or_raise()
            ticket, results = found
            if ticket in owed:
                owed.remove(ticket)
                feed.drop.remote(ticket)
                yield from results

    def _dataset(self, feed: Any) -> Any:
        import ray
        from ray.data import ActorPoolStrategy, DataContext

        logging.getLogger("ray.data").setLevel(logging.ERROR)  # its plans are for those who write Ray Data programs
        context = DataContext.get_current()
        context.enable_progress_bars = False
        # Each row leaves as a block of its own, at once: Ray Data would else wait for megabytes of them.
        context.target_max_block_size = context.target_min_block_size = 1
        pool = ActorPoolStrategy(
            size=self._engines,
            max_tasks_in_flight_per_actor=self._concurrency + 1,
            max_concurrent_calls_per_actor=self._concurrency,
            enable_true_multi_threading=True,
        )
        return (
            ray.data.from_items([{"": 0}])
            .flat_map(_tickets, fn_kwargs={"feed": feed}, num_cpus=0, **_here())
            .map_batches(
                _Runner,
                fn_constructor_kwargs={"open_engine": self._open_engine, "feed": feed},
                batch_size=1,
                compute=pool,
                num_cpus=1,
                num_gpus=self._gpus,
            )
        )


class Feed:
    """Batches that are owed, by their tickets; an actor beside the process that writes the run.

    Ray may run its methods in another order than they were called in, so each says by tickets what it means.
    """

    def __init__(self) -> None:
        self._batches: dict[int, list[Any]] = {}  # empty where the results are there already
        self._end: int | None = None
        self._changed = asyncio.Condition()
        self._alive = time.monotonic()

    async def put(self, ticket: int, batch: list[Any]) -> None:
        """Take a batch, as a list of one reference."""
        async with self._changed:
            self._batches[ticket] = batch
            self._changed.notify_all()

    async def close(self, end: int) -> None:
        """Take note that batches end before a ticket."""
        async with self._changed:
            self._end = end
            self._changed.notify_all()

    async def get(self, ticket: int) -> list[Any] | None:
        """Return a batch once it is there; an empty list where its results are there already; None after the last."""
        async with self._changed:
            await self._changed.wait_for(lambda: ticket in self._batches or ticket == self._end)
            return self._batches.get(ticket)

    async def drop(self, ticket: int) -> None:
        """Forget a batch whose results are there."""
        self._batches[ticket] = []

    async def note(self) -> None:
        """Take an engine's sign of life."""
        self._alive = time.monotonic()

    async def idle(self) -> float:
        """Return how many seconds ago the last sign of life came."""
        return time.monotonic() - self._alive


def _tickets(_row: dict[str, Any], feed: Any) -> Iterator[dict[str, Any]]:
    """Yield the batches in the order of their tickets: the same ones where Ray runs this again."""
    import ray

    for ticket in count():
        batch = ray.get(feed.get.remote(ticket))
        if batch is None:
            return
        yield {"ticket": ticket, "work": ray.get(batch[0]) if batch else b""}


class _Runner:
    """An engine on one machine of the cluster; an actor."""

    def __init__(self, open_engine: Callable[[], Engine], feed: Any) -> None:
        self._feed = feed
        self._engine: Engine | None = None
        self._problem: RltDataError | None = None
        threading.Thread(target=self._give_signs, daemon=True).start()
        try:
            self._engine = open_engine()
        except RltDataError as error:
            self._problem = error

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Do the work of one row, and return its results as one row."""
        [ticket], [work] = batch["ticket"].tolist(), batch["work"].tolist()
        return {"ticket": [ticket], "results": [pickle.dumps(self._problem or (self._answer(work) if work else None))]}

    def _answer(self, pickled: bytes) -> list[Result] | RltDataError:
        work: Work = pickle.loads(pickled)
        assert self._engine is not None
        try:
            if isinstance(work.how, Sampling):
                return list(self._engine.generate([work.requests], work.how))  # type: ignore[list-item]
            return list(self._engine.logprobs([work.requests], work.how))  # type: ignore[list-item]
        except RltDataError as error:
            return error

    def _give_signs(self) -> None:
        while self._problem is None:
            if self._engine is None or self._engine.heartbeat.idle < 2 * _ALIVE_SECONDS:
                self._feed.note.remote()
            time.sleep(_ALIVE_SECONDS)


def _collect(dataset: Any, inbox: queue.SimpleQueue[Any]) -> None:
    """Take results as they come, in a thread of its own."""
    try:
        for rows in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            for ticket, results in zip(rows["ticket"].to_pylist(), rows["results"].to_pylist(), strict=True):
                found = pickle.loads(results)
                if found is not None:  # else Ray Data ran a batch again whose results are here
                    inbox.put(found if isinstance(found, RltDataError) else (ticket, found))
    except Exception as error:  # noqa: BLE001 - Ray wraps what went wrong on another machine in errors of its own
        inbox.put(EngineError(f"--ray: {first_line(error)}; Ray's own logs say more"))


def _batches(requests: Iterable[Any], size: Callable[[Any], int]) -> Iterator[list[Any]]:
    batch: list[Any] = []
    full = 0
    for request in requests:
        batch.append(request)
        full += size(request)
        if full >= BATCH:
            yield batch
            batch, full = [], 0
    if batch:
        yield batch


def _connect(address: str) -> bool:
    """Join the cluster, and return whether it was this call that did."""
    if find_spec("ray") is None:
        raise ModelError("--ray: needs Ray; pip install 'rlt-data[ray]'")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # else a thread that outlives the connection would start a new Ray
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # on the terminal; Ray's log files have everything
    import ray

    if ray.is_initialized():
        return False
    try:
        if address not in ("auto", "local"):
            # Ray itself would wait for minutes, and then end the process.
            host, port = address.rsplit(":", 1)
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(None if address == "local" else address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        raise EngineError(f"--ray {address}: no cluster there: {first_line(error)}") from None
    return True


def _shares(settings: ModelSettings, share: float) -> tuple[float, int]:
    """Return the GPUs of each engine, and how many engines there are, in a share of the cluster."""
    import ray

    there = ray.cluster_resources()
    gpus, cpus = there.get("GPU", 0.0), there.get("CPU", 0.0)
    each = settings.gpus_per_engine
    if each is None:
        each = float(settings.tensor_parallel if gpus else 0)
    fitting = int(gpus * share // each if each else cpus * share)
    engines = settings.engines or (fitting if each else min(fitting, sum(node["Alive"] for node in ray.nodes())))
    if not 0 < engines <= fitting:
        needed = f"{engines or 1} engines of " + (f"{each:g} GPUs" if each else "one CPU")
        part = " that student and teacher share" if share < 1 else ""
        raise SettingsError(f"--engines: {needed} do not fit into the cluster: {gpus:g} GPUs, {cpus:g} CPUs{part}")
    return each, engines


def _here() -> dict[str, Any]:
    """Return the options that keep an actor or a task on this machine."""
    import ray

    return {"label_selector": {"ray.io/node-id": ray.get_runtime_context().get_node_id()}}
