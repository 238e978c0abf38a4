"""Write the questions of an input, and its traces if it has any, to the tables of a run."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from rlt_data.errors import SettingsError
from rlt_data.formats.control import ControlTokens
from rlt_data.formats.schema import Format
from rlt_data.inputs.check import CheckReport, ReaderOf, examined_rows
from rlt_data.inputs.files import Sources, digest_of, find_sources
from rlt_data.inputs.rows import Row, question_id
from rlt_data.inputs.thoughts import UnclosedThoughtError, split_thought
from rlt_data.plugins import PRESETS
from rlt_data.settings import InputSettings
from rlt_data.settings.base import name_of_input
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import QUESTIONS_PER_PART, content_hash, to_table
from rlt_data.storage.writer import TableWriter

logger = logging.getLogger(__name__)

#: ``made_by`` of imported traces.
IMPORTED = "imported"
#: Entry of the input in run.json: whether the keys of imported traces depend on their origin.
ORIGINS_IN_KEYS = "origins_in_keys"
#: Entry of the input in run.json: whether traces have their own solutions, which are no part of their question's key.
OWN_SOLUTIONS = "own_solutions"
#: Columns that a trace keeps from its own row, whatever other rows its question has.
_OF_ITS_ROW = ("origin", "answer", "meta")


def ingest(
    run: RunFolder,
    settings: InputSettings,
    format: Format,
    controls: Sequence[ControlTokens],
    *,
    traces: bool,
    reader_of: ReaderOf | None = None,
    check_system: Callable[[], None] = lambda: None,
) -> None:
    """Check a complete input, then add its new questions (and traces) to a run.

    An input file that was already read with the same settings is not read again.

    Args:
        run: the run, whose lock is held.
        settings: the input and its columns.
        format: gives the tags that questions and solutions must not contain, and closes bare explanations.
        controls: control tokens of the models; see :func:`rlt_data.inputs.check.examined_rows`.
        traces: whether to import traces too. Each row must then have one.
        reader_of: makes the reader for layouts other than the presets.
        check_system: called before anything is written if rows have their own system text; raises if the model cannot
            show it.

    Raises:
        InputError: the input cannot be read or has bad rows.
        SettingsError: the share of the questions is empty.
    """
    sources = find_sources(settings)
    before = run.step("input")
    made_from = {
        "settings": settings.model_dump(mode="json", include=set(InputSettings.model_fields), by_alias=True),
        "digest": digest_of(sources),
        "format_hash": format.hash,
        "control_tokens": content_hash(*(control.identity for control in controls)),
        "traces": traces or before.get("traces", False),  # whether the run has imported traces
    }
    if identity := PRESETS.identity(settings.preset):
        made_from["preset_source"] = identity
    if made_from["digest"] and all(before.get(key) == value for key, value in made_from.items()):
        return
    name = name_of_input(settings.input)
    # Runs of earlier versions continue with the keys that these made.
    own_solutions = before.get(OWN_SOLUTIONS, not run.parts("questions"))
    examine = partial(
        examined_rows,
        settings,
        format,
        reader_of=reader_of,
        traces=traces,
        without_solution=traces,
        replies=own_solutions,
        controls=controls,
        sources=sources,
    )
    report = CheckReport(name)
    for _ in examine(report):
        pass
    for notice in report.notices:
        logger.info(notice)
    report.refuse_bad_rows(skip=settings.skip_bad_rows)
    if "system" in report.longest:
        check_system()
    if report.bad:
        reasons = ", ".join(f"{count} {reason}" for reason, count in report.bad.most_common(3))
        bad = sum(report.bad.values())
        logger.warning("%s: %d of %d rows are bad and left out: %s", name, bad, report.rows, reasons)
    for line in report.warnings:
        logger.warning("%s: %s", name, line)

    def keyed_rows() -> Iterator[_KeyedRow]:
        return _keyed_rows(examine(CheckReport(name)), own_solutions=traces and own_solutions)

    share = _questions_of_share(settings.share, keyed_rows(), name) if settings.share else None
    run.record("input", {OWN_SOLUTIONS: own_solutions})

    def rows() -> Iterator[_KeyedRow]:
        return (row for row in keyed_rows() if share is None or row.key in share)

    positions = _add_questions(run, rows(), traces=traces)
    if traces:
        # Traces of earlier versions have no origin, and keep their keys when their input is read again.
        has_origins = before.get(ORIGINS_IN_KEYS, not run.parts("traces"))
        run.record("input", {ORIGINS_IN_KEYS: has_origins, "format": format.model_dump(mode="json")})
        if other := _add_traces(run, rows(), format, positions, origins_in_keys=has_origins):
            logger.warning(
                "%s: %d rows have traces that are already in the run with another origin, answer or other --keep "
                "columns, which are kept; a new --out imports the rows again",
                name,
                other,
            )
    counts = _with_counts(before, name, report)
    entry = {**made_from, **counts, "preset": report.preset, "inputs": _with_inputs(before, settings, sources)}
    run.record("input", entry)


def recorded_inputs(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the inputs that a run was made from, given its run.json entry ``input``.

    Returns:
        For each input its ``name`` (a Hub id, or the name of a file or folder) and ``on_hub``, which is None if it was
        not recorded; for an input from the Hub also ``subset``, ``split`` and ``revision``. Empty if none is recorded.
    """
    if "inputs" in entry:
        return list(entry["inputs"])
    name = entry.get("settings", {}).get("in")
    return [{"name": name, "on_hub": None}] if name else []


