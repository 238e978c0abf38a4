"""Check a complete input without a model: count its rows and report the bad ones."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from rlt_data.errors import InputError
from rlt_data.formats.control import ControlTokens
from rlt_data.formats.schema import Format, load_format
from rlt_data.inputs.files import Sources, find_sources
from rlt_data.inputs.own import own_data_set
from rlt_data.inputs.read import read_records
from rlt_data.inputs.reader import RowReader
from rlt_data.inputs.rows import BadRow, Fields, Origin, Row
from rlt_data.inputs.suspicions import Suspicions
from rlt_data.settings import CheckSettings, InputSettings
from rlt_data.settings.base import name_of_input
from rlt_data.storage.schemas import content_hash

logger = logging.getLogger(__name__)

#: Texts that a row may have besides question and solution.
_OTHER_TEXTS = ("system", "answer", "explanation", "completion", "finish_reason")

#: Bad rows that are listed one by one; the others are only counted, by reason.
SHOWN_BAD_ROWS = 10


@dataclass
class CheckReport:
    """The content of an input in numbers.

    Attributes:
        source: the input.
        rows: number of records.
        good: number of usable rows, duplicates included.
        columns: columns of the records, in order of first appearance.
        preset: the preset that the rows were read with; several, with commas, if the files have different layouts.
        fields: the origin of each field that a row has.
        used: the columns that the fields were made from; None if a plug-in's preset does not tell.
        traces: number of traces (explanations or completions) of the good rows.
        own_solutions: number of these traces that have their own solution.
        without_solution: number of these traces without a solution.
        origins: number of these traces by origin, as far as the rows name it.
        duplicates: number of good rows that repeat the question, solution and trace of an earlier row.
        repeated_questions: number of good rows that repeat a question with another solution.
        disagreements: number of questions whose good rows have different answers or ``--keep`` columns, of which a
            question keeps the first row's. Traces keep their own, so it is 0 if the rows are imported as traces.
        other_meta: number of duplicates whose answer or ``--keep`` columns differ from those of the row that is used.
        bad: number of bad rows by reason, with N in place of numbers.
        bad_rows: location and reason of the first bad rows.
        longest: maximum number of characters by field.
        mean: mean number of characters by field.
        example: location and content of the first good row, or of the first that has a trace.
        notices: choices that were made while the files were found, such as skipped files.
        control_tokens: number of traces with a control token of a model, by token.
        suspicions: what probably is a mistake in the data or in how it is read.
    """

    source: str
    rows: int = 0
    good: int = 0
    columns: list[str] = field(default_factory=list)
    preset: str = ""
    fields: dict[str, Origin] = field(default_factory=dict)
    used: set[str] | None = field(default_factory=set)
    traces: int = 0
    own_solutions: int = 0
    without_solution: int = 0
    origins: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    repeated_questions: int = 0
    disagreements: int = 0
    other_meta: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    bad_rows: list[tuple[str, str]] = field(default_factory=list)
    longest: dict[str, int] = field(default_factory=dict)
    mean: dict[str, float] = field(default_factory=dict)
    example: tuple[str, Row] | None = None
    notices: tuple[str, ...] = ()
    control_tokens: Counter[str] = field(default_factory=Counter)
    suspicions: list[str] = field(default_factory=list)

    @property
    def unused_columns(self) -> list[str] | None:
        """The columns that no field was made from; None if a plug-in's preset does not tell."""
        return None if self.used is None else [column for column in self.columns if column not in self.used]

    @property
    def warnings(self) -> list[str]:
        """One line for each conflict and each suspicion."""
        found = [
            f"{count} traces have the control token {token!r} in question, solution or text; they will not be distilled"
            for token, count in self.control_tokens.most_common()
        ]
        return [*self.conflicts, *found, *self.suspicions]

    @property
    def conflicts(self) -> list[str]:
        """One line for each kind of conflict between rows."""
        kept = (
            "score keeps those of each trace, generate the first row's" if self.traces else "the first row's are used"
        )
        counts = {
            f"questions whose rows have different answers or --keep columns ({kept})": self.disagreements,
            "duplicates whose answers or --keep columns differ (the first row's are used)": self.other_meta,
        }
        return [f"{count} {conflict}" for conflict, count in counts.items() if count]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON content, as ``check --json`` prints it."""
        example = None
        if self.example:
            location, row = self.example
            texts = {name: getattr(row, name) for name in ("question", "solution", *_OTHER_TEXTS)}
            example = {"location": location, "id": row.source_id, **texts, "meta": row.meta}
        return {
            "source": self.source,
            "preset": self.preset or None,
            "rows": self.rows,
            "good": self.good,
            "traces": self.traces,
            "own_solutions": self.own_solutions,
            "without_solution": self.without_solution,
            "duplicates": self.duplicates,
            "repeated_questions": self.repeated_questions,
            "columns": self.columns,
            "unused_columns": self.unused_columns,
            "fields": {name: {"column": origin.column, "rule": origin.rule} for name, origin in self.fields.items()},
            "characters": {name: {"mean": self.mean[name], "longest": self.longest[name]} for name in self.longest},
            "example": example,
            "bad": sum(self.bad.values()),
            "bad_reasons": dict(self.bad.most_common()),
            "bad_rows": [{"location": location, "reason": reason} for location, reason in self.bad_rows],
            "warnings": self.warnings,
            "notices": list(self.notices),
        }

    def refuse_bad_rows(self, *, skip: bool) -> None:
        """Raise InputError if there is no good row, or if there are bad rows and ``skip`` is False."""
        if self.bad and (not skip or not self.good):
            listed = "\n".join(f"  {location}: {reason}" for location, reason in self.bad_rows)
            total = sum(self.bad.values())
            more = f"\n  and {total - len(self.bad_rows)} more" if total > len(self.bad_rows) else ""
            advice = "; --skip-bad-rows leaves them out" if self.good else ""
            raise InputError(f"{self.source}: {total} of {self.rows} rows are bad{advice}\n{listed}{more}")
        if not self.good:
            raise InputError(f"{self.source}: has no rows")


def check(settings: CheckSettings, controls: Sequence[ControlTokens] = ()) -> CheckReport:
    """Validate a complete input; :func:`examined_rows` explains ``controls``.

    Raises:
        InputError: the input cannot be read, or has no columns for question and solution.
        SettingsError: the format is unknown.
    """
    report = CheckReport(name_of_input(settings.input))
    format = load_format("rlt" if settings.format == "auto" else settings.format)
    suspicions = Suspicions()
    rows = examined_rows(
        settings.as_input(), format, report, without_solution=True, controls=controls, suspicions=suspicions
    )
    for _ in rows:
        pass
    report.suspicions = suspicions.lines()
    return report


def good_rows(
    settings: InputSettings,
    format: Format | None,
    reader_of: ReaderOf | None = None,
    controls: Sequence[ControlTokens] = (),
) -> list[Row]:
    """Read all rows of an input; :func:`examined_rows` explains the arguments.

    Raises:
        InputError: the input cannot be read, or has bad rows and ``settings.skip_bad_rows`` is False.
    """
    report = CheckReport(name_of_input(settings.input))
    rows = list(examined_rows(settings, format, report, reader_of, controls=controls))
    for notice in report.notices:
        logger.info(notice)
    report.refuse_bad_rows(skip=settings.skip_bad_rows)
    return rows


class Reader(Protocol):
    """Turns records into rows."""

    preset: str
    found: Fields

    def __call__(self, data: dict[str, Any], number: int) -> list[Row]:
        """Return the rows of a record, one per trace; ``number`` counts records from 0. Raises BadRow."""


#: Makes the reader of an input from its first record and the name of its file.
ReaderOf = Callable[[dict[str, Any], str], Reader]


def examined_rows(
    settings: InputSettings,
    format: Format | None,
    report: CheckReport,
    reader_of: ReaderOf | None = None,
    *,
    traces: bool = False,
    without_solution: bool = False,
    replies: bool = True,
    controls: Sequence[ControlTokens] = (),
    sources: Sources | None = None,
    suspicions: Suspicions | None = None,
) -> Iterator[Row]:
    """Yield the good rows of an input and fill in a report on all rows.

    Exact duplicates are counted and left out. Files with the same columns share the reader of the first; a file with
    other columns gets its own.

    Args:
        settings: the input.
        format: the format whose tags must not occur in a row. None: any text is allowed.
        report: is filled in.
        reader_of: makes the reader for layouts other than the presets.
        traces: whether the rows are imported as traces: a row without one is bad, and answers belong to the traces.
        without_solution: whether traces may lack a solution.
        replies: see :class:`~rlt_data.inputs.reader.RowReader`.
        controls: control tokens of models. A question or solution with one is bad, unless the rows are traces, which
            are only counted.
        sources: the files of the input, if they have been found before.
        suspicions: sees each good record. If it is given, the report has origins and an example too.
    """
    sources = sources or find_sources(settings)
    report.notices = sources.notices
    own = own_data_set(sources)
    readers = _Readers(settings, reader_of or partial(RowReader, settings, own=own, replies=replies))
    columns: dict[str, None] = {}
    seen: dict[bytes, bytes] = {}  # digest of a row -> digest of its answer and --keep columns
    questions: set[bytes] = set()
    of_questions: dict[bytes, bytes] = {}  # digest of a problem -> digest of its answer and --keep columns
    disagreements: set[bytes] = set()
    characters: Counter[str] = Counter()
    for number, record in enumerate(read_records(settings, sources)):
        report.rows += 1
        try:
            if record.data is None:
                raise BadRow(record.reason)
            if not record.data.keys() <= columns.keys():
                columns.update(dict.fromkeys(record.data))
                report.columns = list(columns)
            reader = readers.of(record.data, record.source)
            report.preset = readers.presets
            rows = reader(record.data, number)
            for row in rows:
                _refuse(row, format, controls, traces=traces, without_solution=without_solution)
        except BadRow as bad:
            report.bad[re.sub(r"\d[\d,]*", "N", str(bad))] += 1
            if len(report.bad_rows) < SHOWN_BAD_ROWS:
                report.bad_rows.append((record.location, str(bad)))
            continue
        report.good += 1
        if suspicions:
            if report.example is None or (not _has_trace(report.example[1]) and _has_trace(rows[0])):
                report.example = record.location, rows[0]
            used = _note_origins(report, reader, record.data, settings)
            suspicions.look(record.location, record.data, reader.found, used, rows[0])
        for row in rows:
            has_trace = _has_trace(row)
            report.traces += has_trace
            report.own_solutions += has_trace and row.own_solution
            report.without_solution += has_trace and not row.solution
            if has_trace:
                text = f"{row.question} {row.solution} {row.completion or row.explanation}"
                report.control_tokens.update({token for control in controls if (token := control.refused(text))})
            if has_trace and row.origin:
                report.origins[row.origin] += 1
            for name in ("question", "solution", "system", "explanation", "completion"):
                if text := getattr(row, name):
                    characters[name] += len(text)
                    characters[name + " rows"] += 1
                    report.longest[name] = max(report.longest.get(name, 0), len(text))
                    report.mean[name] = characters[name] / characters[name + " rows"]
            problem, kept = [row.question, row.solution, row.system], _digest(row.answer, row.meta)
            problem_key = _digest(*problem)
            if not traces and of_questions.setdefault(problem_key, kept) != kept:
                disagreements.add(problem_key)
                report.disagreements = len(disagreements)
            trace = [row.completion, row.explanation, row.source_id if row.has_id else None, row.origin]
            digest = _digest(*problem, *trace) if has_trace else problem_key
            if digest in seen:
                report.duplicates += 1
                report.other_meta += has_trace and seen[digest] != kept
                continue
            seen[digest] = kept
            question = _digest(row.question)
            if not has_trace:
                report.repeated_questions += question in questions
            questions.add(question)
            yield row
    if report.without_solution:
        report.notices += (f"{report.without_solution} rows have no solution; they get measures but no reward",)


class _Readers:
    """The readers of an input's files, by the columns of their first records."""

    def __init__(self, settings: InputSettings, reader_of: ReaderOf) -> None:
        self._settings = settings
        self._reader_of = reader_of
        self._by_columns: dict[frozenset[str], Reader] = {}
        self._source = ""
        self._reader: Reader | None = None
        self.presets = ""

    def of(self, data: dict[str, Any], source: str) -> Reader:
        """Return the reader of a record's file."""
        if self._reader is None or source != self._source:
            columns = frozenset(data)
            if columns not in self._by_columns:
                self._by_columns[columns] = self._reader_of(data, source or name_of_input(self._settings.input))
                self.presets = ", ".join(dict.fromkeys(reader.preset for reader in self._by_columns.values()))
            self._source, self._reader = source, self._by_columns[columns]
        return self._reader


