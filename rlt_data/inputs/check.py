"""Look at a whole input without a model: what it holds, and what is wrong with it."""

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

#: Bad rows that are shown in full; the rest are counted by reason.
SHOWN_BAD_ROWS = 10


@dataclass
class CheckReport:
    """What an input holds.

    Attributes:
        rows: records read.
        good: rows that can be used, duplicates included.
        columns: columns of the first record.
        preset: how rows were understood.
        traces: good rows that carry a trace (an explanation or a completion).
        duplicates: good rows whose question, solution and trace were there before.
        repeated_questions: good rows whose question was there before with another solution.
        disagreements: questions whose good rows have different answers; the first row's answer is used.
        other_meta: duplicates whose ``--keep`` columns differ from those of the row that is used.
        bad: bad rows by reason, with N for numbers.
        bad_rows: place and reason of the first bad rows.
        longest: largest number of characters by field.
        mean: mean number of characters by field.
    """

    source: str
    rows: int = 0
    good: int = 0
    columns: list[str] = field(default_factory=list)
    preset: str = ""
    traces: int = 0
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
        """Lines about rows of which only the first one's values are used."""
        counts = {
            "questions whose rows disagree about the answer (the first row's is used)": self.disagreements,
            "duplicates whose --keep columns differ (the first row's are used)": self.other_meta,
        }
        return [f"{count} {what}" for what, count in counts.items() if count]

    def refuse_bad_rows(self, *, skip: bool) -> None:
        """Raise InputError if nothing is left, or if there are bad rows that are not to be skipped."""
        if self.bad and (not skip or not self.good):
            shown = "\n".join(f"  {place}: {reason}" for place, reason in self.bad_rows)
            total = sum(self.bad.values())
            more = f"\n  and {total - len(self.bad_rows)} more" if total > len(self.bad_rows) else ""
            advice = "; --skip-bad-rows leaves them out" if self.good else ""
            raise InputError(f"{self.source}: {total} of {self.rows} rows are bad{advice}\n{shown}{more}")
        if not self.good:
            raise InputError(f"{self.source}: there are no rows")


def check(settings: CheckSettings) -> CheckReport:
    """Validate an input whole; the library side of ``rlt-data check``.

    Raises:
        InputError: the input cannot be read at all, or no columns of it can be questions and solutions.
        SettingsError: the format is unknown.
    """
    report = CheckReport(settings.input)
    format = load_format("rlt" if settings.format == "auto" else settings.format)
    for _ in examined_rows(settings.as_input(), format, report):
        pass
    return report


def good_rows(settings: InputSettings, format: Format | None, reader_of: ReaderOf | None = None) -> list[Row]:
    """Read all rows of an input; for the arguments see :func:`examined_rows`.

    Raises:
        InputError: the input cannot be read, or has bad rows that are not to be skipped.
    """
    report = CheckReport(settings.input)
    rows = list(examined_rows(settings, format, report, reader_of))
    report.refuse_bad_rows(skip=settings.skip_bad_rows)
    return rows


class Reader(Protocol):
    """Turns records into rows."""

    preset: str | None

    def __call__(self, data: dict[str, Any], number: int) -> Row:
        """Make a row of the record of that number, from 0; raises BadRow."""


#: Makes the reader for an input out of its first record.
ReaderOf = Callable[[dict[str, Any]], Reader]


def examined_rows(
    settings: InputSettings, format: Format | None, report: CheckReport, reader_of: ReaderOf | None = None
) -> Iterator[Row]:
    """Read the good rows of an input one after the other, and count into ``report`` what they and the bad ones are.

    Exact duplicates are counted and left out.

    Args:
        settings: the input.
        format: tags that rows must not hold.
        report: what is counted.
        reader_of: reads other shapes than the presets.
    """
    reader: Reader | None = None
    seen: dict[bytes, bytes] = {}  # the kept columns of each row
    questions: set[bytes] = set()
    answers: dict[bytes, bytes] = {}
    disputed: set[bytes] = set()
    characters: Counter[str] = Counter()
    for number, record in enumerate(read_records(settings)):
        report.rows += 1
        try:
            if record.data is None:
                raise BadRow(record.problem)
            if reader is None:
                report.columns = list(record.data)
                reader = reader_of(record.data) if reader_of else RowReader(settings, record.data, settings.input)
                report.preset = reader.preset or ""
            row = reader(record.data, number)
            if format and (problem := format.problem_with(row.question, row.solution)):
                raise BadRow(problem)
            if re.search("[\ud800-\udfff]", f"{row.source_id}{row.answer}{row.meta}"):
                raise BadRow(
                    "the id, the answer or a kept column holds half of a surrogate pair, which is no Unicode text"
                )
        except BadRow as bad:
            report.bad[re.sub(r"\d[\d,]*", "N", str(bad))] += 1
            if len(report.bad_rows) < SHOWN_BAD_ROWS:
                report.bad_rows.append((record.place, str(bad)))
            continue
        report.good += 1
        has_trace = row.completion is not None or row.explanation is not None
        report.traces += has_trace
        for name in ("question", "solution", "explanation", "completion"):
            if (text := getattr(row, name)) is not None:
                characters[name] += len(text)
                characters[name + " rows"] += 1
                report.longest[name] = max(report.longest.get(name, 0), len(text))
                report.mean[name] = characters[name] / characters[name + " rows"]
        problem_key, answer = _digest(row.question, row.solution), _digest(row.answer)
        if answers.setdefault(problem_key, answer) != answer:
            disputed.add(problem_key)
            report.disagreements = len(disputed)
        trace = [row.completion, row.explanation, row.source_id if row.has_id else None] if has_trace else []
        digest = _digest(row.question, row.solution, *trace) if has_trace else problem_key
        meta = _digest(row.meta) if settings.keep else b""
        if digest in seen:
            report.duplicates += 1
            report.other_meta += seen[digest] != meta
            continue
        seen[digest] = meta
        question = _digest(row.question)
        if not has_trace:
            report.repeated_questions += question in questions
        questions.add(question)
        yield row


def _digest(*parts: str | None) -> bytes:
    """Hash texts to 16 bytes: one is kept for every row of the input."""
    return bytes.fromhex(content_hash(*parts))
