"""The traces that a card shows: the best one of a run and the worst."""

from __future__ import annotations

from typing import Any

import polars as pl

from rlt_data.storage.run import Run


def best_and_worst(run: Run) -> dict[str, dict[str, Any]]:
    """Return the well-formed traces of largest and of smallest value, with their texts; none where there are none."""
    ends: list[pl.DataFrame] = []
    for part in run.parts("ranks"):
        ranks = pl.DataFrame(run.read("ranks", part)).filter(pl.col("flaw").is_null(), pl.col("value").is_not_null())
        ranks = ranks.sort("value", "trace_id").with_columns(pl.lit(part).alias("part"))
        ends.append(pl.concat([ranks.head(1), ranks.tail(1)]))
    if not sum(map(len, ends)):
        return {}
    all_ends = pl.concat(ends).sort("value", "trace_id")
    return {name: _texts(run, all_ends.row(row, named=True)) for name, row in (("Best", -1), ("Worst", 0))}


def _texts(run: Run, rank: dict[str, Any]) -> dict[str, Any]:
    traces = pl.DataFrame(run.read("traces", rank["part"], ["trace_id", "completion"]))
    questions = pl.DataFrame(run.read("questions", rank["part"]))
    question = questions.row(by_predicate=pl.col("question_id") == rank["question_id"], named=True)
    return {
        "reward": rank["value"],
        "thought_tokens": rank["thought_tokens"],
        "completion": traces.row(by_predicate=pl.col("trace_id") == rank["trace_id"], named=True)["completion"],
        "question": question["question"],
        "solution": question["solution"],
    }
