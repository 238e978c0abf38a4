"""Check a complete input without a model: count its rows and report the bad ones."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from rlt_data.errors import InputError
from rlt_data.formats.schema import Format, load_format
from rlt_data.inputs.presets import BadRow, Row, RowReader
from rlt_data.inputs.read import read_records
from rlt_data.settings import CheckSettings, InputSettings
from rlt_data.storage.run import content_hash

#: Bad rows that are listed one by one; the others are only counted, by reason.
SHOWN_BAD_ROWS = 10


@dataclass
class CheckReport:
    """The content of an input in numbers.

    Attributes:
        source: the input.
        rows: number of records.
        good: number of usable rows, duplicates included.
        columns: columns of the first record.
        preset: the preset that the rows were read with.
        traces: number of traces (explanations or completions) of the good rows.
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
    """

    source: str
    rows: int = 0
    good: int = 0
    columns: list[str] = field(default_factory=list)
    preset: str = ""
    traces: int = 0
    origins: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    repeated_questions: int = 0
    disagreements: int = 0
    other_meta: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    bad_rows: list[tuple[str, str]] = field(default_factory=list)
    longest: dict[str, int] = field(default_factory=dict)
    mean: dict[str, float] = field(default_factory=dict)

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


def check(settings: CheckSettings) -> CheckReport:
    """Validate a complete input, as ``rlt-data check`` does.

    Raises:
        InputError: the input cannot be read, or has no columns for question and solution.
        SettingsError: the format is unknown.
    """
    report = CheckReport(settings.input)
    format = load_format("rlt" if settings.format == "auto" else settings.format)
    for _ in examined_rows(settings.as_input(), format, report):
        pass
    return report


def good_rows(settings: InputSettings, format: Format | None, reader_of: ReaderOf | None = None) -> list[Row]:
    """Read all rows of an input; :func:`examined_rows` explains the arguments.

    Raises:
        InputError: the input cannot be read, or has bad rows and ``settings.skip_bad_rows`` is False.
    """
    report = CheckReport(settings.input)
    rows = list(examined_rows(settings, format, report, reader_of))
    report.refuse_bad_rows(skip=settings.skip_bad_rows)
    return rows


class Reader(Protocol):
    """Turns records into rows."""

    preset: str | None

    def __call__(self, data: dict[str, Any], number: int) -> list[Row]:
        """Return the rows of a record, one per trace; ``number`` counts records from 0. Raises BadRow."""


#: Makes the reader of an input from its first record.
ReaderOf = Callable[[dict[str, Any]], Reader]


def examined_rows(
    settings: InputSettings,
    format: Format | None,
    report: CheckReport,
    reader_of: ReaderOf | None = None,
    *,
    traces: bool = False,
) -> Iterator[Row]:
    """Yield the good rows of an input and fill in a report on all rows.

    Exact duplicates are counted and left out.

    Args:
        settings: the input.
        format: the format whose tags must not occur in a row. None: any text is allowed.
        report: is filled in.
        reader_of: makes the reader for layouts other than the presets.
        traces: whether the rows are imported as traces: a row without one is bad, and answers belong to the traces.
    """
    reader: Reader | None = None
    seen: dict[bytes, bytes] = {}  # digest of a row -> digest of its answer and --keep columns
    questions: set[bytes] = set()
    of_questions: dict[bytes, bytes] = {}  # digest of a problem -> digest of its answer and --keep columns
    disagreements: set[bytes] = set()
    characters: Counter[str] = Counter()
    for number, record in enumerate(read_records(settings)):
        report.rows += 1
        try:
            if record.data is None:
                raise BadRow(record.reason)
            if reader is None:
                report.columns = list(record.data)
                reader = reader_of(record.data) if reader_of else RowReader(settings, record.data, settings.input)
                report.preset = reader.preset or ""
            rows = reader(record.data, number)
            for row in rows:
                _refuse(row, format, traces=traces)
        except BadRow as bad:
            report.bad[re.sub(r"\d[\d,]*", "N", str(bad))] += 1
            if len(report.bad_rows) < SHOWN_BAD_ROWS:
                report.bad_rows.append((record.location, str(bad)))
            continue
        report.good += 1
        for row in rows:
            has_trace = _has_trace(row)
            report.traces += has_trace
            if has_trace and row.origin:
                report.origins[row.origin] += 1
            for name in ("question", "solution", "explanation", "completion"):
                if (text := getattr(row, name)) is not None:
                    characters[name] += len(text)
                    characters[name + " rows"] += 1
                    report.longest[name] = max(report.longest.get(name, 0), len(text))
                    report.mean[name] = characters[name] / characters[name + " rows"]
            problem_key, kept = _digest(row.question, row.solution), _digest(row.answer, row.meta)
            if not traces and of_questions.setdefault(problem_key, kept) != kept:
                disagreements.add(problem_key)
                report.disagreements = len(disagreements)
            trace = [row.completion, row.explanation, row.source_id if row.has_id else None, row.origin]
            digest = _digest(row.question, row.solution, *trace) if has_trace else problem_key
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


def _has_trace(row: Row) -> bool:
    return row.completion is not None or row.explanation is not None


def _refuse(row: Row, format: Format | None, *, traces: bool) -> None:
    """Raise BadRow for a row that no step can use; with ``traces`` also for one without a trace."""
    if format and (reason := format.problem_with(row.question, row.solution)):
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
