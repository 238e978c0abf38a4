"""The traces of a run with columns of any of its tables, part by part: :meth:`RunFolder.scan` for one part."""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import SCHEMAS

#: Columns that :meth:`RunFolder.join_questions` adds to traces or fills in.
OF_QUESTIONS = (
    "question",
    "solution",
    "system",
    "answer",
    "question_meta",
    "question_answer",
    "question_solution",
    "trace_answer",
    "trace_solution",
)


def columns_of(run: RunFolder) -> dict[str, str]:
    """Return the table of each column of :meth:`RunFolder.scan`, by column."""
    tables = dict.fromkeys(SCHEMAS["traces"].names, "traces") | dict.fromkeys(OF_QUESTIONS, "questions")
    for table in run.joined_tables:
        tables |= {name: table for name in run.schema(table).names if name not in tables}
    return tables


class RowReader:
    """Reads traces with columns of any table, part by part.

    Which tables are up to date is decided once, when the reader is made, because it takes a listing of all parts.

    Args:
        run: the run.
    """

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._tables = columns_of(run)

    def read(self, part: int, columns: Iterable[str]) -> pl.DataFrame:
        """Return one row per trace of a part, in the order of the table.

        Args:
            part: number of the part.
            columns: columns of :func:`columns_of`.

        Returns:
            The columns, after ``trace_id`` and ``question_id``.
        """
        run = self._run
        names = list(dict.fromkeys(["trace_id", "question_id", *columns]))
        by_table: dict[str, list[str]] = {}
        for name in names:
            by_table.setdefault(self._tables[name], []).append(name)
        of_questions = by_table.pop("questions", None)
        # Where the trace's answer and solution are null, those of the question take their place.
        own = ("answer", "solution") if of_questions else ()
        frame = pl.DataFrame(run.read("traces", part, list(dict.fromkeys([*by_table.pop("traces"), *own]))))
        if of_questions:
            frame = frame.with_columns(trace_answer="answer", trace_solution="solution")
            frame = run.join_questions(frame, part)
        for table, wanted in by_table.items():
            key = run.key(table)
            rows = pl.DataFrame(run.read(table, part, [key, *(name for name in wanted if name != key)]))
            frame = frame.join(rows, on=key, how="left", maintain_order="left")
        return frame.select(names)


def read_rows(run: RunFolder, part: int, columns: Iterable[str]) -> pl.DataFrame:
    """Return one row per trace of a part, as :class:`RowReader` does."""
    return RowReader(run).read(part, columns)
