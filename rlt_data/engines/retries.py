"""Which failed HTTP requests to retry, and how long to wait before each retry."""

from __future__ import annotations

import random
import time
from email.utils import parsedate_to_datetime

#: Statuses of temporary errors. After any other error the same request would fail again.
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})

#: Upper limit for a server's Retry-After, in seconds.
LONGEST_WAIT = 600.0

#: Upper limits of the pause after the first try and of any pause, in seconds.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0

_random = random.Random()  # separate, so that it does not advance a generator that the user has seeded


def pause(tries: int) -> float:
    """Return the seconds to wait after ``tries`` failed tries: random, up to a limit that doubles with each try."""
    return _random.uniform(0.0, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** (min(tries, 16) - 1)))


def retry_after(value: str | None) -> float | None:
    """Parse a Retry-After header, seconds or a date, into seconds; return None if it is missing or unreadable."""
    if value is None:
        return None
    try:
        seconds = float(value) if value.strip().isdecimal() else parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(seconds, 0.0), LONGEST_WAIT)
