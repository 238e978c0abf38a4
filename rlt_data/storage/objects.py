"""A folder in an object store that fsspec reaches, such as S3 or Google Cloud Storage.

An object appears whole when its upload ends. Nothing can be renamed at once, so a replacement uploads its content to a
staging prefix (``.ranks.rlt-data/new/``), then a commit that lists it, and then moves the objects one by one. From the
commit on, any later process can finish the moves. Before it, what was there is untouched.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import xxhash

from rlt_data.errors import DiskError, RltDataError, RunFolderError
from rlt_data.storage.folder import STAGING, Changed, Commit, FileState, Write
from rlt_data.storage.locks import StoreLock
from rlt_data.storage.parquet import count_file, read_file, table_errors
from rlt_data.storage.paths import disk_errors, has_whole_objects, refusal, store_errors

if TYPE_CHECKING:
    from upath import UPath

#: Bytes to fetch from the end of a file of which some columns are wanted; a smaller file is fetched whole.
_END = 2**20
#: Bytes to fetch from the end of a file to count its rows; its footer is seldom longer.
_FOOTER = 2**16


class ObjectFolder:
    """A prefix in an object store; see :class:`~rlt_data.storage.folder.Folder`."""

    def __init__(self, path: UPath) -> None:
        self.path = path
        self._lock: StoreLock | None = None

    @property
    def on_disk(self) -> Path | None:
        """None: a store is not a folder of this machine."""
        return None

    # Reading

    def exists(self, name: str = "") -> bool:
        """Return whether there is such an object, or one below that prefix."""
        path = self._at(name)
        try:
            with store_errors():
                path.fs.info(path.path)
        except FileNotFoundError:
            return False
        return True

    def read(self, name: str) -> bytes:
        """Return the content of an object."""
        path = self._at(name)
        with store_errors():
            return bytes(path.fs.cat_file(path.path))

    def fetch(self, name: str, target: Path) -> None:
        """Download an object."""
        path = self._at(name)
        with store_errors():
            path.fs.get_file(path.path, str(target))

    def names(self) -> set[str]:
        """Return the first parts of the names of all objects below the prefix."""
        return {name.partition("/")[0] for name in self.below("")}

    def sizes(self, name: str) -> dict[str, int]:
        """Return the objects directly below a prefix, by name, with their sizes."""
        return {key: size for key, size in self._sizes_below(name).items() if "/" not in key}

    def below(self, name: str) -> list[str]:
        """Return all objects below a prefix."""
        return sorted(self._sizes_below(name))

    def examine(self, name: str) -> FileState:
        """Download a Parquet file, and return its state."""
        data = self.read(name)
        return FileState(count_file(self._at(name), pa.BufferReader(data)), len(data), xxhash.xxh3_128_hexdigest(data))

    def read_tables(
        self,
        names: Sequence[str],
        schema: pa.Schema,
        expected: Mapping[str, Sequence[FileState]],
        *,
        whole: bool,
    ) -> list[pa.Table]:
        """Read columns of Parquet files with few requests; parts of large files are checked page by page only."""
        tables = []
        for name, end, size in self._ends(names, None if whole else _END):
            path, source = self._at(name), pa.BufferReader(end)
            if states := expected.get(name):
                digest = xxhash.xxh3_128_hexdigest(end) if len(end) == size else None
                if not any(state.matches(size, digest) for state in states):
                    raise Changed(name)
            if len(end) == size:
                tables.append(read_file(path, source, schema))
            else:
                with table_errors(path), store_errors(), path.fs.open(path.path, cache_type="none") as file:
                    tables.append(read_file(path, file, schema))
        return tables

    def count_rows(self, name: str) -> int:
        """Return the rows of a Parquet file."""
        [(_, end, _)] = self._ends([name], _FOOTER)
        footer = int.from_bytes(end[-8:-4], "little") + 8
        if footer > len(end):
            [(_, end, _)] = self._ends([name], footer)
        return count_file(self._at(name), pa.BufferReader(end))

    def dataset(self, names: Sequence[str], schema: pa.Schema) -> Any:
        """Return a ``pyarrow.dataset.Dataset`` over Parquet files."""
        import pyarrow.dataset  # here, because it imports pandas

        files = [self._at(name).path for name in names]
        return pyarrow.dataset.dataset(files, schema=schema, format="parquet", filesystem=self.path.fs)

    def _ends(self, names: Sequence[str], size: int | None) -> list[tuple[str, bytes, int]]:
        """Fetch the ends of files side by side, or all of them: name, bytes, and size of the whole file."""
        if not names:
            return []
        fs, paths = self.path.fs, [self._at(name).path for name in names]
        with table_errors(self._at(names[0]).parent), store_errors():
            starts, ends = [0] * len(paths), [None] * len(paths)
            if size is not None:  # not every library takes offsets from the end
                ends = fs.sizes(paths)
                starts = [max(0, end - size) for end in ends]
            found: list[bytes] = fs.cat_ranges(paths, starts, ends, on_error="raise")
        return [
            (name, data, len(data) if end is None else end) for name, data, end in zip(names, found, ends, strict=True)
        ]

    def _sizes_below(self, name: str) -> dict[str, int]:
        path = self._at(name)
        try:
            with store_errors():
                found = path.fs.find(path.path, detail=True)
        except FileNotFoundError:
            return {}
        return {
            key.removeprefix(path.path).lstrip("/"): int(entry["size"])
            for key, entry in found.items()
            if not key.endswith("/")  # what a console puts there for a folder
        }

    def _at(self, name: str) -> UPath:
        return self.path / name if name else self.path

    # Writing

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for writing, by an object that is renewed all the time (see locks.py)."""
        lock = StoreLock(self.path)
        with disk_errors(self.path):
            lock.acquire()
        self._lock = lock
        try:
            with disk_errors(self.path):
                self.recover()
            yield
        finally:
            self._lock = None
            lock.release()

    def write(self, name: str, write: Write, ready: Callable[[Path], None] = lambda file: None) -> None:
        """Make one object appear whole."""
        parent, _, own = name.rpartition("/")

        def name_of(file: Path) -> str:
            ready(file)
            return own

        self._write(parent, write, name_of, self._at(name))

    def write_named(self, folder: str, write: Write, name_of: Callable[[Path], str]) -> str:
        """Make one object appear whole under a name that follows from its content, and return the name."""
        return self._write(folder, write, name_of, self._at(folder))

    def _write(self, folder: str, write: Write, name_of: Callable[[Path], str], target: UPath) -> str:
        with disk_errors(target), tempfile.TemporaryDirectory() as local:
            self._check_lock()
            temporary = Path(local) / "file"
            write(temporary)
            name = name_of(temporary)
            upload(temporary, self._at(folder) / name)
        return name

    @contextlib.contextmanager
    def appending(self, name: str) -> Iterator[Path]:
        """Hand out a temporary file; its content is appended when the block ends, however it ends."""
        with tempfile.TemporaryDirectory() as folder:
            more = Path(folder) / Path(name).name
            try:
                yield more
            except BaseException:
                with contextlib.suppress(RltDataError):
                    self._append(name, more)
                raise
            self._append(name, more)

    def _append(self, name: str, more: Path) -> None:
        with disk_errors(self._at(name)):
            self._check_lock()
            earlier = self.read(name) if self.exists(name) else b""
            added = more.read_bytes() if more.exists() else b""
        self.write(name, lambda temporary: temporary.write_bytes(earlier + added))

    def remove(self, names: Sequence[str]) -> None:
        """Remove objects."""
        if names:
            with disk_errors(self.path), store_errors():
                self.path.fs.rm([self._at(name).path for name in names])

    def _check_lock(self) -> None:
        if self._lock:
            self._lock.check()

    # Replacing

    @contextlib.contextmanager
    def replace(self, key: str, folders: Sequence[str] = (), files: Sequence[str] = ()) -> Iterator[Path]:
        """Hand out an empty local folder; when the block ends, its content takes the place of what is here."""
        target, staging = self._at(key), f".{key}{STAGING}"
        if not key:
            raise RunFolderError(f"{self.path}: name a folder inside the bucket")
        lock = StoreLock(self._at(staging))
        with disk_errors(target):
            lock.acquire()
        try:
            with disk_errors(target):
                self._settle(staging)
            with tempfile.TemporaryDirectory() as local:
                with disk_errors(target):
                    yield Path(local)
                names = [path.relative_to(local).as_posix() for path in Path(local).rglob("*") if path.is_file()]
                with disk_errors(target):
                    for name in sorted(names):
                        self._check_lock()
                        lock.check()
                        upload(Path(local) / name, self._at(f"{staging}/new/{name}"))
                    commit = {"folders": [*folders], "files": [*files], "content": sorted(names)}
                    lock.check()
                    self.write(f"{staging}/commit", lambda path: path.write_text(json.dumps(commit)))
            try:
                self._settle(staging)
            except OSError as error:
                raise DiskError(
                    f"cannot write all of {target}: {refusal(error)}. It is uploaded to {staging}; run this step "
                    "again, which finishes it."
                ) from None
        except BaseException:
            with contextlib.suppress(OSError, RunFolderError):
                lock.check()  # another process that took it over may have begun to stage
                if not self.exists(f"{staging}/commit"):
                    self._settle(staging)
            raise
        finally:
            lock.release()

    def recover(self) -> None:
        """Finish replacements that killed processes had completed, and clear away what others left."""
        try:
            with store_errors():
                found = self.path.fs.ls(self.path.path, detail=False)
        except FileNotFoundError:
            return
        for name in (path.rstrip("/").rpartition("/")[2] for path in found):
            if name.startswith(".") and name.endswith(STAGING):
                lock = StoreLock(self._at(name))
                try:
                    lock.acquire()
                except (RunFolderError, OSError):
                    continue  # another process is at work, or this one may only read
                try:
                    self._settle(name)
                finally:
                    lock.release()

    def _settle(self, staging: str) -> None:
        """Finish a replacement that was committed; remove what is left of one that was not."""
        try:
            commit = Commit.from_text(self.read(f"{staging}/commit"), self._at(f"{staging}/commit"))
        except FileNotFoundError:
            commit = None
        if commit:
            left = set(self.below(f"{staging}/new"))
            for name in commit.content:
                if name in left:
                    _move(self._at(f"{staging}/new/{name}"), self._at(name))
            for folder in commit.folders:
                kept = {name.removeprefix(f"{folder}/") for name in commit.content}
                self.remove([f"{folder}/{name}" for name in self.below(folder) if name not in kept])
            self.remove([f"{staging}/commit"])
        self.remove([f"{staging}/new/{name}" for name in self.below(f"{staging}/new")])


def _move(source: UPath, target: UPath) -> None:
    with store_errors():
        if not has_whole_objects(source):
            source.fs.makedirs(target.parent.path, exist_ok=True)
        source.fs.mv(source.path, target.path)


def upload(file: Path, path: UPath) -> None:
    """Put a file from the disk into a store.

    Raises:
        OSError: the store refuses it or cannot be reached.
    """
    fs, target = path.fs, path.path
    with store_errors():
        if has_whole_objects(path):
            fs.put_file(str(file), target)
        else:  # such as sftp: half a file would be visible
            fs.makedirs(path.parent.path, exist_ok=True)
            fresh = f"{path.parent.path.rstrip('/')}/.rlt-data-{uuid.uuid4().hex}.tmp"
            fs.put_file(str(file), fresh)
            fs.mv(fresh, target)
