"""A row of an input, and the values that it is made from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rlt_data.storage.schemas import content_hash

#: The columns of a record.
Columns = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One problem of the input, with a trace (``explanation`` or ``completion``) if the record has one.

    ``solution`` is empty if it is unknown. ``own_solution`` says that the author of the trace wrote it; else it is a
    reference solution of the question. ``system`` is the record's own system text. None: the format's.
    """

    question: str
    solution: str
    system: str | None = None
    answer: str | None = None
    explanation: str | None = None
    completion: str | None = None
    finish_reason: str | None = None
    source_id: str | None = None
    has_id: bool = False
    origin: str | None = None
    meta: str | None = None
    own_solution: bool = False


def question_id(question: str, solution: str, system: str | None = None) -> str:
    """Return the key of a question with its solution and its own system text, if it has one."""
    return content_hash(question, solution) if system is None else content_hash(question, solution, system)


class BadRow(Exception):
    """A record that cannot become a row; the message says why."""


@dataclass(frozen=True)
class Origin:
    """The column of a field (or its path; None if only the preset knows it), and how its value was found."""

    column: str | None
    rule: str


@dataclass(frozen=True)
class Found:
    """The value of a field and its origin.

    Attributes:
        value: the value.
        column: its column, or a path such as ``messages[assistant].content``; None if only the preset knows it.
        rule: how the value was found, in a few words; empty: as the preset says.
        also: further columns that it was made from.
        own: for a solution, whether the author of the trace wrote it.
    """

    value: Any
    column: str | None = None
    rule: str = ""
    also: tuple[str, ...] = ()
    own: bool = False

    def columns_of(self, data: Columns) -> set[str]:
        """Return the columns of a record that the value was made from."""
        column = self.column
        if column is not None and column not in data:
            column = re.split(r"[.\[]", column)[0]
        return {*self.also} if column is None else {column, *self.also}

    def changed(self, value: Any, rule: str, *also: str) -> Found:
        """Return another value from the same column, with the rule that made it."""
        rule = f"{self.rule}, {rule}" if self.rule else rule
        return replace(self, value=value, rule=rule, also=(*self.also, *also))


#: The fields of a row by name, as presets find them.
Fields = dict[str, Found]


def value_at(data: Mapping[str, Any], column: str) -> Any:
    """Return the value of a column, or of a nested field by its dotted name such as ``reward_model.ground_truth``."""
    if column in data:
        return data[column]
    value: Any = data
    for key in column.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
