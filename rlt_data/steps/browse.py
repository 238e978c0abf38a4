"""Look a trace up by its key, its question's, or the input's id, with its scores and its rank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import polars as pl

from rlt_data.errors import SettingsError
from rlt_data.store import Run

_TRACE_COLUMNS = ["trace_id", "question_id", "source_id", "sample_index", "completion", "finish_reason"]


@dataclass(frozen=True)
class ShownQuestion:
    """A question with its traces, the best first: columns of traces, scores and rank, null where there are none."""

    question: dict[str, Any]
    traces: list[dict[str, Any]]


def find(run: Run, key: str | None = None) -> ShownQuestion:
    """Return a question and its traces; with the key of a trace, that trace alone; without key the first question.

    Args:
        run: the run.
        key: beginning of a trace id or question id, or a source id.

    Raises:
        SettingsError: nothing has that key, or there are no traces.
    """
    for part in run.parts("traces"):
        for shown in _questions(run, part):
            if key is None or shown.question["source_id"] == key or shown.question["question_id"].startswith(key):
                return shown
            chosen = [row for row in shown.traces if row["trace_id"].startswith(key) or row["source_id"] == key]
            if chosen:
                return ShownQuestion(shown.question, chosen)
    raise SettingsError(
        f"{run.path}: no trace or question has the key {key!r}" if key else f"{run.path}: no traces yet"
    )


def _questions(run: Run, part: int) -> Iterator[ShownQuestion]:
    traces = pl.DataFrame(run.read("traces", part, _TRACE_COLUMNS))
    for table in ("scores", "ranks"):
        if part in run.parts(table):
            more = pl.DataFrame(run.read(table, part))
            more = more.select("trace_id", *(name for name in more.columns if name not in traces.columns))
            traces = traces.join(more, on="trace_id", how="left", maintain_order="left")
    order = next((name for name in ("rank", "reward") if name in traces.columns), "sample_index")
    traces = traces.sort(order, descending=order == "reward", nulls_last=True, maintain_order=True)
    by_question = traces.partition_by("question_id", as_dict=True, maintain_order=True)
    for question in run.read("questions", part).to_pylist():
        if (question["question_id"],) in by_question:
            yield ShownQuestion(question, by_question[(question["question_id"],)].to_dicts())
