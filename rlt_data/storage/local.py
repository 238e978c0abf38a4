"""A folder on a disk.

A file is written under a temporary name, synchronised and renamed. A replacement is staged in a folder next to its
target (here for the target ``ranks``)::

    .ranks.rlt-data/lock     held by the process that replaces
    .ranks.rlt-data/new/     the new content, while it is written
    .ranks.rlt-data/commit   written when ``new`` is complete and synchronised: from now on it will be used
    .ranks.rlt-data/old/     what was replaced, until the new content is in place

A move is done if its source is gone, so a replacement can be finished by any later process, from any moment.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import pyarrow as pa

from rlt_data.errors import DiskError, RunFolderError
from rlt_data.storage.folder import STAGING, Changed, Commit, FileState, Write, checksum
from rlt_data.storage.parquet import count_file, read_file
from rlt_data.storage.paths import disk_errors, refusal
from rlt_data.storage.schemas import SCHEMAS

_TEMPORARY = re.compile(r"\.rlt-data-[0-9a-f]{32}\.tmp")
_STAGED = {"lock", "new", "old", "commit"}
#: Seconds to wait for a process that only finishes or clears what another one left.
_PATIENCE = 2.0


class LocalFolder:
    """A folder on a disk; see :class:`~rlt_data.storage.folder.Folder`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock_file: os.stat_result | None = None
        self._checked: dict[str, tuple[object, str]] = {}  # states of files, with their checksums

    @property
    def on_disk(self) -> Path | None:
        """The folder."""
        return self.path

    # Reading

    def exists(self, name: str = "") -> bool:
        """Return whether there is such a file or folder; without a name, whether there is the folder."""
        return (self.path / name).exists() if name else self.path.is_dir()

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        return (self.path / name).read_bytes()

    def names(self) -> set[str]:
        """Return the names of the files and folders directly in the folder."""
        if self.path.is_dir():
            return set(os.listdir(self.path))
        return {self.path.name} if self.path.exists() else set()

    def sizes(self, name: str) -> dict[str, int]:
        """Return the files directly in a folder, by name, with their sizes."""
        try:
            with os.scandir(self.path / name) as entries:
                files = [entry for entry in entries if entry.is_file()]
        except (FileNotFoundError, NotADirectoryError):
            return {}
        sizes = {}
        for file in files:
            with contextlib.suppress(FileNotFoundError):  # a temporary file that was renamed meanwhile
                sizes[file.name] = file.stat().st_size
        return sizes

    def fetch(self, name: str, target: Path) -> None:
        """Copy a file, by a hard link where possible."""
        try:
            os.link(self.path / name, target)
        except OSError:
            shutil.copyfile(self.path / name, target)

    def below(self, name: str) -> list[str]:
        """Return all files below a folder."""
        folder = self.path / name

        def refuse(error: OSError) -> None:
            if not isinstance(error, (FileNotFoundError, NotADirectoryError)):  # removed meanwhile, or never there
                raise error

        paths = [Path(parent, file) for parent, _, files in os.walk(folder, onerror=refuse) for file in files]
        return sorted(path.relative_to(folder).as_posix() for path in paths if path.is_file())

    def examine(self, name: str) -> FileState:
        """Read a Parquet file whole, and return its state."""
        path = self.path / name
        return FileState(count_file(path, path), path.stat().st_size, checksum(path))

    def read_tables(
        self,
        names: Sequence[str],
        schema: pa.Schema,
        expected: Mapping[str, Sequence[FileState]],
        *,
        whole: bool,
    ) -> list[pa.Table]:
        """Read columns of Parquet files, one table each."""
        for name in names:
            if states := expected.get(name):
                self._verify(name, states)
        return [read_file(self.path / name, self.path / name, schema) for name in names]

    def _verify(self, name: str, states: Sequence[FileState]) -> None:
        found = (self.path / name).stat()
        now = found.st_ino, found.st_mtime_ns, found.st_size
        before, digest = self._checked.get(name, (None, ""))
        if before != now:
            digest = checksum(self.path / name)
            self._checked[name] = now, digest
        if not any(state.matches(found.st_size, digest) for state in states):
            raise Changed(name)

    def count_rows(self, name: str) -> int:
        """Return the rows of a Parquet file."""
        return count_file(self.path / name, self.path / name)

    def dataset(self, names: Sequence[str], schema: pa.Schema) -> Any:
        """Return a ``pyarrow.dataset.Dataset`` over Parquet files."""
        import pyarrow.dataset  # here, because it imports pandas

        return pyarrow.dataset.dataset([str(self.path / name) for name in names], schema=schema, format="parquet")

    # Writing

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for writing; the lock ends with the process, however that ends."""
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
            if is_new:  # remove the folder if nothing came of it, because of a bad input for instance
                with contextlib.suppress(OSError):
                    if os.listdir(self.path) == [".lock"]:
                        (self.path / ".lock").unlink()  # while the lock is held, so that it is not another process's
                        self.path.rmdir()
            lock.release()

    def write(self, name: str, write: Write, ready: Callable[[Path], None] = lambda file: None) -> None:
        """Make one file appear whole."""
        path = Path(name)

        def name_of(file: Path) -> str:
            ready(file)
            return path.name

        self._write(self.path / path.parent, write, name_of, self.path / name)

    def write_named(self, folder: str, write: Write, name_of: Callable[[Path], str]) -> str:
        """Make one file appear whole under a name that follows from its content, and return the name."""
        return self._write(self.path / folder, write, name_of, self.path / folder)

    def _write(self, parent: Path, write: Write, name_of: Callable[[Path], str], target: Path) -> str:
        temporary = parent / f".rlt-data-{uuid.uuid4().hex}.tmp"
        with disk_errors(target):
            self._check_folder()
            parent.mkdir(parents=True, exist_ok=True)
            try:
                write(temporary)
                _synchronise(temporary)
                name = name_of(temporary)
                os.replace(temporary, parent / name)
            finally:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
        _confirm(parent / name, [parent])
        return name

    @contextlib.contextmanager
    def appending(self, name: str) -> Iterator[Path]:
        """Hand out the file itself."""
        with disk_errors(self.path / name):
            self._check_folder()
        yield self.path / name

    def remove(self, names: Sequence[str]) -> None:
        """Remove files, and folders that this leaves empty."""
        with disk_errors(self.path):
            for name in names:
                (self.path / name).unlink(missing_ok=True)
            for folder in sorted({parent for name in names for parent in Path(name).parents}, reverse=True):
                if folder != Path():
                    with contextlib.suppress(OSError):  # not empty
                        (self.path / folder).rmdir()

    def _check_folder(self) -> None:
        """Refuse to write to a run folder that is no longer the one that was locked."""
        if self._lock_file is None:
            return
        try:
            same = os.path.samestat((self.path / ".lock").stat(), self._lock_file)
        except OSError:
            same = False
        if not same:
            raise RunFolderError(
                f"{self.path}: the run folder was moved or deleted while this process was writing to it"
            )

    def _remove_temporaries(self) -> None:
        folders = [self.path, self.path / "manifests", *(self.path / table for table in SCHEMAS)]
        for folder in [*folders, *self.path.glob("journal/*/*")]:
            for name in self.sizes(str(folder.relative_to(self.path))):
                if _TEMPORARY.fullmatch(name):
                    (folder / name).unlink(missing_ok=True)

    # Replacing

    @contextlib.contextmanager
    def replace(self, key: str, folders: Sequence[str] = (), files: Sequence[str] = ()) -> Iterator[Path]:
        """Hand out an empty folder; when the block ends, its content takes the place of what is here."""
        target = self.path / key
        for name in folders:
            if (self.path / name).is_symlink():
                raise RunFolderError(
                    f"{self.path / name}: is a symbolic link, and rlt-data replaces this folder as a whole; "
                    "name the folder that the link points to, or remove the link"
                )
        with disk_errors(target):
            self._check_kinds(folders, files)
            staging, lock = self._stage(key)
        try:
            with disk_errors(target):
                self._settle(staging)
                fresh = staging / "new"
                fresh.mkdir()
                yield fresh
            with disk_errors(target), _signals_deferred():
                self._check_folder()
                self._check_kinds(folders, files)
                for path in [*fresh.rglob("*"), fresh]:
                    _synchronise(path)
                try:
                    _write_synchronised(staging / "commit", json.dumps({"folders": [*folders], "files": [*files]}))
                except OSError:
                    (staging / "commit").unlink(missing_ok=True)
                    raise
                self._finish(staging, undo=True)
        finally:
            self._clear(staging)
            lock.release()

    def recover(self) -> None:
        """Finish replacements that killed processes had completed, and clear away what others left."""
        for staging in self.path.glob(f".*{STAGING}"):
            try:
                if set(os.listdir(staging)) - _STAGED:
                    continue
            except OSError:  # removed meanwhile, no folder, or not ours to read
                continue
            lock = filelock.FileLock(staging / "lock")
            try:
                lock.acquire(timeout=_PATIENCE if (staging / "commit").exists() else 0)
            except (filelock.Timeout, OSError):  # another process is at work, or this one may only read
                continue
            try:
                with _signals_deferred():
                    self._settle(staging)
            except OSError:
                if (staging / "commit").exists():
                    raise  # else it is only litter, which this process may not remove
            finally:
                self._clear(staging)
                lock.release()

    def _check_kinds(self, folders: Sequence[str], files: Sequence[str]) -> None:
        """Refuse to replace a folder or a pipe by a file, or a file by a folder."""
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
                if foreign := sorted(set(os.listdir(staging)) - _STAGED):
                    raise RunFolderError(f"{staging}: holds files of another program ({foreign[0]}); move it away")
                lock.acquire(timeout=_PATIENCE)
                return staging, lock
            except filelock.Timeout:
                raise RunFolderError(f"{self.path / key}: another rlt-data process is writing it") from None
            except FileNotFoundError:
                continue  # the process that held it has just removed the folder

    def _settle(self, staging: Path) -> None:
        """Finish a replacement that was committed, or forget one that was not."""
        if (staging / "commit").exists():
            self._finish(staging, undo=False)
            (staging / "commit").unlink(missing_ok=True)  # it must not count for what is staged next
        for name in ("new", "old"):
            if (staging / name).exists():
                shutil.rmtree(staging / name)

    def _finish(self, staging: Path, *, undo: bool) -> None:
        """Move the staged content into place.

        Args:
            staging: the staging folder, with its commit.
            undo: put everything back if a move fails. Without it the commit stays for a later start.

        Raises:
            OSError: a move failed.
        """
        commit = Commit.from_text((staging / "commit").read_bytes(), staging / "commit")
        back: list[tuple[Path, Path]] = []
        parents = {self.path}
        try:
            for name in [*commit.folders, *commit.files]:
                source, target, earlier = staging / "new" / name, self.path / name, staging / "old" / name
                if not source.exists():
                    continue
                for path in (target, earlier):
                    path.parent.mkdir(parents=True, exist_ok=True)
                parents.add(target.parent)
                overwritten = target.is_file()
                if overwritten:  # in one step, so that the file is never missing
                    shutil.copyfile(target, earlier)
                elif target.exists():
                    os.rename(target, earlier)
                    back.append((earlier, target))
                os.replace(source, target)
                back += [(earlier, target)] if overwritten else []
                back.append((target, source))
        except OSError:
            if undo:
                # The commit goes last, and new content goes back first: a kill on the way leaves what can be finished.
                try:
                    for source, target in reversed(back):
                        os.replace(source, target)
                    (staging / "commit").unlink()
                except OSError as error:
                    raise DiskError(
                        f"cannot write all of {self.path}: {refusal(error)}. It is complete in {staging}; the next "
                        "command that uses the folder finishes it."
                    ) from None
            raise
        try:
            _confirm(self.path, sorted(parents))
        finally:
            with contextlib.suppress(OSError):  # the next start finds nothing left to move, and removes it
                (staging / "commit").unlink()

    def _clear(self, staging: Path) -> None:
        """Remove a staging folder, unless it holds what is still to be put in place."""
        with contextlib.suppress(OSError):
            if not (staging / "commit").exists():
                for name in ("new", "old"):
                    shutil.rmtree(staging / name, ignore_errors=True)
                (staging / "lock").unlink(missing_ok=True)
                staging.rmdir()


def _write_synchronised(path: Path, text: str) -> None:
    temporary = path.with_name("new") / f".{uuid.uuid4().hex}"
    temporary.write_text(text, encoding="utf-8")
    _synchronise(temporary)
    os.replace(temporary, path)
    _synchronise(path.parent)


def _confirm(target: Path, folders: Sequence[Path]) -> None:
    """Synchronise folders after files in them were renamed.

    Raises:
        DiskError: the disk refuses; the files are in place all the same.
    """
    try:
        for folder in folders:
            _synchronise(folder)
    except OSError as error:
        raise DiskError(
            f"{target} is written, but the disk did not confirm it ({refusal(error)}): "
            "it may be lost if the power fails. Check the disk and run this step again."
        ) from None


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _signals_deferred() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM take effect after the block, which moves a few files."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python handles signals in the main thread only
        return
    caught: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda number, frame: caught.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in caught:
            signal.raise_signal(late)
