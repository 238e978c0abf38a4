"""A run folder: durable tables that can be read at any time and whose final bytes are reproducible.

    RUN/run.json                         what made each table (settings, fingerprints, versions)
    RUN/<table>/part-00000.parquet       rows of 256 questions, sorted; never changed in place
    RUN/manifests/<table>.json           the parts of the table, with rows, sizes and checksums
    RUN/journal/<table>/00000/*.parquet  rows of an incomplete part, a few seconds of work per file
    RUN/errors.jsonl                     rows that failed
    RUN/run.log                          log with times

New rows go to the journal. Its files are written atomically, so ``kill -9`` loses at most the seconds since the last
one. When a part is complete, its journal is merged into the part file. A kill between the merge and the removal of the
journal leaves rows in both, so readers drop duplicate keys. A process checks each part against the manifest before it
first reads it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from rlt_data.errors import RltDataError, RunFolderError
from rlt_data.storage.backends import open_folder
from rlt_data.storage.changes import describe_changes
from rlt_data.storage.folder import STAGING, FileChangedError, FileState, checksum, json_text
from rlt_data.storage.manifest import Manifest, Part
from rlt_data.storage.parquet import write_rows
from rlt_data.storage.paths import StoragePath, refusal
from rlt_data.storage.schemas import (
    KEYS,
    QUESTIONS_PER_PART,
    SCHEMAS,
    SIGNAL_PREFIX,
    TABLE_OF_STEP,
    VERSION,
    signal_schema,
)

if TYPE_CHECKING:
    import datasets

Frame = TypeVar("Frame", pl.DataFrame, pl.LazyFrame)

#: Attempts to read a table whose files change during the read.
_READ_ATTEMPTS = 5
#: The layout version without manifests, and the versions whose tables lack columns.
_FIRST_LAYOUT, _SECOND_LAYOUT, _THIRD_LAYOUT = 1, 2, 3
_SEGMENT = re.compile(r"(\d+)/(?:seg-([0-9a-f]{32})|[0-9a-f]{32})\.parquet")
_PART = re.compile(r"part-(\d{5,})\.parquet")
#: Files that match ``RUN/<table>/*.parquet``.
_TABLE_FILE = re.compile(r"[^.].*\.parquet")


def content_hash(*parts: Any) -> str:
    """Return a hash of JSON-serialisable parts as 32 hex digits, equal in every process and version."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def part_name(part: int) -> str:
    """Return the file name of a part."""
    return f"part-{part:05d}.parquet"


@dataclass
class _Files:
    """The files of a table when they were last listed.

    Attributes:
        manifest: the manifest of the table.
        part_files: numbers of the parts whose part file exists.
        journal: names of the journal files of each part.
    """

    manifest: Manifest
    part_files: set[int]
    journal: dict[int, list[str]]


