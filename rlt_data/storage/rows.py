"""The traces of a run with columns of any of its tables: :func:`columns_of` says which, and from which table.

``answer`` and ``solution`` are those of the trace or, if it has none, of its question. ``trace_answer`` and
``trace_solution`` are the trace's own. ``meta`` is the trace's, ``question_meta`` its question's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import polars as pl

from rlt_data.storage.schemas import QUESTIONS, SIGNAL_PREFIX, TRACES
from rlt_data.storage.tables import Tables

Frame = TypeVar("Frame", pl.DataFrame, pl.LazyFrame)

#: Columns of questions, by their names next to those of traces.
OF_QUESTIONS = {
    f"question_{name}" if name in TRACES.names else name: name
    for name in QUESTIONS.names
    if name not in ("question_id", "source_id")
}
#: Columns of traces whose nulls the question's value replaces, by the names of the trace's own values.
OWN = {"trace_answer": "answer", "trace_solution": "solution"}
_STORED = OF_QUESTIONS | OWN


def columns_of(run: Tables) -> dict[str, str]:
    """Return the table of each column of a trace. Tables without rows and tables that are out of date have none."""
    tables = dict.fromkeys([*TRACES.names, *OWN], "traces")
    tables |= dict.fromkeys([*OWN.values(), *OF_QUESTIONS], "questions")
    for table in ("scores", "ranks", *(SIGNAL_PREFIX + name for name in run.signals)):
        if run.parts(table) and run.is_current(table):
            tables |= {name: table for name in run.schema(table).names if name not in tables}
    return tables


def read_rows(
    run: Tables, part: int, columns: Iterable[str], tables: Mapping[str, str] | None = None, *, of: str = "traces"
) -> pl.DataFrame:
    """Return one row per trace of a part, in the order of the table.

    Args:
        run: the run.
        part: number of the part.
        columns: columns of :func:`columns_of`.
        tables: the result of :func:`columns_of`, if many parts are read.
        of: ``traces``, or ``scores`` for one row per score; columns that scores share with traces are read from it.

    Returns:
        The columns, after ``trace_id`` and ``question_id``.
    """
    names = ["trace_id", "question_id", *columns]
    tables = columns_of(run) if tables is None else tables

    def read(table: str, stored: dict[str, str]) -> pl.DataFrame:
        return pl.DataFrame(run.read(table, part, [*stored.values()]).rename_columns([*stored]))

    return _join(run, names, tables, of, read)


def scan_rows(run: Tables) -> pl.LazyFrame:
    """Return one row per trace lazily, with all columns of the run but the trace's own answer and solution."""
    tables = columns_of(run)
    names = [name for name in tables if name not in OWN]

    def read(table: str, stored: dict[str, str]) -> pl.LazyFrame:
        return run.scan(table).select(pl.col(column).alias(name) for name, column in stored.items())

    return _join(run, names, tables, "traces", read)


def _join(
    run: Tables, names: list[str], tables: Mapping[str, str], of: str, read: Callable[[str, dict[str, str]], Frame]
) -> Frame:
    """Read columns from their tables, and left join these to the table ``of``, whose order stays."""
    filled = [name for name in OWN.values() if name in names]
    wanted = [name for name in names if name not in filled]
    wanted += [f"{side}_{name}" for name in filled for side in ("trace", "question")]
    plan: dict[str, dict[str, str]] = {of: {}}  # by table: its column for each name
    shared = run.schema(of).names
    for name in wanted:
        plan.setdefault(of if name in shared else tables[name], {})[name] = _STORED.get(name, name)

    rows = read(of, plan.pop(of))
    for table, columns in plan.items():
        key = run.key(table)
        rows = rows.join(read(table, {key: key} | columns), on=key, how="left", maintain_order="left")
    fill = {name: pl.coalesce(f"trace_{name}", f"question_{name}").alias(name) for name in filled}
    return rows.select(fill.get(name, pl.col(name)) for name in dict.fromkeys(names))
