"""Read the tables of a run, one at a time.

A process checks each part against the manifest before it first reads it. Rows of an incomplete part come from its part
file and its journal, without duplicate keys.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from rlt_data.errors import RltDataError, RunFolderError
from rlt_data.storage.backends import open_folder
from rlt_data.storage.folder import FileChangedError, FileState
from rlt_data.storage.listing import READ_ATTEMPTS, Listing, part_file
from rlt_data.storage.manifest import Part
from rlt_data.storage.parquet import write_rows
from rlt_data.storage.paths import StoragePath, refusal
from rlt_data.storage.schemas import FIRST_VERSION, KEYS, SCHEMAS, SIGNAL_PREFIX, VERSION, content_hash, signal_schema


class Tables:
    """The tables of a run, and the run.json that describes them, to read.

    Args:
        path: path or URL of the run folder.

    Attributes:
        folder: the storage backend.
        path: path of the folder.

    Raises:
        RunFolderError: the folder has a newer layout version, or the URL is invalid.
    """

    def __init__(self, path: str | StoragePath) -> None:
        self.folder = open_folder(path)
        self.path = self.folder.path
        self._listing = Listing(self.folder, lambda: self.info)
        self._signals: dict[str, dict[str, Any]] | None = None
        self._version = self.info.get("version", VERSION)
        if self._version not in range(FIRST_VERSION, VERSION + 1):
            raise RunFolderError(
                f"{self.path}: has layout version {self._version}, but this version of rlt-data reads layout {VERSION}"
            )

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

    def parts(self, table: str) -> list[int]:
        """Return the numbers of the parts that have rows, in order.

        Raises:
            RunFolderError: part files are missing, truncated or unknown, or the files cannot be listed.
        """
        files = self._listing.files(table, refresh=True)
        return sorted(files.part_files | files.journal.keys())

    def part_file(self, table: str, part: int) -> StoragePath:
        """Return the path of a part file, whether or not it exists."""
        return self.path / part_file(table, part)

    def part_state(self, table: str, part: int) -> object:
        """Return a value that changes whenever the rows of a part change."""
        files = self._listing.files(table)
        state = files.manifest.parts[part].state if part in files.part_files else None
        return state, tuple(files.journal.get(part, ()))

    def last_written(self, table: str) -> list[tuple[Path, float]]:
        """Return the files of a table with their modification times, latest first.

        The list is empty for an object store, where times are expensive to get.
        """
        times = []
        for part in self.parts(table) if self.folder.local_path else ():
            for name in self._listing.files(table).names(part):
                with contextlib.suppress(FileNotFoundError):
                    times.append((file := Path(str(self.path / name)), file.stat().st_mtime))
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
        if names != [part_file(table, part)]:
            rows = self._deduplicate_and_sort(table, part, rows)
        return rows.select(list(columns or schema.names))

    def count(self, table: str, *, again: bool = True) -> int:
        """Return the number of rows of a table; with ``again=False``, those of its last listing."""
        files = self._listing.files(table, refresh=again)
        complete = sum(files.manifest.parts[part].state.rows for part in files.part_files - files.journal.keys())
        return complete + sum(len(self.read(table, part, [self.key(table)])) for part in files.journal)

    def keys(self, table: str, part: int) -> set[str]:
        """Return the keys of the rows of a part."""
        return set(self.read(table, part, [self.key(table)]).column(0).to_pylist())

    def scan(self, table: str) -> pl.LazyFrame:
        """Return a table lazily; see :meth:`RunFolder.scan`."""
        parts = self.parts(table)
        if not parts:
            raise RunFolderError(f"{self.path}: has no {table} yet")
        files = self._listing.files(table)
        for part in files.part_files - files.journal.keys():
            self._read_files(table, part, [self.key(table)])  # verifies the checksum
        frames: list[pl.LazyFrame] = []
        for has_journal, group in groupby(parts, key=lambda part: part in files.journal):
            if has_journal:
                frames += [pl.DataFrame(self.read(table, part)).lazy() for part in group]
            else:
                names = [part_file(table, part) for part in group]
                frames.append(pl.scan_pyarrow_dataset(self.folder.dataset(names, self.schema(table))))
        return pl.concat(frames)

    def digest(self, table: str, *, again: bool = False) -> str:
        """Return a hash of the content of a table.

        Args:
            table: name of the table.
            again: list the files again instead of using the last listing.
        """
        files = self._listing.files(table, refresh=again)
        journal = sorted(name for names in files.journal.values() for name in names)
        return content_hash(files.manifest.digest, journal) if journal else files.manifest.digest

    def is_current(self, table: str) -> bool:
        """Return whether a derived table was made from the current content of its source tables."""
        made_from = self._listing.files(table).manifest.made_from
        if table.startswith(SIGNAL_PREFIX) and not made_from:  # computed row by row
            source = "questions" if self.key(table) == "question_id" else "traces"
            return self.count(table, again=False) == self.count(source, again=False)
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
        for _ in range(READ_ATTEMPTS):
            files = self._listing.files(table)
            names = files.names(part)
            try:
                tables = self.folder.read_tables(names, schema, files.expected(part), all_columns=all_columns)
                return names, tables
            except FileNotFoundError:  # the writing process has merged a journal in the meantime
                self._listing.tables.pop(table, None)
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
                self._listing.tables.pop(table, None)
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

    def export_part(self, table: str, part: int, path: Path) -> None:
        """Copy a part to a Parquet file on the disk. The copy may be a hard link, so it must not be changed."""
        if self._state_if_complete(table, part) is None:
            write_rows(path, self.read(table, part))
        else:
            self._read_files(table, part, [self.key(table)])  # verifies the checksum
            self.folder.fetch(part_file(table, part), path)

    def _state_if_complete(self, table: str, part: int) -> FileState | None:
        """Return the state of a part file that contains all rows and columns of its part, else None."""
        files = self._listing.files(table)
        complete = part in files.part_files and part not in files.journal and self._version == VERSION
        return files.manifest.parts[part].state if complete else None


def _is_run_info(info: Any) -> bool:
    """Return whether the content of a JSON file has the structure of run.json."""
    steps = info.get("steps", {}) if isinstance(info, dict) else None
    return isinstance(steps, dict) and all(
        isinstance(entry, dict) and all(isinstance(entry.get(key, {}), dict) for key in ("settings", "depends_on"))
        for entry in steps.values()
    )
