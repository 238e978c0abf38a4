"""The run folder: tables that grow durably, can be read at any moment, and end up byte for byte the same.

    RUN/run.json                       what made each table (settings, fingerprints, versions)
    RUN/<table>/part-00000.parquet     rows of 256 questions, sorted; replaced as a whole by rename
    RUN/journal/<table>/00000/*.parquet  rows of a part that is not complete yet, a few seconds of work in each file
    RUN/errors.jsonl                   rows that failed
    RUN/run.log                        what happened when

Every file appears whole: written under another name, synchronised to disk and renamed, or uploaded to a store. So no
reader ever meets half a file, and ``kill -9`` costs at most the seconds since the last one. When all rows of a part are
there, its journal is merged into the part. A kill between the two leaves rows in both places; reading takes each key
once. What is different where the folder is in a store is in places.py, and in the modules that it names.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rlt_data.errors import DiskError, RunFolderError
from rlt_data.storage.index import listing_of, part_name
from rlt_data.storage.locks import held
from rlt_data.storage.parquet import count_rows, read_rows, write_rows
from rlt_data.storage.paths import (
    Place,
    appending,
    copy_file,
    disk_errors,
    exists,
    is_folder,
    json_writer,
    new_folder,
    place,
    read_bytes,
    refusal,
    remove_empty,
    remove_folder,
    write_file,
)
from rlt_data.storage.schemas import KEYS, QUESTIONS_PER_PART, SCHEMAS, TABLE_OF_STEP, VERSION, to_table

#: Seconds between two writes of the journal: well under the five that a finished row may be at risk.
FLUSH_SECONDS = 2.0
#: Rows in memory that are written without waiting for the clock.
FLUSH_ROWS = 4096
#: How often a part is read again because a file of it was merged into another one.
_READINGS = 5


def content_hash(*parts: Any) -> str:
    """Return 32 hex digits over JSON-serialisable parts; equal for equal content, in every process and version."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class Run:
    """A run folder, on the local disk or in a store.

    Args:
        path: the folder, or its URL.

    Raises:
        RunFolderError: the folder was written by a newer layout, or the URL leads nowhere.
    """

    def __init__(self, path: str | Place) -> None:
        self.path = place(path)
        self._listing = listing_of(self.path)
        self._check_lock: Callable[[], None] = _unlocked
        info = self.info
        if info.get("version", VERSION) != VERSION:
            raise RunFolderError(
                f"{self.path}: written with layout version {info['version']}; this rlt-data reads version {VERSION}"
            )

    @classmethod
    def existing(cls, path: str | Place) -> Run:
        """Open a run folder that must be there.

        Raises:
            RunFolderError: there is no folder, or it is not a run.
        """
        folder = place(path)
        try:
            if exists(folder / "run.json"):
                return cls(folder)
            wrong = "not a run folder (it has no run.json)" if is_folder(folder) else "no such run folder"
        except OSError as error:
            wrong = f"cannot be read: {refusal(error)}"
        raise RunFolderError(f"{path}: {wrong}")

    @staticmethod
    def is_at(path: str | Path) -> bool:
        """Whether there is a run folder on the disk that can be reached."""
        try:
            return (Path(path) / "run.json").is_file()
        except OSError:
            return False

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for writing; on a disk the lock ends with the process, however that ends.

        In a store it ends some time after a process that was killed (see locks.py).

        Raises:
            RunFolderError: another process holds it.
            DiskError: the folder cannot be made or written.
        """
        with held(self.path) as self._check_lock:
            self._listing.forget()
            try:
                yield
            finally:
                self._check_lock = _unlocked

    # What made the tables

    @property
    def info(self) -> dict[str, Any]:
        """The content of run.json, empty for a new folder."""
        file = self.path / "run.json"
        try:
            info = json.loads(read_bytes(file))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise RunFolderError(f"{file}: cannot be read: {refusal(error)}") from None
        except ValueError as error:
            raise RunFolderError(f"{file}: not JSON: {error}") from None
        if not isinstance(info, dict):
            raise RunFolderError(f"{file}: not the run.json of a run")
        return info

    def step(self, name: str) -> dict[str, Any]:
        """Return what run.json says of a step, empty if it has not run."""
        return dict(self.info.get("steps", {}).get(name, {}))

    def record(self, step: str, entry: dict[str, Any]) -> None:
        """Put an entry for a step into run.json; keys that are there and not in the entry stay."""
        info: dict[str, Any] = {"version": VERSION, "questions_per_part": QUESTIONS_PER_PART, "steps": {}} | self.info
        info["steps"][step] = info["steps"].get(step, {}) | entry
        self.write_json("run.json", info)

    def refuse_other_settings(self, step: str, depends_on: dict[str, Any]) -> None:
        """Raise RunFolderError if the folder holds rows or failures of a step that were made by other settings."""
        before = self.step(step).get("depends_on", depends_on)
        if not self.parts(TABLE_OF_STEP[step]) and not exists(self.path / "errors.jsonl"):
            return  # an earlier start came to nothing: a wrong model, say
        if before != depends_on:
            changed = changed_keys(before, depends_on)
            differences = "; ".join(f"{key} was {before.get(key)!r}, now {depends_on.get(key)!r}" for key in changed)
            raise RunFolderError(
                f"{self.path}: this run's {step} step was made by other settings ({differences}). "
                "Use the same settings to continue it, or another --out."
            )

    # Files

    def write_file(self, name: str, write: Callable[[Path], object]) -> None:
        """Make a file of the run appear whole; see :func:`rlt_data.storage.paths.write_file`.

        Raises:
            RunFolderError: another process has taken the lock over.
            DiskError: the file cannot be written.
        """
        path = self.path / name
        with disk_errors(path):
            self._check_lock()
        write_file(path, write)

    def write_json(self, name: str, content: Any) -> None:
        """Make a JSON file of the run appear whole; see :meth:`write_file`."""
        self.write_file(name, json_writer(content))

    @contextlib.contextmanager
    def appending(self, name: str) -> Iterator[Path]:
        """Hand out a file to write to the end of one of the run; see :func:`rlt_data.storage.paths.appending`."""
        with appending(self.path / name, before=self._check_lock) as file:
            yield file

    @property
    def logs(self) -> Path | None:
        """Folder for what engines' processes write; None where that cannot be in the run's folder."""
        return self.path / "logs" if isinstance(self.path, Path) else None

    # Tables

    def parts(self, table: str) -> list[int]:
        """Return the numbers of the parts that have rows, in order.

        Raises:
            RunFolderError: the table is being replaced, which can be seen in a store, or the store cannot be listed.
        """
        return self._listing.parts(table)

    def part_file(self, table: str, part: int) -> Place:
        """Return where a part's file is or will be."""
        return self.path / table / part_name(part)

    def files(self, table: str, part: int) -> list[Place]:
        """Return the files that hold rows of a part at the moment: its own, and those of its journal."""
        return self._listing.files(table, part)

    def read(self, table: str, part: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one part, journal included, each key once, in the order of questions and samples."""
        key = KEYS[table]
        schema = SCHEMAS[table]
        sort_by = [key] if table == "questions" else [key, "question_id", "sample_index"]
        wanted = list(dict.fromkeys([*(columns or schema.names), *sort_by]))
        files, pieces = self._pieces(table, part, wanted)
        if not pieces:
            return to_table(table, []).select(list(columns or schema.names))
        rows = pa.concat_tables(pieces)
        if files != [self.part_file(table, part)]:
            rows = self._in_order(table, part, rows)
        return rows.select(list(columns or schema.names))

    def _pieces(self, table: str, part: int, columns: list[str]) -> tuple[list[Place], list[pa.Table]]:
        """Read the files of a part as they are."""
        whole = len(columns) == len(SCHEMAS[table])
        for _ in range(_READINGS):
            files = self._listing.files(table, part)
            try:
                return files, read_rows(files, columns, all_columns=whole, schema=SCHEMAS[table])
            except FileNotFoundError:  # the process that writes has merged a journal meanwhile
                self._listing.forget()
        raise self._restless(table)

    def _restless(self, table: str) -> RunFolderError:
        return RunFolderError(f"{self.path / table}: changes while it is read; read it again later")

    def count(self, table: str) -> int:
        """Return the number of rows of a table."""
        files = {part: self._listing.files(table, part) for part in self.parts(table)}
        whole = [part for part in files if files[part] == [self.part_file(table, part)]]
        growing = sum(len(self.read(table, part, [KEYS[table]])) for part in files.keys() - whole)
        try:
            return growing + count_rows([self.part_file(table, part) for part in whole])
        except FileNotFoundError:
            raise self._restless(table) from None

    def keys(self, table: str, part: int) -> set[str]:
        """Return the keys of the rows that a part has."""
        return set(self.read(table, part, [KEYS[table]]).column(0).to_pylist())

    def write_part(self, table: str, part: int, rows: pa.Table) -> None:
        """Write a whole part, in place of what was there."""
        self._write_rows(table, part, f"{table}/{part_name(part)}", lambda path: write_rows(path, rows))

    def add_segment(self, table: str, part: int, rows: pa.Table) -> None:
        """Make rows of an incomplete part durable."""
        name = f"journal/{table}/{part:05d}/{uuid.uuid4().hex}.parquet"
        self._write_rows(table, part, name, lambda path: write_rows(path, rows))

    def _write_rows(self, table: str, part: int, name: str, write: Callable[[Path], object]) -> None:
        self.write_file(name, write)
        self._listing.wrote(table, part, name)

    def compact(self, table: str, part: int) -> None:
        """Merge the journal of a part into its file."""
        own = self.part_file(table, part)
        journal = [file for file in self._listing.files(table, part) if file != own]
        if journal:
            self.write_part(table, part, self.read(table, part))
            with disk_errors(journal[0].parent):
                remove_folder(journal[0].parent, journal)
            self._listing.merged(table, part)

    def compact_all(self, table: str) -> None:
        """Merge the journals of all parts of a table."""
        for part in self.parts(table):
            self.compact(table, part)
        remove_folder(self.path / "journal" / table, [])
        remove_empty(self.path / "journal")

    @contextlib.contextmanager
    def replacing(self, table: str) -> Iterator[Callable[[int, pa.Table], None]]:
        """Write a table anew: hands out a function that writes a part, and puts all in place at the end.

        The earlier table stays if anything goes wrong. In a store the parts are replaced one after the other; from the
        first to the last the table cannot be read.
        """
        with new_folder(self.path / table, before_each=self._check_lock) as fresh:
            yield lambda part, rows: write_rows(fresh / part_name(part), rows)
        self._listing.forget()

    def adopt(self, table: str, source: Run) -> None:
        """Take over a table of another run, by hard links where the disk allows; parts are never changed in place."""
        for part in source.parts(table):
            self.adopt_part(table, part, source, part)

    def adopt_part(self, table: str, part: int, source: Run, its_part: int) -> None:
        """Take over one part of another run, if that has rows of the table, as this part."""
        theirs = source._listing.files(table, its_part)
        if theirs not in ([], [source.part_file(table, its_part)]):
            self.write_part(table, part, source.read(table, its_part))
        elif theirs and not self._has_adopted(table, part, source, its_part):
            self._write_rows(table, part, f"{table}/{part_name(part)}", lambda path: copy_file(theirs[0], path))

    def _has_adopted(self, table: str, part: int, source: Run, its_part: int) -> bool:
        mine, theirs = self.part_file(table, part), source.part_file(table, its_part)
        if isinstance(mine, Path) and isinstance(theirs, Path):
            return mine.exists() and os.path.samefile(mine, theirs)
        return self._listing.files(table, part) == [mine] and self.keys(table, part) == source.keys(table, its_part)

    def _in_order(self, table: str, part: int, rows: pa.Table) -> pa.Table:
        first: dict[str, int] = {}
        for index, key in enumerate(rows[KEYS[table]].to_pylist()):
            first.setdefault(key, index)
        rows = rows.take(list(first.values()))
        if table == "questions":
            return rows
        questions = self.read("questions", part, ["question_id"]).column(0)
        place = pc.index_in(rows["question_id"], value_set=questions.combine_chunks())
        ordered = pa.table({"place": place, "sample": rows["sample_index"], "key": rows[KEYS[table]]})
        order = [("place", "ascending"), ("sample", "ascending"), ("key", "ascending")]
        return rows.take(pc.sort_indices(ordered, sort_keys=order))


class TableWriter:
    """Appends rows to a table of a run; each is on disk within :data:`FLUSH_SECONDS`, whatever the caller does.

    Use as a context manager. Leaving it writes what is in memory, also after an exception. A failed write is raised
    by the next call.
    """

    def __init__(self, run: Run, table: str) -> None:
        self._run = run
        self._table = table
        self._rows: dict[int, list[dict[str, Any]]] = defaultdict(list)
        self._held = 0
        self._buffer_lock = threading.Lock()
        self._disk_lock = threading.Lock()
        self._stop = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._flush_regularly, name=f"write-{table}", daemon=True)

    def __enter__(self) -> TableWriter:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if kind is None or not isinstance(error, DiskError):
            self.flush()

    def append(self, part: int, row: dict[str, Any]) -> None:
        """Take one row of a part."""
        with self._buffer_lock:
            self._rows[part].append(row)
            self._held += 1
            full = self._held >= FLUSH_ROWS
        if full or self._failure:
            self.flush()

    def flush(self) -> None:
        """Write what is in memory."""
        if self._failure:
            raise self._failure
        with self._disk_lock:
            with self._buffer_lock:
                taken, self._rows, self._held = self._rows, defaultdict(list), 0
            for part, rows in taken.items():
                self._run.add_segment(self._table, part, to_table(self._table, rows))

    def compact(self, part: int) -> None:
        """Write what is in memory and merge the journal of a complete part into its file."""
        self.flush()
        with self._disk_lock:
            self._run.compact(self._table, part)

    def _flush_regularly(self) -> None:
        while not self._stop.wait(FLUSH_SECONDS):
            try:
                self.flush()
            except Exception as error:  # noqa: BLE001 - handed to the thread that works
                self._failure = error
                return


def changed_keys(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return the keys under which two entries differ, in order."""
    return sorted(key for key in before | now if before.get(key) != now.get(key))


def _unlocked() -> None:
    """Stand for the lock of a run that nobody holds."""