def _with_counts(before: Mapping[str, Any], name: str, report: CheckReport) -> dict[str, Any]:
    """Return the counts of a run's inputs, in total and ``by_input``; an input that is read again counts once."""
    keys = ("rows", "bad_rows", "duplicates")
    earlier = before.get("by_input", [])
    if not earlier and "rows" in before:  # of an earlier version, which counted the last input
        source = name_of_input(before.get("settings", {}).get("in", ""))
        earlier = [{"name": source} | {key: before.get(key, 0) for key in keys}]
    new = {"name": name, "rows": report.rows, "bad_rows": sum(report.bad.values()), "duplicates": report.duplicates}
    by_input = [*(counts for counts in earlier if counts["name"] != name), new]
    return {"by_input": by_input} | {key: sum(counts[key] for counts in by_input) for key in keys}


def _with_inputs(before: Mapping[str, Any], settings: InputSettings, sources: Sources) -> list[dict[str, Any]]:
    """Return the inputs of a run, the new ones included."""
    inputs = recorded_inputs(before)
    for source in sources.sources:
        on_hub = source.kind == "hub"
        new: dict[str, Any] = {"name": source.name if on_hub else Path(source.name).resolve().name, "on_hub": on_hub}
        if on_hub:
            new |= {key: getattr(settings, key) for key in ("subset", "split", "revision")}
        if new not in inputs:
            inputs.append(new)
    return inputs


@dataclass(frozen=True)
class _KeyedRow:
    """A row with its question: its key and solution, which is empty if it is unknown or the trace's own."""

    row: Row
    key: str
    solution: str

    @property
    def own_solution(self) -> str | None:
        """The solution of the trace, if it is not the question's."""
        return None if self.solution == self.row.solution else self.row.solution


def _keyed_rows(rows: Iterator[Row], *, own_solutions: bool) -> Iterator[_KeyedRow]:
    for row in rows:
        solution = "" if own_solutions and row.own_solution else row.solution
        yield _KeyedRow(row, question_id(row.question, solution, row.system), solution)


def _questions_of_share(share: str, rows: Iterator[_KeyedRow], name: str) -> set[str]:
    """Return the keys of the questions of a share, which are consecutive in the input.

    So the merged runs of all shares have the order of the input, and a question has all its rows in one share.

    Raises:
        SettingsError: the share is empty.
    """
    number, count = map(int, share.split("/"))
    keys = list(dict.fromkeys(row.key for row in rows))
    own = set(keys[(number - 1) * len(keys) // count : number * len(keys) // count])
    if not own:
        raise SettingsError(f"--share: {share} has no questions, because {name} has only {len(keys)}")
    logger.info("%s: share %s: %d of %d questions", name, share, len(own), len(keys))
    return own


def _add_questions(run: RunFolder, rows: Iterator[_KeyedRow], *, traces: bool) -> dict[str, int]:
    """Append the new questions to the table, and return the position of every question in the table.

    If the rows are traces, their ``--keep`` columns belong to the traces, because several may share a question. The
    answer of the first row is also the question's, for steps that make other traces.
    """
    positions: dict[str, int] = {}
    for part in run.parts("questions"):
        for key in run.read("questions", part, ["question_id"]).column(0).to_pylist():
            positions[key] = len(positions)
    existing = len(positions)

    def new_questions() -> Iterator[dict[str, Any]]:
        for keyed in rows:
            key, row = keyed.key, keyed.row
            if key not in positions:
                positions[key] = len(positions)
                yield {
                    "question_id": key,
                    "source_id": row.source_id,
                    "question": row.question,
                    "solution": keyed.solution,
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
    return positions


def _add_traces(
    run: RunFolder, rows: Iterator[_KeyedRow], format: Format, positions: dict[str, int], *, origins_in_keys: bool
) -> int:
    """Append the new traces; return how many other rows differ from their trace in origin, answer or ``meta``."""
    known: dict[str, int] = {}  # hash of these columns by trace
    samples: Counter[str] = Counter()
    other = 0
    for part in run.parts("traces"):
        for row in run.read("traces", part, ["trace_id", "question_id", *_OF_ITS_ROW]).to_pylist():
            known[row["trace_id"]] = hash(tuple(row[name] for name in _OF_ITS_ROW))
            samples[row["question_id"]] += 1
    with TableWriter(run, "traces") as writer:
        for keyed in rows:
            key, row = keyed.key, keyed.row
            completion = row.completion
            if completion is None:
                completion = format.completion_of(row.explanation or "")
            elif thought := _foreign_thought(completion, format):
                completion = format.completion_of(thought)
            origin = [row.origin] if row.origin and origins_in_keys else []
            own = [] if keyed.own_solution is None else [{"solution": keyed.own_solution}]
            trace_id = content_hash(IMPORTED, key, completion, row.source_id if row.has_id else None, *origin, *own)
            of_its_row = hash(tuple(getattr(row, name) for name in _OF_ITS_ROW))
            if trace_id in known:
                other += known[trace_id] != of_its_row
                continue
            known[trace_id] = of_its_row
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
                    "solution": keyed.own_solution,
                    **{name: getattr(row, name) for name in _OF_ITS_ROW},
                },
            )
            samples[key] += 1
    run.compact_all("traces")
    return other


def _foreign_thought(completion: str, format: Format) -> str | None:
    """Return the thought of a completion in another model's tags, or None if it has the format's closing tag."""
    if format.explanation_tags[1] in completion:
        return None
    try:
        return split_thought(completion)[0]
    except UnclosedThoughtError:
        return None  # a truncated trace
