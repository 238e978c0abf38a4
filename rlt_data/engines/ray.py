"""Engines on a Ray cluster: Ray Data carries batches of requests to them and results back.

    feed (an actor on this machine) ──▶ Ray Data: batches of requests ──▶ pool of engine actors ──▶ results

For steps the cluster is one engine. This process writes the rows, into the same run folder under the same keys as on
one machine, so a run may start on one machine and continue on a cluster, or the reverse. The feed keeps each batch
until its results have arrived. When an actor or its node dies, Ray Data runs the batch again; duplicate results are
dropped.
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
from rlt_data.engines.watchdog import Heartbeat, wait_for_item
from rlt_data.errors import EngineError, ModelError, RltDataError, SettingsError, first_line
from rlt_data.settings import ModelSettings

#: Approximate number of results per batch: Ray's overhead per batch stays small, and work spreads over many engines.
BATCH = 64
#: Batches queued per engine, so that it never waits for the next one.
_BATCHES_AHEAD = 2
#: Seconds between heartbeats of an engine that computes without finishing a batch.
_HEARTBEAT_SECONDS = 5.0
#: Seconds for Ray Data to stop.
_GRACE_SECONDS = 10.0


@dataclass(frozen=True)
class Batch:
    """Requests to run together.

    Attributes:
        requests: prompts to sample from, or groups of texts to score.
        parameters: sampling parameters for prompts, the temperature for texts.
    """

    requests: Sequence[PromptRequest] | SequenceBlock
    parameters: Sampling | float


class RayEngine:
    """An :class:`~rlt_data.engines.Engine` over a pool of engines on a Ray cluster.

    Args:
        settings: settings of the engines.
        open_engine: opens the model's engine in an actor; picklable.
        context_length: maximum number of tokens of a text.
        share: fraction of the cluster that this pool may use.

    Raises:
        ModelError: Ray is not installed.
        EngineError: no cluster answers at the address.
        SettingsError: the cluster is too small.
    """

    def __init__(
        self, settings: ModelSettings, open_engine: Callable[[], Engine], *, context_length: int, share: float
    ) -> None:
        self.heartbeat = Heartbeat()
        self.context_length = context_length
        self._open_engine = open_engine
        # vLLM runs requests of several batches together; the transformers engine runs one batch after the other.
        self._concurrency = 4 if settings.engine == "vllm" else 1
        self._owns_connection = _connect(str(settings.ray))
        try:
            self._gpus, self._engines = _shares(settings, share)
        except BaseException:
            self.close()
            raise

    def generate(self, blocks: Iterable[Sequence[PromptRequest]], sampling: Sampling) -> Iterator[Sample | Failure]:
        """Sample completions; see :class:`~rlt_data.engines.Engine`."""
        batches = _split(prompts_to_emit(blocks), lambda prompt: len(prompt.samples))
        return cast(Iterator[Sample | Failure], self._run(Batch(requests, sampling) for requests in batches))

    def logprobs(self, blocks: Iterable[SequenceBlock], temperature: float) -> Iterator[SequenceLogprobs | Failure]:
        """Score texts; see :class:`~rlt_data.engines.Engine`."""
        batches = _split(groups_to_emit(blocks), len)
        return cast(
            Iterator[SequenceLogprobs | Failure], self._run(Batch(requests, temperature) for requests in batches)
        )

    def log_tail(self) -> str:
        """Return an empty string: the engines' output is in Ray's logs and on its dashboard."""
        return ""

    def close(self) -> None:
        """Disconnect from the cluster, which stops its engines."""
        import ray

        if self._owns_connection:
            ray.shutdown()

    def _run(self, batches: Iterator[Batch]) -> Iterator[Result]:
        """Send batches while engines have capacity, and yield results as they arrive."""
        import ray

        feed = ray.remote(Feed).options(num_cpus=0, **_on_this_node()).remote()
        inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        arguments = self._dataset(feed), inbox
        collector = threading.Thread(target=_collect, args=arguments, name="ray-results", daemon=True)
        collector.start()
        try:
            yield from self._exchange(batches, feed, inbox)
        finally:
            ray.kill(feed)  # without input, Ray Data stops even if batches are unfinished
            collector.join(_GRACE_SECONDS)

    def _exchange(self, batches: Iterator[Batch], feed: Any, inbox: queue.SimpleQueue[Any]) -> Iterator[Result]:
        import ray

        pending: set[int] = set()
        max_pending, sent, more = self._engines * (self._concurrency + _BATCHES_AHEAD), 0, True

        def check_engines() -> None:
            if ray.get(feed.idle.remote()) < 2 * _HEARTBEAT_SECONDS:
                self.heartbeat.touch()

        while True:
            while more and len(pending) < max_pending:
                batch = next(batches, None)
                more = batch is not None
                if more:
                    pending.add(sent)
                    feed.put.remote(sent, [ray.put(pickle.dumps(batch))])
                    sent += 1
                else:
                    feed.close.remote(sent)  # Ray Data returns the last results only after the end of its input
            if not pending:
                return
            item = wait_for_item(inbox, self.heartbeat, check_engines)
            if isinstance(item, Exception):
                raise item
            self.heartbeat.touch_or_raise()
            batch_id, results = item
            if batch_id in pending:
                pending.remove(batch_id)
                feed.drop.remote(batch_id)
                yield from results

    def _dataset(self, feed: Any) -> Any:
        import ray
        from ray.data import ActorPoolStrategy, DataContext

        logging.getLogger("ray.data").setLevel(logging.ERROR)  # hides its execution plans
        context = DataContext.get_current()
        context.enable_progress_bars = False
        # Ray Data would collect megabytes of rows before it passes them on; this makes each row a block.
        context.target_max_block_size = context.target_min_block_size = 1
        pool = ActorPoolStrategy(
            size=self._engines,
            max_tasks_in_flight_per_actor=self._concurrency + 1,
            max_concurrent_calls_per_actor=self._concurrency,
            enable_true_multi_threading=True,
        )
        return (
            ray.data.from_items([{"": 0}])
            .flat_map(_read_feed, fn_kwargs={"feed": feed}, num_cpus=0, **_on_this_node())
            .map_batches(
                _EngineActor,
                fn_constructor_kwargs={"open_engine": self._open_engine, "feed": feed},
                batch_size=1,
                compute=pool,
                num_cpus=1,
                num_gpus=self._gpus,
            )
        )


class Feed:
    """Unfinished batches by id; an actor on the machine of the process that writes the run.

    Ray may run the methods in another order than they were called in, so each takes the batch's id.
    """

    def __init__(self) -> None:
        self._batches: dict[int, list[Any]] = {}  # an empty list once the batch is finished
        self._end: int | None = None
        self._changed = asyncio.Condition()
        self._last_heartbeat = time.monotonic()

    async def put(self, batch_id: int, batch: list[Any]) -> None:
        """Add a batch, as a list with one object reference."""
        async with self._changed:
            self._batches[batch_id] = batch
            self._changed.notify_all()

    async def close(self, end: int) -> None:
        """Set the number of batches."""
        async with self._changed:
            self._end = end
            self._changed.notify_all()

    async def get(self, batch_id: int) -> list[Any] | None:
        """Wait for a batch and return it; an empty list if it is finished already; None after the last batch."""
        async with self._changed:
            await self._changed.wait_for(lambda: batch_id in self._batches or batch_id == self._end)
            return self._batches.get(batch_id)

    async def drop(self, batch_id: int) -> None:
        """Forget a finished batch."""
        self._batches[batch_id] = []

    async def touch(self) -> None:
        """Record an engine's heartbeat."""
        self._last_heartbeat = time.monotonic()

    async def idle(self) -> float:
        """Return the seconds since the last heartbeat."""
        return time.monotonic() - self._last_heartbeat


