"""Append rows to a table of a run; each row is durable within seconds."""

from __future__ import annotations

import threading
from collections import defaultdict
from types import TracebackType
from typing import Any

from rlt_data.errors import DiskError
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import to_table

#: Seconds between two writes of the journal. Rows must be durable within 5 seconds.
FLUSH_SECONDS = 2.0
#: Number of rows in memory that triggers a write.
FLUSH_ROWS = 4096


class TableWriter:
    """Appends rows to a table of a run and writes them every :data:`FLUSH_SECONDS` in a background thread.

    Use as a context manager. Leaving the context writes the remaining rows, even after an exception. The error of a
    failed write is raised by the next call.

    Args:
        run: the run.
        table: name of the table.
    """

    def __init__(self, run: RunFolder, table: str) -> None:
        self._run = run
        self._table = table
        self._rows: dict[int, list[dict[str, Any]]] = defaultdict(list)
        self._buffered = 0
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
        """Add one row to a part."""
        with self._buffer_lock:
            self._rows[part].append(row)
            self._buffered += 1
            is_full = self._buffered >= FLUSH_ROWS
        if is_full or self._failure:
            self.flush()

    def flush(self) -> None:
        """Write the rows in memory."""
        if self._failure:
            raise self._failure
        with self._disk_lock:
            with self._buffer_lock:
                rows_by_part, self._rows, self._buffered = self._rows, defaultdict(list), 0
            for part, rows in rows_by_part.items():
                self._run.add_segment(self._table, part, to_table(self._table, rows))

    def compact(self, part: int) -> None:
        """Write the rows in memory, and merge the journal of a complete part into its part file."""
        self.flush()
        with self._disk_lock:
            self._run.compact(self._table, part)

    def _flush_regularly(self) -> None:
        while not self._stop.wait(FLUSH_SECONDS):
            try:
                self.flush()
            except Exception as error:  # noqa: BLE001 - raised by the next call
                self._failure = error
                return
