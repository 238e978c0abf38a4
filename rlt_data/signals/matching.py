"""The traces of a run that ``--where`` selects, for the commands that look at a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from rlt_data.signals.expressions import parse_expression
from rlt_data.signals.funnel import Funnel
from rlt_data.storage.rows import columns_of, read_rows
from rlt_data.storage.run import RunFolder


@dataclass(frozen=True)
class Matching:
    """The traces that satisfy all conditions.

    Attributes:
        where: the conditions.
        traces: ids of the matching traces, by part.
        total: number of traces of the run.
        unknown: number of traces that do not match because a condition is null for them.
    """

    where: tuple[str, ...]
    traces: Mapping[int, pl.Series]
    total: int
    unknown: int

    @property
    def count(self) -> int:
        """The number of matching traces."""
        return sum(map(len, self.traces.values()))

    def of(self, rows: pl.DataFrame, part: int) -> pl.DataFrame:
        """Return the matching ones of a part's rows, which have ``trace_id``, in their order."""
        ids = self.traces[part].to_frame("trace_id")
        return rows.join(ids, on="trace_id", how="semi", maintain_order="left")

    def __str__(self) -> str:
        """Return a line with the conditions and the number of matching traces."""
        unknown = f" ({self.unknown:,} others have no value to compare)" if self.unknown else ""
        return f"{self.count:,} of {self.total:,} traces satisfy {' and '.join(self.where)}{unknown}"


def find_matching(run: RunFolder, where: Sequence[str]) -> Matching | None:
    """Return the traces for which all SQL expressions are true; None without expressions.

    Raises:
        SettingsError: one is not a condition over the columns of the run.
    """
    if not where:
        return None
    conditions = [parse_expression(run, text, "--where") for text in where]
    columns = [name for condition in conditions for name in condition.columns]
    funnel, traces, tables = Funnel(), {}, columns_of(run)
    for part in run.parts("traces"):
        rows = read_rows(run, part, columns, tables)
        for condition in conditions:
            rows = funnel.filter(rows, condition.text, condition)
        traces[part] = rows["trace_id"]
    return Matching(tuple(where), traces, run.count("traces"), sum(step.unknown for step in funnel.steps))
