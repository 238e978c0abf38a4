"""The traces of a run with columns of any of its tables, part by part: :meth:`RunFolder.scan` for one part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

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


def read_rows(
    run: RunFolder, part: int, columns: Iterable[str], tables: Mapping[str, str] | None = None
) -> pl.DataFrame:
    """Return one row per trace of a part, in the order of the table.

    Args:
        run: the run.
        part: number of the part.
        columns: columns of :func:`columns_of`.
        tables: the result of :func:`columns_of`, if many parts are read.

    Returns:
        The columns, after ``trace_id`` and ``question_id``.
    """
    names = list(dict.fromkeys(["trace_id", "question_id", *columns]))
    tables = columns_of(run) if tables is None else tables
    by_table: dict[str, list[str]] = {}
    for name in names:
        by_table.setdefault(tables[name], []).append(name)
    of_questions = "questions" in by_table
    own = ("answer", "solution") if of_questions else ()  # where they are null, those of the question take their place
    traces = list(dict.fromkeys([*by_table.pop("traces"), *own]))
    frame = pl.DataFrame(run.read("traces", part, traces))
    if of_questions:
        frame = frame.with_columns(trace_answer="answer", trace_solution="solution")
        frame = run.join_questions(frame, part)
        by_table.pop("questions")
    for table, wanted in by_table.items():
        right = pl.DataFrame(run.read(table, part, list(dict.fromkeys([run.key(table), *wanted]))))
        frame = frame.join(right, on=run.key(table), how="left", maintain_order="left")
    return frame.select(names)
