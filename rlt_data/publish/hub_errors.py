"""Errors of the Hub: which requests are retried, and what the user reads."""

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
    RepositoryNotFoundError,
)

from rlt_data.engines.retries import RETRIED, pause, retry_after
from rlt_data.errors import HubError, RltDataError, SettingsError, first_line

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Tries per request, the first included.
_TRIES = 6
#: HTTP status if the branch has changed since its head was read.
_MOVED = 412
_TOO_MANY_REQUESTS = 429
_COMMIT_URL = re.compile(r"/api/\w+/[^/]+/[^/]+/commit/")


def with_retries(request: Callable[[], T]) -> T:
    """Send a request, and retry it after transient errors: after Retry-After, else after growing pauses."""
    for tries in range(1, _TRIES):
        try:
            return request()
        except Exception as error:
            seconds = _seconds_to_retry(_root_cause(error), tries)
            if seconds is None:
                raise
        if seconds >= 1:
            logger.info("the Hub is busy or out of reach; retrying in %.0f s", seconds)
        time.sleep(seconds)
    return request()


def _seconds_to_retry(error: BaseException, tries: int) -> float | None:
    """Return the pause before the next try; None if a retry is useless or could commit twice."""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status not in RETRIED or (_is_from_commit(error) and status != _TOO_MANY_REQUESTS):
            return None
        seconds = retry_after(error.response.headers.get("Retry-After"))
        return pause(tries) if seconds is None else seconds
    if not _is_connection_error(error) or isinstance(error, OfflineModeIsEnabled) or _is_from_commit(error):
        return None
    return pause(tries)


def _is_connection_error(error: BaseException) -> bool:
    """Whether no complete answer came."""
    if isinstance(error, HfHubHTTPError):
        return False
    return isinstance(error, (HTTPError, ConnectionError, TimeoutError))


def _is_from_commit(error: BaseException) -> bool:
    if isinstance(error, HfHubHTTPError):
        request = error.response.request
    elif isinstance(error, RequestError):
        request = error.request
    else:
        return False
    return _COMMIT_URL.search(str(request.url)) is not None


def why_unreachable(error: Exception) -> str | None:
    """Return why no answer came from the Hub, in a few words; None if one came."""
    cause = _root_cause(error)
    if isinstance(cause, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    return f"the Hub cannot be reached ({type(cause).__name__})" if _is_connection_error(cause) else None


def why_no_comparison(error: Exception) -> str | None:
    """Return why a dry run cannot compare its files with the Hub; None if the Hub knows about the repository.

    An answer with another status than those for repositories comes from a proxy, or from a Hub that is out of order.
    """
    cause = _root_cause(error)
    if isinstance(cause, HfHubHTTPError) and not isinstance(cause, RepositoryNotFoundError):
        status = cause.response.status_code
        return None if status in (401, 403) else f"the Hub answered {status}"
    return why_unreachable(error)


def to_user_error(error: Exception, name: str, revision: str) -> RltDataError | None:
    """Turn an error of huggingface_hub into one for the user, without the token; None if the Hub did not cause it.

    Args:
        error: the exception that the library raised.
        name: the repository, ``ORG/NAME``.
        revision: the branch.
    """
    cause = _root_cause(error)
    if isinstance(cause, HFValidationError):
        return SettingsError(f"--repo-id: {first_line(cause)}")
    if isinstance(cause, LocalTokenNotFoundError):
        return _missing_token(name)
    if isinstance(cause, UnicodeEncodeError):
        return HubError(
            f"{name}: the token has characters that no token has; set HF_TOKEN to the token alone, or run hf auth login"
        )
    if isinstance(cause, HfHubHTTPError):
        return _refusal(cause, name, revision)
    if reason := why_unreachable(error):
        later = "" if isinstance(cause, OfflineModeIsEnabled) else "; run the same command later to continue"
        return HubError(f"{name}: {reason}{later}")
    if isinstance(cause, ValueError):  # such as an answer that is not JSON
        message = _without_token(first_line(cause))
        return HubError(f"{name}: the Hub's answer cannot be read ({message}); run the same command later to continue")
    return None


def _refusal(error: HfHubHTTPError, name: str, revision: str) -> HubError:
    """Return the error for an HTTP status."""
    status = error.response.status_code if error.response is not None else 0
    lines = _without_token(error.server_message or "").strip().splitlines()
    message = f" ({lines[0]})" if lines else ""
    if status == 401 and not get_token():
        return _missing_token(name)
    if isinstance(error, GatedRepoError) or status in (401, 403):
        return HubError(
            f"{name}: this token may not write to the repository{message}; set HF_TOKEN to one that may, or run hf "
            "auth login"
        )
    if status == _MOVED:
        return HubError(
            f"{name}: somebody else changed {revision} during the push; their change is kept, and the same command "
            "continues from it",
            moved=True,
        )
    later = "; run the same command later to continue" if status in RETRIED else ""
    return HubError(f"{name}: the Hub answered {status}{message}{later}")


def _missing_token(name: str) -> HubError:
    return HubError(f"{name}: the Hub requires a token: set HF_TOKEN, or run hf auth login")


def card_errors(answer: str) -> str:
    """Return the Hub's complaints about a card on one line."""
    try:
        messages = "; ".join(str(error["message"]) for error in json.loads(answer)["errors"])
    except (ValueError, KeyError, TypeError):
        messages = answer
    return _without_token(" ".join(messages.split()))


def _root_cause(error: BaseException) -> BaseException:
    """Return the error that huggingface_hub wrapped."""
    while isinstance(error, (RuntimeError, LocalEntryNotFoundError)) and error.__cause__:
        error = error.__cause__
    return error


def _without_token(text: str) -> str:
    """Replace tokens in a message of the server, which may repeat the request."""
    if token := get_token():
        text = text.replace(token, "***")
    return re.sub(r"\bhf_\w{8,}", "***", text)