def _note_origins(
    report: CheckReport, reader: Reader, data: dict[str, Any], settings: InputSettings
) -> set[str] | None:
    """Add the origins of a record's fields to a report, and return the columns that they were made from.

    The columns are None if a plug-in's preset does not tell them.
    """
    used: set[str] = set()
    tells = True
    for name, found in reader.found.items():
        if found.value is None:
            continue
        field_name = "id" if name == "source_id" else name
        if field_name not in report.fields:
            rule = found.rule or f"preset {reader.preset}"
            if name == "solution" and any(
                reader.found[trace].value for trace in ("explanation", "completion") if trace in reader.found
            ):
                rule += ", the trace's own" if found.own else ", reference"
            report.fields[field_name] = Origin(found.column, rule)
        used |= found.columns_of(data)
        tells = tells and (found.column is not None or name == "source_id")
    used.update(settings.keep, ("finish_reason", "finish_reasons"))
    if not tells:
        report.used = None
        return None
    if report.used is not None:
        report.used |= used
    return used


def _has_trace(row: Row) -> bool:
    return row.completion is not None or row.explanation is not None


def _refuse(
    row: Row, format: Format | None, controls: Sequence[ControlTokens], *, traces: bool, without_solution: bool
) -> None:
    """Raise BadRow for a row that no step can use; :func:`examined_rows` explains the arguments."""
    if format and not row.solution and not (without_solution and _has_trace(row)):
        raise BadRow("solution: missing" + ("; only score takes traces without one" if _has_trace(row) else ""))
    if format and (reason := format.problem_with(row.question, row.solution, needs_solution=bool(row.solution))):
        raise BadRow(reason)
    for control in () if traces else controls:
        if reason := control.problem_with(question=row.question, solution=row.solution, system=row.system):
            raise BadRow(reason)
    if re.search("[\ud800-\udfff]", f"{row.source_id}{row.answer}{row.meta}"):
        raise BadRow("the id, answer or a --keep column contains half of a surrogate pair (invalid Unicode)")
    if traces and not _has_trace(row):
        raise BadRow(
            "no explanation or completion to score; generate traces first, or name the column with "
            "--explanation-column or --completion-column"
        )


def _digest(*parts: str | None) -> bytes:
    """Hash texts to 16 bytes, because the hash of every row stays in memory."""
    return bytes.fromhex(content_hash(*parts))
