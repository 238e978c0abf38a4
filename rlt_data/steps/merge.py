"""Merge runs into one: of several machines that each had some of the questions, or of several teachers.

Runs may have traces of different teachers and sampling settings, generated or imported. All other settings must be
equal; scores may differ in the teacher of the KL if it is each trace's own.

Tables are merged by key: if several runs have a row, the first run's is used. Questions keep the order of the first run
that has them, with the runs in the given order, and all other rows move to the new part of their question. Ranks
are not merged, because quantiles depend on all traces, nor are signals, because duplicates do; rank and curate the
merged run again.

    compute the position of every question in the merged run from the questions tables
    for each part of each run, ordered by the new part that needs it first: read it, assign its rows to new parts
    for each new part whose rows are complete: sort the rows and write them

Each part is read once. Assigned rows are buffered in memory up to BUFFER_BYTES and then in files, so the questions may
be in any order. If the runs are consecutive shares of a file, two parts are in memory, and a part that does not change
becomes a hard link. Positions take 4 bytes per question of each run, and about 90 while they are computed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from rlt_data.errors import RunFolderError, SettingsError
from rlt_data.inputs import recorded_inputs
from rlt_data.progress import SILENT, Progress, task
from rlt_data.settings import MergeSettings
from rlt_data.signals.frames import trace_format
from rlt_data.steps.makers import has_imports, pooled_entry, recorded_makers
from rlt_data.steps.own_teachers import differ_only_in_teachers, has_own_teachers, with_teachers_of
from rlt_data.steps.provenance import versions
from rlt_data.storage.backends import open_folder
from rlt_data.storage.changes import describe_changes
from rlt_data.storage.errorlog import carry_failures, failures
from rlt_data.storage.outputs import new_folder
from rlt_data.storage.paths import StoragePath, disk_errors, storage_path
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import KEYS, QUESTIONS_PER_PART, SCHEMAS, TABLE_OF_STEP

#: Tables to merge.
TABLES = ("questions", "traces", "scores", "thoughts", "answers", "grades")

#: Columns that are not part of a row's key, and that each import sets.
ANNOTATIONS = ("origin", "answer", "meta")

#: Maximum bytes of a table's rows that are buffered in memory; further rows are buffered in files.
BUFFER_BYTES = 256 * 2**20


@dataclass(frozen=True)
class MergeSummary:
    """Result of a merge.

    Attributes:
        run: folder of the merged run.
        runs: number of runs merged.
        rows: rows of the merged run by table.
        repeated: duplicate rows by table, which were taken from the first run that has them.
        differing: number of these questions and traces, by table, whose copies have different :data:`ANNOTATIONS`.
        failed: rows in errors.jsonl.
        seconds: time spent.
        makers: number of teachers and sampling settings whose traces are in the merged run; imports count as one.
        signals: signals of the source runs, which the merged run does not have.
    """

    run: StoragePath
    runs: int
    rows: dict[str, int]
    repeated: dict[str, int]
    differing: dict[str, int]
    failed: int
    seconds: float
    makers: int = 0
    signals: tuple[str, ...] = ()


def merge(settings: MergeSettings, progress: Progress = SILENT) -> MergeSummary:
    """Merge runs of the same or of different teachers; implements ``rlt-data merge``.

    The merged run appears once it is complete. The source runs do not change and are locked during the merge.

    Raises:
        SettingsError: two inputs are the same run, or the output folder is inside one of them.
        RunFolderError: an input is not a run or is in use; the runs differ in more than teachers and sampling settings;
            or the output folder exists.
        DiskError: the merged run cannot be written.
    """
    began = time.monotonic()
    out = storage_path(settings.out)
    runs = [RunFolder.existing(path) for path in settings.input]
    _refuse_wrong_folders(runs, out)
    with ExitStack() as locks:
        for run in runs:
            folder = run.folder.local_path
            if folder is None or os.access(folder, os.W_OK):  # a read-only folder cannot change or be locked
                locks.enter_context(run.locked())
        entries = _common_entries(runs)
        with new_folder(out) as folder:
            merged = RunFolder(folder)
            differing = _merge_tables(runs, merged, folder / "buffer", progress)
            failed = carry_failures(merged, runs)
            rows, source_rows = _counts(merged), [_counts(run) for run in runs]
            sources = [_source(run, counts) for run, counts in zip(runs, source_rows, strict=True)]
            _record(merged, entries, rows, sources)
            makers = len(recorded_makers(merged)) + has_imports(merged)
            _refuse_existing(out)
    repeated = {table: sum(counts[table] for counts in source_rows) - rows[table] for table in rows}
    signals = tuple(sorted({name for run in runs for name in run.signals}))
    return MergeSummary(out, len(runs), rows, repeated, differing, failed, time.monotonic() - began, makers, signals)


def _counts(run: RunFolder) -> dict[str, int]:
    return {table: run.count(table) for table in TABLES}


def _refuse_wrong_folders(runs: list[RunFolder], out: StoragePath) -> None:
    known: dict[StoragePath, RunFolder] = {}
    for run in runs:
        folder = run.path.resolve()
        if folder in known:
            raise SettingsError(f"--in: {known[folder].path} and {run.path} are the same folder; name each run once")
        if folder in out.resolve().parents:
            raise SettingsError(f"--out: {out} is inside {run.path}, one of the runs to merge; choose another folder")
        known[folder] = run
    _refuse_existing(out)


def _refuse_existing(out: StoragePath) -> None:
    with disk_errors(out):
        if open_folder(out.parent).exists(out.name):
            raise RunFolderError(f"{out}: exists already; choose a new folder as --out")


# Entries of run.json


def _common_entries(runs: list[RunFolder]) -> dict[str, dict[str, Any]]:
    """Return the run.json entry of each step, from the first run that has it.

    Raises:
        RunFolderError: two runs ran a step other than generate with different settings.
    """
    entries: dict[str, tuple[RunFolder, dict[str, Any]]] = {}
    own_teachers = cache(has_own_teachers)
    for run in runs:
        for step in ("input", *TABLE_OF_STEP):
            entry = run.step(step)
            if not entry or (step in TABLE_OF_STEP and not _has_rows_or_failures(run, step)):
                continue
            first, first_entry = entries.setdefault(step, (run, entry))
            one, other = first_entry.get("depends_on", {}), entry.get("depends_on", {})
            if step == "generate" or one == other:
                continue
            if step == "score" and differ_only_in_teachers(one, other):
                if all(map(own_teachers, runs)):
                    entries[step] = (first, with_teachers_of(first_entry, entry))
                    continue
            differences = describe_changes(first_entry, entry, "{key} {old} and {new}")
            raise RunFolderError(
                f"{first.path} and {run.path} have different {step} settings ({differences}); merge only runs of "
                "the same settings"
            )
    common = {step: entry for step, (_, entry) in entries.items()}
    pooled = pooled_entry([run for run in runs if _has_rows_or_failures(run, "generate")])
    if "generate" in common:
        common["generate"] = pooled
    if imported := [run for run in runs if has_imports(run)]:
        format = next(filter(None, map(trace_format, imported)), None)
        recorded = {"format": format.model_dump(mode="json")} if format else {}
        common["input"] = common["input"] | {"traces": True} | recorded
    inputs = [origin for run in runs for origin in recorded_inputs(run.step("input"))]
    if distinct := [origin for place, origin in enumerate(inputs) if origin not in inputs[:place]]:
        common["input"] = common["input"] | {"inputs": distinct}
    return common


def _has_rows_or_failures(run: RunFolder, step: str) -> bool:
    return bool(run.parts(TABLE_OF_STEP[step])) or any(entry["step"] == step for entry in failures(run))


def _source(run: RunFolder, rows: dict[str, int]) -> dict[str, Any]:
    """Return the record of a source run for the merged run's run.json."""
    entry = {"run": str(run.path), "rows": rows, "input": run.step("input").get("digest")}
    earlier = run.step("merge").get("sources")
    return entry | ({"sources": earlier} if earlier else {})