def _read_feed(_row: dict[str, Any], feed: Any) -> Iterator[dict[str, Any]]:
    """Yield the batches in the order of their ids, so that Ray gets the same ones if it runs this again."""
    import ray

    for batch_id in count():
        batch = ray.get(feed.get.remote(batch_id))
        if batch is None:
            return
        yield {"batch_id": batch_id, "batch": ray.get(batch[0]) if batch else b""}


class _EngineActor:
    """An engine on one machine of the cluster."""

    def __init__(self, open_engine: Callable[[], Engine], feed: Any) -> None:
        self._feed = feed
        self._engine: Engine | None = None
        self._error: RltDataError | None = None
        threading.Thread(target=self._send_heartbeats, daemon=True).start()
        try:
            self._engine = open_engine()
        except RltDataError as error:
            self._error = error

    def __call__(self, rows: dict[str, Any]) -> dict[str, list[Any]]:
        """Run the batch of one row, and return its results as one row."""
        [batch_id], [batch] = rows["batch_id"].tolist(), rows["batch"].tolist()
        results = self._error or (self._run(batch) if batch else None)
        return {"batch_id": [batch_id], "results": [pickle.dumps(results)]}

    def _run(self, pickled: bytes) -> list[Result] | RltDataError:
        batch: Batch = pickle.loads(pickled)
        assert self._engine is not None
        try:
            if isinstance(batch.parameters, Sampling):
                return list(self._engine.generate([batch.requests], batch.parameters))  # type: ignore[list-item]
            return list(self._engine.logprobs([batch.requests], batch.parameters))  # type: ignore[list-item]
        except RltDataError as error:
            return error

    def _send_heartbeats(self) -> None:
        while self._error is None:
            if self._engine is None or self._engine.heartbeat.idle < 2 * _HEARTBEAT_SECONDS:
                self._feed.touch.remote()
            time.sleep(_HEARTBEAT_SECONDS)


