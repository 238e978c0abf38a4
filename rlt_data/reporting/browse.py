"""Look a trace up by its key, its question's, or the input's id, with its scores and its rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import polars as pl

from rlt_data.errors import SettingsError
from rlt_data.storage.run import RunFolder

_KEYS = ["trace_id", "question_id", "source_id"]
_TRACE_COLUMNS = [*_KEYS, "sample_index", "completion", "finish_reason", "meta"]


@dataclass(frozen=True)
class ShownQuestion:
    """A question with its traces, the best first: columns of traces, scores and rank, null where there are none."""

    question: dict[str, Any]
    traces: list[dict[str, Any]]


def find(run: RunFolder, key: str | None = None) -> ShownQuestion:
    """Return a question and its traces; with the key of a trace, that trace alone; without key the first question.

    Args:
        run: the run.
        key: a source id, or the beginning of a trace id or question id; the former goes first.

    Raises:
        SettingsError: nothing has that key, or there are no traces.
    """
    trace, question = pl.col("trace_id"), pl.col("question_id")
    # Which traces to show, and whether that is by their question: then all of its traces are shown.
    ways: list[tuple[pl.Expr, Callable[[dict[str, Any]], bool]]] = [(pl.lit(True), lambda _: True)]
    if key:
        ways = [
            (pl.col("source_id") == key, lambda row: row["source_id"] == key),
            (
                trace.str.starts_with(key) | question.str.starts_with(key),
                lambda row: row["question_id"].startswith(key),
            ),
        ]
    for match, names_question in ways:
        for part in run.parts("traces"):
            found = pl.DataFrame(run.read("traces", part, _KEYS)).filter(match)
            if len(found):
                shown = _question(run, part, found["question_id"][0])
                chosen = [row for row in shown.traces if row["trace_id"] in set(found["trace_id"])]
                return shown if names_question(shown.question) else ShownQuestion(shown.question, chosen)
    raise SettingsError(
        f"{run.path}: no trace or question has the key {key!r}" if key else f"{run.path}: no traces yet"
    )


def _question(run: RunFolder, part: int, question_id: str) -> ShownQuestion:
    mine = pl.col("question_id") == question_id
    traces = pl.DataFrame(run.read("traces", part, _TRACE_COLUMNS)).filter(mine)
    for table in ("scores", "ranks"):
        if part in run.parts(table) and run.is_current(table):
            traces = run.join(traces, table, part)
    order = next((name for name in ("rank", "reward") if name in traces.columns), "sample_index")
    traces = traces.sort(order, descending=order == "reward", nulls_last=True, maintain_order=True)
    [question] = pl.DataFrame(run.read("questions", part)).filter(mine).to_dicts()
    return ShownQuestion(question, traces.to_dicts())
