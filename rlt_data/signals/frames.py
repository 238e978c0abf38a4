"""The input of signals: frames of traces with their explanations."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from rlt_data.errors import RunFolderError
from rlt_data.formats import Format
from rlt_data.formats.views import read_completion
from rlt_data.settings import parse_settings
from rlt_data.storage.rows import read_rows
from rlt_data.storage.run import RunFolder


def trace_format(run: RunFolder) -> Format | None:
    """Return the format of a run's traces; for imported ones, that of their scores. None if run.json has neither."""
    content = run.step("generate").get("format") or run.step("score").get("format")
    return parse_settings(Format, content, where=str(run.path / "run.json")) if content else None


def read_traces(
    run: RunFolder,
    part: int,
    columns: tuple[str, ...],
    format: Format | None,
    tables: Mapping[str, str] | None = None,
) -> pl.DataFrame:
    """Return columns of a part's traces; ``explanation`` and ``closed`` are read from the completion.

    Args:
        run: the run.
        part: number of the part.
        columns: columns of :func:`rlt_data.storage.rows.columns_of`, ``explanation`` or ``closed``.
        format: the result of :func:`trace_format`.
        tables: the result of :func:`rlt_data.storage.rows.columns_of`, if many parts are read.

    Raises:
        RunFolderError: ``explanation`` or ``closed`` needs the format, and run.json does not record it.
    """
    parsed = [name for name in ("explanation", "closed") if name in columns]
    stored = [name for name in columns if name not in parsed]
    frame = read_rows(run, part, [*stored, *(["completion"] if parsed else [])], tables)
    if parsed:
        if format is None:
            raise RunFolderError(f"{run.path}: run.json does not record the format of the traces")
        explanations = [read_completion(format, completion) for completion in frame["completion"]]
        frame = frame.with_columns(
            pl.Series("explanation", [explanation.text for explanation in explanations], pl.String),
            pl.Series("closed", [explanation.closed for explanation in explanations], pl.Boolean),
        )
    return frame.select(list(dict.fromkeys(columns)))
