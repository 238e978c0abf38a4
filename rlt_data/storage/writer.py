"""Appending rows to a table of a run, durably within seconds."""

from __future__ import annotations

import threading
from collections import defaultdict
from types import TracebackType
from typing import Any

from rlt_data.errors import DiskError
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import to_table

#: Seconds between two writes of the journal: well under the five that a finished row may be at risk.
FLUSH_SECONDS = 2.0
#: Rows in memory that are written without waiting for the clock.
FLUSH_ROWS = 4096


class TableWriter:
    """Appends rows to a table of a run; each is on disk within :data:`FLUSH_SECONDS`, whatever the caller does.

    Use as a context manager. Leaving it writes what is in memory, also after an exception. A failed write is raised
    by the next call.
    """

    def __init__(self, run: RunFolder, table: str) -> None:
        self._run = run
        self._table = table
        self._rows: dict[int, list[dict[str, Any]]] = defaultdict(list)
        self._held = 0
        self._buffer_lock = threading.Lock()
        self._disk_lock = threading.Lock()
        self._stop = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._flush_regularly, name=f"write-{table}", daemon=True)

    def __enter__(self) -> TableWriter:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if kind is None or not isinstance(error, DiskError):
            self.flush()

    def append(self, part: int, row: dict[str, Any]) -> None:
        """Take one row of a part."""
        with self._buffer_lock:
            self._rows[part].append(row)
            self._held += 1
            full = self._held >= FLUSH_ROWS
        if full or self._failure:
            self.flush()

    def flush(self) -> None:
        """Write what is in memory."""
        if self._failure:
            raise self._failure
        with self._disk_lock:
            with self._buffer_lock:
                taken, self._rows, self._held = self._rows, defaultdict(list), 0
            for part, rows in taken.items():
                self._run.add_segment(self._table, part, to_table(self._table, rows))

    def compact(self, part: int) -> None:
        """Write what is in memory and merge the journal of a complete part into its file."""
        self.flush()
        with self._disk_lock:
            self._run.compact(self._table, part)

    def _flush_regularly(self) -> None:
        while not self._stop.wait(FLUSH_SECONDS):
            try:
                self.flush()
            except Exception as error:  # noqa: BLE001 - handed to the thread that works
                self._failure = error
                return
