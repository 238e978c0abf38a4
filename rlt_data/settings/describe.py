"""Signatures and docstrings from settings, so that Python's ``help`` explains what ``--help`` does."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from functools import cache

from pydantic import BaseModel
from pydantic.fields import FieldInfo

_WIDTH = 100
_FLAG = re.compile(r"--([a-z][a-z-]*)")


def first_argument(model: type[BaseModel]) -> str:
    """Return the setting that calls may give without its name: the input, or the output of steps without one."""
    return "input" if "input" in model.model_fields else "out"


def parameters(model: type[BaseModel], *, leave_out: tuple[str, ...] = ()) -> list[inspect.Parameter]:
    """Return the fields as keyword-only parameters.

    Args:
        model: the settings class.
        leave_out: fields that are no parameters.
    """
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=field.annotation,
            default=inspect.Parameter.empty if field.is_required() else field.default,
        )
        for name, field in _in_order(model)
        if name not in leave_out
    ]


def arguments(model: type[BaseModel], *, leave_out: tuple[str, ...] = ()) -> str:
    """Return the entries of a Google ``Args:`` section, one for each field."""
    return "\n".join(
        entry(name, python_names(model, field.description))
        for name, field in _in_order(model)
        if name not in leave_out and field.description
    )


@cache  # settings classes share most of their fields, and each command imports all of them
def entry(name: str, text: str) -> str:
    """Return one wrapped entry of an ``Args:`` section."""
    return textwrap.fill(f"{name}: {text}", _WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 8)


def python_names(model: type[BaseModel], text: str) -> str:
    """Replace the flags in a text (``--max-tokens``) with the names of the arguments (``max_tokens``)."""
    names = {field.alias: name for name, field in model.model_fields.items() if field.alias}

    def argument(match: re.Match[str]) -> str:
        name = match[1].rstrip("-").replace("-", "_")
        return names.get(name, name) if names.get(name, name) in model.model_fields else match[0]

    return _FLAG.sub(argument, text)


def _in_order(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    """Yield the fields: required ones, those that ``--help`` lists first, the others."""
    first: tuple[str, ...] = getattr(model, "first_flags", ())

    def position(item: tuple[str, FieldInfo]) -> tuple[bool, int]:
        return not item[1].is_required(), first.index(item[0]) if item[0] in first else len(first)

    yield from sorted(model.model_fields.items(), key=position)
