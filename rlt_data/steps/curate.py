"""Compute signals about the traces and questions of a run: one table for each; no row is deleted.

A signal that depends on one row at a time is computed part by part, for the rows that it lacks; an interrupted call
continues at the next part. One that compares rows, or whose settings have changed, is computed as a whole, and its
table is replaced when it is complete.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import polars as pl
import pyarrow as pa

from rlt_data.errors import RunFolderError, SettingsError, first_line
from rlt_data.progress import SILENT, Progress, task
from rlt_data.settings import CurateSettings
from rlt_data.signals.base import Signal
from rlt_data.signals.choose import choose_signals
from rlt_data.signals.frames import read_traces, trace_format
from rlt_data.steps.provenance import versions
from rlt_data.storage.paths import StoragePath
from rlt_data.storage.rows import columns_of
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import SIGNAL_PREFIX, signal_schema

logger = logging.getLogger(__name__)

#: Columns of signals as types of run.json.
_TYPE_NAMES = {pl.Boolean: "bool", pl.Int64: "int", pl.Float64: "float", pl.String: "string"}
#: A text column with at most this many different values of at most this many characters is summarised by their counts.
_MOST_VALUES, _LONGEST_VALUE = 8, 20


@dataclass(frozen=True)
class SignalSummary:
    """Result of one signal.

    Attributes:
        name: the signal.
        rows: rows of its table.
        new: rows that this call computed.
        findings: number of rows by finding: for a true/false column those that are true, for a text column those of
            each value, or those with a value if there are many.
        seconds: time spent.
    """

    name: str
    rows: int
    new: int
    findings: dict[str, int]
    seconds: float


@dataclass(frozen=True)
class CurateSummary:
    """Result of curating.

    Attributes:
        run: run folder.
        signals: the signals, in the order of their computation.
        skipped: why a default signal was not computed, by name.
    """

    run: StoragePath
    signals: list[SignalSummary]
    skipped: dict[str, str] = field(default_factory=dict)


def curate(settings: CurateSettings, progress: Progress = SILENT) -> CurateSummary:
    """Compute the signals of a run; implements ``rlt-data curate``.

    Signals that are up to date are left as they are.

    Raises:
        RunFolderError: the run has no traces.
        SettingsError: there is no such signal, or it lacks a setting.
    """
    run = RunFolder.existing(settings.input)
    if not run.parts("traces"):
        raise RunFolderError(f"{run.path}: has no traces to curate; run rlt-data generate, or score --in FILE, first")
    signals, skipped = choose_signals(run, settings)
    summaries = []
    with run.locked():
        _refuse_taken_columns(run, signals)
        computations = [_Computation(run, signal, settings) for signal in signals]
        for computation in computations:
            computation.warn_of_missing_package()
        for computation in computations:
            summary = computation.run_to_end(progress)
            logger.info("curate: %s: %d rows, %d new", summary.name, summary.rows, summary.new)
            summaries.append(summary)
    return CurateSummary(run.path, summaries, skipped)


def _refuse_taken_columns(run: RunFolder, signals: list[Signal]) -> None:
    """Raise SettingsError if two signals, or a signal and another table, have a column of the same name."""
    tables = {name: table for name, table in columns_of(run).items() if not table.startswith(SIGNAL_PREFIX)}
    owners = {name: signal for signal, entry in run.signals.items() for name in entry["columns"]}
    for signal in signals:
        for name in signal.columns:
            owner = tables.get(name) or owners.setdefault(name, signal.name)
            if owner != signal.name:
                raise SettingsError(f"--signals: {signal.name}: {owner} has a column {name!r} already; rename it")


class _Computation:
    """Computes one signal of a run that this process has locked.

    Raises:
        InputError: what the settings of the signal name cannot be read.
    """

    def __init__(self, run: RunFolder, signal: Signal, settings: CurateSettings) -> None:
        self._run = run
        self._signal = signal
        self._settings = settings
        self._table = SIGNAL_PREFIX + signal.name
        self._source = "traces" if signal.level == "trace" else "questions"
        values = settings.model_dump(mode="json", include=set(signal.depends_on), by_alias=True)
        content = signal.content(settings) if signal.content else None
        entry = {
            "level": signal.level,
            "columns": {name: _TYPE_NAMES[column.type] for name, column in signal.columns.items()},
            "depends_on": {"version": signal.version, "settings": values, "content": content},
        }
        self._entry: dict[str, Any] = json.loads(json.dumps(entry))

    def warn_of_missing_package(self) -> None:
        package = self._signal.package
        if package and find_spec(package.replace("-", "_")) is None and not self._is_complete():
            logger.warning(
                "curate: %s is not installed; the signal %s stops at the first row that needs it. "
                "pip install 'rlt-data[eval]'",
                package,
                self._signal.name,
            )

    def run_to_end(self, progress: Progress) -> SignalSummary:
        run, signal, table = self._run, self._signal, self._table
        began, new = time.monotonic(), 0
        if not self._is_complete():
            starts_anew = signal.whole or not self._is_recorded()
            pending = run.count(self._source) - (0 if starts_anew else run.count(table))
            with task(progress, f"curate {signal.name}", pending):
                new = self._replace(progress) if starts_anew else self._add_missing(progress)
        return SignalSummary(signal.name, run.count(table), new, self._findings(), time.monotonic() - began)

    def _is_recorded(self) -> bool:
        """Return whether the table, complete or not, was made by this version of the signal with these settings."""
        return self._run.signals.get(self._signal.name) == self._entry

    def _is_complete(self) -> bool:
        return self._is_recorded() and bool(self._run.parts(self._table)) and self._run.is_current(self._table)

    def _record(self) -> dict[str, Any]:
        """Return the run.json entry of ``curate`` with this signal."""
        return {"versions": versions(), "signals": self._run.signals | {self._signal.name: self._entry}}

    def _replace(self, progress: Progress) -> int:
        """Compute all rows, replace the table when they are complete, and return their number."""
        run, signal, parts = self._run, self._signal, self._run.parts(self._source)
        if not signal.whole and not run.parts(self._table):  # nothing to replace: an interrupted call can continue
            run.record("curate", self._record())
            return self._add_missing(progress)
        results = self._checked(signal.compute(self._frames(parts), self._settings, progress))
        with run.replacing(self._table, made_from=signal.sources if signal.whole else ()) as new_table:
            for part, rows in zip(parts, self._by_part(results) if signal.whole else results, strict=True):
                new_table.write(part, self._arranged(part, rows))
            new_table.record("curate", self._record())
        return run.count(self._table)

    def _by_part(self, results: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        """Yield the rows of each part of the source."""
        run, key, source = self._run, self._signal.key, self._source
        parts, empty = run.parts(source), pl.DataFrame(schema=self._types())
        rows = pl.concat([empty, *results])
        part_of = pl.concat(pl.DataFrame(run.read(source, part, [key])).with_columns(part=part) for part in parts)
        found = rows.join(part_of, on=key).partition_by("part", as_dict=True, include_key=False)
        for part in parts:
            yield found.get((part,), empty)

    def _add_missing(self, progress: Progress) -> int:
        """Compute the rows that the table lacks, part by part, and return their number."""
        run, signal, table, source = self._run, self._signal, self._table, self._source
        parts: list[int] = []
        added = 0

        def pending() -> Iterator[pl.DataFrame]:
            unfinished = [part for part in run.parts(source) if run.keys(source, part) - run.keys(table, part)]
            for part, frame in zip(unfinished, self._frames(unfinished), strict=True):
                known = pl.DataFrame(run.read(table, part, [signal.key]))
                parts.append(part)
                yield frame.join(known, on=signal.key, how="anti", maintain_order="left")

        for rows in self._checked(signal.compute(pending(), self._settings, progress)):
            part = parts.pop(0)
            added += len(rows)
            known_rows = pl.DataFrame(run.read(table, part)).select(rows.columns)
            run.write_part(table, part, self._arranged(part, pl.concat([known_rows, rows])))
        run.compact_all(table)
        return added

    def _frames(self, parts: list[int]) -> Iterator[pl.DataFrame]:
        """Yield the input of the signal, one frame per part."""
        run, signal = self._run, self._signal
        format, tables = trace_format(run), columns_of(run)
        for part in parts:
            if signal.level == "question":
                renamed = {name: f"question_{name}" for name in ("answer", "meta")}
                yield pl.DataFrame(run.read("questions", part)).rename(renamed).select(signal.key, *signal.reads)
            else:
                yield read_traces(run, part, ("trace_id", *signal.reads), format, tables)

    def _checked(self, results: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        """Yield the rows with the declared columns and types.

        Raises:
            SettingsError: a plug-in returned others.
        """
        types = self._types()
        for rows in results:
            try:
                yield rows.select(list(types)).cast(types)  # type: ignore[arg-type]
            except (pl.exceptions.PolarsError, AttributeError) as error:
                raise SettingsError(
                    f"--signals: {self._signal.name}: returned other columns: {first_line(error)}"
                ) from None

    def _types(self) -> dict[str, type[pl.DataType]]:
        return {self._signal.key: pl.String} | {name: column.type for name, column in self._signal.columns.items()}

    def _arranged(self, part: int, rows: pl.DataFrame) -> pa.Table:
        """Return the rows of a part in the order of its source table.

        Raises:
            SettingsError: a plug-in left rows out, or returned a key twice.
        """
        signal, schema = self._signal, self._schema()
        keys = [name for name in schema.names if name not in signal.columns]
        source = pl.DataFrame(self._run.read(self._source, part, keys))
        joined = source.join(rows.with_columns(found=True), on=signal.key, how="left", maintain_order="left")
        computed = joined.filter("found")
        if len(joined) != len(source) or (signal.whole and len(computed) != len(source)):
            raise SettingsError(f"--signals: {signal.name}: must return each row once")
        return computed.select(schema.names).to_arrow().cast(schema)

    def _schema(self) -> pa.Schema:
        return signal_schema(self._entry["level"], self._entry["columns"])

    def _findings(self) -> dict[str, int]:
        """Count what the columns say over the complete table."""
        counts: dict[str, int] = {}
        columns = {name: c.type for name, c in self._signal.columns.items() if c.type in (pl.Boolean, pl.String)}
        values: dict[str, dict[str, int] | int] = {}
        for part in self._run.parts(self._table) if columns else ():
            rows = pl.DataFrame(self._run.read(self._table, part, list(columns)))
            for name, type in columns.items():
                if type == pl.Boolean:
                    counts[name] = counts.get(name, 0) + int(rows[name].sum() or 0)
                    continue
                seen = values.setdefault(name, {})
                if isinstance(seen, dict):
                    for value, count in rows[name].drop_nulls().value_counts().iter_rows():
                        seen[value] = seen.get(value, 0) + count
                    if len(seen) > _MOST_VALUES or any(len(value) > _LONGEST_VALUE for value in seen):
                        values[name] = sum(seen.values())
                else:
                    values[name] = seen + rows[name].count()
        for name, seen in values.items():
            counts |= {f"{name} {k}": n for k, n in sorted(seen.items())} if isinstance(seen, dict) else {name: seen}
        return counts
