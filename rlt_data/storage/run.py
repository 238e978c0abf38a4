"""A run folder: durable tables that can be read at any time and whose final bytes are reproducible.

    RUN/run.json                         what made each table (settings, fingerprints, versions)
    RUN/<table>/part-00000.parquet       rows of 256 questions, sorted; never changed in place
    RUN/manifests/<table>.json           the parts of the table, with rows, sizes and checksums
    RUN/journal/<table>/00000/*.parquet  rows of an incomplete part, a few seconds of work per file
    RUN/errors.jsonl                     rows that failed
    RUN/run.log                          log with times

New rows go to the journal. Its files are written atomically, so ``kill -9`` loses at most the seconds since the last
one. When a part is complete, its journal is merged into the part file. A kill between the merge and the removal of the
journal leaves rows in both, so readers drop duplicate keys.

This module locks and writes a run. ``listing`` finds its files, ``tables`` reads its tables, ``rows`` joins them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from rlt_data.errors import RunFolderError
from rlt_data.storage.backends import open_folder
from rlt_data.storage.changes import describe_changes
from rlt_data.storage.folder import FileState, checksum, json_text
from rlt_data.storage.listing import PART, manifest_file, part_file
from rlt_data.storage.manifest import Manifest, Part
from rlt_data.storage.parquet import write_rows
from rlt_data.storage.paths import StoragePath, refusal
from rlt_data.storage.rows import scan_rows
from rlt_data.storage.schemas import FIRST_VERSION, QUESTIONS_PER_PART, SCHEMAS, TABLE_OF_STEP, VERSION
from rlt_data.storage.tables import Tables


class RunFolder(Tables):
    """A run folder on the local disk or in an object store, to read and to write."""

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
            self._listing.tables.clear()
            self._signals = None
            self._version = self.info.get("version", VERSION)
            if self._version == FIRST_VERSION:
                self._write_first_manifests()
            manifests = self.folder.sizes("manifests")
            for table in self.tables:
                if f"{table}.json" in manifests:
                    self._listing.resolve_pending(table)
            if self._version != VERSION:
                self._add_columns()
            self._listing.is_locked = True
            try:
                yield
            finally:
                self._listing.is_locked = False

    # run.json

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

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file of the run atomically."""
        self.folder.write(name, lambda path: path.write_text(json_text(content), encoding="utf-8"))

    @property
    def logs(self) -> Path | None:
        """Folder for the output of engine processes. None for a run in an object store."""
        return self.folder.local_path / "logs" if self.folder.local_path else None

    # Reading

    def scan(self, table: str | None = None) -> pl.LazyFrame:
        """Return a table lazily, or one row per trace with the columns of all tables; see :mod:`rlt_data.storage.rows`.

        Args:
            table: name of the table. None: question, trace, score, rank and signals of each trace.

        Raises:
            RunFolderError: the table has no rows, or part files are missing, damaged or unknown.
        """
        return scan_rows(self) if table is None else super().scan(table)

    # Writing tables

    def write_part(self, table: str, part: int, rows: pa.Table) -> None:
        """Write a complete part, replacing its part file."""
        self._write_part(table, part, lambda path: write_rows(path, rows), len(rows))

    def _write_part(self, table: str, part: int, write: Callable[[Path], object], rows: int) -> None:
        if table not in self._listing.tables:
            self._listing.resolve_pending(table)  # after a failed write the part may be in its old or its new state
        files = self._listing.files(table)

        def ready(file: Path) -> None:
            files.manifest.put(part, FileState(rows, file.stat().st_size, checksum(file)))
            self._listing.save(files)

        try:
            self.folder.write(part_file(table, part), write, ready)
        except BaseException:
            self._listing.tables.pop(table, None)  # list the files again, because the write may have happened
            raise
        files.part_files.add(part)

    def add_segment(self, table: str, part: int, rows: pa.Table) -> None:
        """Write rows of an incomplete part to its journal, durably."""
        prefix = f"journal/{table}/{part:05d}"
        name = self.folder.write_named(
            prefix, lambda path: write_rows(path, rows), lambda file: f"seg-{checksum(file)}.parquet"
        )
        self._listing.files(table).journal.setdefault(part, []).append(f"{prefix}/{name}")

    def compact(self, table: str, part: int) -> None:
        """Merge the journal of a part into its part file."""
        journal = self._listing.files(table).journal
        if part in journal:
            self.write_part(table, part, self.read(table, part))
            self.folder.remove(journal.pop(part))

    def compact_all(self, table: str) -> None:
        """Merge the journals of all parts of a table, at the end of a step."""
        for part in self.parts(table):
            self.compact(table, part)
        self._listing.resolve_pending(table)

    @contextlib.contextmanager
    def replacing(self, table: str, made_from: Sequence[str] = ()) -> Iterator[NewTable]:
        """Replace a complete table when the block ends. The old table stays if the block raises.

        Args:
            table: name of the table.
            made_from: source tables. The new table is out of date as soon as one of them changes.
        """
        manifest = Manifest(made_from={name: self.digest(name) for name in made_from})
        if unknown := [name for name in self.folder.list_files(table) if not PART.fullmatch(name)]:
            raise RunFolderError(
                f"{self.path / table / unknown[0]}: is not a part of this table, and the folder of the table is about "
                "to be replaced; move it away"
            )
        files = [manifest_file(table), "run.json"]
        with self.folder.replace(table, folders=[table], files=files) as staging:
            new_table = NewTable(staging, table, manifest)
            yield new_table
            (staging / "manifests").mkdir()
            (staging / manifest_file(table)).write_text(manifest.text(), encoding="utf-8")
            if new_table.entry:
                (staging / "run.json").write_text(json_text(self._updated_info(*new_table.entry)), encoding="utf-8")
        self._listing.tables.pop(table, None)
        self._signals = None

    def adopt(self, table: str, source: RunFolder) -> None:
        """Copy a table of another run, with hard links if possible, because parts are never changed in place."""
        for part in source.parts(table):
            self.adopt_part(table, part, source, part)
        self._listing.resolve_pending(table)

    def adopt_part(self, table: str, part: int, source: RunFolder, source_part: int) -> None:
        """Copy a part of another run, if it has rows, to a part of this run."""
        state = source._state_if_complete(table, source_part)
        current = self._listing.files(table).manifest.parts.get(part)
        if state is None:
            if source._listing.files(table).names(source_part):
                self.write_part(table, part, source.read(table, source_part))
        elif current is None or current.state.xxh3 != state.xxh3:
            self._write_part(table, part, lambda path: source.export_part(table, source_part, path), state.rows)

    # Runs of earlier layouts

    def _write_first_manifests(self) -> None:
        """Write the manifests of a run of the first layout."""
        for table in SCHEMAS:
            self._listing.resolve_pending(table)  # an earlier start may have been killed here
            files = self._listing.files(table)
            for number in files.part_files if self.folder.local_path else ():  # too many downloads from an object store
                files.manifest.parts[number] = Part(self.folder.file_state(part_file(table, number)))
            if files.part_files:
                self._listing.save(files)
        self.write_json("run.json", self.info | {"version": FIRST_VERSION + 1})

    def _add_columns(self) -> None:
        """Add the columns that the tables of an earlier layout lack, with nulls.

        New rows have them, and other programs read a table only if all its files have the same columns. Ranks are left
        as they are, because they are only ever replaced as a whole; they remain up to date if they were.
        """
        ranks_are_current = bool(self.parts("ranks")) and self.is_current("ranks")
        for table in ("questions", "traces", "scores"):
            for number in sorted(self._listing.files(table).part_files):
                self.write_part(table, number, self.read(table, number))
            self._listing.resolve_pending(table)
        if ranks_are_current:
            ranks = self._listing.files("ranks")
            ranks.manifest.made_from = {name: self.digest(name) for name in ranks.manifest.made_from}
            self._listing.save(ranks)
        self.write_json("run.json", self.info | {"version": VERSION})
        self._version = VERSION


class NewTable:
    """A table that will replace the current one; see :meth:`RunFolder.replacing`.

    Attributes:
        entry: name of the step and its new entry in run.json, or None.
    """

    def __init__(self, folder: Path, table: str, manifest: Manifest) -> None:
        (folder / table).mkdir()
        self._folder, self._table, self._manifest = folder, table, manifest
        self.entry: tuple[str, Mapping[str, Any]] | None = None

    def write(self, part: int, rows: pa.Table) -> None:
        """Write a part."""
        path = self._folder / part_file(self._table, part)
        write_rows(path, rows)
        self._manifest.parts[part] = Part(FileState(len(rows), path.stat().st_size, checksum(path)))

    def record(self, step: str, entry: Mapping[str, Any]) -> None:
        """Update the entry of a step in run.json together with the table."""
        self.entry = step, entry
