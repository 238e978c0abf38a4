"""Choose a URL for each request, and retry requests that fail.

A request goes to the healthy URL with the fewest requests in flight. A URL that fails several times in a row, or sends
Retry-After, is unhealthy: it gets no requests until it answers a small health check.

A failed request is retried after a random pause that grows. A failed try counts only if its URL has answered something
since, and not if the server was busy. So an outage of any length costs one or two tries, and a rate limit costs none.
The watchdog handles hangs.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rlt_data.engines.retries import pause
from rlt_data.engines.server.probing import DENIED, PROBE_SECONDS, Dialect, ServedModel
from rlt_data.engines.server.transport import Refusal, TemporaryError, Transport, unreadable_is_temporary
from rlt_data.errors import EngineError

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Consecutive failures after which a URL is unhealthy.
_MAX_FAILURES = 3
#: Number of different errors kept per URL, for messages.
_MAX_ERRORS = 10


class RetriesExhausted(Exception):
    """A request failed too often."""


@dataclass
class Endpoint:
    """A URL and its state.

    Attributes:
        url: the base URL.
        served: the model behind the URL.
        dialect: how the server takes requests for samples; None until it is probed.
        scoring: parameters that return the log-probs of prompts; None until they are probed.
        in_flight: number of running requests.
        answers: number of answered requests.
        failures: number of failed requests since the last answer.
        unhealthy: the URL gets no requests.
        retry_at: time of the next health check, on the monotonic clock.
        auth_error: why the URL refuses all requests; None if it does not.
        recent_errors: number of occurrences by message, the latest message last.
    """

    url: str
    served: ServedModel
    dialect: Dialect | None = None
    scoring: Mapping[str, Any] | None = None
    in_flight: int = 0
    answers: int = 0
    failures: int = 0
    unhealthy: bool = False
    retry_at: float = 0.0
    auth_error: str | None = None
    recent_errors: dict[str, int] = field(default_factory=dict)

    @property
    def known_dialect(self) -> Dialect:
        """The dialect, after it was probed."""
        assert self.dialect is not None, "not probed yet"
        return self.dialect

    @property
    def known_scoring(self) -> Mapping[str, Any]:
        """The scoring parameters, after they were probed."""
        assert self.scoring is not None, "not probed yet"
        return self.scoring

    def record_error(self, error: Exception) -> None:
        """Add an error to the recent ones."""
        reason = str(error)
        self.recent_errors[reason] = self.recent_errors.pop(reason, 0) + 1
        if len(self.recent_errors) > _MAX_ERRORS:
            del self.recent_errors[next(iter(self.recent_errors))]


class Router:
    """Sends requests to the best URL; runs on one event loop.

    Args:
        transport: sends the requests.
        endpoints: the URLs.
        concurrency: maximum number of requests in flight per URL.
        retries: number of tries of a request after the first.
    """

    def __init__(self, transport: Transport, endpoints: Sequence[Endpoint], concurrency: int, retries: int) -> None:
        self.endpoints = endpoints
        self._transport = transport
        self._concurrency = concurrency
        self._retries = retries
        self._waiting: deque[asyncio.Future[Endpoint]] = deque()
        self._health_checks: set[asyncio.Task[None]] = set()
        self._fatal: EngineError | None = None

    async def send(
        self, body: Callable[[Endpoint], dict[str, Any]], read: Callable[[Endpoint, dict[str, Any]], T]
    ) -> T:
        """Send a request until it is answered, and return what ``read`` returns.

        Args:
            body: builds the request's body for a URL.
            read: reads the URL's response.

        Raises:
            Refusal: a server refuses this request.
            RetriesExhausted: the request failed too often.
            EngineError: all servers refuse all requests.
        """
        failed_tries: list[tuple[Endpoint, int]] = []  # the URL, and its number of answers at that time
        failures = 0
        while True:
            endpoint = await self._acquire()
            try:
                answer = await self._post(endpoint, body(endpoint))
                with unreadable_is_temporary():
                    result = read(endpoint, answer)
            except TemporaryError as error:
                self._on_failure(endpoint, error)
                failures += 1
                if not error.busy:
                    failed_tries.append((endpoint, endpoint.answers))
                if sum(failed.answers > answers for failed, answers in failed_tries) > self._retries:
                    reason = f"{failures} tries failed, the last one at {endpoint.url}: {error}"
                    raise RetriesExhausted(reason) from None
            except Refusal as refusal:
                if refusal.status not in DENIED or await self._refuses_only_this(endpoint):
                    self._on_answer(endpoint)
                    raise
            else:
                self._on_answer(endpoint)
                return result
            finally:
                self._release(endpoint)
            await asyncio.sleep(pause(failures))

    def recent_errors(self) -> str:
        """Return the recent errors, one line per URL and message."""
        return "\n".join(
            f"{endpoint.url}: {reason}" + (f" ({count} times)" if count > 1 else "")
            for endpoint in self.endpoints
            for reason, count in list(endpoint.recent_errors.items())
        )

    # Slots

    async def _acquire(self) -> Endpoint:
        """Wait for a free slot at a healthy URL, and take one at the URL with the fewest requests."""
        slot: asyncio.Future[Endpoint] = asyncio.get_running_loop().create_future()
        self._waiting.append(slot)
        self._assign_slots()
        try:
            return await slot
        except asyncio.CancelledError:
            if slot.done() and not slot.cancelled() and not slot.exception():
                self._release(slot.result())
            raise

    def _assign_slots(self) -> None:
        while self._waiting:
            available = [
                endpoint
                for endpoint in self.endpoints
                if not endpoint.unhealthy and endpoint.in_flight < self._concurrency
            ]
            if not available and self._fatal is None:
                return
            slot = self._waiting.popleft()
            if slot.done():
                continue  # the waiting request was cancelled
            if self._fatal is not None:
                slot.set_exception(self._fatal)
                continue
            least_loaded = min(available, key=lambda endpoint: endpoint.in_flight)
            least_loaded.in_flight += 1
            slot.set_result(least_loaded)

    def _release(self, endpoint: Endpoint) -> None:
        endpoint.in_flight -= 1
        self._assign_slots()

    # Health

    async def _post(self, endpoint: Endpoint, body: dict[str, Any], limit: float = math.inf) -> dict[str, Any]:
        body = {"model": endpoint.served.name, **body}
        answer: dict[str, Any] = await self._transport.post(f"{endpoint.url}/completions", body, limit)
        return answer

    async def _check(self, endpoint: Endpoint) -> TemporaryError | Refusal | None:
        """Send a small valid request, and return its error; None if the URL answers."""
        try:
            answer = await self._post(endpoint, {"prompt": "Once upon a time", "max_tokens": 1}, PROBE_SECONDS)
            with unreadable_is_temporary():
                str(answer["choices"][0]["text"])
        except TemporaryError as error:
            endpoint.record_error(error)
            return error
        except Refusal as refusal:
            endpoint.record_error(refusal)
            self._on_refusal_of_all(endpoint, refusal)
            return refusal
        return None

    def _on_answer(self, endpoint: Endpoint) -> None:
        endpoint.answers += 1
        endpoint.failures = 0

    def _on_failure(self, endpoint: Endpoint, error: TemporaryError) -> None:
        endpoint.record_error(error)
        endpoint.failures += 1
        if error.retry_after:
            self._mark_unhealthy(endpoint, error.retry_after)
        elif endpoint.failures >= _MAX_FAILURES:
            self._mark_unhealthy(endpoint, pause(0))

    def _mark_unhealthy(self, endpoint: Endpoint, seconds: float) -> None:
        endpoint.retry_at = max(endpoint.retry_at, time.monotonic() + seconds)
        if not endpoint.unhealthy:
            endpoint.unhealthy = True
            check = asyncio.get_running_loop().create_task(self._health_check(endpoint))
            self._health_checks.add(check)
            check.add_done_callback(self._health_checks.discard)

    async def _health_check(self, endpoint: Endpoint) -> None:
        """Check an unhealthy URL again and again until it answers."""
        tries = 0
        while endpoint.unhealthy:
            while (seconds := endpoint.retry_at - time.monotonic()) > 0 or endpoint.in_flight >= self._concurrency:
                await asyncio.sleep(max(seconds, 0.1))
            endpoint.in_flight += 1
            tries += 1
            try:
                error = await self._check(endpoint)
                if error is None:
                    endpoint.unhealthy, endpoint.auth_error = False, None
                    self._on_answer(endpoint)
            finally:
                self._release(endpoint)
            if error is None and tries > 1:
                logger.info("%s: answers again", endpoint.url)
            elif error is not None:
                wait = error.retry_after if isinstance(error, TemporaryError) else None
                endpoint.retry_at = time.monotonic() + (wait or pause(tries))
                if tries == 1:
                    logger.info("%s: not used until it answers again (%s)", endpoint.url, error)

    async def _refuses_only_this(self, endpoint: Endpoint) -> bool:
        """Return whether a URL that refused one request answers another; mark it unhealthy if not."""
        error = await self._check(endpoint)
        if error is not None:
            self._mark_unhealthy(endpoint, pause(0))
        return error is None

    def _on_refusal_of_all(self, endpoint: Endpoint, refusal: Refusal) -> None:
        """Record that a URL refuses all requests, and end the run if all URLs do."""
        endpoint.auth_error = str(refusal)
        if all(endpoint.auth_error for endpoint in self.endpoints):
            hint = f"; {self._transport.key_hint}" if refusal.status in (401, 403) else ""
            self._fatal = EngineError(f"{endpoint.url}: refuses all requests ({refusal}){hint}")
            self._assign_slots()
