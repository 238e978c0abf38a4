"""Find traces: by id, or by their scores and a SQL expression over the columns of all tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from rlt_data.errors import RunFolderError, SettingsError
from rlt_data.signals.matching import Matching, find_matching
from rlt_data.storage.rows import OWN, columns_of, read_rows
from rlt_data.storage.run import RunFolder

_KEYS = ["trace_id", "question_id", "source_id"]
_OF_TRACE = [*_KEYS, "sample_index", "completion", "finish_reason", "origin", "trace_answer", "meta", "trace_solution"]
#: The name of the question's ``meta`` next to its traces, which have their own.
_QUESTION_META = {"meta": "question_meta"}
#: Columns that order traces, the first that has values: what the run was ranked by, else its rewards.
_ORDERS = ("value", "reward", "reward_without_entropy")


@dataclass(frozen=True)
class ShownQuestion:
    """A question and its traces, the best first, with the columns of :meth:`RunFolder.scan`.

    Attributes:
        question: columns of the question; its ``meta`` is ``question_meta``.
        traces: columns of traces, scores, ranks and signals, null where they are missing.
    """

    question: dict[str, Any]
    traces: list[dict[str, Any]]


@dataclass(frozen=True)
class TraceSelection:
    """Traces selected from a run.

    Attributes:
        traces: their columns, those of their questions included.
        count: number of traces that could be shown.
        matching: the traces that satisfy the expressions; None without expressions.
        order: column by which the traces are ordered; None: as in the table.
    """

    traces: list[dict[str, Any]]
    count: int
    matching: Matching | None
    order: str | None


def select(
    run: RunFolder, key: str | None = None, *, where: Sequence[str] = (), limit: int, worst_first: bool = False
) -> TraceSelection:
    """Select the best or the worst traces of a run.

    Args:
        run: the run.
        key: trace or question to select from, as in :func:`find`; None: all.
        where: SQL expressions over the columns of all tables and signals, which all must be true.
        limit: number of traces to return at most.
        worst_first: whether to return the worst instead of the best.

    Raises:
        SettingsError: an expression is wrong.
        RunFolderError: there are no traces, or no scores to order them by.
    """
    if not run.parts("traces"):
        raise RunFolderError(f"{run.path}: there are no traces yet")
    matching = find_matching(run, where)
    tables = columns_of(run)
    orders = [name for name in _ORDERS if name in tables]
    frames = []
    for part in run.parts("traces"):
        rows = read_rows(run, part, orders, tables)
        frames.append(matching.of(rows, part) if matching else rows)
    frame = pl.concat(frames)
    if key:
        shown = find(run, key)
        frame = frame.filter(pl.col("trace_id").is_in([trace["trace_id"] for trace in shown.traces]))
    order = next((name for name in orders if frame[name].is_not_null().any()), None)
    if order:
        frame = frame.sort(order, descending=not worst_first, nulls_last=True, maintain_order=True)
    elif worst_first and len(frame):
        raise RunFolderError(f"{run.path}: there are no scores to order traces by; run rlt-data score first")
    chosen = frame["trace_id"].to_list()[:limit]
    scan = run.scan()
    lists = [name for name, dtype in scan.collect_schema().items() if isinstance(dtype, pl.List)]
    details = scan.filter(pl.col("trace_id").is_in(chosen)).drop(lists).collect().to_dicts()
    by_id = {row["trace_id"]: row for row in details}
    return TraceSelection([by_id[trace] for trace in chosen], len(frame), matching, order)


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
    tables = columns_of(run)
    names = [*_OF_TRACE, *(name for name, table in tables.items() if table not in ("traces", "questions"))]
    traces = read_rows(run, part, names, tables).filter(of_question).rename(OWN)
    order = next((name for name in ("rank", "reward") if name in names and traces[name].count()), "sample_index")
    traces = traces.sort(order, descending=order == "reward", nulls_last=True, maintain_order=True)
    [question] = pl.DataFrame(run.read("questions", part)).filter(of_question).rename(_QUESTION_META).to_dicts()
    return ShownQuestion(question, traces.to_dicts())
