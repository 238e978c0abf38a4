"""Which URL gets a request, and what happens when one fails.

A request goes to the URL with the fewest in flight, of those that work. A URL that fails several times in a row, or
asks to be left alone (Retry-After), rests: it gets nothing until a small request of ours has been answered there.
A failed request is sent again after a random pause that grows. A try counts against it only once its URL has answered
something since, and never where the server was busy: an outage costs a try or two, however long it lasts, and a rate
limit costs none. That nothing waits for ever is the watchdog's business.
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
from rlt_data.engines.server.probing import DENIED, PROBE_SECONDS, Dialect, Served
from rlt_data.engines.server.transport import Refusal, Transport, Trouble, reading
from rlt_data.errors import EngineError

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Failures in a row after which a URL rests.
_FAILURES_IN_A_ROW = 3
#: Kinds of trouble that are kept of each URL, for messages.
_TROUBLES = 10


class GaveUp(Exception):
    """A request failed too often."""


@dataclass
class Endpoint:
    """A URL and how it is doing.

    Attributes:
        url: its base.
        served: what it serves.
        dialect: how it is asked for samples, once that is known.
        scoring: parameters that bring log-probs of prompts, once they are known.
        in_flight: requests that it is working on.
        answers: requests that it has answered.
        failures: requests that failed since the last answer.
        resting: it gets nothing for now.
        rests_until: when to try it again, by the monotonic clock.
        denial: why it refuses all requests, if it does.
        troubles: what went wrong and how often, the latest kind last.
    """

    url: str
    served: Served
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
        """How it is asked for samples."""
        assert self.dialect is not None, "nobody has asked yet"
        return self.dialect

    @property
    def known_scoring(self) -> Mapping[str, Any]:
        """Parameters that bring log-probs of prompts."""
        assert self.scoring is not None, "nobody has asked yet"
        return self.scoring

    def note(self, trouble: object) -> None:
        """Keep what went wrong."""
        reason = str(trouble)
        self.recent_errors[reason] = self.recent_errors.pop(reason, 0) + 1
        if len(self.recent_errors) > _TROUBLES:
            del self.recent_errors[next(iter(self.recent_errors))]


class Router:
    """Sends requests to whichever URL suits; all of it runs on one event loop.

    Args:
        transport: how URLs are reached.
        endpoints: the URLs.
        concurrency: requests at a time to each.
        retries: tries of a request after the first.
    """

    def __init__(self, transport: Transport, endpoints: Sequence[Endpoint], concurrency: int, retries: int) -> None:
        self.endpoints = endpoints
        self._transport = transport
        self._concurrency = concurrency
        self._retries = retries
        self._waiting: deque[asyncio.Future[Endpoint]] = deque()
        self._health_checks: set[asyncio.Task[None]] = set()
        self._end: EngineError | None = None

    async def send(
        self, body: Callable[[Endpoint], dict[str, Any]], read: Callable[[Endpoint, dict[str, Any]], T]
    ) -> T:
        """Send a request until it is answered.

        Args:
            body: makes the request for a URL.
            read: reads that URL's answer.

        Raises:
            Refusal: a server will not answer this request.
            GaveUp: it failed too often.
            EngineError: all servers refuse all requests.
        """
        tried: list[tuple[Endpoint, int]] = []  # where a try failed, and how many answers had come from there
        failed = 0
        while True:
            endpoint = await self._free()
            try:
                answer = await self._post(endpoint, body(endpoint))
                with reading():
                    result = read(endpoint, answer)
            except Trouble as trouble:
                self._failed(endpoint, trouble)
                failed += 1
                if not trouble.busy:
                    tried.append((endpoint, endpoint.answers))
                if sum(where.answers > answers for where, answers in tried) > self._retries:
                    raise GaveUp(f"{failed} tries failed, the last one at {endpoint.url}: {trouble}") from None
            except Refusal as refusal:
                if refusal.status not in DENIED or await self._answers_others(endpoint):
                    self._answered(endpoint)
                    raise
            else:
                self._answered(endpoint)
                return result
            finally:
                self._release(endpoint)
            await asyncio.sleep(pause(failed))

    def recent_errors(self) -> str:
        """Return what went wrong lately, one line for each kind and URL."""
        return "\n".join(
            f"{endpoint.url}: {reason}" + (f" ({count} times)" if count > 1 else "")
            for endpoint in self.endpoints
            for reason, count in list(endpoint.recent_errors.items())
        )

    # Places

    async def _free(self) -> Endpoint:
        """Take a place at the URL with the fewest requests; wait where none is free."""
        place: asyncio.Future[Endpoint] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        self._hand_out()
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and not place.exception():
                self._release(place.result())
            raise

    def _hand_out(self) -> None:
        while self._waiting:
            free = [each for each in self.endpoints if not each.unhealthy and each.in_flight < self._concurrency]
            if not free and self._end is None:
                return
            place = self._waiting.popleft()
            if place.done():
                continue  # whoever waited has gone
            if self._end is not None:
                place.set_exception(self._end)
                continue
            best = min(free, key=lambda each: each.in_flight)
            best.in_flight += 1
            place.set_result(best)

    def _release(self, endpoint: Endpoint) -> None:
        endpoint.in_flight -= 1
        self._hand_out()

    # Health

    async def _post(self, endpoint: Endpoint, body: dict[str, Any], limit: float = math.inf) -> dict[str, Any]:
        body = {"model": endpoint.served.name, **body}
        answer: dict[str, Any] = await self._transport.post(f"{endpoint.url}/completions", body, limit)
        return answer

    async def _problem(self, endpoint: Endpoint) -> Trouble | Refusal | None:
        """Send a small request that is known to be all right, and return what is wrong with the URL, if anything."""
        try:
            answer = await self._post(endpoint, {"prompt": "Once upon a time", "max_tokens": 1}, PROBE_SECONDS)
            with reading():
                str(answer["choices"][0]["text"])
        except Trouble as trouble:
            endpoint.note(trouble)
            return trouble
        except Refusal as refusal:
            endpoint.note(refusal)
            self._deny(endpoint, refusal)
            return refusal
        return None

    def _answered(self, endpoint: Endpoint) -> None:
        endpoint.answers += 1
        endpoint.failures = 0

    def _failed(self, endpoint: Endpoint, trouble: Trouble) -> None:
        endpoint.note(trouble)
        endpoint.failures += 1
        if trouble.retry_after:
            self._mark_unhealthy(endpoint, trouble.retry_after)
        elif endpoint.failures >= _FAILURES_IN_A_ROW:
            self._mark_unhealthy(endpoint, pause(0))

    def _mark_unhealthy(self, endpoint: Endpoint, seconds: float) -> None:
        endpoint.retry_at = max(endpoint.retry_at, time.monotonic() + seconds)
        if not endpoint.unhealthy:
            endpoint.unhealthy = True
            check = asyncio.get_running_loop().create_task(self._health_check(endpoint))
            self._health_checks.add(check)
            check.add_done_callback(self._health_checks.discard)

    async def _health_check(self, endpoint: Endpoint) -> None:
        """Try a resting URL now and then, until it answers."""
        tries = 0
        while endpoint.unhealthy:
            while (seconds := endpoint.retry_at - time.monotonic()) > 0 or endpoint.in_flight >= self._concurrency:
                await asyncio.sleep(max(seconds, 0.1))
            endpoint.in_flight += 1
            tries += 1
            try:
                problem = await self._problem(endpoint)
                if problem is None:
                    endpoint.unhealthy, endpoint.auth_error = False, None
                    self._answered(endpoint)
            finally:
                self._release(endpoint)
            if problem is None and tries > 1:
                logger.info("%s: answers again", endpoint.url)
            elif problem is not None:
                wait = problem.retry_after if isinstance(problem, Trouble) else None
                endpoint.retry_at = time.monotonic() + (wait or pause(tries))
                if tries == 1:
                    logger.info("%s: left aside for now (%s)", endpoint.url, problem)

    async def _answers_others(self, endpoint: Endpoint) -> bool:
        """Find out whether a URL refuses one request, or all; one with a problem rests."""
        problem = await self._problem(endpoint)
        if problem is not None:
            self._mark_unhealthy(endpoint, pause(0))
        return problem is None

    def _deny(self, endpoint: Endpoint, refusal: Refusal) -> None:
        """Note that a URL refuses all requests; where all of them do, nothing is left to wait for."""
        endpoint.auth_error = str(refusal)
        if all(each.auth_error for each in self.endpoints):
            hint = f"; {self._transport.about_the_key}" if refusal.status in (401, 403) else ""
            self._end = EngineError(f"{endpoint.url}: refuses all requests ({refusal}){hint}")
            self._hand_out()
