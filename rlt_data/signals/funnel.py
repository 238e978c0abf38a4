"""The funnel: how many traces each condition lets through, for terminal, report and card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import polars as pl

from rlt_data.signals.expressions import Expression

#: Dropped traces that are named per condition.
_EXAMPLES = 3


@dataclass
class FunnelStep:
    """What one condition did.

    Attributes:
        condition: the condition, or what limits the rows.
        rows_in: traces before it.
        rows_out: traces after it.
        questions_in: questions with a trace before it.
        questions_out: questions with a trace after it.
        unknown: traces that it dropped because its value is null.
        examples: ids of the first dropped traces.
        note: why it was not applied; empty if it was.
        remark: what else it did.
    """

    condition: str
    rows_in: int = 0
    rows_out: int = 0
    questions_in: int = 0
    questions_out: int = 0
    unknown: int = 0
    examples: list[str] = field(default_factory=list)
    note: str = ""
    remark: str = ""


class Funnel:
    """Filters traces chunk by chunk and counts what each condition drops, in the order of their first use.

    All traces of a question must be in one chunk.
    """

    def __init__(self) -> None:
        self._steps: dict[str, FunnelStep] = {}

    @property
    def steps(self) -> list[FunnelStep]:
        """The conditions so far."""
        return list(self._steps.values())

    def filter(self, rows: pl.DataFrame, condition: str, expression: Expression) -> pl.DataFrame:
        """Return the rows for which an expression is true.

        Args:
            rows: traces with ``trace_id``, ``question_id`` and the columns of the expression.
            condition: name of the condition in the funnel.
            expression: a condition.
        """
        passed = expression.evaluate(rows)
        kept = rows.filter(passed)
        self.count(condition, rows, kept, unknown=passed.null_count())
        return kept

    def count(self, condition: str, rows_in: pl.DataFrame, rows_out: pl.DataFrame, unknown: int = 0) -> None:
        """Add what a condition did to some rows, given those before and after it."""
        step = self._steps.setdefault(condition, FunnelStep(condition))
        step.rows_in += len(rows_in)
        step.rows_out += len(rows_in)
        questions = rows_in["question_id"].n_unique()
        step.questions_in += questions
        step.questions_out += questions
        step.unknown += unknown
        self.drop(condition, rows_in, rows_out)

    def drop(self, condition: str, before: pl.DataFrame, after: pl.DataFrame) -> None:
        """Let a counted condition drop more rows, given all that it has let through before and after."""
        step = self._steps[condition]
        step.rows_out -= len(before) - len(after)
        step.questions_out -= before["question_id"].n_unique() - after["question_id"].n_unique()
        if len(step.examples) < _EXAMPLES and len(before) > len(after):
            dropped = before.join(after.select("trace_id"), on="trace_id", how="anti", maintain_order="left")
            step.examples += dropped["trace_id"].head(_EXAMPLES - len(step.examples)).to_list()

    def skip(self, condition: str, reason: str) -> None:
        """Note a condition that is not applied."""
        self._steps.setdefault(condition, FunnelStep(condition, note=reason))

    def remark(self, condition: str, text: str) -> None:
        """Say what else a counted condition did."""
        self._steps[condition].remark = text

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return the steps for JSON files."""
        return [asdict(step) for step in self.steps]


def lost_questions(steps: Sequence[FunnelStep]) -> dict[str, int]:
    """Return the number of questions that lost their last trace to each condition that took one."""
    lost = {step.condition: step.questions_in - step.questions_out for step in steps}
    return {condition: count for condition, count in lost.items() if count}
