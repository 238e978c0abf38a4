"""Merge runs into one: what machines made of their shares of the questions becomes one run folder.

The tables are united by key, so rows that several runs have are there once, as the first of those runs has them.
Questions keep the order of the first run that has them, the runs in the order given, and all rows follow their
question to its new part. Rankings are not united, because quantiles are over all traces: rank again.

    the place of every question in the merged run, from the runs' questions alone
    for each part of each run, in the order in which its first question is wanted: read it, deal its rows to new parts
    for each new part that has all it will get: put its rows in order, write it

A part is read once. What is dealt waits in memory up to a bound, beyond it in files, so any order of questions will
do. Runs whose questions follow one another, as shares of a file do, need two parts in memory, and a part that stays as
it is becomes a hard link. Places take 4 bytes for each question of each run, and about 90 while they are found.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from rlt_data.errors import RunFolderError, SettingsError
from rlt_data.progress import SILENT, Progress, task
from rlt_data.settings import MergeSettings
from rlt_data.steps.provenance import versions
from rlt_data.storage.backends import open_folder
from rlt_data.storage.errorlog import carry_failures, failures
from rlt_data.storage.outputs import new_folder
from rlt_data.storage.paths import StoragePath, disk_errors, storage_path
from rlt_data.storage.run import RunFolder, changed_keys
from rlt_data.storage.schemas import KEYS, QUESTIONS_PER_PART, SCHEMAS, TABLE_OF_STEP

#: Tables that are united.
TABLES = ("questions", "traces", "scores", "answers", "grades")

#: Bytes of a table's rows that wait in memory for the rest of their part.
HELD_BYTES = 256 * 2**20


@dataclass(frozen=True)
class MergeSummary:
    """What merging gave.

    Attributes:
        run: the merged run's folder.
        runs: how many were merged.
        rows: rows of the merged run by table.
        repeated: rows by table that were left out because an earlier run has them.
        failed: rows in errors.jsonl.
        seconds: time spent.
    """

    run: StoragePath
    runs: int
    rows: dict[str, int]
    repeated: dict[str, int]
    failed: int
    seconds: float


def merge(settings: MergeSettings, progress: Progress = SILENT) -> MergeSummary:
    """Merge runs that were made by the same settings; the library side of ``rlt-data merge``.

    The merged run appears when it is whole. The runs stay as they are; no other process may write to them meanwhile.

    Raises:
        SettingsError: the same run is named twice, or the merged run would lie in one of them.
        RunFolderError: one of the folders is no run, is in use, or was made by other settings than the others; or the
            folder of the merged run is there already.
        DiskError: the merged run cannot be written.
    """
    began = time.monotonic()
    out = storage_path(settings.out)
    runs = [RunFolder.existing(path) for path in settings.input]
    _refuse_wrong_folders(runs, out)
    with ExitStack() as locks:
        for run in runs:
            folder = run.folder.on_disk
            if folder is None or os.access(folder, os.W_OK):  # else nobody here can write to it, or lock it
                locks.enter_context(run.locked())
        entries = _common_entries(runs)
        with new_folder(out) as fresh:
            merged = RunFolder(fresh)
            _unite(runs, merged, fresh / "held", progress)
            failed = carry_failures(merged, runs)
            made, read = _counts(merged), [_counts(run) for run in runs]
            _record(merged, entries, made, [_source(run, rows) for run, rows in zip(runs, read, strict=True)])
            _refuse_what_is_there(out)
    repeated = {table: sum(rows[table] for rows in read) - made[table] for table in made}
    return MergeSummary(out, len(runs), made, repeated, failed, time.monotonic() - began)


def _counts(run: RunFolder) -> dict[str, int]:
    return {table: run.count(table) for table in TABLES}


def _refuse_wrong_folders(runs: list[RunFolder], out: StoragePath) -> None:
    known: dict[StoragePath, RunFolder] = {}
    for run in runs:
        folder = run.path.resolve()
        if folder in known:
            raise SettingsError(f"--in: {known[folder].path} and {run.path} are the same folder; name each run once")
        if folder in out.resolve().parents:
            raise SettingsError(f"--out: {out} lies in {run.path}, which is merged; name a folder beside it")
        known[folder] = run
    _refuse_what_is_there(out)


def _refuse_what_is_there(out: StoragePath) -> None:
    with disk_errors(out):
        if open_folder(out.parent).exists(out.name):
            raise RunFolderError(f"{out}: is there already; runs are merged into a new folder, choose another --out")


# What made the rows


def _common_entries(runs: list[RunFolder]) -> dict[str, dict[str, Any]]:
    """Return what run.json will say of each step: the entry of the first run that has it.

    Raises:
        RunFolderError: runs have rows of a step that was done by different settings.
    """
    entries: dict[str, tuple[RunFolder, dict[str, Any]]] = {}
    for run in runs:
        for step in ("input", *TABLE_OF_STEP):
            entry = run.step(step)
            if not entry or (step in TABLE_OF_STEP and not _came_to_something(run, step)):
                continue
            first, known = entries.setdefault(step, (run, entry))
            before, now = known.get("depends_on", {}), entry.get("depends_on", {})
            if before != now:
                differences = "; ".join(
                    f"{key} is {now.get(key)!r}, there {before.get(key)!r}" for key in changed_keys(before, now)
                )
                raise RunFolderError(
                    f"{run.path}: its {step} step was done by other settings than that of {first.path} "
                    f"({differences}). A run holds rows of one kind; merge runs of the same settings."
                )
    return {step: entry for step, (_, entry) in entries.items()}


def _came_to_something(run: RunFolder, step: str) -> bool:
    return bool(run.parts(TABLE_OF_STEP[step])) or any(entry["step"] == step for entry in failures(run))


def _source(run: RunFolder, rows: dict[str, int]) -> dict[str, Any]:
    """Return what the merged run's run.json keeps of one of the runs."""
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


