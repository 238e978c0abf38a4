"""Signals of the user: expressions in a YAML file, or a Python function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import polars as pl

from rlt_data.errors import InputError, SettingsError, one_line
from rlt_data.plugins import SIGNALS as PLUGINS
from rlt_data.progress import Progress
from rlt_data.settings import CurateSettings, parse_yaml
from rlt_data.signals.base import Column, Signal
from rlt_data.signals.expressions import Expression, parse_expression
from rlt_data.signals.frames import read_traces, trace_format
from rlt_data.signals.registry import SIGNALS
from rlt_data.storage.rows import read_rows
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import SIGNAL_PREFIX

#: Columns that a function gets.
INPUT_COLUMNS = (
    "question",
    "solution",
    "explanation",
    "closed",
    "answer",
    "origin",
    "finish_reason",
    "meta",
    "question_meta",
)


def signal_of_yaml(run: RunFolder, file: Path) -> Signal:
    """Return the signal of a YAML file that maps columns to expressions; its name is that of the file.

    Raises:
        InputError: the file cannot be read, or does not map names to texts.
        SettingsError: an expression is wrong, or the name is taken.
    """
    content = expressions_of(file)
    expressions = {
        name: parse_expression(run, text, f"--signals: {file}: {name}", "any") for name, text in content.items()
    }
    reads = tuple(dict.fromkeys(name for expression in expressions.values() for name in expression.columns))
    tables = tuple(dict.fromkeys(table for expression in expressions.values() for table in expression.tables))
    name = _free_name(file.stem)
    if SIGNAL_PREFIX + name in tables:
        raise SettingsError(f"--signals: {file}: reads a column that it makes; use other columns")
    examples = read_rows(run, run.parts("traces")[0], reads)

    def compute(frames: Iterable[pl.DataFrame], _: CurateSettings, progress: Progress) -> Iterator[pl.DataFrame]:
        for frame in frames:
            yield frame.select("trace_id").hstack(_evaluated(frame, expressions))
            progress.advance(len(frame))

    columns = _columns(_evaluated(examples, expressions), name, dict(content))
    return Signal(
        name, "trace", columns, reads, compute, whole=True, tables=tables, content=lambda _: {"expressions": content}
    )


def expressions_of(file: Path) -> dict[str, str]:
    """Return the expressions of a YAML file by their columns.

    Raises:
        InputError: the file cannot be read, or does not map names to texts.
    """
    try:
        content = parse_yaml(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read: {one_line(error)}") from None
    if not content or not all(isinstance(name, str) and isinstance(text, str) for name, text in content.items()):
        raise InputError(f"{file}: must map names of columns to SQL expressions, such as short: thought_tokens < 200")
    return content


def _evaluated(frame: pl.DataFrame, expressions: dict[str, Expression]) -> pl.DataFrame:
    return frame.select(expression.evaluate(frame).alias(name) for name, expression in expressions.items())


def signal_of_function(run: RunFolder, name: str) -> Signal:
    """Return the signal of a function, by the name of its entry point or as ``module:function``.

    The function gets a frame of traces with :data:`INPUT_COLUMNS` and returns a frame of the same length with the
    columns of the signal. Their types are those that it returns for the first part of the run.

    Raises:
        SettingsError: there is no such function, or it fails.
    """
    function, content = PLUGINS.load(name), PLUGINS.identity(name)
    read = ("trace_id", *INPUT_COLUMNS)
    examples = read_traces(run, run.parts("traces")[0], read, trace_format(run))

    def compute(frames: Iterable[pl.DataFrame], _: CurateSettings, progress: Progress) -> Iterator[pl.DataFrame]:
        for frame in frames:
            yield frame.select("trace_id").hstack(_called(function, name, frame))
            progress.advance(len(frame))

    short = _free_name(name.rpartition(":")[2].rpartition(".")[2])
    columns = _columns(_called(function, name, examples), short, {})
    return Signal(short, "trace", columns, INPUT_COLUMNS, compute, content=lambda _: {"function": content})


def _called(function: Callable[..., Any], name: str, frame: pl.DataFrame) -> pl.DataFrame:
    try:
        result = pl.DataFrame(function(frame.drop("trace_id")))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code
        raise SettingsError(f"--signals: {name}: raised {type(error).__name__}: {one_line(error)}") from error
    if len(result) != len(frame):
        raise SettingsError(f"--signals: {name}: returned {len(result)} rows for {len(frame)} traces")
    return result


def _free_name(name: str) -> str:
    if name in SIGNALS or not name.isidentifier():
        reason = "is a built-in signal" if name in SIGNALS else "must be letters, digits and underscores"
        raise SettingsError(f"--signals: {name}: {reason}; choose another name")
    return name


def _columns(example: pl.DataFrame, signal: str, meanings: dict[str, str]) -> dict[str, Column]:
    """Return the columns of a signal, with the types of an example of its rows."""
    columns = {}
    for name, dtype in example.schema.items():
        if not name.isidentifier():
            raise SettingsError(f"--signals: {signal}: column {name!r} must be letters, digits and underscores")
        if dtype == pl.Boolean:
            type: Any = pl.Boolean
        elif dtype.is_integer():
            type = pl.Int64
        elif dtype.is_numeric() or dtype == pl.Null:
            type = pl.Float64
        elif dtype == pl.String:
            type = pl.String
        else:
            raise SettingsError(f"--signals: {signal}: {name} must be true or false, a number or a text, not {dtype}")
        columns[name] = Column(type, meanings.get(name, f"column of the signal {signal}"))
    return columns