def _record(
    merged: RunFolder, entries: dict[str, dict[str, Any]], rows: dict[str, int], sources: list[dict[str, Any]]
) -> None:
    failed = Counter(entry["step"] for entry in failures(merged))
    for step, entry in entries.items():
        counts = {"rows": rows[TABLE_OF_STEP[step]], "failed": failed[step]} if step in TABLE_OF_STEP else {}
        merged.record(step, entry | counts)
    merged.record("merge", {"versions": versions(), "rows": rows, "sources": sources})


# Tables


@dataclass(frozen=True)
class _SourcePart:
    """A part of a source run.

    Attributes:
        run: index of the source run.
        part: number of the part in that run.
        positions: position of each of its questions in the merged run.
        new_parts: parts of the merged run that contain these positions, ascending.
    """

    run: int
    part: int
    positions: npt.NDArray[np.int32]
    new_parts: list[int]


def _source_parts(runs: list[RunFolder]) -> list[_SourcePart]:
    """Compute the position of every question, and return all parts ordered by the new part that needs them first."""
    origins = [(source, part) for source, run in enumerate(runs) for part in run.parts("questions")]
    digests = [_digests(runs[source].read("questions", part, ["question_id"])) for source, part in origins]
    # Dictionary codes are assigned in order of first appearance.
    codes = pa.chunked_array(digests, pa.binary(16)).combine_chunks().dictionary_encode().indices.to_numpy()
    source_parts, start = [], 0
    for (source, part), questions in zip(origins, digests, strict=True):
        positions = codes[start : start + len(questions)]
        new_parts = np.unique(positions // QUESTIONS_PER_PART).tolist()
        source_parts.append(_SourcePart(source, part, positions, new_parts))
        start += len(questions)
    return sorted(source_parts, key=lambda item: (item.new_parts[0], item.run, item.part))


def _digests(questions: pa.Table) -> pa.Array:
    keys = questions.column(0).to_pylist()
    return pa.array([hashlib.blake2b(key.encode(), digest_size=16).digest() for key in keys], pa.binary(16))


def _merge_tables(runs: list[RunFolder], merged: RunFolder, buffer_folder: Path, progress: Progress) -> dict[str, int]:
    """Write the merged tables, and return the number of questions and of traces whose copies differ."""
    source_parts = _source_parts(runs)
    sources_per_part = Counter(part for source in source_parts for part in source.new_parts)
    by_first_part = {part: list(group) for part, group in groupby(source_parts, key=lambda item: item.new_parts[0])}
    buffers = {table: _RowBuffer(buffer_folder / table) for table in TABLES}
    differing = dict.fromkeys(("questions", "traces"), 0)
    with task(progress, "merge", len(source_parts)):
        for part in sorted(sources_per_part):
            for source in by_first_part.get(part, ()):
                if source.new_parts == [part] and sources_per_part[part] == 1:
                    for table in TABLES:
                        merged.adopt_part(table, part, runs[source.run], source.part)
                else:
                    _read(runs[source.run], source, buffers)
                progress.advance()
            for table, buffer in buffers.items():
                if tables := buffer.take(part):
                    rows = pa.concat_tables(tables)
                    merged.write_part(table, part, _sort_unique(table, rows))
                    if table in differing:
                        differing[table] += _count_differing(table, rows)
    for table in TABLES:
        merged.compact_all(table)
    shutil.rmtree(buffer_folder, ignore_errors=True)
    return differing


def _read(run: RunFolder, source: _SourcePart, buffers: dict[str, _RowBuffer]) -> None:
    """Buffer the rows of a part of a run, with the index of the run and the position of each row's question."""
    questions = run.read("questions", source.part)["question_id"].combine_chunks()
    for table, buffer in buffers.items():
        rows = run.read(table, source.part)
        if not len(rows):
            continue
        indices = pc.index_in(rows["question_id"], value_set=questions)
        if indices.null_count:
            raise RunFolderError(
                f"{run.path}: part {source.part} of {table} has rows whose questions are not in the questions table"
            )
        rows = rows.append_column("position", pc.take(pa.array(source.positions), indices))
        buffer.add(rows.append_column("source", pa.repeat(pa.scalar(source.run, pa.int32()), len(rows))))


def _sort_unique(table: str, rows: pa.Table) -> pa.Table:
    """Keep each key once, from the first run that has it, sorted by question and sample."""
    key = KEYS[table]
    order = ["position"] if table == "questions" else ["position", "sample_index", key]
    columns = pl.DataFrame(rows.select([*dict.fromkeys([key, "source", *order])])).with_row_index("row")
    first = columns.sort("source").unique(key, keep="first", maintain_order=True)
    return rows.select(SCHEMAS[table].names).take(first.sort(order)["row"].to_arrow())


def _count_differing(table: str, rows: pa.Table) -> int:
    """Return the number of keys whose rows have different annotations."""
    key = KEYS[table]
    columns = [name for name in ANNOTATIONS if name in rows.column_names]
    copies = pl.DataFrame(rows.select([key, *columns])).unique().group_by(key).len()
    return int((copies["len"] > 1).sum())


class _RowBuffer:
    """Rows of incomplete new parts: in memory up to BUFFER_BYTES, then in files.

    Parts are taken in ascending order, so the remaining rows always belong to later parts.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows: list[pa.Table] = []  # each sorted by position
        self._files: list[tuple[Path, dict[int, int]]] = []  # file, and the index of each part's batch in it

    def add(self, rows: pa.Table) -> None:
        """Add rows with their positions."""
        self._rows.append(_sort_by_position(rows))
        if sum(rows.get_total_buffer_size() for rows in self._rows) > BUFFER_BYTES:
            self._write_file()

    def take(self, part: int) -> list[pa.Table]:
        """Remove and return the rows of the next part."""
        ends = [int(np.searchsorted(_positions(rows), (part + 1) * QUESTIONS_PER_PART)) for rows in self._rows]
        tables = [rows.slice(0, end) for rows, end in zip(self._rows, ends, strict=True) if end]
        self._rows = [rows.slice(end) for rows, end in zip(self._rows, ends, strict=True) if end < len(rows)]
        for path, batches in self._files:
            if part in batches:
                with pa.OSFile(str(path)) as file:
                    tables.append(pa.Table.from_batches([pa.ipc.open_file(file).get_batch(batches[part])]))
        return tables

    def _write_file(self) -> None:
        rows = _sort_by_position(pa.concat_tables(self._rows))
        self._rows = []
        parts, starts = np.unique(_positions(rows) // QUESTIONS_PER_PART, return_index=True)
        path = self._folder / f"{len(self._files)}.arrow"
        path.parent.mkdir(parents=True, exist_ok=True)
        with pa.ipc.new_file(str(path), rows.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as file:
            for start, end in pairwise([*starts, len(rows)]):
                [batch] = rows.slice(start, end - start).combine_chunks().to_batches()
                file.write_batch(batch)
        self._files.append((path, {int(part): number for number, part in enumerate(parts)}))


def _positions(rows: pa.Table) -> npt.NDArray[np.int32]:
    return np.asarray(rows["position"].to_numpy())


def _sort_by_position(rows: pa.Table) -> pa.Table:
    positions = _positions(rows)
    return rows if (np.diff(positions) >= 0).all() else rows.take(np.argsort(positions, kind="stable"))
