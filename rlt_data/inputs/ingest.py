"""Write the questions of an input, and its traces if it has any, to the tables of a run."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlt_data.formats.schema import Format
from rlt_data.inputs.check import CheckReport, ReaderOf, examined_rows
from rlt_data.inputs.files import digest_of, find_sources
from rlt_data.inputs.rows import Row
from rlt_data.inputs.thoughts import UnclosedThoughtError, split_thought
from rlt_data.plugins import PRESETS
from rlt_data.settings import InputSettings
from rlt_data.settings.base import name_of_input
from rlt_data.storage.run import RunFolder, content_hash
from rlt_data.storage.schemas import QUESTIONS_PER_PART, SCHEMAS, to_table
from rlt_data.storage.writer import TableWriter

logger = logging.getLogger(__name__)

#: ``made_by`` of imported traces.
IMPORTED = "imported"


def ingest(
    run: RunFolder, settings: InputSettings, format: Format, *, traces: bool, reader_of: ReaderOf | None = None
) -> None:
    """Check a complete input, then add its new questions (and traces) to a run.

    An input file that was already read with the same settings is not read again.

    Args:
        run: the run, whose lock is held.
        settings: the input and its columns.
        format: gives the tags that questions and solutions must not contain, and closes bare explanations.
        traces: whether to import traces too. Each row must then have one.
        reader_of: makes the reader for layouts other than the presets.

    Raises:
        InputError: the input cannot be read or has bad rows.
    """
    sources = find_sources(settings)
    made_from = {
        "settings": settings.model_dump(mode="json", include=set(InputSettings.model_fields), by_alias=True),
        "digest": digest_of(sources),
        "format_hash": format.hash,
        "traces": traces,
    }
    if identity := PRESETS.identity(settings.preset):
        made_from["preset_source"] = identity
    before = run.step("input")
    if made_from["digest"] and all(before.get(key) == value for key, value in made_from.items()):
        return
    name = name_of_input(settings.input)
    examine = partial(examined_rows, settings, format, reader_of=reader_of, traces=traces, sources=sources)
    report = CheckReport(name)
    for _ in examine(report):
        pass
    for notice in report.notices:
        logger.info(notice)
    report.refuse_bad_rows(skip=settings.skip_bad_rows)
    for line in report.conflicts:
        logger.warning("%s: %s", name, line)
    positions = _add_questions(run, examine(CheckReport(name)), traces=traces)
    if traces:
        _add_traces(run, examine(CheckReport(name)), format, positions)
    counts = {
        "rows": report.rows,
        "bad_rows": sum(report.bad.values()),
        "duplicates": report.duplicates,
        "preset": report.preset,
    }
    run.record("input", {**made_from, **counts})


def question_id(question: str, solution: str, system: str | None = None) -> str:
    """Return the key of a question with its solution and its own system text, if it has one."""
    return content_hash(question, solution) if system is None else content_hash(question, solution, system)


def _add_questions(run: RunFolder, rows: Iterator[Row], *, traces: bool) -> dict[str, int]:
    """Append the new questions to the table, and return the position of every question in the table.

    If the rows are traces, their ``--keep`` columns belong to the traces, because several may share a question.
    """
    positions: dict[str, int] = {}
    for part in run.parts("questions"):
        for key in run.read("questions", part, ["question_id"]).column(0).to_pylist():
            positions[key] = len(positions)
    existing = len(positions)

    def new_questions() -> Iterator[dict[str, Any]]:
        for row in rows:
            key = question_id(row.question, row.solution, row.system)
            if key not in positions:
                positions[key] = len(positions)
                yield {
                    "question_id": key,
                    "source_id": row.source_id,
                    "question": row.question,
                    "solution": row.solution,
                    "system": row.system,
                    "answer": row.answer,
                    "meta": None if traces else row.meta,
                }

    new = new_questions()
    part, filled = divmod(existing, QUESTIONS_PER_PART)
    if filled:
        if chunk := list(islice(new, QUESTIONS_PER_PART - filled)):
            last_part = run.read("questions", part)
            run.write_part("questions", part, pa.concat_tables([last_part, to_table("questions", chunk)]))
        part += 1
    while chunk := list(islice(new, QUESTIONS_PER_PART)):
        run.write_part("questions", part, to_table("questions", chunk))
        part += 1
    run.compact_all("questions")
    if len(positions) > existing:
        _add_missing_columns(run)
    return positions


def _add_missing_columns(run: RunFolder) -> None:
    """Rewrite the question parts of an older run that lack a column.

    Other programs read a table only if all its files have the same columns. Parts in an object store are left as they
    are, because that would take too many downloads.
    """
    names = SCHEMAS["questions"].names
    for part in run.parts("questions") if run.folder.local_path else ():
        if pq.read_schema(str(run.part_file("questions", part))).names != names:
            run.write_part("questions", part, run.read("questions", part))


def _add_traces(run: RunFolder, rows: Iterator[Row], format: Format, positions: dict[str, int]) -> None:
    known: set[str] = set()
    samples: Counter[str] = Counter()
    for part in run.parts("traces"):
        ids = run.read("traces", part, ["trace_id", "question_id"])
        known.update(ids["trace_id"].to_pylist())
        samples.update(ids["question_id"].to_pylist())
    with TableWriter(run, "traces") as writer:
        for row in rows:
            key = question_id(row.question, row.solution, row.system)
            completion = row.completion
            if completion is None:
                completion = format.completion_of(row.explanation or "")
            elif thought := _foreign_thought(completion, format):
                completion = format.completion_of(thought)
            trace_id = content_hash(IMPORTED, key, completion, row.source_id if row.has_id else None)
            if trace_id in known:
                continue
            known.add(trace_id)
            closed = format.explanation_tags[1] in completion
            writer.append(
                positions[key] // QUESTIONS_PER_PART,
                {
                    "trace_id": trace_id,
                    "question_id": key,
                    "source_id": row.source_id,
                    "sample_index": samples[key],
                    "completion": completion,
                    "finish_reason": row.finish_reason or ("stop" if closed else None),
                    "made_by": IMPORTED,
                    "meta": row.meta,
                },
            )
            samples[key] += 1
    run.compact_all("traces")


def _foreign_thought(completion: str, format: Format) -> str | None:
    """Return the thought of a completion in another model's tags, or None if it has the format's closing tag."""
    if format.explanation_tags[1] in completion:
        return None
    try:
        return split_thought(completion)[0]
    except UnclosedThoughtError:
        return None  # a truncated trace
