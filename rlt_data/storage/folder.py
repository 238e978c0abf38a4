"""What a run folder needs of the place that holds it: one protocol, two backends.

:mod:`local` is a folder on a disk, :mod:`objects` a prefix in an object store. Both give the same promises:

- A file appears whole or not at all.
- :meth:`Folder.replace` swaps folders and files for new ones in one step. Until the new ones are complete and durable,
  what was there before is untouched. After that moment a kill cannot undo the replacement: the next command finishes
  it (:meth:`Folder.recover`).
- One process writes at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import xxhash

from rlt_data.errors import RunFolderError, one_line
from rlt_data.storage.paths import StoragePath

#: What writes a file: gets the path of an empty place on the local disk.
Write = Callable[[Path], object]
#: Ends the name of the folder in which a replacement is staged, next to its target: ``.ranks.rlt-data``.
STAGING = ".rlt-data"
_BLOCK = 2**22


def json_text(content: Any) -> str:
    """Return content as the JSON of a file that people read."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def checksum(path: Path) -> str:
    """Return the XXH3 128-bit hash of a file in hex."""
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
    """What is known of a Parquet file: its rows, its size in bytes, and its XXH3 128-bit hash in hex."""

    rows: int
    bytes: int
    xxh3: str

    def matches(self, size: int, xxh3: str | None) -> bool:
        """Return whether a file of this size and hash (None: not known) is in this state.

        A size of -1 and an empty hash in a state stand for any.
        """
        return self.bytes in (size, -1) and (xxh3 is None or self.xxh3 in (xxh3, ""))


class Changed(Exception):
    """A file is in none of the states that were expected of it; the argument is its name."""


class Folder(Protocol):
    """A folder of files. Names are relative to it and use ``/``; reading raises OSError."""

    @property
    def path(self) -> StoragePath:
        """The folder."""

    @property
    def on_disk(self) -> Path | None:
        """The folder if other programs on this machine can write into it, else None."""

    def exists(self, name: str = "") -> bool:
        """Return whether there is such a file or folder; without a name, whether there is the folder."""

    def read(self, name: str) -> bytes:
        """Return the content of a file."""

    def fetch(self, name: str, target: Path) -> None:
        """Copy a file that is never changed in place to the local disk, by a hard link where possible."""

    def names(self) -> set[str]:
        """Return the names of the files and folders directly in the folder; its own if it is a file; none if absent."""

    def sizes(self, name: str) -> dict[str, int]:
        """Return the files directly in a folder, by name, with their sizes in bytes; empty if there is none."""

    def below(self, name: str) -> list[str]:
        """Return all files below a folder, relative to it and sorted; empty if there is none."""

    def examine(self, name: str) -> FileState:
        """Read a Parquet file whole, and return its state."""

    def read_tables(
        self,
        names: Sequence[str],
        schema: pa.Schema,
        expected: Mapping[str, Sequence[FileState]],
        *,
        whole: bool,
    ) -> list[pa.Table]:
        """Read columns of Parquet files, one table each.

        Args:
            names: the files.
            schema: the columns.
            expected: by name, the states that a file may have; each state of a file is checked once.
            whole: nearly all columns are wanted, so that it pays to fetch whole files.

        Raises:
            FileNotFoundError: a file does not exist (any more).
            Changed: a file is in none of its expected states.
            RunFolderError: a file is damaged, or has other columns.
        """

    def count_rows(self, name: str) -> int:
        """Return the rows of a Parquet file, from its footer."""

    def dataset(self, names: Sequence[str], schema: pa.Schema) -> Any:
        """Return a ``pyarrow.dataset.Dataset`` over Parquet files."""

    def lock(self) -> AbstractContextManager[None]:
        """Hold the folder for writing.

        Raises:
            RunFolderError: another process holds it.
            DiskError: the folder cannot be created or written.
        """

    def write(self, name: str, write: Write, ready: Callable[[Path], None] = lambda file: None) -> None:
        """Make one file appear whole.

        Args:
            name: the file.
            write: writes its content.
            ready: is called when the content is complete, before the file appears.

        Raises:
            RunFolderError: the lock was lost, or the folder has been moved or deleted.
            DiskError: it cannot be written.
        """

    def write_named(self, folder: str, write: Write, name_of: Callable[[Path], str]) -> str:
        """Make one file appear whole under a name that follows from its content, and return the name."""

    def appending(self, name: str) -> AbstractContextManager[Path]:
        """Hand out a local file; what is appended to it ends up at the end of a file of the folder."""

    def remove(self, names: Sequence[str]) -> None:
        """Remove files, and folders that this leaves empty."""

    def replace(self, key: str, folders: Sequence[str] = (), files: Sequence[str] = ()) -> AbstractContextManager[Path]:
        """Hand out an empty local folder; when the block ends, its content takes the place of what is here.

        Nothing changes if the block raises. Only one process at a time replaces the same ``key``.

        Args:
            key: names the replacement; a later one with the same key finishes or clears what an earlier one left.
            folders: are replaced as a whole.
            files: are replaced one by one.

        Raises:
            RunFolderError: another process is replacing this ``key``.
            DiskError: the new content cannot be written.
        """

    def recover(self) -> None:
        """Finish replacements that a killed process had completed, and remove what other killed ones left."""
