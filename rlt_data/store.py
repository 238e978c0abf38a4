"""The run folder: tables that grow durably, can be read at any moment, and end up byte for byte the same.

    RUN/run.json                       what made each table (settings, fingerprints, versions)
    RUN/<table>/part-00000.parquet     rows of 256 questions, sorted; replaced as a whole by rename
    RUN/journal/<table>/00000/*.parquet  rows of a part that is not complete yet, a few seconds of work in each file
    RUN/errors.jsonl                   rows that failed
    RUN/run.log                        what happened when

Every file is written under another name, synchronised to disk and renamed, so no reader ever meets half a file and
``kill -9`` costs at most the seconds since the last rename. When all rows of a part are there, its journal is merged
into the part. A kill between the two leaves rows in both places; reading takes each key once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import filelock
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rlt_data.errors import DiskError, RunFolderError
from rlt_data.tables import KEYS, QUESTIONS_PER_PART, SCHEMAS, TABLE_OF_STEP, VERSION, to_table

#: Seconds between two writes of the journal: well under the five that a finished row may be at risk.
FLUSH_SECONDS = 2.0
#: Rows in memory that are written without waiting for the clock.
FLUSH_ROWS = 4096


def content_hash(*parts: Any) -> str:
    """Return 32 hex digits over JSON-serialisable parts; equal for equal content, in every process and version."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class Run:
    """A run folder on the local disk.

    Args:
        path: the folder.

    Raises:
        RunFolderError: the folder was written by a newer layout.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        info = self.info
        if info.get("version", VERSION) != VERSION:
            raise RunFolderError(
                f"{self.path}: written with layout version {info['version']}; this rlt-data reads version {VERSION}"
            )

    @classmethod
    def existing(cls, path: str | Path) -> Run:
        """Open a run folder that must be there.

        Raises:
            RunFolderError: there is no folder, or it is not a run.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise RunFolderError(f"{path}: no such run folder")
        if not (folder / "run.json").is_file():
            raise RunFolderError(f"{path}: not a run folder (it has no run.json)")
        return cls(folder)

    @staticmethod
    def is_at(path: str | Path) -> bool:
        """Whether there is a run folder that can be reached."""
        try:
            return (Path(path) / "run.json").is_file()
        except OSError:
            return False

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for writing; the lock ends with the process, however that ends.

        Raises:
            RunFolderError: another process holds it.
            DiskError: the folder cannot be made or written.
        """
        with disk_errors(self.path):
            is_new = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.path / ".lock")
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                raise RunFolderError(f"{self.path}: another rlt-data process is writing to this run folder") from None
        try:
            for leftover in self.path.rglob(".*.tmp"):
                if leftover.is_file():
                    leftover.unlink(missing_ok=True)
            yield
        finally:
            lock.release()
            if is_new and not any(path.name != ".lock" for path in self.path.iterdir()):
                shutil.rmtree(self.path)  # nothing came of it: a bad input, say

    # What made the tables

    @property
    def info(self) -> dict[str, Any]:
        """The content of run.json, empty for a new folder."""
        file = self.path / "run.json"
        try:
            info = json.loads(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise RunFolderError(f"{file}: cannot be read: {error.strerror}") from None
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
        write_json(self.path / "run.json", info)

    def refuse_other_settings(self, step: str, depends_on: dict[str, Any]) -> None:
        """Raise RunFolderError if the folder holds rows or failures of a step that were made by other settings."""
        before = self.step(step).get("depends_on", depends_on)
        if not self.parts(TABLE_OF_STEP[step]) and not (self.path / "errors.jsonl").exists():
            return  # an earlier start came to nothing: a wrong model, say
        if before != depends_on:
            changed = changed_keys(before, depends_on)
            differences = "; ".join(f"{key} was {before.get(key)!r}, now {depends_on.get(key)!r}" for key in changed)
            raise RunFolderError(
                f"{self.path}: this run's {step} step was made by other settings ({differences}). "
                "Use the same settings to continue it, or another --out."
            )

    # Tables

    def parts(self, table: str) -> list[int]:
        """Return the numbers of the parts that have rows, in order."""
        finished = {int(path.stem.removeprefix("part-")) for path in (self.path / table).glob("part-*.parquet")}
        growing = {int(path.parent.name) for path in (self.path / "journal" / table).glob("*/*.parquet")}
        return sorted(finished | growing)

    def part_file(self, table: str, part: int) -> Path:
        """Return where a part's file is or will be."""
        return self.path / table / f"part-{part:05d}.parquet"

    def read(self, table: str, part: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one part, journal included, each key once, in the order of questions and samples."""
        key = KEYS[table]
        schema = SCHEMAS[table]
        sort_by = [key] if table == "questions" else [key, "question_id", "sample_index"]
        wanted = list(dict.fromkeys([*(columns or schema.names), *sort_by]))
        files = [path for path in (self.part_file(table, part), *self._journal(table, part)) if path.exists()]
        pieces = [_read_file(path, wanted) for path in files]
        if not pieces:
            return to_table(table, []).select(list(columns or schema.names))
        rows = pa.concat_tables(pieces)
        if len(files) > 1 or not self.part_file(table, part).exists():
            rows = self._in_order(table, part, rows)
        return rows.select(list(columns or schema.names))

    def count(self, table: str) -> int:
        """Return the number of rows of a table."""
        return sum(
            len(self.read(table, part, [KEYS[table]]))
            if self._journal(table, part)
            else pq.read_metadata(self.part_file(table, part)).num_rows
            for part in self.parts(table)
        )

    def keys(self, table: str, part: int) -> set[str]:
        """Return the keys of the rows that a part has."""
        return set(self.read(table, part, [KEYS[table]]).column(0).to_pylist())

    def write_part(self, table: str, part: int, rows: pa.Table) -> None:
        """Write a whole part, in place of what was there."""
        write_file(self.part_file(table, part), lambda path: _write_parquet(path, rows))

    def add_segment(self, table: str, part: int, rows: pa.Table) -> None:
        """Make rows of an incomplete part durable."""
        folder = self.path / "journal" / table / f"{part:05d}"
        write_file(folder / f"{uuid.uuid4().hex}.parquet", lambda path: _write_parquet(path, rows))

    def compact(self, table: str, part: int) -> None:
        """Merge the journal of a part into its file."""
        segments = self._journal(table, part)
        if segments:
            self.write_part(table, part, self.read(table, part))
            shutil.rmtree(segments[0].parent, ignore_errors=True)

    def compact_all(self, table: str) -> None:
        """Merge the journals of all parts of a table."""
        for part in self.parts(table):
            self.compact(table, part)
        shutil.rmtree(self.path / "journal" / table, ignore_errors=True)
        with contextlib.suppress(OSError):
            (self.path / "journal").rmdir()

    @contextlib.contextmanager
    def replacing(self, table: str) -> Iterator[Callable[[int, pa.Table], None]]:
        """Write a table anew: hands out a function that writes a part, and puts all in place at the end.

        The earlier table stays if anything goes wrong.
        """
        fresh = self.path / f".{table}.new.tmp"
        earlier = self.path / f".{table}.old.tmp"
        final = self.path / table
        with disk_errors(fresh):
            for leftover in (fresh, earlier):
                shutil.rmtree(leftover, ignore_errors=True)
            fresh.mkdir()
            try:
                yield lambda part, rows: _write_parquet(fresh / self.part_file(table, part).name, rows)
                for file in fresh.iterdir():
                    _synchronise(file)
                if final.exists():
                    final.rename(earlier)
                fresh.rename(final)
                _synchronise(self.path)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
                shutil.rmtree(earlier, ignore_errors=True)

    def adopt(self, table: str, source: Run) -> None:
        """Take over a table of another run, by hard links where the disk allows; parts are never changed in place."""
        for part in source.parts(table):
            self.adopt_part(table, part, source, part)

    def adopt_part(self, table: str, part: int, source: Run, its_part: int) -> None:
        """Take over one part of another run, if that has rows of the table, as this part."""
        mine, theirs = self.part_file(table, part), source.part_file(table, its_part)
        if source._journal(table, its_part):
            self.write_part(table, part, source.read(table, its_part))
        elif theirs.exists() and not (mine.exists() and os.path.samefile(mine, theirs)):
            write_file(mine, lambda path: _link(theirs, path))

    def _journal(self, table: str, part: int) -> list[Path]:
        return sorted((self.path / "journal" / table / f"{part:05d}").glob("*.parquet"))

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


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Make a file appear whole: written beside its place, synchronised, renamed, the folder synchronised.

    Raises:
        DiskError: the disk is full or the folder cannot be written; nothing has changed.
    """
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            _synchronise(temporary)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _synchronise(path.parent)


def write_json(path: Path, content: Any) -> None:
    """Make a JSON file appear whole; see :func:`write_file`."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def changed_keys(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return the keys under which two entries differ, in order."""
    return sorted(key for key in before | now if before.get(key) != now.get(key))


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into DiskError."""
    try:
        yield
    except OSError as error:
        if isinstance(error, filelock.Timeout):
            raise
        reason = error.strerror or str(error)
        raise DiskError(f"cannot write {path}: {reason}. What was there before is unchanged.") from None


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _write_parquet(path: Path, rows: pa.Table) -> None:
    pq.write_table(rows, path, compression="zstd", row_group_size=1024)


def _read_file(path: Path, columns: list[str]) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:  # read_table, which is made for many files, takes twice as long for one
            return file.read(columns).select(columns)
    except (pa.ArrowException, KeyError, OSError) as error:
        raise RunFolderError(f"{path}: cannot be read as a table: {error}") from None
