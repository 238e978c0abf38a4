"""errors.jsonl: the rows of a run that failed, so that the rest can go on and they can be run again.

One line per failure: ``key`` (of the row, or of the question where none of its rows can be made), ``step``,
``reason``, ``attempts``, ``source_id``. The latest line of a key and step counts; a torn last line is ignored.

On a disk a line is appended as soon as a row fails. To what is in a store nothing can be appended, so the file is
written anew there, now and then and at the end; a row whose line a kill took is tried again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rlt_data.errors import RunFolderError
from rlt_data.storage.paths import disk_errors, refusal
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import KEYS, TABLE_OF_STEP
from rlt_data.storage.writer import FLUSH_SECONDS

#: Name of the file in the run's folder.
NAME = "errors.jsonl"


class ErrorLog:
    """The failures of one step of a run.

    Args:
        run: the run.
        step: the step's name; failures of other steps are kept as they are.
        retry: whether failed rows are to be run again.
    """

    def __init__(self, run: RunFolder, step: str, *, retry: bool = False) -> None:
        self._run = run
        self._file = run.folder.on_disk / NAME if run.folder.on_disk else None
        self._step = step
        self._entries = _latest(run)
        self._retry = {key for at, key in self._entries if at == step} if retry else set()
        self._changed = False
        self._write_again_at = 0.0

    def __len__(self) -> int:
        """Count the rows of this step that have failed and not been made since."""
        return sum(step == self._step for step, _ in self._entries)

    def settled(self, key: str) -> bool:
        """Whether a row failed before and is not to be tried now."""
        return (self._step, key) in self._entries and key not in self._retry

    def retries(self, key: str) -> bool:
        """Whether a row failed before and is to be tried again."""
        return key in self._retry

    def add(self, key: str, reason: str, source_id: str | None) -> None:
        """Note a failure, on a disk durably."""
        attempts = self._entries.get((self._step, key), {}).get("attempts", 0) + 1
        entry = {"key": key, "step": self._step, "reason": reason, "attempts": attempts, "source_id": source_id}
        self._entries[self._step, key] = entry
        self._retry.discard(key)
        if self._file:
            with self._run.folder.appending(NAME):
                _append(self._file, entry)
        else:
            self._changed = True
            self._write_now_and_then()

    def resolve(self, key: str) -> None:
        """Note that a row that failed before has been made."""
        if self._entries.pop((self._step, key), None):
            self._retry.discard(key)
            self._changed = True

    def close(self) -> None:
        """Write the file anew if rows in it have been made since, or lines are missing there."""
        if self._changed:
            _write_whole(self._run, self._entries.values())
            self._changed = False

    def _write_now_and_then(self) -> None:
        began = time.monotonic()
        if began >= self._write_again_at:
            self.close()
            took = time.monotonic() - began
            self._write_again_at = began + max(FLUSH_SECONDS, 10 * took)  # a long file must not take all of the time


def failures(run: RunFolder) -> list[dict[str, Any]]:
    """Return the latest entry of every row that is in errors.jsonl."""
    return list(_latest(run).values())


def carry_failures(run: RunFolder, sources: Sequence[RunFolder]) -> int:
    """Take over what failed in other runs and has no row in this one, and return how much that is.

    Of a key that failed in several runs the entry of the first counts.
    """
    entries: dict[tuple[str, str], dict[str, Any]] = {}
    for source in reversed(sources):
        entries |= _latest(source)
    for step, table in TABLE_OF_STEP.items():
        failed = pa.array([key for at, key in entries if at == step], pa.string())
        for part in run.parts(table) if len(failed) else ():
            for column in run.read(table, part, [KEYS[table], "question_id"]).columns:
                for key in column.filter(pc.is_in(column, value_set=failed)).to_pylist():
                    entries.pop((step, key), None)
    if entries:
        _write_whole(run, entries.values())
    return len(entries)


def _latest(run: RunFolder) -> dict[tuple[str, str], dict[str, Any]]:
    entries: dict[tuple[str, str], dict[str, Any]] = {}
    try:
        lines = run.folder.read(NAME).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise RunFolderError(f"{run.path / NAME}: cannot be read: {refusal(error)}") from None
    for line in lines:
        try:
            entry = json.loads(line)
            entries[entry["step"], entry["key"]] = entry
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # torn by a kill; the row is still owed
    return entries


def _append(path: Path, entry: dict[str, Any]) -> None:
    with disk_errors(path), path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":  # torn by a kill
                file.write(b"\n")
        file.write(_line(entry).encode())
        file.flush()
        os.fsync(file.fileno())


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry) + "\n"


def _write_whole(run: RunFolder, entries: Iterable[dict[str, Any]]) -> None:
    text = "".join(_line(entry) for entry in entries)
    run.write_file(NAME, lambda temporary: temporary.write_text(text, encoding="utf-8"))
