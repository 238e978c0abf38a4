"""What can go wrong in the hands of a user, each with the exit code the command line ends with.

Every message is one or a few lines for the person at the terminal: what was wrong, where, and what would be right.
A bug of ours is none of these classes and shows its traceback.
"""

from __future__ import annotations

import textwrap


class RltDataError(Exception):
    """A mistake or a limit that the user can do something about; the message needs no traceback."""

    exit_code = 1


class SettingsError(RltDataError):
    """A flag or a YAML key that is unknown, missing or out of range."""

    exit_code = 2


class InputError(RltDataError):
    """Input data that cannot be read or does not hold what a step needs."""

    exit_code = 3


class RunFolderError(RltDataError):
    """A run folder that is locked, made by other settings, or lacks the table a step reads."""

    exit_code = 5


class ModelError(RltDataError):
    """A model or an engine that cannot be found, loaded or used for what was asked."""

    exit_code = 6


class EngineError(RltDataError):
    """An engine that stopped: it died too often, a server refused all requests, or nothing moved for too long."""

    exit_code = 8


class DiskError(RltDataError):
    """Writing failed: the disk is full, or the folder cannot be written. What was on disk is as it was."""

    exit_code = 7


class HubError(RltDataError):
    """The Hub refused something, or could not be reached; what was uploaded is there, and the same command goes on.

    Attributes:
        moved: somebody else changed the branch meanwhile.
    """

    exit_code = 9

    def __init__(self, message: str, *, moved: bool = False) -> None:
        super().__init__(message)
        self.moved = moved


#: Exit code of a step that finished while some of its rows are in ``errors.jsonl``.
SOME_ROWS_FAILED = 4

#: Exit code after Ctrl-C or SIGTERM; the same command continues the run.
INTERRUPTED = 130


def first_line(error: BaseException) -> str:
    """Return the first line of another library's message, or the error's kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def one_line(error: BaseException) -> str:
    """Return another library's message with its lines joined and cut, or the error's kind where it says nothing."""
    return textwrap.shorten(str(error), 300, placeholder=" ...") or type(error).__name__
