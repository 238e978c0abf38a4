"""The files of each table: which parts exist, and whether they match the manifest of the table."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rlt_data.errors import RltDataError, RunFolderError
from rlt_data.storage.folder import STAGING, FileState, Folder
from rlt_data.storage.manifest import Manifest, Part
from rlt_data.storage.paths import refusal
from rlt_data.storage.schemas import FIRST_VERSION, MADE_BY, TABLE_OF_STEP

#: Attempts to read a table whose files change during the read.
READ_ATTEMPTS = 5
#: Files of the journal, with part and checksum, and files of a table, with part.
_SEGMENT = re.compile(r"journal/[^/]+/(\d+)/(?:seg-([0-9a-f]{32})|[0-9a-f]{32})\.parquet")
PART = re.compile(r"part-(\d{5,})\.parquet")
#: Files that match ``RUN/<table>/*.parquet``.
_TABLE_FILE = re.compile(r"[^.].*\.parquet")


def part_file(table: str, part: int) -> str:
    """Return the name of a part file within the run."""
    return f"{table}/part-{part:05d}.parquet"


def manifest_file(table: str) -> str:
    """Return the name of the manifest of a table within the run."""
    return f"manifests/{table}.json"


@dataclass
class Files:
    """The files of a table when they were last listed.

    Attributes:
        table: name of the table.
        manifest: its manifest.
        part_files: numbers of the parts whose part file exists.
        journal: names of the journal files of each part.
    """

    table: str
    manifest: Manifest
    part_files: set[int]
    journal: dict[int, list[str]]

    def names(self, part: int) -> list[str]:
        """Return the names of the files with rows of a part: the part file first, then the journal."""
        return [*([part_file(self.table, part)] if part in self.part_files else []), *self.journal.get(part, ())]

    def expected(self, part: int) -> dict[str, list[FileState]]:
        """Return the states that each file of a part may have, by file name."""
        expected = {part_file(self.table, part): self.manifest.parts[part].states} if part in self.part_files else {}
        for name in self.journal.get(part, ()):
            if (segment := _SEGMENT.fullmatch(name)) and segment[2]:
                expected[name] = [FileState(-1, -1, segment[2])]
        return expected


class Listing:
    """The files of all tables at their last listing, plus the files that this process has written since.

    Args:
        folder: the folder of the run.
        read_info: returns the content of run.json.

    Attributes:
        tables: the files of each listed table; without an entry, they are listed again.
        is_locked: whether this process holds the lock of the run and is thus the only writer.
    """

    def __init__(self, folder: Folder, read_info: Callable[[], Mapping[str, Any]]) -> None:
        self._folder, self._read_info = folder, read_info
        self.tables: dict[str, Files] = {}
        self.is_locked = False

    def files(self, table: str, *, refresh: bool = False) -> Files:
        """Return the files of a table.

        Args:
            table: name of the table.
            refresh: list the files again, unless this process is the only writer.

        Raises:
            RunFolderError: part files are missing, truncated or unknown, or the files cannot be listed.
        """
        if table in self.tables and (self.is_locked or not refresh):
            return self.tables[table]
        reason = ""
        for _ in range(READ_ATTEMPTS):
            files, reason = self._list(table)
            if not reason:
                self.tables[table] = files
                return files
            with contextlib.suppress(OSError, RltDataError):
                self._folder.recover()  # a process may have been killed during a replacement of the table
        if self._folder.exists(f".{table}{STAGING}/commit"):
            reason = f"{self._folder.path / table}: is being replaced; try again later"
        raise RunFolderError(reason)

    def save(self, files: Files) -> None:
        """Write the manifest of a table."""
        text = files.manifest.text()
        self._folder.write(manifest_file(files.table), lambda path: path.write_text(text, encoding="utf-8"))

    def resolve_pending(self, table: str) -> None:
        """Update the manifest to the actual states of the part files, after a kill or at the end of a step."""
        files = self.files(table, refresh=True)
        if not files.manifest.has_pending:
            return
        for number, part in list(files.manifest.parts.items()):
            if number not in files.part_files:
                del files.manifest.parts[number]
            elif part.earlier:
                state = self._folder.file_state(part_file(table, number))
                is_earlier = state != part.state and part.earlier.matches(state.bytes, state.xxh3)
                files.manifest.parts[number] = Part(part.earlier if is_earlier else part.state)
        files.manifest.clear_pending()
        self.save(files)

    def _list(self, table: str) -> tuple[Files, str]:
        """List the files of a table, and return them with the reason to refuse them, empty if there is none."""
        try:
            # Journals are listed before the parts that they are merged into, so that no row is missed.
            journal: dict[int, list[str]] = {}
            for file in self._folder.list_files(f"journal/{table}"):
                if segment := _SEGMENT.fullmatch(name := f"journal/{table}/{file}"):
                    journal.setdefault(int(segment[1]), []).append(name)
            manifest = self._read_manifest(table)
            sizes = self._folder.sizes(table)
        except OSError as error:
            raise RunFolderError(f"{self._folder.path / table}: cannot be listed: {refusal(error)}") from None
        sizes = {f"{table}/{name}": size for name, size in sizes.items() if _TABLE_FILE.fullmatch(name)}
        part_files = {number for number in manifest.parts if part_file(table, number) in sizes}
        return Files(table, manifest, part_files, journal), self._refusal(table, manifest, sizes)

    def _refusal(self, table: str, manifest: Manifest, sizes: Mapping[str, int]) -> str:
        """Return why the part files do not match the manifest, or an empty string if they do."""
        for number, part in manifest.parts.items():
            name = part_file(table, number)
            if name not in sizes:
                if not part.is_new:
                    return f"{self._folder.path / name}: is missing; restore it from a copy"
            elif sizes[name] not in {state.bytes for state in part.states}:
                return (
                    f"{self._folder.path / name}: is truncated or was not written by rlt-data "
                    f"({sizes[name]:,} bytes instead of {part.state.bytes:,}); restore it from a copy"
                )
        if unknown := sorted(sizes.keys() - {part_file(table, number) for number in manifest.parts}):
            file = self._folder.path / unknown[0]
            return f"{file}: is not a part of this table (rlt-data did not write it); move it away"
        return ""

    def _read_manifest(self, table: str) -> Manifest:
        name = manifest_file(table)
        try:
            return Manifest.from_text(self._folder.read(name).decode())
        except (FileNotFoundError, NotADirectoryError):
            info = self._read_info()
            return self._first_manifest(table, info) if info.get("version") == FIRST_VERSION else Manifest()
        except ValueError as error:
            raise RunFolderError(f"{self._folder.path / name}: cannot be read: {error}") from None

    def _first_manifest(self, table: str, info: Mapping[str, Any]) -> Manifest:
        """Make the manifest of a table in the first layout, without checksums.

        Raises:
            RunFolderError: rows are missing.
        """
        parts = {}
        for name, size in self._folder.sizes(table).items():
            if match := PART.fullmatch(name):
                parts[int(match[1])] = Part(FileState(self._folder.count_rows(f"{table}/{name}"), size, ""))
        manifest = Manifest(parts)
        counted = (*TABLE_OF_STEP.values(), "ranks")  # run.json has their rows
        rows = info.get("steps", {}).get(MADE_BY[table], {}).get("rows", 0) if table in counted else 0
        folder = self._folder.path / table
        if manifest.rows < rows and not self._folder.list_files(f"journal/{table}"):
            raise RunFolderError(f"{folder}: has {manifest.rows:,} rows, but run.json says {rows:,}; parts are missing")
        if table == "questions" and sorted(parts) != list(range(len(parts))):
            raise RunFolderError(f"{folder}: parts are missing between the existing ones")
        return manifest
