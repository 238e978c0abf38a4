"""errors.jsonl: the rows of a run that failed. Steps continue after a failure and can retry the failed rows later.

Each line describes one failure: ``key`` (of the row, or of the question if all its rows fail), ``step``, ``reason``,
``attempts``, ``source_id`` and, for sampled rows, ``made_by``, because a question may fail with one teacher only. The
latest line of a key, step and maker counts. An incomplete last line is ignored.

On a disk, a line is appended as soon as a row fails. Objects in a store cannot be appended to, so there the file is
rewritten periodically and at the end. If a kill loses a line, its row is tried again.
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
from rlt_data.storage.schemas import KEYS, SCHEMAS, TABLE_OF_STEP, content_hash
from rlt_data.storage.writer import FLUSH_SECONDS

#: Name of the file in the run folder.
NAME = "errors.jsonl"

#: Step, key and maker of a failure.
_Id = tuple[str, str, str | None]
#: Steps whose rows have a column ``made_by``.
_SAMPLING = [step for step, table in TABLE_OF_STEP.items() if "made_by" in SCHEMAS[table].names]


class ErrorLog:
    """The failures of one step of a run.

    Args:
        run: the run.
        step: name of the step. Failures of other steps stay unchanged.
        made_by: hash of the settings of sampled rows. Failures of other settings stay unchanged.
        retry: whether to retry the failed rows.
    """

    def __init__(self, run: RunFolder, step: str, *, made_by: str | None = None, retry: bool = False) -> None:
        self._run = run
        self._file = run.folder.local_path / NAME if run.folder.local_path else None
        self._step = step
        self._made_by = made_by
        self._entries = _latest(run)
        own = {key for failed_step, key, maker in self._entries if (failed_step, maker) == (step, made_by)}
        self._retry = own if retry else set()
        self._changed = False
        self._next_write = 0.0

    def __len__(self) -> int:
        """Return the number of failed rows of this step, of all makers."""
        return sum(step == self._step for step, _, _ in self._entries)

    def _id(self, key: str) -> _Id:
        return self._step, key, self._made_by

    def settled(self, key: str) -> bool:
        """Return whether a row failed before and must not be retried now."""
        return self._id(key) in self._entries and key not in self._retry

    def retries(self, key: str) -> bool:
        """Return whether a row failed before and must be retried."""
        return key in self._retry

    def add(self, key: str, reason: str, source_id: str | None) -> None:
        """Record a failure. On a disk, it is durable when this returns."""
        attempts = self._entries.get(self._id(key), {}).get("attempts", 0) + 1
        entry = {"key": key, "step": self._step, "reason": reason, "attempts": attempts, "source_id": source_id}
        self._entries[self._id(key)] = entry | ({"made_by": self._made_by} if self._made_by else {})
        self._retry.discard(key)
        if self._file:
            with self._run.folder.append_to(NAME):
                _append(self._file, self._entries[self._id(key)])
        else:
            self._changed = True
            self._write_periodically()

    def resolve(self, key: str) -> None:
        """Remove the failure of a row that has succeeded since."""
        if self._entries.pop(self._id(key), None):
            self._retry.discard(key)
            self._changed = True

    def close(self) -> None:
        """Rewrite the file if its failures have changed."""
        if self._changed:
            _write(self._run, self._entries.values())
            self._changed = False

    def _write_periodically(self) -> None:
        start = time.monotonic()
        if start >= self._next_write:
            self.close()
            duration = time.monotonic() - start
            self._next_write = start + max(FLUSH_SECONDS, 10 * duration)  # at most a tenth of the time for a long file


def failures(run: RunFolder) -> list[dict[str, Any]]:
    """Return the latest entry of every row in errors.jsonl."""
    return list(_latest(run).values())


def carry_failures(run: RunFolder, sources: Sequence[RunFolder]) -> int:
    """Copy the failures of other runs whose rows do not exist in this run, and return their number.

    If a key failed in several runs, the entry of the first run counts.
    """
    entries: dict[_Id, dict[str, Any]] = {}
    for source in reversed(sources):
        entries |= _latest(source)
    for step, table in TABLE_OF_STEP.items():
        failed = pa.array([key for failed_step, key, _ in entries if failed_step == step], pa.string())
        columns = [name for name in (KEYS[table], "question_id", "made_by") if name in SCHEMAS[table].names]
        for part in run.parts(table) if len(failed) else ():
            rows = run.read(table, part, columns)
            for name in columns[:2]:
                for row in rows.filter(pc.is_in(rows[name], value_set=failed)).to_pylist():
                    for made_by in (row.get("made_by"), None):  # None: the maker is not recorded
                        entries.pop((step, row[name], made_by), None)
    if entries:
        _write(run, entries.values())
    return len(entries)


def _latest(run: RunFolder) -> dict[_Id, dict[str, Any]]:
    entries: dict[_Id, dict[str, Any]] = {}
    try:
        lines = run.folder.read(NAME).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise RunFolderError(f"{run.path / NAME}: cannot be read: {refusal(error)}") from None
    # Earlier versions wrote no made_by; their runs had one maker.
    steps = run.info.get("steps", {}) if lines else {}
    first = {step: content_hash(steps[step]["depends_on"]) for step in _SAMPLING if "depends_on" in steps.get(step, {})}
    for line in lines:
        try:
            entry = json.loads(line)
            if made_by := first.get(entry["step"]):
                entry.setdefault("made_by", made_by)
            entries[entry["step"], entry["key"], entry.get("made_by")] = entry
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # incomplete because of a kill; the row is tried again
    return entries


def _append(path: Path, entry: dict[str, Any]) -> None:
    with disk_errors(path), path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":  # incomplete because of a kill
                file.write(b"\n")
        file.write(_line(entry).encode())
        file.flush()
        os.fsync(file.fileno())


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry) + "\n"


def _write(run: RunFolder, entries: Iterable[dict[str, Any]]) -> None:
    text = "".join(_line(entry) for entry in entries)
    run.folder.write(NAME, lambda temporary: temporary.write_text(text, encoding="utf-8"))