# The union


@dataclass(frozen=True)
class _Piece:
    """A part of one of the runs.

    Attributes:
        source: the run's place among the runs.
        part: the part's number there.
        places: the place in the merged run of each of its questions.
        parts: parts of the merged run that hold these places, ascending.
    """

    source: int
    part: int
    places: npt.NDArray[np.int32]
    parts: list[int]


def _pieces(runs: list[RunFolder]) -> list[_Piece]:
    """Find the place of every question, and return all parts in the order in which they are wanted."""
    origins = [(source, part) for source, run in enumerate(runs) for part in run.parts("questions")]
    digests = [_digests(runs[source].read("questions", part, ["question_id"])) for source, part in origins]
    # Codes of a dictionary are given in the order in which values come for the first time.
    codes = pa.chunked_array(digests, pa.binary(16)).combine_chunks().dictionary_encode().indices.to_numpy()
    pieces, read = [], 0
    for (source, part), questions in zip(origins, digests, strict=True):
        places = codes[read : read + len(questions)]
        pieces.append(_Piece(source, part, places, np.unique(places // QUESTIONS_PER_PART).tolist()))
        read += len(questions)
    return sorted(pieces, key=lambda piece: (piece.parts[0], piece.source, piece.part))


def _digests(questions: pa.Table) -> pa.Array:
    keys = questions.column(0).to_pylist()
    return pa.array([hashlib.blake2b(key.encode(), digest_size=16).digest() for key in keys], pa.binary(16))


def _unite(runs: list[RunFolder], merged: RunFolder, waiting_in: Path, progress: Progress) -> None:
    pieces = _pieces(runs)
    shares = Counter(part for piece in pieces for part in piece.parts)
    beginning = {part: list(some) for part, some in groupby(pieces, key=lambda piece: piece.parts[0])}
    held = {table: _Held(waiting_in / table) for table in TABLES}
    with task(progress, "merge", len(pieces)):
        for part in sorted(shares):
            for piece in beginning.get(part, ()):
                if piece.parts == [part] and shares[part] == 1:
                    for table in TABLES:
                        merged.adopt_part(table, part, runs[piece.source], piece.part)
                else:
                    _read(runs[piece.source], piece, held)
                progress.advance()
            for table, waiting in held.items():
                if rows := waiting.take(part):
                    merged.write_part(table, part, _in_order(table, pa.concat_tables(rows)))
    for table in TABLES:
        merged.compact_all(table)
    shutil.rmtree(waiting_in, ignore_errors=True)


def _read(run: RunFolder, piece: _Piece, held: dict[str, _Held]) -> None:
    """Read a part of a run, and note with each row its run and the place of its question."""
    questions = run.read("questions", piece.part)["question_id"].combine_chunks()
    for table, waiting in held.items():
        rows = run.read(table, piece.part)
        if not len(rows):
            continue
        asked = pc.index_in(rows["question_id"], value_set=questions)
        if asked.null_count:
            raise RunFolderError(f"{run.path}: part {piece.part} of its {table} has rows of questions that it lacks")
        rows = rows.append_column("place", pc.take(pa.array(piece.places), asked))
        waiting.add(rows.append_column("source", pa.repeat(pa.scalar(piece.source, pa.int32()), len(rows))))


def _in_order(table: str, rows: pa.Table) -> pa.Table:
    """Keep each key once, as the first run has it, in the order of questions and samples."""
    key = KEYS[table]
    order = ["place"] if table == "questions" else ["place", "sample_index", key]
    columns = pl.DataFrame(rows.select([*dict.fromkeys([key, "source", *order])])).with_row_index("row")
    first = columns.sort("source").unique(key, keep="first", maintain_order=True)
    return rows.select(SCHEMAS[table].names).take(first.sort(order)["row"].to_arrow())


class _Held:
    """Rows of a table that wait for the rest of their part: in memory up to a bound, beyond it in files.

    Parts are taken in their order, so what is left of any rows are those of later parts.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows: list[pa.Table] = []  # each in the order of places
        self._files: list[tuple[Path, dict[int, int]]] = []  # with the number of each part's batch

    def add(self, rows: pa.Table) -> None:
        """Take rows of some parts."""
        self._rows.append(_by_place(rows))
        if sum(rows.get_total_buffer_size() for rows in self._rows) > HELD_BYTES:
            self._put_away()

    def take(self, part: int) -> list[pa.Table]:
        """Hand out the rows of the next part."""
        ends = [int(np.searchsorted(_places(rows), (part + 1) * QUESTIONS_PER_PART)) for rows in self._rows]
        taken = [rows.slice(0, end) for rows, end in zip(self._rows, ends, strict=True) if end]
        self._rows = [rows.slice(end) for rows, end in zip(self._rows, ends, strict=True) if end < len(rows)]
        for path, batches in self._files:
            if part in batches:
                with pa.OSFile(str(path)) as file:
                    taken.append(pa.Table.from_batches([pa.ipc.open_file(file).get_batch(batches[part])]))
        return taken

    def _put_away(self) -> None:
        rows = _by_place(pa.concat_tables(self._rows))
        self._rows = []
        parts, starts = np.unique(_places(rows) // QUESTIONS_PER_PART, return_index=True)
        path = self._folder / f"{len(self._files)}.arrow"
        path.parent.mkdir(parents=True, exist_ok=True)
        with pa.ipc.new_file(str(path), rows.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as file:
            for start, end in pairwise([*starts, len(rows)]):
                [batch] = rows.slice(start, end - start).combine_chunks().to_batches()
                file.write_batch(batch)
        self._files.append((path, {int(part): number for number, part in enumerate(parts)}))


def _places(rows: pa.Table) -> npt.NDArray[np.int32]:
    return np.asarray(rows["place"].to_numpy())


def _by_place(rows: pa.Table) -> pa.Table:
    places = _places(rows)
    return rows if (np.diff(places) >= 0).all() else rows.take(np.argsort(places, kind="stable"))
