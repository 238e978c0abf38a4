"""Send one request to one URL. Error messages never contain the API key."""

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

_MAX_MESSAGE = 300

#: Limit for a response's body. The log-probs of a text of 131,072 tokens take at most 18 MB.
_MAX_BODY = 64 * 2**20

#: Servers close idle connections after a few seconds; a request sent at that moment would be lost.
_KEEP_IDLE_SECONDS = 2.0


class TemporaryError(Exception):
    """A request failed, but may succeed when it is sent again.

    Attributes:
        retry_after: seconds to wait, if the server sent Retry-After.
        busy: the server is overloaded, whatever the request is.
    """

    def __init__(self, reason: str, retry_after: float | None = None, *, busy: bool = False) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        self.busy = busy


class Unreachable(TemporaryError):
    """No connection was made."""


class Refusal(Exception):
    """The server refused this request and would refuse it again.

    Attributes:
        status: HTTP status of the response.
    """

    def __init__(self, reason: str, status: int) -> None:
        super().__init__(reason)
        self.status = status


class Transport:
    """Connections to all URLs.

    Args:
        settings: time limits, and the environment variable with the API key.

    Raises:
        SettingsError: the key holds characters that no key has.
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
    def key_hint(self) -> str:
        """Advice about the API key, for errors of authentication."""
        if self._key:
            return f"it does not accept the key in {self._key_name} (--api-key-env names another variable)"
        return f"if it needs a key, put it into {self._key_name}, or name another variable with --api-key-env"

    async def get(self, url: str, limit: float = math.inf) -> Any:
        """Get a JSON document; arguments and errors as for :meth:`post`."""
        return await self._request("GET", url, None, limit)

    async def post(self, url: str, body: dict[str, Any], limit: float = math.inf) -> Any:
        """Send a JSON document and return the JSON document in the response.

        Args:
            url: complete URL.
            body: the document.
            limit: seconds for the complete response, if less than ``--read-timeout``.

        Raises:
            TemporaryError: no response, an unreadable one, or a status in :data:`~rlt_data.engines.retries.RETRIED`.
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
            raise TemporaryError(f"no answer within {limit:g} s{hint}") from None
        except httpx2.ConnectTimeout:
            raise Unreachable(f"no connection within {self._connect_timeout:g} s (--connect-timeout)") from None
        except httpx2.ConnectError as error:
            raise Unreachable(self._redact(_cause(error))) from None
        except (httpx2.RequestError, httpx2.InvalidURL) as error:
            raise TemporaryError(f"the connection broke: {self._redact(_cause(error))}") from None
        if response.is_success:
            with unreadable_is_temporary():
                return json.loads(content)
        reason = f"HTTP {response.status_code}: {self._redact(_message(content)) or response.reason_phrase}"
        if response.status_code in RETRIED:
            wait = retry_after(response.headers.get("Retry-After"))
            raise TemporaryError(reason, wait, busy=response.status_code == 429 or wait is not None)
        raise Refusal(reason, response.status_code)

    def _redact(self, text: str) -> str:
        """Return the first line of a message, shortened, without the key and without control characters."""
        if self._key:
            text = text.replace(self._key, "***")
        line = next((line.strip() for line in text.splitlines() if line.strip()), "")
        return "".join(char for char in line if unicodedata.category(char)[0] != "C")[:_MAX_MESSAGE]


@contextmanager
def unreadable_is_temporary() -> Iterator[None]:
    """Raise TemporaryError, as for a broken connection, if the block cannot read a response."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise TemporaryError(f"an answer that cannot be read ({type(error).__name__})") from None


def _cause(error: BaseException) -> str:
    """Return the operating system's message for a connection error, or else the library's."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None and cause.errno > 0:
            return os.strerror(cause.errno)
        cause = cause.__cause__ or cause.__context__
    return str(error) or type(error).__name__


async def _body(response: httpx2.Response) -> bytes:
    """Read a response's body; only the beginning of an error that is too large.

    Raises:
        Refusal: a successful response is larger than :data:`_MAX_BODY`.
    """
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > _MAX_BODY:
            if response.is_success:
                raise Refusal(f"an answer of more than {_MAX_BODY // 2**20} MiB", response.status_code)
            break
    return bytes(body)


def _message(body: bytes) -> str:
    """Return the message in an error's body, whose layout differs between servers."""
    text = body.decode(errors="replace")
    try:
        content = json.loads(text)
        for name in ("error", "detail", "message"):
            if isinstance(content, dict) and name in content:
                content = content[name]
        return content if isinstance(content, str) else str(content)
    except (ValueError, RecursionError):
        return text
