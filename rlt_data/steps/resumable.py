"""The loop that generate, evaluate and score share: make the rows that a table lacks, and write each one durably.

    for each part of 256 questions: the step finds the pending rows and requests them from its engines
    for each finished row: append it to the table; for each failure: add a line to errors.jsonl
    when the last pending row of a part has arrived: merge the part's journal

An interrupted step is run again with the same settings; what the table has by then is not pending any more.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from rlt_data.engines import Engine, Failure
from rlt_data.engines.watchdog import check_all_returned, describe_missing, watched
from rlt_data.progress import Progress
from rlt_data.steps.provenance import StepSummary
from rlt_data.storage.errorlog import ErrorLog
from rlt_data.storage.run import RunFolder
from rlt_data.storage.writer import TableWriter


class PendingRow(Protocol):
    """A row that a step has requested from its engines."""

    @property
    def part(self) -> int:
        """The part of the table that the row belongs to."""

    @property
    def source_id(self) -> str | None:
        """The id that the user's data gives its question, for errors.jsonl."""


@dataclass(frozen=True)
class FinishedRow:
    """A row of the table, its key, and the number of tokens generated or scored for it."""

    key: str
    row: dict[str, Any]
    tokens: int


P = TypeVar("P", bound=PendingRow)


class ResumableTable(Generic[P]):
    """A table of a run that a step fills row by row.

    Args:
        run: the run, whose lock is held.
        step: the step's name.
        table: the table's name.
        engines: the engines that work on the rows.
        retry_errors: run only rows that failed before.
        stall_timeout: seconds without a sign of life from an engine after which the step ends.

    Attributes:
        run: the run.
        pending: the requested rows that have not arrived, by key.
        errors: the failures of the step.
    """

    def __init__(
        self,
        run: RunFolder,
        step: str,
        table: str,
        engines: Sequence[Engine],
        *,
        retry_errors: bool,
        stall_timeout: float,
    ) -> None:
        self.run = run
        self.pending: dict[str, P] = {}
        self.errors = ErrorLog(run, step, retry=retry_errors)
        self._step = step
        self._table = table
        self._engines = engines
        self._retry_errors = retry_errors
        self._stall_timeout = stall_timeout
        self._writer = TableWriter(run, table)
        #: Pending rows of each part, plus one while the step is still reading the part.
        self._unfinished: Counter[int] = Counter()

    def parts(self, source: str) -> Iterator[tuple[int, set[str]]]:
        """Yield each part of a source table with the keys of the rows that this table has of it.

        The caller requests the part's rows before it takes the next part.
        """
        for part in self.run.parts(source):
            for engine in self._engines:
                engine.heartbeat.touch_or_raise()  # skipping finished parts can take longer than the watchdog waits
            self._unfinished[part] += 1
            yield part, self.run.keys(self._table, part)
            self._finish(part)

    def is_pending(self, key: str, stored: Collection[str], group: str | None = None) -> bool:
        """Whether a row is to be made now.

        Args:
            key: the row's key.
            stored: keys of the rows that the table has.
            group: key under which all rows of the same question may have failed together.
        """
        if key in stored:
            return False
        errors = self.errors
        if self._retry_errors:
            return errors.retries(key) or (group is not None and errors.retries(group))
        return not errors.settled(key) and (group is None or not errors.settled(group))

    def add(self, key: str, row: P) -> None:
        """Note a row that is requested from the engines."""
        self.pending[key] = row
        self._unfinished[row.part] += 1

    def fill(
        self, results: Iterable[FinishedRow | Failure], progress: Progress, *, total: int, surplus: int = 0
    ) -> StepSummary:
        """Write rows as they arrive, until all have arrived.

        Args:
            results: finished rows and failures; taking them makes the engines work and requests further rows.
            progress: receives every row.
            total: rows that the table has when nothing is pending.
            surplus: rows that the table has now and that do not count towards ``total``.

        Raises:
            EngineError: the engines stalled, or ended before all rows had arrived.
        """
        rows, new, tokens = self.run.count(self._table), 0, 0
        began = time.monotonic()
        progress.start(self._step, total, rows - surplus)
        try:
            heartbeats = [engine.heartbeat for engine in self._engines]
            with self._writer, watched(heartbeats, self._stall_timeout, self._describe_pending):
                for result in results:
                    pending = self.pending.pop(result.key)
                    if isinstance(result, Failure):
                        self.errors.add(result.key, result.reason, pending.source_id)
                    else:
                        self._writer.append(pending.part, result.row)
                        self.errors.resolve(result.key)
                        new, tokens = new + 1, tokens + result.tokens
                        progress.advance(1, result.tokens)
                    self._finish(pending.part)
                check_all_returned(self.pending, self._log_tail())
        finally:
            self.errors.close()
            progress.finish()
        self.run.compact_all(self._table)
        return StepSummary(self.run.path, rows + new, new, len(self.errors), tokens, time.monotonic() - began)

    def _finish(self, part: int) -> None:
        self._unfinished[part] -= 1
        if not self._unfinished[part]:
            self._writer.compact(part)

    def _describe_pending(self) -> str:
        return describe_missing(self.pending, self._log_tail())

    def _log_tail(self) -> str:
        return "\n".join(filter(None, (engine.log_tail() for engine in self._engines)))
