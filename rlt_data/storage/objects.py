"""The storage backend for object stores that fsspec supports, such as S3 or Google Cloud Storage.

An object becomes visible when its upload is complete. A store cannot rename several objects atomically, so a
replacement uploads its content to a staging prefix (``.ranks.rlt-data/new/``), then a commit that lists it, and then
moves the objects one by one. Before the commit, the old content is unchanged. After it, any later process can finish
the moves.
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
from rlt_data.storage.folder import STAGING, Commit, FileChangedError, FileState, Write
from rlt_data.storage.locks import StoreLock
from rlt_data.storage.parquet import count_file, read_file, table_errors
from rlt_data.storage.paths import disk_errors, refusal, store_errors, uploads_atomically

if TYPE_CHECKING:
    from upath import UPath

#: Bytes to fetch from the end of a file when some columns are read. A smaller file is fetched completely.
_END = 2**20
#: Bytes to fetch from the end of a file when its rows are counted. Footers are seldom longer.
_FOOTER = 2**16


class ObjectFolder:
    """A prefix in an object store; see :class:`~rlt_data.storage.folder.Folder`."""

    def __init__(self, path: UPath) -> None:
        self.path = path
        self._lock: StoreLock | None = None

    @property
    def local_path(self) -> Path | None:
        """None, because an object store is not on the local disk."""
        return None

    # Reading

    def exists(self, name: str = "") -> bool:
        """Return whether an object exists, or an object below a prefix."""
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
        """Return the names of the objects and prefixes directly in this folder."""
        return {name.partition("/")[0] for name in self.list_files("")}

    def sizes(self, name: str) -> dict[str, int]:
        """Return the sizes in bytes of the objects directly below a prefix, by name."""
        return {key: size for key, size in self._sizes_below(name).items() if "/" not in key}

    def list_files(self, name: str) -> list[str]:
        """Return all objects below a prefix, relative to it and sorted."""
        return sorted(self._sizes_below(name))

    def file_state(self, name: str) -> FileState:
        """Download a Parquet file and return its state."""
        data = self.read(name)
        return FileState(count_file(self._at(name), pa.BufferReader(data)), len(data), xxhash.xxh3_128_hexdigest(data))

    def read_tables(
        self,
        names: Sequence[str],
        schema: pa.Schema,
        expected: Mapping[str, Sequence[FileState]],
        *,
        all_columns: bool,
    ) -> list[pa.Table]:
        """Read columns of Parquet files with few requests.

        Only the pages of large files are verified, because a checksum would require the complete file.
        """
        tables = []
        for name, end, size in self._ends(names, None if all_columns else _END):
            path, source = self._at(name), pa.BufferReader(end)
            if states := expected.get(name):
                digest = xxhash.xxh3_128_hexdigest(end) if len(end) == size else None
                if not any(state.matches(size, digest) for state in states):
                    raise FileChangedError(name)
            if len(end) == size:
                tables.append(read_file(path, source, schema))
            else:
                with table_errors(path), store_errors(), path.fs.open(path.path, cache_type="none") as file:
                    tables.append(read_file(path, file, schema))
        return tables

    def count_rows(self, name: str) -> int:
        """Return the number of rows of a Parquet file."""
        [(_, end, _)] = self._ends([name], _FOOTER)
        footer = int.from_bytes(end[-8:-4], "little") + 8
        if footer > len(end):
            [(_, end, _)] = self._ends([name], footer)
        return count_file(self._at(name), pa.BufferReader(end))

    def dataset(self, names: Sequence[str], schema: pa.Schema) -> Any:
        """Return a ``pyarrow.dataset.Dataset`` over Parquet files."""
        import pyarrow.dataset  # not at the top, because it imports pandas

        files = [self._at(name).path for name in names]
        return pyarrow.dataset.dataset(files, schema=schema, format="parquet", filesystem=self.path.fs)

    def _ends(self, names: Sequence[str], size: int | None) -> list[tuple[str, bytes, int]]:
        """Fetch the last ``size`` bytes of files concurrently; None: complete files.

        Returns:
            For each file its name, the bytes, and the size of the complete file.
        """
        if not names:
            return []
        fs, paths = self.path.fs, [self._at(name).path for name in names]
        with table_errors(self._at(names[0]).parent), store_errors():
            starts, ends = [0] * len(paths), [None] * len(paths)
            if size is not None:  # not every fsspec library supports offsets from the end
                ends = fs.sizes(paths)
                starts = [max(0, end - size) for end in ends]
            contents: list[bytes] = fs.cat_ranges(paths, starts, ends, on_error="raise")
        return [
            (name, data, len(data) if end is None else end)
            for name, data, end in zip(names, contents, ends, strict=True)
        ]

    def _sizes_below(self, name: str) -> dict[str, int]:
        path = self._at(name)
        try:
            with store_errors():
                entries = path.fs.find(path.path, detail=True)
        except FileNotFoundError:
            return {}
        return {
            key.removeprefix(path.path).lstrip("/"): int(entry["size"])
            for key, entry in entries.items()
            if not key.endswith("/")  # folder placeholders, which the consoles of stores create
        }

    def _at(self, name: str) -> UPath:
        return self.path / name if name else self.path

    # Writing

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the write lock of the folder; see :mod:`rlt_data.storage.locks`."""
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
        """Write an object atomically."""
        parent, _, base = name.rpartition("/")

        def name_of(file: Path) -> str:
            ready(file)
            return base

        self._write(parent, write, name_of, self._at(name))

    def write_named(self, folder: str, write: Write, name_of: Callable[[Path], str]) -> str:
        """Write an object atomically under a name derived from its content, and return the name."""
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
    def append_to(self, name: str) -> Iterator[Path]:
        """Yield a temporary file, and append its content to an object when the block ends or raises."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / Path(name).name
            try:
                yield file
            except BaseException:
                with contextlib.suppress(RltDataError):
                    self._append(name, file)
                raise
            self._append(name, file)

    def _append(self, name: str, file: Path) -> None:
        with disk_errors(self._at(name)):
            self._check_lock()
            content = self.read(name) if self.exists(name) else b""
            content += file.read_bytes() if file.exists() else b""
        self.write(name, lambda temporary: temporary.write_bytes(content))

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
        """Yield an empty local folder, and replace folders and files by its content when the block ends."""
        target, staging = self._at(key), f".{key}{STAGING}"
        if not key:
            raise RunFolderError(f"{self.path}: name a folder inside the bucket")
        lock = StoreLock(self._at(staging))
        with disk_errors(target):
            lock.acquire()
        try:
            with disk_errors(target):
                self._finish_or_discard(staging)
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
                self._finish_or_discard(staging)
            except OSError as error:
                raise DiskError(
                    f"cannot write all of {target}: {refusal(error)}. The new content is uploaded to {staging}; run "
                    "this step again to move it into place."
                ) from None
        except BaseException:
            with contextlib.suppress(OSError, RunFolderError):
                lock.check()  # a process that has taken over the lock may have staged its content
                if not self.exists(f"{staging}/commit"):
                    self._finish_or_discard(staging)
            raise
        finally:
            lock.release()

    def recover(self) -> None:
        """Finish the committed replacements of killed processes, and remove the uncommitted ones."""
        try:
            with store_errors():
                paths = self.path.fs.ls(self.path.path, detail=False)
        except FileNotFoundError:
            return
        for name in (path.rstrip("/").rpartition("/")[2] for path in paths):
            if name.startswith(".") and name.endswith(STAGING):
                lock = StoreLock(self._at(name))
                try:
                    lock.acquire()
                except (RunFolderError, OSError):
                    continue  # another process holds it, or this process has no write permission
                try:
                    self._finish_or_discard(name)
                finally:
                    lock.release()

    def _finish_or_discard(self, staging: str) -> None:
        """Finish a committed replacement, or discard an uncommitted one."""
        try:
            commit = Commit.from_text(self.read(f"{staging}/commit"), self._at(f"{staging}/commit"))
        except FileNotFoundError:
            commit = None
        if commit:
            staged = set(self.list_files(f"{staging}/new"))
            for name in commit.content:
                if name in staged:
                    _move(self._at(f"{staging}/new/{name}"), self._at(name))
            for folder in commit.folders:
                new = {name.removeprefix(f"{folder}/") for name in commit.content}
                self.remove([f"{folder}/{name}" for name in self.list_files(folder) if name not in new])
            self.remove([f"{staging}/commit"])
        self.remove([f"{staging}/new/{name}" for name in self.list_files(f"{staging}/new")])


def _move(source: UPath, target: UPath) -> None:
    with store_errors():
        if not uploads_atomically(source):
            source.fs.makedirs(target.parent.path, exist_ok=True)
        source.fs.mv(source.path, target.path)


def upload(file: Path, path: UPath) -> None:
    """Upload a file from the disk to an object store.

    Raises:
        OSError: the store refuses the upload or cannot be reached.
    """
    fs, target = path.fs, path.path
    with store_errors():
        if uploads_atomically(path):
            fs.put_file(str(file), target)
        else:  # such as sftp, where an incomplete upload is visible
            fs.makedirs(path.parent.path, exist_ok=True)
            temporary = f"{path.parent.path.rstrip('/')}/.rlt-data-{uuid.uuid4().hex}.tmp"
            fs.put_file(str(file), temporary)
            fs.mv(temporary, target)
