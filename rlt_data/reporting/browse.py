"""Find traces: by id, or by their scores and a SQL expression over the columns of all tables."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import polars as pl

from rlt_data.errors import RunFolderError, SettingsError, first_line
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import SCHEMAS

_KEYS = ["trace_id", "question_id", "source_id"]
_TRACE_COLUMNS = [*_KEYS, "sample_index", "completion", "finish_reason", "origin", "answer", "meta", "solution"]
#: The name of the question's ``meta`` next to its traces, which have their own.
_QUESTION_META = {"meta": "question_meta"}
#: Columns that order traces, the first that has values: what the run was ranked by, else its rewards.
_ORDERS = ("value", "reward", "reward_without_entropy")


@dataclass(frozen=True)
class ShownQuestion:
    """A question and its traces, the best first, with the columns of :meth:`RunFolder.scan`.

    Attributes:
        question: columns of the question; its ``meta`` is ``question_meta``.
        traces: columns of traces, scores and ranks, null where they are missing.
    """

    question: dict[str, Any]
    traces: list[dict[str, Any]]


@dataclass(frozen=True)
class TraceSelection:
    """Traces selected from a run.

    Attributes:
        traces: their columns, those of their questions included.
        matching: number of traces that satisfied the expression.
        total: number of traces of the run, or of the question that was named.
        order: column by which the traces are ordered; None: as in the table.
    """

    traces: list[dict[str, Any]]
    matching: int
    total: int
    order: str | None


def select(
    run: RunFolder, key: str | None = None, *, where: str | None = None, limit: int, worst_first: bool = False
) -> TraceSelection:
    """Select the best or the worst traces of a run.

    Args:
        run: the run.
        key: trace or question to select from, as in :func:`find`; None: all.
        where: SQL expression over the columns of all tables; None: all traces.
        limit: number of traces to return at most.
        worst_first: whether to return the worst instead of the best.

    Raises:
        SettingsError: the expression is not one, names no column, or compares what cannot be compared.
        RunFolderError: there are no traces, or no scores to order them by.
    """
    if not run.parts("traces"):
        raise RunFolderError(f"{run.path}: there are no traces yet")
    rows = run.scan()
    columns = rows.collect_schema()
    condition = pl.lit(True) if where is None else _condition(where, columns, run)
    orders = [name for name in _ORDERS if name in columns]
    needed = dict.fromkeys([*_KEYS, *orders, *condition.meta.root_names()])
    frame = rows.select(list(needed)).collect()
    if key:
        shown = find(run, key)
        frame = frame.filter(pl.col("trace_id").is_in([trace["trace_id"] for trace in shown.traces]))
    try:
        matching = frame.filter(condition)
    except pl.exceptions.PolarsError as error:
        raise SettingsError(f"--where: {where}: {first_line(error)}") from None
    order = next((name for name in orders if frame[name].is_not_null().any()), None)
    if order:
        matching = matching.sort(order, descending=not worst_first, nulls_last=True, maintain_order=True)
    elif worst_first:
        raise RunFolderError(f"{run.path}: there are no scores to order traces by; run rlt-data score first")
    chosen = matching["trace_id"].to_list()[:limit]
    lists = [name for name, dtype in columns.items() if isinstance(dtype, pl.List)]
    details = rows.filter(pl.col("trace_id").is_in(chosen)).drop(lists).collect().to_dicts()
    by_id = {row["trace_id"]: row for row in details}
    return TraceSelection([by_id[trace] for trace in chosen], len(matching), len(frame), order)


def _condition(where: str, columns: Collection[str], run: RunFolder) -> pl.Expr:
    """Return the expression; raise SettingsError if it is not one, or names a column that the run lacks."""
    try:
        condition = pl.sql_expr(where)
    except pl.exceptions.PolarsError as error:
        raise SettingsError(f"--where: {where}: not a SQL expression: {first_line(error)}") from None
    for name in condition.meta.root_names():
        if name in columns:
            continue
        if table := next((table for table in ("scores", "ranks") if name in SCHEMAS[table].names), None):
            raise SettingsError(f"--where: {name} is a column of {table}, and {run.path} has no current {table}")
        near = difflib.get_close_matches(name, columns, 1)
        raise SettingsError(
            f"--where: no column {name!r}; "
            + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(columns)}")
        )
    return condition


def find(run: RunFolder, key: str | None = None) -> ShownQuestion:
    """Return a question with its traces; for the key of a trace, that trace only.

    Args:
        run: the run.
        key: id of an input row, or prefix of a trace id or question id; ids of input rows take precedence. None: the
            first question.

    Raises:
        SettingsError: nothing has that key, or there are no traces.
    """
    trace, question = pl.col("trace_id"), pl.col("question_id")
    # Which traces match, and whether the key names their question: then all of its traces are returned.
    lookups: list[tuple[pl.Expr, Callable[[dict[str, Any]], bool]]] = [(pl.lit(True), lambda _: True)]
    if key:
        lookups = [
            (pl.col("source_id") == key, lambda row: row["source_id"] == key),
            (
                trace.str.starts_with(key) | question.str.starts_with(key),
                lambda row: row["question_id"].startswith(key),
            ),
        ]
    for match, names_question in lookups:
        for part in run.parts("traces"):
            matches = pl.DataFrame(run.read("traces", part, _KEYS)).filter(match)
            if len(matches):
                shown = _question(run, part, matches["question_id"][0])
                traces = [row for row in shown.traces if row["trace_id"] in set(matches["trace_id"])]
                return shown if names_question(shown.question) else ShownQuestion(shown.question, traces)
    raise SettingsError(
        f"{run.path}: no trace or question has the key {key!r}" if key else f"{run.path}: no traces yet"
    )


def _question(run: RunFolder, part: int, question_id: str) -> ShownQuestion:
    of_question = pl.col("question_id") == question_id
    traces = pl.DataFrame(run.read("traces", part, _TRACE_COLUMNS)).filter(of_question)
    for table in ("scores", "ranks"):
        if part in run.parts(table) and run.is_current(table):
            traces = run.join(traces, table, part)
    order = next((name for name in ("rank", "reward") if name in traces.columns), "sample_index")
    traces = traces.sort(order, descending=order == "reward", nulls_last=True, maintain_order=True)
    [question] = pl.DataFrame(run.read("questions", part)).filter(of_question).rename(_QUESTION_META).to_dicts()
    return ShownQuestion(question, traces.to_dicts())
