"""The loop of generate, evaluate and score: compute the missing rows of a table and write each one durably.

    for each part of 256 questions: find the pending rows and request them from the engines
    for each finished row: append it to the table; for each failure: add a line to errors.jsonl
    after the last pending row of a part: merge the part's journal

To resume an interrupted step, run it again with the same settings. It skips the rows that are already in the table.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from rlt_data.engines import Engine, Failure
from rlt_data.engines.watchdog import check_all_returned, describe_missing, watched
from rlt_data.errors import RltDataError
from rlt_data.progress import Progress
from rlt_data.steps.provenance import StepSummary, most_frequent_failure, record_work
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
        """The question's id in the user's data, for errors.jsonl."""


@dataclass(frozen=True)
class FinishedRow:
    """A finished row, its key, and the tokens generated or scored for it."""

    key: str
    row: dict[str, Any]
    tokens: int


P = TypeVar("P", bound=PendingRow)


class ResumableTable(Generic[P]):
    """A table that a step fills row by row.

    Args:
        run: a run that this process has locked.
        step: name of the step.
        table: name of the table.
        engines: the engines that compute the rows.
        made_by: hash of the settings of sampled rows.
        retry_errors: compute only rows that failed before.
        follows_retries: with ``retry_errors``, also compute rows that are missing, because they follow from rows of
            another table that failed before.
        stall_timeout: seconds without an engine heartbeat after which the step fails.

    Attributes:
        run: the run.
        pending: requested rows that have not arrived, by key.
        errors: failures of the step.
    """

    def __init__(
        self,
        run: RunFolder,
        step: str,
        table: str,
        engines: Sequence[Engine],
        *,
        made_by: str | None = None,
        retry_errors: bool,
        follows_retries: bool = False,
        stall_timeout: float,
    ) -> None:
        self.run = run
        self.pending: dict[str, P] = {}
        self.errors = ErrorLog(run, step, made_by=made_by, retry=retry_errors)
        self._step = step
        self._table = table
        self._engines = engines
        self._only_failed = retry_errors and not follows_retries
        self._stall_timeout = stall_timeout
        self._writer = TableWriter(run, table)
        #: Number of pending rows by part, plus one while the step reads the part.
        self._unfinished: Counter[int] = Counter()

    def parts(self, source: str) -> Iterator[tuple[int, set[str]]]:
        """Yield each part of a source table with the keys of this table's rows in that part.

        Request all rows of a part before you take the next part, or :meth:`hold` it.
        """
        for part in self.run.parts(source):
            for engine in self._engines:
                engine.heartbeat.touch_or_raise()  # skipping finished parts can take longer than the stall timeout
            self._unfinished[part] += 1
            yield part, self.run.keys(self._table, part)
            self._finish(part)

    def hold(self, part: int) -> None:
        """Keep a part unfinished until :meth:`release`, because some of its rows are requested only later."""
        self._unfinished[part] += 1

    def release(self, part: int) -> None:
        """Undo one :meth:`hold`."""
        self._finish(part)

    def is_pending(self, key: str, stored: Collection[str], group: str | None = None) -> bool:
        """Return whether this call must compute a row.

        Args:
            key: key of the row.
            stored: keys of the rows in the table.
            group: key of the row's question, under which all rows of the question may have failed together.
        """
        if key in stored:
            return False
        errors = self.errors
        if self._only_failed:
            return errors.retries(key) or (group is not None and errors.retries(group))
        return not errors.settled(key) and (group is None or not errors.settled(group))

    def add(self, key: str, row: P) -> None:
        """Register a row that has been requested from the engines."""
        self.pending[key] = row
        self._unfinished[row.part] += 1

    def fill(
        self, results: Iterable[FinishedRow | Failure], progress: Progress, *, total: int, surplus: int = 0
    ) -> StepSummary:
        """Write all rows as they arrive.

        Args:
            results: finished rows and failures. The iterator drives the engines and requests further rows.
            progress: receives every new row.
            total: rows of the table once nothing is pending.
            surplus: rows in the table that do not count towards ``total``.

        Raises:
            EngineError: the engines stalled, or stopped before all rows arrived.
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
            seconds = time.monotonic() - began
            self.errors.close()
            progress.finish()
            if new:  # of an interrupted call too; its error matters more than a failure to record
                with suppress(RltDataError):
                    record_work(self.run, self._step, tokens, seconds)
        self.run.compact_all(self._table)
        failure, failure_rows = most_frequent_failure(self.run, self._step)
        return StepSummary(self.run.path, rows + new, new, len(self.errors), tokens, seconds, failure, failure_rows)

    def _finish(self, part: int) -> None:
        self._unfinished[part] -= 1
        if not self._unfinished[part]:
            self._writer.compact(part)

    def _describe_pending(self) -> str:
        return describe_missing(self.pending, self._log_tail())

    def _log_tail(self) -> str:
        return "\n".join(filter(None, (engine.log_tail() for engine in self._engines)))
