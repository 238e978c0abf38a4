"""Tables of a run side by side."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from rlt_data.storage.run import Run


def beside(run: Run, traces: pl.DataFrame, table: str, part: int, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """Return traces with the columns of another table beside theirs, in their order.

    Args:
        run: the run.
        traces: rows of a part, with their ``trace_id``.
        table: the table, ``scores`` or ``ranks``.
        part: number of the part.
        columns: those to take; None: all. Those that the traces have already stay as they are.

    Returns:
        The traces; where one has no row in the table, or the part has none, the new columns are null.
    """
    wanted = None if columns is None else list(dict.fromkeys(["trace_id", *columns]))
    rows = pl.DataFrame(run.read(table, part, wanted))
    new = [name for name in rows.columns if name not in traces.columns]
    return traces.join(rows.select("trace_id", *new), on="trace_id", how="left", maintain_order="left")


def with_questions(run: Run, traces: pl.DataFrame, part: int) -> pl.DataFrame:
    """Return traces with the columns of their questions; ``meta`` is the trace's, or the question's where it has none.

    Args:
        run: the run.
        traces: rows of a part, with their ``question_id`` and ``meta``.
        part: number of the part.
    """
    questions = pl.DataFrame(run.read("questions", part)).drop("source_id")
    own = traces.rename({"meta": "own_meta"})
    joined = own.join(questions, on="question_id", how="left", maintain_order="left")
    return joined.with_columns(pl.coalesce("own_meta", "meta").alias("meta")).drop("own_meta")
