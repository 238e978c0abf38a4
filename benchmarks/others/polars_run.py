"""Rank traces and select the best with polars alone: polars_run.py rank|distill RUN FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

import polars as pl


def rank(run: Path, folder: Path) -> None:
    """Rank the traces of each question by reward; those without a value rank last."""
    scores = pl.scan_parquet(run / "scores" / "*.parquet")
    order = pl.col("reward").fill_nan(-float("inf")).rank("ordinal", descending=True).over("question_id")
    columns = "trace_id", "question_id", "reward", "well_formed"
    scores.select(*columns, rank=order).sink_parquet(folder / "ranks.parquet")


def distill(run: Path, folder: Path) -> None:
    """Write the best well-formed trace of each question as a conversation."""
    ranks = pl.scan_parquet(folder / "ranks.parquet").filter("well_formed", pl.col("reward").is_not_nan())
    best = ranks.filter(pl.col("rank") == pl.col("rank").min().over("question_id"))
    traces = pl.scan_parquet(run / "traces" / "*.parquet").select("trace_id", "completion")
    questions = pl.scan_parquet(run / "questions" / "*.parquet").select("question_id", "question", "solution")
    thought = pl.col("completion").str.split("<|end_of_explanation|>").list.first().str.strip_chars()
    answer = pl.format(
        "<|begin_of_thought|>\n\n{}\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n{}\n\n<|end_of_solution|>",
        thought,
        pl.col("solution"),
    )
    contents = {"system": pl.lit("You answer questions."), "user": pl.col("question"), "assistant": answer}
    messages = pl.concat_list(pl.struct(role=pl.lit(role), content=text) for role, text in contents.items())
    rows = best.join(traces, on="trace_id").join(questions, on="question_id")
    data_set = rows.select("question_id", "trace_id", "rank", "reward", messages=messages).collect(engine="streaming")
    data_set.write_parquet(folder / "best.parquet")
    data_set.write_ndjson(folder / "best.jsonl")


if __name__ == "__main__":
    step, run, folder = sys.argv[1:]
    {"rank": rank, "distill": distill}[step](Path(run), Path(folder))
