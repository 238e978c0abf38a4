"""Conditions and values as SQL expressions over the columns of a run."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

import polars as pl

from rlt_data.errors import SettingsError, first_line
from rlt_data.signals.registry import MEANINGS as SIGNAL_MEANINGS
from rlt_data.signals.registry import SIGNALS
from rlt_data.storage.columns import MEANINGS
from rlt_data.storage.rows import columns_of
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import SCHEMAS, SIGNAL_PREFIX

#: Commands that make the columns of a table.
_REMEDIES = {"scores": "rlt-data score", "ranks": "rlt-data rank"}


@dataclass(frozen=True)
class Expression:
    """A polars SQL expression over the columns of :meth:`RunFolder.scan`.

    Attributes:
        text: the expression.
        option: the flag that it comes from, for messages.
        kind: ``condition`` (true, false or null for each trace), ``number`` or ``any``.
        columns: the columns that it reads.
        tables: the tables that these are in.
    """

    text: str
    option: str
    kind: Literal["condition", "number", "any"]
    columns: tuple[str, ...]
    tables: tuple[str, ...]

    def evaluate(self, rows: pl.DataFrame) -> pl.Series:
        """Return the value for each row, with the name ``value``: Boolean for a condition, Float64 for a number.

        Each frame is checked for independence of its rows, because one frame alone may not show it: its values may be
        equal or null. A check takes 0.3 ms for 4,000 rows.

        Args:
            rows: a frame with :attr:`columns`.

        Raises:
            SettingsError: the expression cannot be computed, has another type, or depends on other rows.
        """
        values = self._evaluate(rows)
        half, last = len(rows) // 2, len(rows) - 1
        pieces = [(0, 1), (0, half), (last, 1)] if last > 0 else []
        if not all(_agree(self._evaluate(rows.slice(*piece)), values.slice(*piece)) for piece in pieces):
            raise SettingsError(
                f"{self.option}: {self.text}: depends on several rows; use only columns of the trace, no AVG, SUM or "
                "window functions"
            )
        return values

    def _evaluate(self, rows: pl.DataFrame) -> pl.Series:
        try:
            values = rows.with_columns(pl.sql_expr(self.text).alias("value"))["value"]
        except pl.exceptions.PolarsError as error:
            raise SettingsError(f"{self.option}: {self.text}: {first_line(error)}") from None
        dtype = values.dtype
        if dtype == pl.Null:
            dtype = pl.Boolean() if self.kind == "condition" else pl.Float64()
            values = values.cast(dtype)
        if self.kind == "condition" and dtype != pl.Boolean:
            raise SettingsError(f"{self.option}: {self.text}: must be true or false for each trace, not {dtype}")
        if self.kind == "number":
            if not (dtype.is_numeric() or dtype == pl.Boolean):
                raise SettingsError(f"{self.option}: {self.text}: must be a number for each trace, not {dtype}")
            values = values.cast(pl.Float64)
        return values


def _agree(first: pl.Series, second: pl.Series) -> bool:
    """Return whether two values are equal, apart from rounding."""
    if first.dtype.is_float():
        close = (first - second).abs() <= 1e-9 * first.abs()
        return bool((close | first.eq_missing(second)).fill_null(False).all())
    return first.equals(second, null_equal=True)


def parse_expression(
    run: RunFolder, text: str, option: str, kind: Literal["condition", "number", "any"] = "condition"
) -> Expression:
    """Return an expression whose columns the run has.

    Args:
        run: the run.
        text: the expression.
        option: the flag that it comes from, for messages.
        kind: type of its values.

    Raises:
        SettingsError: it is no expression, or names a column that the run does not have.
    """
    columns, tables = columns_in(text, option), columns_of(run)
    for name in columns:
        if name not in tables:
            raise SettingsError(f"{option}: {why_missing(run, name, list(tables))}")
    return Expression(text, option, kind, columns, tuple(dict.fromkeys(tables[name] for name in columns)))


def columns_in(text: str, option: str) -> tuple[str, ...]:
    """Return the columns that an expression reads.

    Raises:
        SettingsError: it is no expression.
    """
    try:
        return tuple(dict.fromkeys(pl.sql_expr(text).meta.root_names()))
    except (pl.exceptions.PolarsError, RecursionError) as error:
        raise SettingsError(f"{option}: {text}: not a SQL expression: {first_line(error)}") from None


def why_missing(run: RunFolder, name: str, known: list[str]) -> str:
    """Return why a run lacks a column, with the remedy.

    Args:
        run: the run.
        name: the column.
        known: columns that the run has.
    """
    for table, command in _REMEDIES.items():
        if name in SCHEMAS[table].names:
            return f"{name} is a column of {table}, and {run.path} has no current {table}; run {command} first"
    for signal, entry in run.signals.items():
        if name in entry["columns"]:
            return (
                f"{name} is a column of the signal {signal}, which does not cover all rows; run rlt-data curate again"
            )
    for built_in in SIGNALS.values():
        if name in built_in.columns:
            return (
                f"{name} is a column of the signal {built_in.name}; run rlt-data curate --signals {built_in.name} first"
            )
    near = difflib.get_close_matches(name, known, 1)
    return f"no column {name!r}; " + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}")


def meaning(run: RunFolder, name: str) -> str:
    """Return what a column of a run means, in one line."""
    for signal, entry in run.signals.items():
        if name in entry["columns"] and name not in SIGNAL_MEANINGS:
            expressions = (entry["depends_on"].get("content") or {}).get("expressions", {})
            return str(expressions.get(name, f"column of the signal {signal}"))
    return (MEANINGS | SIGNAL_MEANINGS).get(name, "")


def stale_signals(run: RunFolder) -> list[str]:
    """Return the names of the signals that do not cover the current rows of the run."""
    return [name for name in run.signals if not run.is_current(SIGNAL_PREFIX + name)]