class RunFolder:
    """A run folder on the local disk or in an object store.

    Args:
        path: path or URL of the folder.

    Attributes:
        folder: the storage backend.
        path: path of the folder.

    Raises:
        RunFolderError: the folder has a newer layout version, or the URL is invalid.
    """

    def __init__(self, path: str | StoragePath) -> None:
        self.folder = open_folder(path)
        self.path = self.folder.path
        self._tables: dict[str, _Files] = {}
        self._signals: dict[str, dict[str, Any]] | None = None
        self._is_locked = False
        self._version = self.info.get("version", VERSION)
        if self._version not in (_FIRST_LAYOUT, _SECOND_LAYOUT, _THIRD_LAYOUT, VERSION):
            raise RunFolderError(
                f"{self.path}: has layout version {self._version}, but this version of rlt-data reads layout {VERSION}"
            )

    @classmethod
    def existing(cls, path: str | StoragePath) -> RunFolder:
        """Open an existing run folder.

        Raises:
            RunFolderError: the folder does not exist, is not a run, or has missing or unknown part files.
        """
        folder = open_folder(path)
        try:
            folder.recover()
            if folder.exists("run.json"):
                run = cls(folder.path)
                if folder.local_path:
                    for table in run.tables:
                        run.parts(table)
                return run
            if folder.local_path and folder.local_path.is_file():
                raise RunFolderError(f"{path}: a file, not a run folder")
            reason = "not a run folder (it has no run.json)" if folder.exists() else "no such run folder"
        except OSError as error:
            reason = f"cannot be read: {refusal(error)}"
        raise RunFolderError(f"{path}: {reason}")

    @staticmethod
    def exists_at(path: str | Path) -> bool:
        """Return whether a readable run folder exists at a path on the disk."""
        try:
            return (Path(path) / "run.json").is_file()
        except OSError:
            return False

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the write lock of the folder.

        On a disk, the lock ends with the process. In an object store, the lock of a killed process expires later; see
        :mod:`rlt_data.storage.locks`.

        Raises:
            RunFolderError: another process holds the lock.
            DiskError: the folder cannot be created or written.
        """
        with self.folder.lock():
            self._tables.clear()
            self._signals = None
            self._version = self.info.get("version", VERSION)
            if self._version == _FIRST_LAYOUT:
                self._write_first_manifests()
            manifests = self.folder.sizes("manifests")
            for table in self.tables:
                if f"{table}.json" in manifests:
                    self._resolve_pending(table)
            if self._version != VERSION:
                self._add_columns()
            self._is_locked = True
            try:
                yield
            finally:
                self._is_locked = False

    # run.json

    @property
    def info(self) -> dict[str, Any]:
        """The content of run.json. Empty for a new folder."""
        file = self.path / "run.json"
        try:
            info = json.loads(self.folder.read("run.json"))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise RunFolderError(f"{file}: cannot be read: {refusal(error)}") from None
        except (ValueError, RecursionError) as error:
            raise RunFolderError(f"{file}: not JSON: {error}") from None
        if not _is_run_info(info):
            raise RunFolderError(f"{file}: not the run.json of a run")
        return dict(info)

    def step(self, name: str) -> dict[str, Any]:
        """Return the entry of a step in run.json. Empty if the step has not run."""
        return dict(self.info.get("steps", {}).get(name, {}))

    def record(self, step: str, entry: dict[str, Any]) -> None:
        """Update the entry of a step in run.json; other keys of the entry stay."""
        self.write_json("run.json", self._updated_info(step, entry))
        self._signals = None

    def _updated_info(self, step: str, entry: Mapping[str, Any]) -> dict[str, Any]:
        info: dict[str, Any] = {"version": VERSION, "questions_per_part": QUESTIONS_PER_PART, "steps": {}} | self.info
        info["steps"][step] = info["steps"].get(step, {}) | entry
        return info

    def refuse_earlier_prompts(self, step: str, entry: Mapping[str, Any]) -> None:
        """Refuse to add rows to a step whose rows have the prompts of an earlier version.

        Args:
            step: name of the step.
            entry: the new entry of the step for run.json.

        Raises:
            RunFolderError: the prompts of the step did not end with the chat template's generation prompt.
        """
        before = self.step(step)
        if "templates" in entry and "depends_on" in before and "templates" not in before and self._has_outcome(step):
            raise RunFolderError(
                f"{self.path}: the {step} step of this run was made by an earlier version of rlt-data, whose prompts "
                "did not end with the chat template's generation prompt. The run can be ranked, distilled and "
                "published; for new rows choose another --out."
            )

    def _has_outcome(self, step: str) -> bool:
        """Return whether a step may have rows or failures; a model that did not load, for example, leaves neither."""
        return bool(self.parts(TABLE_OF_STEP[step])) or self.folder.exists("errors.jsonl")

    def refuse_other_settings(
        self,
        step: str,
        entry: Mapping[str, Any],
        remedy: str = "Use the same settings to continue it, or choose another --out.",
    ) -> None:
        """Refuse to add rows to a step that has rows or failures of other settings.

        Args:
            step: name of the step.
            entry: the new entry of the step for run.json: ``depends_on``, and the models and the format if the message
                should name them.
            remedy: what the user can do, for the message.

        Raises:
            RunFolderError: the step ran with other settings; the message names each difference.
        """
        self.refuse_earlier_prompts(step, entry)
        before = self.step(step)
        if not self._has_outcome(step):
            return
        if before.get("depends_on", entry["depends_on"]) != entry["depends_on"]:
            differences = describe_changes(before, entry)
            raise RunFolderError(
                f"{self.path}: the {step} step of this run was made with other settings ({differences}). {remedy}"
            )

    # Files

    def write_file(self, name: str, write: Callable[[Path], object]) -> None:
        """Write a file of the run atomically; see :meth:`rlt_data.storage.folder.Folder.write`."""
        self.folder.write(name, write)

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file of the run atomically."""
        self.folder.write(name, lambda path: path.write_text(json_text(content), encoding="utf-8"))

    @property
    def logs(self) -> Path | None:
        """Folder for the output of engine processes. None for a run in an object store."""
        return self.folder.local_path / "logs" if self.folder.local_path else None

    # Tables

    @property
    def signals(self) -> dict[str, dict[str, Any]]:
        """The recorded signals by name, each with ``level``, ``columns`` (types by name) and ``depends_on``."""
        if self._signals is None:
            self._signals = dict(self.step("curate").get("signals", {}))
        return self._signals

    @property
    def tables(self) -> list[str]:
        """The names of all tables that the run may have."""
        return [*SCHEMAS, *(SIGNAL_PREFIX + name for name in self.signals)]

    def schema(self, table: str) -> pa.Schema:
        """Return the schema of a table.

        Raises:
            RunFolderError: the table is a signal that the run does not have.
        """
        if table in SCHEMAS:
            return SCHEMAS[table]
        entry = self.signals.get(table.removeprefix(SIGNAL_PREFIX))
        if entry is None:
            raise RunFolderError(f"{self.path}: has no {table}")
        return signal_schema(entry["level"], entry["columns"])

    def key(self, table: str) -> str:
        """Return the name of the key column of a table."""
        return KEYS.get(table) or str(self.schema(table).names[0])

    # Reading tables

    def parts(self, table: str) -> list[int]:
        """Return the numbers of the parts that have rows, in order.

        Raises:
            RunFolderError: part files are missing, truncated or unknown, or the files cannot be listed.
        """
        files = self._files(table, refresh=True)
        return sorted(files.part_files | files.journal.keys())

    def part_file(self, table: str, part: int) -> StoragePath:
        """Return the path of a part file, whether or not it exists."""
        return self.path / table / part_name(part)

    def files(self, table: str, part: int) -> list[StoragePath]:
        """Return the files that currently contain rows of a part: the part file and its journal files."""
        return [self.path / name for name in _file_names(self._files(table), table, part)]

    def part_state(self, table: str, part: int) -> object:
        """Return a value that changes whenever the rows of a part change."""
        files = self._files(table)
        state = files.manifest.parts[part].state if part in files.part_files else None
        return state, tuple(files.journal.get(part, ()))

    def last_written(self, table: str) -> list[tuple[Path, float]]:
        """Return the files of a table with their modification times, latest first.

        The list is empty for an object store, where times are expensive to get.
        """
        times = []
        for part in self.parts(table) if self.folder.local_path else ():
            for file in self.files(table, part):
                with contextlib.suppress(FileNotFoundError):
                    times.append((Path(str(file)), file.stat().st_mtime))
        return sorted(times, key=lambda entry: -entry[1])

    def read(self, table: str, part: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one part and its journal, without duplicate keys, ordered by question and sample.

        Args:
            table: name of the table.
            part: number of the part.
            columns: columns to read. None: all.

        Raises:
            RunFolderError: a file of the part is damaged, or was not written by rlt-data.
        """
        key = self.key(table)
        schema = self.schema(table)
        sort_by = [key] if key == "question_id" else [key, "question_id", "sample_index"]
        required_columns = list(dict.fromkeys([*(columns or schema.names), *sort_by]))
        names, tables = self._read_files(table, part, required_columns)
        if not tables:
            return schema.empty_table().select(list(columns or schema.names))
        rows = pa.concat_tables(tables)
        if names != [f"{table}/{part_name(part)}"]:
            rows = self._deduplicate_and_sort(table, part, rows)
        return rows.select(list(columns or schema.names))

    def count(self, table: str) -> int:
        """Return the number of rows of a table."""
        self._files(table, refresh=True)
        return self._count(table)

    def _count(self, table: str) -> int:
        """Return the number of rows of a table at its last listing."""
        files = self._files(table)
        complete = sum(files.manifest.parts[part].state.rows for part in files.part_files - files.journal.keys())
        return complete + sum(len(self.read(table, part, [self.key(table)])) for part in files.journal)

    def keys(self, table: str, part: int) -> set[str]:
        """Return the keys of the rows of a part."""
        return set(self.read(table, part, [self.key(table)]).column(0).to_pylist())

    def join(self, traces: pl.DataFrame, table: str, part: int, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Left join a table of the run to traces, keeping their order.

        Args:
            traces: rows of one part, with the key of the table.
            table: ``scores``, ``ranks`` or a signal's table.
            part: number of the part.
            columns: columns to add. None: all. Columns that the traces already have are not replaced.

        Returns:
            The traces with the new columns, which are null for traces without a row in the table. All are null if the
            table is out of date.
        """
        key = self.key(table)
        names = self.schema(table).names if columns is None else list(dict.fromkeys([key, *columns]))
        rows = self.read(table, part, names) if self.is_current(table) else self.schema(table).empty_table()
        new_names = [name for name in names if name not in traces.columns]
        right = pl.DataFrame(rows).select(key, *new_names)
        return traces.join(right, on=key, how="left", maintain_order="left")

    def join_questions(self, traces: pl.DataFrame, part: int) -> pl.DataFrame:
        """Join the questions to their traces.

        Args:
            traces: rows of one part, with ``question_id``, ``answer`` and ``solution``.
            part: number of the part.

        Returns:
            The traces with the columns of their questions. ``question_meta``, ``question_answer`` and
            ``question_solution`` are the question's, which also replace a null ``answer`` or ``solution``.
        """
        return _join_questions(traces, pl.DataFrame(self.read("questions", part)))

    def scan(self, table: str | None = None) -> pl.LazyFrame:
        """Return a table lazily, or all tables joined.

        Args:
            table: name of the table. None: one row per trace, with its question as in :meth:`join_questions`, its
                score, its rank and its signals.

        Raises:
            RunFolderError: the table has no rows, or part files are missing, damaged or unknown.
        """
        if table is not None:
            return self._scan(table)
        questions = self._scan("questions")
        rows = _join_questions(self._scan("traces"), questions)
        for other in self.joined_tables:
            key, known = self.key(other), rows.collect_schema()
            names = [key, *(name for name in self.schema(other).names if name not in known)]
            rows = rows.join(self._scan(other).select(names), on=key, how="left", maintain_order="left")
        return rows

    @property
    def joined_tables(self) -> list[str]:
        """The tables that :meth:`scan` joins to traces and questions: those with rows that are up to date."""
        others = ["scores", "ranks", *(SIGNAL_PREFIX + name for name in self.signals)]
        return [table for table in others if self.parts(table) and self.is_current(table)]

    def to_dataset(self, table: str | None = None) -> datasets.Dataset:
        """Return the result of :meth:`scan` as a ``datasets.Dataset``."""
        import datasets

        return datasets.Dataset(self.scan(table).collect().to_arrow(compat_level=pl.CompatLevel.oldest()))

    def _scan(self, table: str) -> pl.LazyFrame:
        parts = self.parts(table)
        if not parts:
            raise RunFolderError(f"{self.path}: has no {table} yet")
        files = self._files(table)
        for part in files.part_files - files.journal.keys():
            self._read_files(table, part, [self.key(table)])  # verifies the checksum
        frames: list[pl.LazyFrame] = []
        for has_journal, group in groupby(parts, key=lambda part: part in files.journal):
            if has_journal:
                frames += [pl.DataFrame(self.read(table, part)).lazy() for part in group]
            else:
                names = [f"{table}/{part_name(part)}" for part in group]
                frames.append(pl.scan_pyarrow_dataset(self.folder.dataset(names, self.schema(table))))
        return pl.concat(frames)

    def digest(self, table: str, *, again: bool = False) -> str:
        """Return a hash of the content of a table.

        Args:
            table: name of the table.
            again: list the files again instead of using the last listing.
        """
        files = self._files(table, refresh=again)
        journal = sorted(name for names in files.journal.values() for name in names)
        return content_hash(files.manifest.digest, journal) if journal else files.manifest.digest

    def is_current(self, table: str) -> bool:
        """Return whether a derived table was made from the current content of its source tables."""
        made_from = self._files(table).manifest.made_from
        if table.startswith(SIGNAL_PREFIX) and not made_from:  # computed row by row
            source = "questions" if self.key(table) == "question_id" else "traces"
            return self._count(table) == self._count(source)
        if not made_from and table == "ranks":  # the first layout did not record sources
            return self.count("ranks") == self.count("scores")
        return not self.changed(made_from)

    def changed(self, made_from: Mapping[str, str], *, again: bool = False) -> list[str]:
        """Return the tables whose content has changed, or that are themselves out of date.

        Args:
            made_from: digests of the tables, by name.
            again: list the files again instead of using the last listing.
        """
        return [
            table
            for table, digest in made_from.items()
            if self.digest(table, again=again) != digest
            or (table.startswith(SIGNAL_PREFIX) and not self.is_current(table))
        ]

    def _read_files(self, table: str, part: int, columns: list[str]) -> tuple[list[str], list[pa.Table]]:
        """Read columns of the files of a part, and return the names and contents of the files."""
        schema = pa.schema([self.schema(table).field(name) for name in columns])
        all_columns = len(columns) == len(self.schema(table))
        rejected: Part | None = None
        for _ in range(_READ_ATTEMPTS):
            files = self._files(table)
            names = _file_names(files, table, part)
            try:
                tables = self.folder.read_tables(names, schema, _expected(files, table, part), all_columns=all_columns)
                return names, tables
            except FileNotFoundError:  # the writing process has merged a journal in the meantime
                self._tables.pop(table, None)
            except OSError as error:
                file = error.filename or self.path / table
                raise RunFolderError(f"{file}: cannot be read: {refusal(error)}") from None
            except FileChangedError as changed:
                listed = files.manifest.parts.get(part)
                if rejected == listed:
                    raise RunFolderError(
                        f"{self.path / str(changed)}: is damaged or was not written by rlt-data (its checksum "
                        "differs); restore it from a copy"
                    ) from None
                rejected = listed
                self._tables.pop(table, None)
                with contextlib.suppress(OSError, RltDataError):
                    self.folder.recover()  # a replacement moves the parts before their manifest
        raise RunFolderError(f"{self.path / table}: changed during the read; try again later")

    def _deduplicate_and_sort(self, table: str, part: int, rows: pa.Table) -> pa.Table:
        first: dict[str, int] = {}
        for index, key in enumerate(rows[self.key(table)].to_pylist()):
            first.setdefault(key, index)
        rows = rows.take(list(first.values()))
        if table == "questions":
            return rows
        questions = self.read("questions", part, ["question_id"]).column(0)
        position = pc.index_in(rows["question_id"], value_set=questions.combine_chunks())
        order = pa.table({"position": position, "sample": rows["sample_index"], "key": rows[self.key(table)]})
        return rows.take(pc.sort_indices(order, sort_keys=[(name, "ascending") for name in order.column_names]))

    # Listing files

    def _files(self, table: str, *, refresh: bool = False) -> _Files:
        """Return the files of a table at the last listing, plus the files that this process has written since.

        Args:
            table: name of the table.
            refresh: list the files again, unless this process holds the lock and is thus the only writer.
        """
        if table in self._tables and (self._is_locked or not refresh):
            return self._tables[table]
        reason = ""
        for _ in range(_READ_ATTEMPTS):
            files, reason = self._list_files(table)
            if not reason:
                self._tables[table] = files
                return files
            with contextlib.suppress(OSError, RltDataError):
                self.folder.recover()  # a process may have been killed during a replacement of the table
        if self.folder.exists(f".{table}{STAGING}/commit"):
            reason = f"{self.path / table}: is being replaced; try again later"
        raise RunFolderError(reason)

    def _list_files(self, table: str) -> tuple[_Files, str]:
        """List the files of a table, and return them with the reason to refuse them, empty if there is none."""
        try:
            # Journals are listed before the parts that they are merged into, so that no row is missed.
            journal: dict[int, list[str]] = {}
            for name in self.folder.list_files(f"journal/{table}"):
                if segment := _SEGMENT.fullmatch(name):
                    journal.setdefault(int(segment[1]), []).append(f"journal/{table}/{name}")
            manifest = self._read_manifest(table)
            sizes = {name: size for name, size in self.folder.sizes(table).items() if _TABLE_FILE.fullmatch(name)}
        except OSError as error:
            raise RunFolderError(f"{self.path / table}: cannot be listed: {refusal(error)}") from None
        part_files = {number for number in manifest.parts if part_name(number) in sizes}
        return _Files(manifest, part_files, journal), self._refusal(table, manifest, sizes)

    def _refusal(self, table: str, manifest: Manifest, sizes: Mapping[str, int]) -> str:
        """Return why the part files do not match the manifest, or an empty string if they do."""
        folder = self.path / table
        for number, part in manifest.parts.items():
            name = part_name(number)
            if name not in sizes:
                if not part.is_new:
                    return f"{folder / name}: is missing; restore it from a copy"
            elif sizes[name] not in {state.bytes for state in part.states}:
                return (
                    f"{folder / name}: is truncated or was not written by rlt-data "
                    f"({sizes[name]:,} bytes instead of {part.state.bytes:,}); restore it from a copy"
                )
        if unknown := sorted(sizes.keys() - {part_name(number) for number in manifest.parts}):
            return f"{folder / unknown[0]}: is not a part of this table (rlt-data did not write it); move it away"
        return ""

    def _read_manifest(self, table: str) -> Manifest:
        name = _manifest_name(table)
        try:
            return Manifest.from_text(self.folder.read(name).decode())
        except (FileNotFoundError, NotADirectoryError):
            return self._first_manifest(table) if self.info.get("version") == _FIRST_LAYOUT else Manifest()
        except ValueError as error:
            raise RunFolderError(f"{self.path / name}: cannot be read: {error}") from None

    # Writing tables

    def write_part(self, table: str, part: int, rows: pa.Table) -> None:
        """Write a complete part, replacing its part file."""
        self._write_part(table, part, lambda path: write_rows(path, rows), len(rows))

    def _write_part(self, table: str, part: int, write: Callable[[Path], object], rows: int) -> None:
        if table not in self._tables:
            self._resolve_pending(table)  # after a failed write the part may be in its old or its new state
        files = self._files(table)

        def ready(file: Path) -> None:
            files.manifest.put(part, FileState(rows, file.stat().st_size, checksum(file)))
            self._save(table, files.manifest)

        try:
            self.folder.write(f"{table}/{part_name(part)}", write, ready)
        except BaseException:
            self._tables.pop(table, None)  # list the files again, because the write may have happened
            raise
        files.part_files.add(part)

    def add_segment(self, table: str, part: int, rows: pa.Table) -> None:
        """Write rows of an incomplete part to its journal, durably."""
        prefix = f"journal/{table}/{part:05d}"
        name = self.folder.write_named(prefix, lambda path: write_rows(path, rows), _segment_name)
        self._files(table).journal.setdefault(part, []).append(f"{prefix}/{name}")

    def compact(self, table: str, part: int) -> None:
        """Merge the journal of a part into its part file."""
        journal = self._files(table).journal
        if part in journal:
            self.write_part(table, part, self.read(table, part))
            self.folder.remove(journal.pop(part))

    def compact_all(self, table: str) -> None:
        """Merge the journals of all parts of a table, at the end of a step."""
        for part in self.parts(table):
            self.compact(table, part)
        self._resolve_pending(table)

    @contextlib.contextmanager
    def replacing(self, table: str, made_from: Sequence[str] = ()) -> Iterator[NewTable]:
        """Replace a complete table when the block ends. The old table stays if the block raises.

        Args:
            table: name of the table.
            made_from: source tables. The new table is out of date as soon as one of them changes.
        """
        manifest = Manifest(made_from={name: self.digest(name) for name in made_from})
        if unknown := [name for name in self.folder.list_files(table) if not _PART.fullmatch(name)]:
            raise RunFolderError(
                f"{self.path / table / unknown[0]}: is not a part of this table, and the folder of the table is about "
                "to be replaced; move it away"
            )
        files = [_manifest_name(table), "run.json"]
        with self.folder.replace(table, folders=[table], files=files) as staging:
            new_table = NewTable(staging, table, manifest)
            yield new_table
            _write_text(staging / _manifest_name(table), manifest.text())
            if new_table.entry:
                _write_text(staging / "run.json", json_text(self._updated_info(*new_table.entry)))
        self._tables.pop(table, None)
        self._signals = None

    def adopt(self, table: str, source: RunFolder) -> None:
        """Copy a table of another run, with hard links if possible, because parts are never changed in place."""
        for part in source.parts(table):
            self.adopt_part(table, part, source, part)
        self._resolve_pending(table)

    def adopt_part(self, table: str, part: int, source: RunFolder, source_part: int) -> None:
        """Copy a part of another run, if it has rows, to a part of this run."""
        state = source._state_if_complete(table, source_part)
        current = self._files(table).manifest.parts.get(part)
        if state is None:
            files = source._files(table)
            if source_part in files.part_files | files.journal.keys():
                self.write_part(table, part, source.read(table, source_part))
        elif current is None or current.state.xxh3 != state.xxh3:
            self._write_part(table, part, lambda path: source.export_part(table, source_part, path), state.rows)

    def export_part(self, table: str, part: int, path: Path) -> None:
        """Copy a part to a Parquet file on the disk. The copy may be a hard link, so it must not be changed."""
        if self._state_if_complete(table, part) is None:
            write_rows(path, self.read(table, part))
        else:
            self._read_files(table, part, [self.key(table)])  # verifies the checksum
            self.folder.fetch(f"{table}/{part_name(part)}", path)

    def _state_if_complete(self, table: str, part: int) -> FileState | None:
        """Return the state of a part file that contains all rows and columns of its part, else None."""
        files = self._files(table)
        complete = part in files.part_files and part not in files.journal and self._version == VERSION
        return files.manifest.parts[part].state if complete else None

    def _save(self, table: str, manifest: Manifest) -> None:
        text = manifest.text()
        self.folder.write(_manifest_name(table), lambda path: path.write_text(text, encoding="utf-8"))

    def _resolve_pending(self, table: str) -> None:
        """Update the manifest to the actual states of the part files, after a kill or at the end of a step."""
        files = self._files(table, refresh=True)
        if not files.manifest.has_pending:
            return
        for number, part in list(files.manifest.parts.items()):
            if number not in files.part_files:
                del files.manifest.parts[number]
            elif part.earlier:
                state = self.folder.file_state(f"{table}/{part_name(number)}")
                is_earlier = state != part.state and part.earlier.matches(state.bytes, state.xxh3)
                files.manifest.parts[number] = Part(part.earlier if is_earlier else part.state)
        files.manifest.clear_pending()
        self._save(table, files.manifest)

    # Runs of earlier layouts

    def _first_manifest(self, table: str) -> Manifest:
        """Make the manifest of a table in the first layout, without checksums.

        Raises:
            RunFolderError: rows are missing.
        """
        parts = {}
        for name, size in self.folder.sizes(table).items():
            if match := _PART.fullmatch(name):
                parts[int(match[1])] = Part(FileState(self.folder.count_rows(f"{table}/{name}"), size, ""))
        manifest = Manifest(parts)
        entries = {
            TABLE_OF_STEP.get(step, "ranks" if step == "rank" else ""): entry
            for step, entry in self.info.get("steps", {}).items()
        }
        rows = entries.get(table, {}).get("rows", 0)
        if manifest.rows < rows and not self.folder.list_files(f"journal/{table}"):
            raise RunFolderError(
                f"{self.path / table}: has {manifest.rows:,} rows, but run.json says {rows:,}; parts are missing"
            )
        if table == "questions" and sorted(parts) != list(range(len(parts))):
            raise RunFolderError(f"{self.path / table}: parts are missing between the existing ones")
        return manifest

    def _write_first_manifests(self) -> None:
        """Write the manifests of a run of the first layout."""
        for table in SCHEMAS:
            self._resolve_pending(table)  # an earlier start may have been killed here
            files = self._files(table)
            for number in files.part_files if self.folder.local_path else ():  # too many downloads from an object store
                files.manifest.parts[number] = Part(self.folder.file_state(f"{table}/{part_name(number)}"))
            if files.part_files:
                self._save(table, files.manifest)
        self.write_json("run.json", self.info | {"version": _SECOND_LAYOUT})

    def _add_columns(self) -> None:
        """Add the columns that the tables of an earlier layout lack, with nulls.

        New rows have them, and other programs read a table only if all its files have the same columns. Ranks are left
        as they are, because they are only ever replaced as a whole; they remain up to date if they were.
        """
        ranks_are_current = bool(self.parts("ranks")) and self.is_current("ranks")
        for table in ("questions", "traces", "scores"):
            for number in sorted(self._files(table).part_files):
                self.write_part(table, number, self.read(table, number))
            self._resolve_pending(table)
        if ranks_are_current:
            ranks = self._files("ranks").manifest
            ranks.made_from = {name: self.digest(name) for name in ranks.made_from}
            self._save("ranks", ranks)
        self.write_json("run.json", self.info | {"version": VERSION})
        self._version = VERSION


class NewTable:
    """A table that will replace the current one; see :meth:`RunFolder.replacing`.

    Attributes:
        entry: name of the step and its new entry in run.json, or None.
    """

    def __init__(self, folder: Path, table: str, manifest: Manifest) -> None:
        self._folder = folder / table
        self._folder.mkdir()
        self._manifest = manifest
        self.entry: tuple[str, Mapping[str, Any]] | None = None

    def write(self, part: int, rows: pa.Table) -> None:
        """Write a part."""
        path = self._folder / part_name(part)
        write_rows(path, rows)
        self._manifest.parts[part] = Part(FileState(len(rows), path.stat().st_size, checksum(path)))

    def record(self, step: str, entry: Mapping[str, Any]) -> None:
        """Update the entry of a step in run.json together with the table."""
        self.entry = step, entry


def _join_questions(traces: Frame, questions: Frame) -> Frame:
    of_question = {name: f"question_{name}" for name in ("meta", "answer", "solution")}
    questions = questions.drop("source_id").rename(of_question)
    joined = traces.join(questions, on="question_id", how="left", maintain_order="left")
    return joined.with_columns(pl.coalesce(name, of_question[name]).alias(name) for name in ("answer", "solution"))


def _file_names(files: _Files, table: str, part: int) -> list[str]:
    part_file = [f"{table}/{part_name(part)}"] if part in files.part_files else []
    return [*part_file, *files.journal.get(part, ())]


def _expected(files: _Files, table: str, part: int) -> dict[str, list[FileState]]:
    """Return the states that each file of a part may have, by file name."""
    expected = {}
    if part in files.part_files:
        expected[f"{table}/{part_name(part)}"] = files.manifest.parts[part].states
    for name in files.journal.get(part, ()):
        segment = _SEGMENT.fullmatch(name.removeprefix(f"journal/{table}/"))
        if segment and segment[2]:
            expected[name] = [FileState(-1, -1, segment[2])]
    return expected


def _is_run_info(info: Any) -> bool:
    """Return whether the content of a JSON file has the structure of run.json."""
    steps = info.get("steps", {}) if isinstance(info, dict) else None
    return isinstance(steps, dict) and all(
        isinstance(entry, dict) and all(isinstance(entry.get(key, {}), dict) for key in ("settings", "depends_on"))
        for entry in steps.values()
    )


def _segment_name(file: Path) -> str:
    return f"seg-{checksum(file)}.parquet"


def _manifest_name(table: str) -> str:
    return f"manifests/{table}.json"


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
