"""The errors that users can do something about, each with the exit code of the command line.

A message says in one line what is wrong, where, and what would be right. Bugs raise other classes and show a traceback.
"""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterable, Sequence


class RltDataError(Exception):
    """Base class of all errors of rlt-data; the message needs no traceback."""

    exit_code = 1


class SettingsError(RltDataError):
    """A flag, YAML key or argument is unknown, missing or wrong."""

    exit_code = 2


class InputError(RltDataError):
    """Input data cannot be read, or lacks what the step needs."""

    exit_code = 3


class RunFolderError(RltDataError):
    """A run folder does not exist, is locked, was made with other settings, or lacks a table that the step reads."""

    exit_code = 5


class ModelError(RltDataError):
    """A model or an engine cannot be found, loaded or used for this step."""

    exit_code = 6


class EngineError(RltDataError):
    """An engine stopped: it crashed too often, a server refused all requests, or it made no progress for too long."""

    exit_code = 8


class DiskError(RltDataError):
    """Writing failed because the disk is full or the folder is not writable. Existing files are unchanged."""

    exit_code = 7


class HubError(RltDataError):
    """The Hub refused a request or cannot be reached. Uploaded files are kept, and the same command continues.

    Attributes:
        moved: whether someone else changed the branch during the upload.
    """

    exit_code = 9

    def __init__(self, message: str, *, moved: bool = False) -> None:
        super().__init__(message)
        self.moved = moved


#: Exit code of a step that finished, but with failed rows in ``errors.jsonl``.
SOME_ROWS_FAILED = 4

#: Exit code after Ctrl-C or SIGTERM; the same command continues the run.
INTERRUPTED = 130


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error message, or the name of its class if it has no message.

    A line that ends with a colon is a heading, so the next one follows it.
    """
    first, *others = str(error).strip().splitlines() or [type(error).__name__]
    return f"{first} {others[0].strip()}" if others and first.endswith(":") else first


def one_line(error: BaseException) -> str:
    """Return another library's error message as one line of at most 300 characters, or the name of its class."""
    return textwrap.shorten(str(error), 300, placeholder=" ...") or type(error).__name__


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of a message that proposes the known name nearest to an unknown one; empty if none is near."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def first_few(names: Sequence[str]) -> str:
    """Return the first three names for a message, each of at most 60 characters, and the number of the others."""
    shown = ", ".join(name if len(name) <= 60 else f"{name[:57]}..." for name in names[:3])
    return shown + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
