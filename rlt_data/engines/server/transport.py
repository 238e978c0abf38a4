"""One request to one URL: the answer, or what went wrong in words that may be shown to anyone."""

from __future__ import annotations

import asyncio
import json
import math
import os
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

from rlt_data.engines.retries import RETRIED, retry_after
from rlt_data.errors import SettingsError
from rlt_data.settings import ModelSettings

_LONGEST_MESSAGE = 300

#: The largest body that is read. Log-probs of a text of 131,072 tokens take 18 MB in the longest form.
_LARGEST_BODY = 64 * 2**20

#: Servers close idle connections after a few seconds; a request that is just then sent on one would be lost.
_KEEP_IDLE_SECONDS = 2.0


class Trouble(Exception):
    """A request failed in a way that may pass.

    Attributes:
        retry_after: seconds for which the server wants to be left alone, if it said so.
        busy: the server has too much to do, which is not the request's fault.
    """

    def __init__(self, reason: str, retry_after: float | None = None, *, busy: bool = False) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        self.busy = busy


class Unreachable(Trouble):
    """There was no connection at all."""


class Refusal(Exception):
    """The server will not answer this request, however often it is sent.

    Attributes:
        status: of the answer.
    """

    def __init__(self, reason: str, status: int) -> None:
        super().__init__(reason)
        self.status = status


class Transport:
    """Connections to all URLs.

    Args:
        settings: time limits, and the variable that holds the key.

    Raises:
        SettingsError: the key cannot be one.
    """

    def __init__(self, settings: ModelSettings) -> None:
        key = os.environ.get(settings.api_key_env, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise SettingsError(f"--api-key-env: {settings.api_key_env} holds characters that no key has")
        self._key = key
        self._key_name = settings.api_key_env
        self._read_timeout = settings.read_timeout
        self._connect_timeout = settings.connect_timeout
        connections = settings.concurrency * len(settings.url)
        self._client = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(None, connect=settings.connect_timeout),
            limits=httpx2.Limits(
                max_connections=connections,
                max_keepalive_connections=connections,
                keepalive_expiry=_KEEP_IDLE_SECONDS,
            ),
        )

    @property
    def about_the_key(self) -> str:
        """What to do where a server refuses to let us in."""
        if self._key:
            return f"it does not take the key in {self._key_name} (--api-key-env names another variable)"
        return f"if it wants a key, put it into {self._key_name}, or name another variable with --api-key-env"

    async def get(self, url: str, limit: float = math.inf) -> Any:
        """Get a JSON document; as :meth:`post`."""
        return await self._request("GET", url, None, limit)

    async def post(self, url: str, body: dict[str, Any], limit: float = math.inf) -> Any:
        """Send a JSON document and return the one that comes back.

        Args:
            url: where to.
            body: what.
            limit: seconds for the whole answer, if that is less than ``--read-timeout``.

        Raises:
            Trouble: no answer, none of use, or a status in :data:`~rlt_data.engines.retries.RETRIED`.
            Refusal: any other error.
        """
        return await self._request("POST", url, body, limit)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def _request(self, method: str, url: str, body: dict[str, Any] | None, limit: float) -> Any:
        hint = " (--read-timeout)" if self._read_timeout <= limit else ""
        limit = min(limit, self._read_timeout)
        try:
            async with asyncio.timeout(limit), self._client.stream(method, url, json=body) as response:
                content = await _body(response)
        except TimeoutError:
            raise Trouble(f"no answer within {limit:g} s{hint}") from None
        except httpx2.ConnectTimeout:
            raise Unreachable(f"no connection within {self._connect_timeout:g} s (--connect-timeout)") from None
        except httpx2.ConnectError as error:
            raise Unreachable(self._shown(_cause(error))) from None
        except (httpx2.RequestError, httpx2.InvalidURL) as error:
            raise Trouble(f"the connection broke: {self._shown(_cause(error))}") from None
        if response.is_success:
            with reading():
                return json.loads(content)
        reason = f"HTTP {response.status_code}: {self._shown(_message(content)) or response.reason_phrase}"
        if response.status_code in RETRIED:
            wait = retry_after(response.headers.get("Retry-After"))
            raise Trouble(reason, wait, busy=response.status_code == 429 or wait is not None)
        raise Refusal(reason, response.status_code)

    def _shown(self, text: str) -> str:
        """Return the first line of what a server or a library says, without the key and without control characters."""
        if self._key:
            text = text.replace(self._key, "***")
        line = next((line.strip() for line in text.splitlines() if line.strip()), "")
        return "".join(char for char in line if unicodedata.category(char)[0] != "C")[:_LONGEST_MESSAGE]


@contextmanager
def reading() -> Iterator[None]:
    """Read an answer: where it is not as it should be, that is trouble like a broken connection."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise Trouble(f"an answer that cannot be read ({type(error).__name__})") from None


def _cause(error: BaseException) -> str:
    """Return the operating system's word for what happened to a connection, or the library's."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None and cause.errno > 0:
            return os.strerror(cause.errno)
        cause = cause.__cause__ or cause.__context__
    return str(error) or type(error).__name__


async def _body(response: httpx2.Response) -> bytes:
    """Read a body, or of an error that is too large, its beginning.

    Raises:
        Refusal: an answer is larger than :data:`_LARGEST_BODY`.
    """
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > _LARGEST_BODY:
            if response.is_success:
                raise Refusal(f"an answer of more than {_LARGEST_BODY // 2**20} MiB", response.status_code)
            break
    return bytes(body)


def _message(body: bytes) -> str:
    """Return what the body of an error says; servers have several ways."""
    text = body.decode(errors="replace")
    try:
        content = json.loads(text)
        for name in ("error", "detail", "message"):
            if isinstance(content, dict) and name in content:
                content = content[name]
        return content if isinstance(content, str) else str(content)
    except (ValueError, RecursionError):
        return text
