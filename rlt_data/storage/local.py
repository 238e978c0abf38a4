"""The storage backend for a folder on a disk.

A file is written under a temporary name, synchronised and renamed. A replacement is staged in a folder next to its
target, here ``ranks``::

    .ranks.rlt-data/lock     held by the replacing process
    .ranks.rlt-data/new/     the new content
    .ranks.rlt-data/commit   written when ``new`` is complete and synchronised; the replacement is now final
    .ranks.rlt-data/old/     the old content, until the new content is in place

A move is done if its source is gone, so any later process can finish an interrupted replacement.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import pyarrow as pa

from rlt_data.errors import DiskError, RunFolderError
from rlt_data.storage.folder import STAGING, Commit, FileChangedError, FileState, Write, checksum
from rlt_data.storage.parquet import count_file, read_file
from rlt_data.storage.paths import disk_errors, refusal
from rlt_data.storage.schemas import SCHEMAS, SIGNAL_PREFIX

_TEMPORARY = re.compile(r"\.rlt-data-[0-9a-f]{32}\.tmp")
_STAGED = {"lock", "new", "old", "commit"}
#: Seconds to wait for a process that is only finishing or removing an interrupted replacement.
_LOCK_TIMEOUT = 2.0


class LocalFolder:
    """A folder on a disk; see :class:`~rlt_data.storage.folder.Folder`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock_file: os.stat_result | None = None
        self._checksums: dict[str, tuple[object, str]] = {}  # by file: inode, time and size; checksum

    @property
    def local_path(self) -> Path | None:
        """Path of the folder."""
        return self.path

    # Reading

    def exists(self, name: str = "") -> bool:
        """Return whether a file or folder exists. Without a name: whether this folder exists."""
        return (self.path / name).exists() if name else self.path.is_dir()

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        return (self.path / name).read_bytes()

    def names(self) -> set[str]:
        """Return the names of the files and folders directly in this folder."""
        if self.path.is_dir():
            return set(os.listdir(self.path))
        return {self.path.name} if self.path.exists() else set()

    def sizes(self, name: str) -> dict[str, int]:
        """Return the sizes in bytes of the files directly in a folder, by name."""
        try:
            with os.scandir(self.path / name) as entries:
                files = [entry for entry in entries if entry.is_file()]
        except (FileNotFoundError, NotADirectoryError):
            return {}
        sizes = {}
        for file in files:
            with contextlib.suppress(FileNotFoundError):  # a temporary file that was just renamed
                sizes[file.name] = file.stat().st_size
        return sizes

    def fetch(self, name: str, target: Path) -> None:
        """Copy a file, as a hard link if possible."""
        try:
            os.link(self.path / name, target)
        except OSError:
            shutil.copyfile(self.path / name, target)

    def list_files(self, name: str) -> list[str]:
        """Return all files below a folder, relative to it and sorted."""
        folder = self.path / name

        def raise_unless_missing(error: OSError) -> None:
            if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
                raise error

        walk = os.walk(folder, onerror=raise_unless_missing)
        paths = [Path(parent, file) for parent, _, files in walk for file in files]
        return sorted(path.relative_to(folder).as_posix() for path in paths if path.is_file())

    def file_state(self, name: str) -> FileState:
        """Read a complete Parquet file and return its state."""
        path = self.path / name
        return FileState(count_file(path, path), path.stat().st_size, checksum(path))

    def read_tables(
        self,
        names: Sequence[str],
        schema: pa.Schema,
        expected: Mapping[str, Sequence[FileState]],
        *,
        all_columns: bool,
    ) -> list[pa.Table]:
        """Read columns of Parquet files, one table each."""
        for name in names:
            if states := expected.get(name):
                self._verify(name, states)
        return [read_file(self.path / name, self.path / name, schema) for name in names]

    def _verify(self, name: str, states: Sequence[FileState]) -> None:
        stat = (self.path / name).stat()
        version = stat.st_ino, stat.st_mtime_ns, stat.st_size
        known_version, digest = self._checksums.get(name, (None, ""))
        if version != known_version:
            digest = checksum(self.path / name)
            self._checksums[name] = version, digest
        if not any(state.matches(stat.st_size, digest) for state in states):
            raise FileChangedError(name)

    def count_rows(self, name: str) -> int:
        """Return the number of rows of a Parquet file."""
        return count_file(self.path / name, self.path / name)

    def dataset(self, names: Sequence[str], schema: pa.Schema) -> Any:
        """Return a ``pyarrow.dataset.Dataset`` over Parquet files."""
        import pyarrow.dataset  # not at the top, because it imports pandas

        return pyarrow.dataset.dataset([str(self.path / name) for name in names], schema=schema, format="parquet")

    # Writing

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the write lock of the folder. The lock ends with the process."""
        with disk_errors(self.path):
            is_new = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.path / ".lock")
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                raise RunFolderError(f"{self.path}: another rlt-data process is writing to this folder") from None
            self._lock_file = (self.path / ".lock").stat()
        try:
            with disk_errors(self.path):
                self.recover()
                self._remove_temporaries()
            yield
        finally:
            self._lock_file = None
            if is_new:  # remove the folder if nothing was written, for example because of a bad input
                with contextlib.suppress(OSError):
                    if os.listdir(self.path) == [".lock"]:
                        (self.path / ".lock").unlink()  # before the release, or it may belong to another process
                        self.path.rmdir()
            lock.release()

    def write(self, name: str, write: Write, ready: Callable[[Path], None] = lambda file: None) -> None:
        """Write a file atomically."""
        path = Path(name)

        def name_of(file: Path) -> str:
            ready(file)
            return path.name

        self._write(self.path / path.parent, write, name_of, self.path / name)

    def write_named(self, folder: str, write: Write, name_of: Callable[[Path], str]) -> str:
        """Write a file atomically under a name derived from its content, and return the name."""
        return self._write(self.path / folder, write, name_of, self.path / folder)

    def _write(self, parent: Path, write: Write, name_of: Callable[[Path], str], target: Path) -> str:
        temporary = parent / f".rlt-data-{uuid.uuid4().hex}.tmp"
        with disk_errors(target):
            self._check_folder()
            parent.mkdir(parents=True, exist_ok=True)
            try:
                write(temporary)
                synchronise(temporary)
                name = name_of(temporary)
                os.replace(temporary, parent / name)
            finally:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
        _confirm(parent / name, [parent])
        return name

    @contextlib.contextmanager
    def append_to(self, name: str) -> Iterator[Path]:
        """Yield the file itself."""
        with disk_errors(self.path / name):
            self._check_folder()
        yield self.path / name

    def remove(self, names: Sequence[str]) -> None:
        """Remove files, and folders that become empty."""
        with disk_errors(self.path):
            for name in names:
                (self.path / name).unlink(missing_ok=True)
            for folder in sorted({parent for name in names for parent in Path(name).parents}, reverse=True):
                if folder != Path():
                    with contextlib.suppress(OSError):  # not empty
                        (self.path / folder).rmdir()

    def _check_folder(self) -> None:
        """Raise RunFolderError if the path no longer leads to the folder that was locked."""
        if self._lock_file is None:
            return
        try:
            is_same = os.path.samestat((self.path / ".lock").stat(), self._lock_file)
        except OSError:
            is_same = False
        if not is_same:
            raise RunFolderError(
                f"{self.path}: the run folder was moved or deleted while this process was writing to it"
            )

    def _remove_temporaries(self) -> None:
        tables = [*(self.path / table for table in SCHEMAS), *self.path.glob(f"{SIGNAL_PREFIX}*")]
        folders = [self.path, self.path / "manifests", *tables]
        for folder in [*folders, *self.path.glob("journal/*/*")]:
            for name in self.sizes(str(folder.relative_to(self.path))):
                if _TEMPORARY.fullmatch(name):
                    (folder / name).unlink(missing_ok=True)

    # Replacing

    @contextlib.contextmanager
    def replace(self, key: str, folders: Sequence[str] = (), files: Sequence[str] = ()) -> Iterator[Path]:
        """Yield an empty folder, and replace folders and files by its content when the block ends."""
        target = self.path / key
        for name in folders:
            if (self.path / name).is_symlink():
                raise RunFolderError(
                    f"{self.path / name}: is a symbolic link, but rlt-data must replace the complete folder; "
                    "name the folder that the link points to, or remove the link"
                )
        with disk_errors(target):
            self._check_kinds(folders, files)
            staging, lock = self._stage(key)
        try:
            with disk_errors(target):
                self._finish_or_discard(staging)
                content = staging / "new"
                content.mkdir()
                yield content
            with disk_errors(target), _signals_deferred():
                self._check_folder()
                self._check_kinds(folders, files)
                for path in [*content.rglob("*"), content]:
                    synchronise(path)
                try:
                    _write_synchronised(staging / "commit", json.dumps({"folders": [*folders], "files": [*files]}))
                except OSError:
                    (staging / "commit").unlink(missing_ok=True)
                    raise
                self._finish(staging, undo=True)
        finally:
            self._remove_staging(staging)
            lock.release()

    def recover(self) -> None:
        """Finish the committed replacements of killed processes, and remove the uncommitted ones."""
        for staging in self.path.glob(f".*{STAGING}"):
            try:
                if set(os.listdir(staging)) - _STAGED:
                    continue
            except OSError:  # just removed, not a folder, or not readable
                continue
            lock = filelock.FileLock(staging / "lock")
            try:
                lock.acquire(timeout=_LOCK_TIMEOUT if (staging / "commit").exists() else 0)
            except (filelock.Timeout, OSError):  # another process holds it, or this process has no write permission
                continue
            try:
                with _signals_deferred():
                    self._finish_or_discard(staging)
            except OSError:
                if (staging / "commit").exists():
                    raise  # without a commit, readers do not need the removal
            finally:
                self._remove_staging(staging)
                lock.release()

    def _check_kinds(self, folders: Sequence[str], files: Sequence[str]) -> None:
        """Raise OSError if a file would replace something other than a file, or a folder would replace a file."""
        for name in files:
            if (self.path / name).exists() and not (self.path / name).is_file():
                raise IsADirectoryError(errno.EISDIR, "it exists and is not a file")
        for name in folders:
            if (self.path / name).is_file():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))

    def _stage(self, key: str) -> tuple[Path, filelock.BaseFileLock]:
        staging = self.path / f".{key}{STAGING}"
        while True:
            staging.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(staging / "lock")
            try:
                if unknown := sorted(set(os.listdir(staging)) - _STAGED):
                    raise RunFolderError(f"{staging}: contains files of another program ({unknown[0]}); move it away")
                lock.acquire(timeout=_LOCK_TIMEOUT)
                return staging, lock
            except filelock.Timeout:
                raise RunFolderError(f"{self.path / key}: another rlt-data process is writing it") from None
            except FileNotFoundError:
                continue  # the process that held the lock has just removed the folder

    def _finish_or_discard(self, staging: Path) -> None:
        """Finish a committed replacement, or discard an uncommitted one."""
        if (staging / "commit").exists():
            self._finish(staging, undo=False)
            (staging / "commit").unlink(missing_ok=True)  # it must not apply to the next content
        for name in ("new", "old"):
            if (staging / name).exists():
                shutil.rmtree(staging / name)

    def _finish(self, staging: Path, *, undo: bool) -> None:
        """Move the staged content into place.

        Args:
            staging: the staging folder, with a commit.
            undo: whether to undo all moves if one fails. If False, the commit stays for a later process.

        Raises:
            OSError: a move failed.
        """
        commit = Commit.from_text((staging / "commit").read_bytes(), staging / "commit")
        undo_moves: list[tuple[Path, Path]] = []
        parents = {self.path}
        try:
            for name in [*commit.folders, *commit.files]:
                source, target, earlier = staging / "new" / name, self.path / name, staging / "old" / name
                if not source.exists():
                    continue
                for path in (target, earlier):
                    path.parent.mkdir(parents=True, exist_ok=True)
                parents.add(target.parent)
                is_overwritten = target.is_file()
                if is_overwritten:  # replaced in one step, so that the file is never missing
                    shutil.copyfile(target, earlier)
                elif target.exists():
                    os.rename(target, earlier)
                    undo_moves.append((earlier, target))
                os.replace(source, target)
                undo_moves += [(earlier, target)] if is_overwritten else []
                undo_moves.append((target, source))
        except OSError:
            if undo:
                # New content moves back first and the commit is removed last, so that after a kill a later process
                # can still finish the replacement.
                try:
                    for source, target in reversed(undo_moves):
                        os.replace(source, target)
                    (staging / "commit").unlink()
                except OSError as error:
                    raise DiskError(
                        f"cannot write all of {self.path}: {refusal(error)}. The new content is complete in {staging}; "
                        "the next command that uses the folder moves it into place."
                    ) from None
            raise
        try:
            _confirm(self.path, sorted(parents))
        finally:
            with contextlib.suppress(OSError):  # else the next process has nothing to move and removes it
                (staging / "commit").unlink()

    def _remove_staging(self, staging: Path) -> None:
        """Remove a staging folder, unless its commit is not finished."""
        with contextlib.suppress(OSError):
            if not (staging / "commit").exists():
                for name in ("new", "old"):
                    shutil.rmtree(staging / name, ignore_errors=True)
                (staging / "lock").unlink(missing_ok=True)
                staging.rmdir()


def _write_synchronised(path: Path, text: str) -> None:
    temporary = path.with_name("new") / f".{uuid.uuid4().hex}"
    temporary.write_text(text, encoding="utf-8")
    synchronise(temporary)
    os.replace(temporary, path)
    synchronise(path.parent)


def _confirm(target: Path, folders: Sequence[Path]) -> None:
    """Synchronise folders after renaming files in them.

    Raises:
        DiskError: synchronising failed, although the files are in place.
    """
    try:
        for folder in folders:
            synchronise(folder)
    except OSError as error:
        raise DiskError(
            f"{target} is written, but the disk did not confirm the write ({refusal(error)}), so a power failure may "
            "lose it. Check the disk and run this step again."
        ) from None


def synchronise(path: Path) -> None:
    """Sync a file or folder to disk. Windows cannot sync folders, and syncs only files opened for writing."""
    if sys.platform == "win32" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _signals_deferred() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM until the end of the block, which moves a few files."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python handles signals in the main thread only
        return
    deferred: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in handlers:
        signal.signal(number, lambda number, frame: deferred.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for received in deferred:
            signal.raise_signal(received)
