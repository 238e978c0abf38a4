"""The protocol of the two storage backends.

:mod:`local` is a folder on a disk, :mod:`objects` a prefix in an object store. Both guarantee:

- Files are written atomically: readers see the complete file or none.
- :meth:`Folder.replace` replaces folders and files together. The old content stays until the new content is complete
  and durable. After that, a kill cannot undo the replacement: the next command finishes it (:meth:`Folder.recover`).
- Only one process writes at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import xxhash

from rlt_data.errors import RunFolderError, one_line
from rlt_data.storage.paths import StoragePath

if TYPE_CHECKING:  # engines hash files with checksum, and run where pyarrow is not installed
    import pyarrow as pa

#: Writes the content of a file to a path on the local disk.
Write = Callable[[Path], object]
#: Suffix of a staging folder, which is next to the target of the replacement: ``.ranks.rlt-data``.
STAGING = ".rlt-data"
#: Bytes to read per step when hashing a file.
_BLOCK = 2**22


def json_text(content: Any) -> str:
    """Format content as indented JSON, for files that people read."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def checksum(path: Path) -> str:
    """Return the 128-bit XXH3 hash of a file in hex."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class Commit:
    """The content of a commit file: what a complete replacement puts in place.

    Attributes:
        folders: folders that are replaced.
        files: single files that are replaced.
        content: all new files. Used in object stores only.
    """

    folders: list[str]
    files: list[str]
    content: list[str]

    @classmethod
    def from_text(cls, text: str | bytes, path: StoragePath) -> Commit:
        """Parse a commit file.

        Raises:
            RunFolderError: the file at ``path`` is damaged.
        """
        try:
            values = json.loads(text)
            groups = [values["folders"], values["files"], values.get("content", [])]
            if not all(isinstance(group, list) and all(isinstance(name, str) for name in group) for group in groups):
                raise TypeError("expected lists of names")
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise RunFolderError(f"{path}: is damaged ({one_line(error)}); restore it from a copy") from None
        return cls(*groups)


@dataclass(frozen=True)
class FileState:
    """The state of a Parquet file: its number of rows, its size in bytes, and its 128-bit XXH3 hash in hex."""

    rows: int
    bytes: int
    xxh3: str

    def matches(self, size: int, xxh3: str | None) -> bool:
        """Return whether a file is in this state.

        In a state, the size -1 and the empty hash match any file.

        Args:
            size: size of the file in bytes.
            xxh3: hash of the file. None: not known, so only the size is compared.
        """
        return self.bytes in (size, -1) and (xxh3 is None or self.xxh3 in (xxh3, ""))


class FileChangedError(Exception):
    """A file is in none of its expected states; the argument is its name."""


class Folder(Protocol):
    """A folder of files. File names are relative to it and use ``/``. Methods that read raise OSError."""

    @property
    def path(self) -> StoragePath:
        """Path of the folder."""

    @property
    def local_path(self) -> Path | None:
        """Path of the folder on the local disk, or None for an object store."""

    def exists(self, name: str = "") -> bool:
        """Return whether a file or folder exists. Without a name: whether this folder exists."""

    def read(self, name: str) -> bytes:
        """Return the content of a file."""

    def fetch(self, name: str, target: Path) -> None:
        """Copy a file to the local disk. The copy may be a hard link, so it must not be changed in place."""

    def names(self) -> set[str]:
        """Return the names of the files and folders directly in this folder.

        If the path is a file, return its name; if it does not exist, return an empty set.
        """

    def sizes(self, name: str) -> dict[str, int]:
        """Return the sizes in bytes of the files directly in a folder, by name. Empty if the folder is missing."""

    def list_files(self, name: str) -> list[str]:
        """Return all files below a folder, relative to it and sorted. Empty if the folder is missing."""

    def file_state(self, name: str) -> FileState:
        """Read a complete Parquet file and return its state."""

    def read_tables(
        self,
        names: Sequence[str],
        schema: pa.Schema,
        expected: Mapping[str, Sequence[FileState]],
        *,
        all_columns: bool,
    ) -> list[pa.Table]:
        """Read columns of Parquet files, one table each.

        Args:
            names: names of the files.
            schema: the columns.
            expected: the states that a file may have, by name. A file without an entry is not checked.
            all_columns: whether nearly all columns are read, so that it pays to download complete files.

        Raises:
            FileNotFoundError: a file does not exist (any more).
            FileChangedError: a file is in none of its expected states.
            RunFolderError: a file is damaged or has other columns.
        """

    def count_rows(self, name: str) -> int:
        """Return the number of rows of a Parquet file from its footer."""

    def dataset(self, names: Sequence[str], schema: pa.Schema) -> Any:
        """Return a ``pyarrow.dataset.Dataset`` over Parquet files."""

    def lock(self) -> AbstractContextManager[None]:
        """Hold the write lock of the folder.

        Raises:
            RunFolderError: another process holds the lock.
            DiskError: the folder cannot be created or written.
        """

    def write(self, name: str, write: Write, ready: Callable[[Path], None] = lambda file: None) -> None:
        """Write a file atomically.

        Args:
            name: name of the file.
            write: writes the content.
            ready: is called when the content is complete, before the file becomes visible.

        Raises:
            RunFolderError: the lock was lost, or the folder was moved or deleted.
            DiskError: the file cannot be written.
        """

    def write_named(self, folder: str, write: Write, name_of: Callable[[Path], str]) -> str:
        """Write a file atomically under a name derived from its content, and return the name."""

    def append_to(self, name: str) -> AbstractContextManager[Path]:
        """Yield a local file; what the block appends to it is appended to the file ``name`` of the folder."""

    def remove(self, names: Sequence[str]) -> None:
        """Remove files, and folders that become empty."""

    def replace(self, key: str, folders: Sequence[str] = (), files: Sequence[str] = ()) -> AbstractContextManager[Path]:
        """Yield an empty local folder, and replace folders and files by its content when the block ends.

        Nothing changes if the block raises. Only one process at a time can replace the same ``key``.

        Args:
            key: name of the replacement. The next one with the same key finishes or removes an interrupted one.
            folders: folders to replace completely.
            files: single files to replace.

        Raises:
            RunFolderError: another process is replacing the same ``key``.
            DiskError: the new content cannot be written.
        """

    def recover(self) -> None:
        """Finish the committed replacements of killed processes, and remove the uncommitted ones."""