def _collect(dataset: Any, inbox: queue.SimpleQueue[Any]) -> None:
    """Put results into the inbox as they arrive; runs in a separate thread."""
    try:
        for rows in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            for batch_id, pickled in zip(rows["batch_id"].to_pylist(), rows["results"].to_pylist(), strict=True):
                results = pickle.loads(pickled)
                if results is not None:  # None if Ray Data ran a finished batch again
                    inbox.put(results if isinstance(results, RltDataError) else (batch_id, results))
    except Exception as error:  # noqa: BLE001 - Ray wraps errors of other machines in its own classes
        inbox.put(EngineError(f"--ray: {first_line(error)}; see Ray's logs for details"))


def _split(requests: Iterable[Any], size: Callable[[Any], int]) -> Iterator[list[Any]]:
    """Cut requests into lists of about :data:`BATCH` results; ``size`` returns the number of results of a request."""
    batch: list[Any] = []
    total = 0
    for request in requests:
        batch.append(request)
        total += size(request)
        if total >= BATCH:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def _connect(address: str) -> bool:
    """Connect to the cluster; return False if this process was connected already."""
    if find_spec("ray") is None:
        raise ModelError("--ray: needs Ray; pip install 'rlt-data[ray]'")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # else a thread that outlives the connection starts a new Ray
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # on the terminal only; Ray's log files are complete
    import ray

    if ray.is_initialized():
        return False
    try:
        if address not in ("auto", "local"):
            # Ray would wait for minutes and then exit the process.
            host, port = address.rsplit(":", 1)
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        raise EngineError(f"--ray {address}: no cluster at this address: {first_line(error)}") from None
    return True


def _shares(settings: ModelSettings, share: float) -> tuple[float, int]:
    """Return the number of GPUs per engine and the number of engines, in a share of the cluster."""
    import ray

    resources = ray.cluster_resources()
    gpus, cpus = resources.get("GPU", 0.0), resources.get("CPU", 0.0)
    per_engine = settings.gpus_per_engine
    if per_engine is None:
        per_engine = float(settings.tensor_parallel if gpus else 0)
    most = int(gpus * share // per_engine if per_engine else cpus * share)
    engines = settings.engines or (most if per_engine else min(most, sum(node["Alive"] for node in ray.nodes())))
    if not 0 < engines <= most:
        required = f"{engines or 1} engines of " + (f"{per_engine:g} GPUs" if per_engine else "one CPU")
        shared = ", which student and teacher share" if share < 1 else ""
        raise SettingsError(f"--engines: {required} do not fit into the cluster: {gpus:g} GPUs, {cpus:g} CPUs{shared}")
    return per_engine, engines


def _on_this_node() -> dict[str, Any]:
    """Return the options that keep an actor or a task on this machine."""
    import ray

    return {"label_selector": {"ray.io/node-id": ray.get_runtime_context().get_node_id()}}
