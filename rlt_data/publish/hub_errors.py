"""Errors of the Hub: which requests are sent again, and what the user is told."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable
from typing import TypeVar

from httpx2 import HTTPError, RequestError
from huggingface_hub import get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)

from rlt_data.engines.retries import RETRIED, pause, retry_after
from rlt_data.errors import HubError, RltDataError, SettingsError, first_line

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Tries of a request that may go well later.
_TRIES = 6
#: The head has moved since it was looked at.
_MOVED = 412
_TOO_MANY = 429
_COMMIT = re.compile(r"/api/\w+/[^/]+/[^/]+/commit/")


def with_retries(ask: Callable[[], T]) -> T:
    """Send a request again after transient errors, with growing pauses or as long as Retry-After says."""
    for tries in range(1, _TRIES):
        try:
            return ask()
        except Exception as error:
            wait = _wait(_cause(error), tries)
            if wait is None:
                raise
        if wait >= 1:
            logger.info("the Hub is asked again in %.0f s", wait)
        time.sleep(wait)
    return ask()


def _wait(error: BaseException, tries: int) -> float | None:
    """Return after how long to ask again; None where that would not help, or a commit may have been made."""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status not in RETRIED or (_was_commit(error) and status != _TOO_MANY):
            return None
        wait = retry_after(error.response.headers.get("Retry-After"))
        return pause(tries) if wait is None else wait
    passing = isinstance(error, (HTTPError, ConnectionError, TimeoutError)) and not _was_commit(error)
    passing = passing and not isinstance(error, OfflineModeIsEnabled)
    return pause(tries) if passing else None


def _was_commit(error: BaseException) -> bool:
    if isinstance(error, HfHubHTTPError):
        request = error.response.request
    elif isinstance(error, RequestError):
        request = error.request
    else:
        return False
    return _COMMIT.search(str(request.url)) is not None


def to_user_error(error: Exception, name: str, revision: str) -> RltDataError | None:
    """Turn an error of the library into one for the user, without the token; None if the Hub did not cause it.

    Args:
        error: what the library raised.
        name: of the repository.
        revision: its branch.
    """
    cause = _cause(error)
    if isinstance(cause, HFValidationError):
        return SettingsError(f"--repo-id: {first_line(cause)}")
    if isinstance(cause, LocalTokenNotFoundError):
        return _no_token(name)
    if isinstance(cause, OfflineModeIsEnabled):
        return HubError(f"{name}: HF_HUB_OFFLINE is set, so the Hub is not asked")
    if isinstance(cause, UnicodeEncodeError):
        return HubError(f"{name}: the token holds what no token has; set HF_TOKEN to it alone, or run hf auth login")
    if isinstance(cause, HfHubHTTPError):
        return _answered(cause, name, revision)
    if isinstance(cause, (HTTPError, ConnectionError, TimeoutError)):
        return HubError(f"{name}: the Hub cannot be reached ({type(cause).__name__}); the same command goes on later")
    if isinstance(cause, ValueError):  # such as an answer that is not JSON
        said = _without_token(first_line(cause))
        return HubError(f"{name}: the Hub's answer is not understood ({said}); the same command goes on later")
    return None


def _answered(error: HfHubHTTPError, name: str, revision: str) -> HubError:
    status = error.response.status_code if error.response is not None else 0
    said = _without_token(error.server_message or "").strip().splitlines()
    message = f" ({said[0]})" if said else ""
    if status == 401 and not get_token():
        return _no_token(name)
    if isinstance(error, GatedRepoError) or status in (401, 403):
        return HubError(
            f"{name}: the Hub does not let this token write there{message}; HF_TOKEN or hf auth login must hold one "
            "that may"
        )
    if status == _MOVED:
        return HubError(
            f"{name}: somebody changed {revision} meanwhile; nothing of theirs is lost, and the same command goes on "
            "from there",
            moved=True,
        )
    later = "; the same command goes on later" if status in RETRIED else ""
    return HubError(f"{name}: the Hub answers {status}{message}{later}")


def _no_token(name: str) -> HubError:
    return HubError(f"{name}: the Hub wants a token: set HF_TOKEN, or run hf auth login")


def card_errors(answer: str) -> str:
    """Return the Hub's errors about a card, in one line."""
    try:
        said = "; ".join(str(each["message"]) for each in json.loads(answer)["errors"])
    except (ValueError, KeyError, TypeError):
        said = answer
    return _without_token(" ".join(said.split()))


def _cause(error: BaseException) -> BaseException:
    """Return the error behind one in which the library has wrapped it."""
    while isinstance(error, (RuntimeError, LocalEntryNotFoundError)) and error.__cause__:
        error = error.__cause__
    return error


def _without_token(text: str) -> str:
    """Take tokens out of what a server says, which may repeat what it was sent."""
    if token := get_token():
        text = text.replace(token, "***")
    return re.sub(r"\bhf_\w{8,}", "***", text)
