"""Multiple-choice options, which are appended to their question."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rlt_data.inputs.rows import Found

#: Columns that have the options, the first that has any.
OPTION_COLUMNS = ("options", "choices")

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
#: An option that has its label already, such as ``A) 21``.
_LABELLED = re.compile(r"\(?[A-Z0-9][).:]")


def with_options(question: Found, data: Mapping[str, Any]) -> Found:
    """Append the options of a record to its question, with letters or with the labels of the record.

    Options that the question lists already are not repeated. An answer that is a number is the index of an option.
    """
    column = next((column for column in OPTION_COLUMNS if data.get(column)), None)
    if column is None or not isinstance(question.value, str):
        return question
    options: Any = data[column]
    labels = None
    if isinstance(options, Mapping):
        options, labels = options.get("text"), options.get("label")
    if not isinstance(options, list) or len(options) > len(_LETTERS):
        return question
    if not all(isinstance(option, str) for option in options):
        return question
    if _lists(question.value, options):
        return question.changed(question.value, f"which lists the options of {column!r}", column)
    if not isinstance(labels, list) or len(labels) != len(options):
        is_index = isinstance(data.get("answer"), int)
        labels = list(map(str, range(len(options)))) if is_index else list(_LETTERS[: len(options)])
    if all(_LABELLED.match(option.lstrip()) for option in options):
        lines = [option.strip() for option in options]
    else:
        lines = [f"{label}. {option}" for label, option in zip(labels, options, strict=True)]
    text = question.value.rstrip() + "\n\n" + "\n".join(lines)
    return question.changed(text, f"options of {column!r} appended", column)


def _lists(question: str, options: list[str]) -> bool:
    lines = [line.strip() for line in question.splitlines()]
    return all(any(line.endswith(option) and len(line) < len(option) + 8 for line in lines) for option in options)
