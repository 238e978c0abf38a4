"""Which files hold the rows of a run's tables.

A disk is asked each time. A store is slow to list, so it is asked once, when the parts of a table are wanted; what this
process writes and removes afterwards is noted. Another process may merge a journal meanwhile: then a listed file is
gone, reading finds that out, and the table is listed again. Journals are looked at before the parts that they are
merged into, so that no row is missed between the two.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rlt_data.errors import RunFolderError
from rlt_data.storage.paths import UNFINISHED, Place, names_below, refusal

if TYPE_CHECKING:
    from upath import UPath


class Listing(Protocol):
    """The files of a run's tables."""

    def parts(self, table: str) -> list[int]:
        """Return the numbers of the parts that have rows, in order."""

    def files(self, table: str, part: int) -> list[Place]:
        """Return the files that hold rows of a part: its own, if it is there, then those of its journal."""

    def wrote(self, table: str, part: int, name: str) -> None:
        """Note a file that this process has written, by its name in the run's folder."""

    def merged(self, table: str, part: int) -> None:
        """Note that this process has merged a part's journal into its own file."""

    def forget(self) -> None:
        """Look again at everything."""


def listing_of(folder: Place) -> Listing:
    """Return the listing of a run folder."""
    return _OnDisk(folder) if isinstance(folder, Path) else _InStore(folder)


def part_name(part: int) -> str:
    """Return the name of a part's file."""
    return f"part-{part:05d}.parquet"


class _OnDisk:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def parts(self, table: str) -> list[int]:
        growing = {int(path.parent.name) for path in (self._folder / "journal" / table).glob("*/*.parquet")}
        finished = {int(path.stem.removeprefix("part-")) for path in (self._folder / table).glob("part-*.parquet")}
        return sorted(growing | finished)

    def files(self, table: str, part: int) -> list[Place]:
        own = self._folder / table / part_name(part)
        journal = sorted((self._folder / "journal" / table / f"{part:05d}").glob("*.parquet"))
        return [own, *journal] if own.exists() else [*journal]

    def wrote(self, table: str, part: int, name: str) -> None:
        pass

    def merged(self, table: str, part: int) -> None:
        pass

    def forget(self) -> None:
        pass


class _InStore:
    def __init__(self, folder: UPath) -> None:
        self._folder = folder
        self._tables: dict[str, dict[int, set[str]]] = {}
        self._mutex = threading.Lock()  # a table's writer has a thread of its own

    def parts(self, table: str) -> list[int]:
        with self._mutex:
            self._tables[table] = self._listed(table)
            return sorted(part for part, names in self._tables[table].items() if names)

    def files(self, table: str, part: int) -> list[Place]:
        with self._mutex:
            if table not in self._tables:
                self._tables[table] = self._listed(table)
            names = set(self._tables[table].get(part, ()))
        own = f"{table}/{part_name(part)}"
        return [self._folder / name for name in sorted(names, key=lambda name: (name != own, name))]

    def wrote(self, table: str, part: int, name: str) -> None:
        with self._mutex:
            if table in self._tables:
                self._tables[table].setdefault(part, set()).add(name)

    def merged(self, table: str, part: int) -> None:
        with self._mutex:
            if table in self._tables:
                self._tables[table][part] = {f"{table}/{part_name(part)}"}

    def forget(self) -> None:
        with self._mutex:
            self._tables.clear()

    def _listed(self, table: str) -> dict[int, set[str]]:
        found: dict[int, set[str]] = {}
        for folder, pattern in ((f"journal/{table}", r"(\d+)/[^/]+\.parquet"), (table, r"part-(\d+)\.parquet")):
            try:
                names = names_below(self._folder / folder)
            except OSError as error:
                raise RunFolderError(f"{self._folder / folder}: cannot be listed: {refusal(error)}") from None
            if UNFINISHED in names:
                raise RunFolderError(
                    f"{self._folder / folder}: is being replaced, or was when a process was killed; "
                    "do that step again to make it whole"
                )
            for name in names:
                if part := re.fullmatch(pattern, name):
                    found.setdefault(int(part[1]), set()).add(f"{folder}/{name}")
        return found
