"""When a request over HTTP is worth sending again, and after how long."""

from __future__ import annotations

import random
import time
from email.utils import parsedate_to_datetime

#: Statuses that may pass; after any other error the request would fail again.
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})

#: The longest wait that a server's Retry-After is granted, in seconds.
LONGEST_WAIT = 600.0

#: Pauses between tries, in seconds: the longest after the first, and the longest of all.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0

_random = random.Random()  # numbers of its own, so that nobody's seed is disturbed


def pause(tries: int) -> float:
    """Return for how many seconds to wait after some failed tries: anything up to a limit that doubles."""
    return _random.uniform(0.0, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** (min(tries, 16) - 1)))


def retry_after(value: str | None) -> float | None:
    """Read the header: seconds or a date; None where there is none or it cannot be read."""
    if value is None:
        return None
    try:
        seconds = float(value) if value.strip().isdecimal() else parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(seconds, 0.0), LONGEST_WAIT)
