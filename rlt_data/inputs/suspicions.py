"""Find what is probably a mistake in an input, or in how it is read. Suspicions do not make rows bad."""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter
from decimal import Decimal
from typing import Any

from rlt_data.formats.template import THOUGHT_TAGS
from rlt_data.inputs.options import OPTION_COLUMNS
from rlt_data.inputs.presets import ANSWERS, SOLUTIONS
from rlt_data.inputs.questions import CODE_QUESTION, asks_for_code
from rlt_data.inputs.rows import Columns, Fields, Row

_TAG = re.compile("|".join(re.escape(tag) for tags in THOUGHT_TAGS for tag in tags))

#: Names of columns with traces, such as ``r1_generation`` and ``deepseek_reasoning``.
_TRACE_NAME = re.compile(
    r"(^|_)(generations?|reasoning|thinking|thoughts?|cot|rationales?|trajector(y|ies)|responses?|outputs?|completions?"
    r"|r1|chain_of_thought)(_|$)",
    re.IGNORECASE,
)
#: Names of columns that a question may not be complete without.
_CONTEXT_NAME = re.compile(r"context|passage|body|hint", re.IGNORECASE)

#: Names of columns with known answers, such as ``gold answer``.
_ANSWER_NAME = re.compile(r"(^|[_ ])(answer|ground[_ ]?truth|gold)$", re.IGNORECASE)

#: A shorter text is no trace, but a name or a flag such as ``on``.
_SHORTEST_TRACE = 20


class Suspicions:
    """Sees the good records of an input, and counts what looks wrong."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        self._with_trace = self._without_trace = 0
        self._ids: dict[int, int] = {}  # hash of an id -> hash of its question
        self._trace_columns: dict[str, None] = {}  # unused columns that may have traces

    def look(self, location: str, data: Columns, found: Fields, used: set[str] | None, row: Row) -> None:
        """Look at a record.

        Args:
            location: where it is.
            data: its columns.
            found: its fields, with their origins.
            used: the columns that the fields were made from, or None if they are not known.
            row: its first row.
        """
        has_trace = _has_trace(row)
        self._with_trace += has_trace
        self._without_trace += not has_trace
        if not has_trace:
            self._first.setdefault("trace", location)
        if asks_for_code(row.question):
            self._note(
                'the question asks for a program, whose answers are not graded (--where "question NOT LIKE '
                f"'{CODE_QUESTION}%'\" of rank and distill leaves it out)",
                location,
            )
        if _TAG.search(row.solution):
            self._note("the solution contains a thought tag such as </think>", location)
        if row.has_id and self._ids.setdefault(hash(row.source_id), hash(row.question)) != hash(row.question):
            self._note("the id is that of an earlier row with another question", location)
        for name, field in found.items():
            if _is_nan(field.value):
                self._note(f"{name} is NaN and counts as missing", location)
        for column in () if used is None else [column for column in data if column not in used]:
            if note := _unused(column, data[column], row):
                self._note(note, location)
            elif not has_trace and may_have_traces(column, data):
                self._trace_columns[column] = None

    def _note(self, note: str, location: str) -> None:
        self._counts[note] += 1
        self._first.setdefault(note, location)

    def lines(self) -> list[str]:
        """Return one line for each suspicion, with the number of rows and the first of them."""
        lines = [f"{_rows(count)}: {note} (first: {self._first[note]})" for note, count in sorted(self._counts.items())]
        if self._with_trace and self._without_trace:
            total = self._with_trace + self._without_trace
            lines.append(f"{self._without_trace} of {total} rows have no trace (first: {self._first['trace']})")
        if columns := list(self._trace_columns):
            listed = " and ".join(map(repr, columns))
            lines.append(
                f"{listed} may have traces, but no column of traces is read (--explanation-column {columns[0]})"
            )
        return lines


def _unused(column: str, value: Any, row: Row) -> str | None:
    """Return why an unused column of a record is suspicious, or None."""
    if column in OPTION_COLUMNS and isinstance(value, (list, dict)) and value:
        return f"the options in {column!r} are not shown with the question"
    if _CONTEXT_NAME.fullmatch(column) and isinstance(value, str) and value.strip():
        return f"the text in {column!r} is not shown with the question"
    if column in (*SOLUTIONS, *ANSWERS) and isinstance(value, str) and value.strip():
        if value.strip() not in (row.solution.strip(), (row.answer or "").strip()):
            role = "answer" if column in ANSWERS else "solution"
            return f"{column!r} is not used; --{role}-column {column} reads it as the {role}"
    elif row.answer is None and _has_trace(row) and _ANSWER_NAME.search(column) and isinstance(value, (str, int)):
        return f"{column!r} may have the known answer (--answer-column {shlex.quote(column)})"
    return None


def _has_trace(row: Row) -> bool:
    return row.explanation is not None or row.completion is not None


def may_have_traces(column: str, data: Columns) -> bool:
    """Return whether name and content of a record's column look like traces."""
    return bool(_TRACE_NAME.search(column)) and _is_trace(data[column])


def _is_trace(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(_is_trace(item) for item in value)
    return isinstance(value, str) and len(value) >= _SHORTEST_TRACE and len(value.split()) > 1


def _is_nan(value: Any) -> bool:
    return isinstance(value, (float, Decimal)) and math.isnan(value)


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"
