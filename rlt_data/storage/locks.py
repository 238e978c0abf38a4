"""One writer at a time: a file lock on a disk, in a store an object that says who writes and is renewed all the time.

The lock on a disk ends with its process. A store knows nothing of processes, so there the object is written anew every
:data:`REFRESH_SECONDS`; one that was not for :data:`STALE_SECONDS` is free to be taken over. Ages are taken from the
store's own times, so clocks may differ. Nothing hinders a process that slept meanwhile (a suspended laptop) from waking
up and writing on, so a writer makes sure that the lock is still its own before it writes, and stops if it is not.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from rlt_data.errors import RunFolderError
from rlt_data.storage.paths import Place, disk_errors, read_bytes, remove_objects, store_errors, upload

if TYPE_CHECKING:
    from upath import UPath

logger = logging.getLogger(__name__)

#: Seconds between two renewals of a lock in a store.
REFRESH_SECONDS = 20.0
#: Seconds without renewal after which a lock may be taken over.
STALE_SECONDS = 120.0
#: Seconds after which a process that took a lock over looks whether another one did so at the same moment.
SETTLE_SECONDS = 2.0

#: Tokens of the locks that this process holds.
_held_here: set[str] = set()


@contextlib.contextmanager
def held(folder: Place) -> Iterator[Callable[[], None]]:
    """Hold a folder for writing; hands out what a writer calls before it writes.

    That raises RunFolderError if the folder is held by another process by now.

    Raises:
        RunFolderError: another process holds it.
        DiskError: the folder cannot be made or written.
    """
    if isinstance(folder, Path):
        with _held_on_disk(folder):
            yield lambda: None
        return
    lock = _StoreLock(folder)
    with disk_errors(folder):
        lock.acquire()
    try:
        yield lock.check
    finally:
        lock.release()


@contextlib.contextmanager
def _held_on_disk(folder: Path) -> Iterator[None]:
    with disk_errors(folder):
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise RunFolderError(f"{folder}: another rlt-data process is writing to this run folder") from None
    try:
        for leftover in folder.rglob(".*.tmp"):
            if leftover.is_file():
                leftover.unlink(missing_ok=True)
        yield
    finally:
        lock.release()
        if is_new and not any(path.name != ".lock" for path in folder.iterdir()):
            shutil.rmtree(folder)  # nothing came of it: a bad input, say


class _StoreLock:
    """A lock object; its methods raise OSError where the store refuses."""

    def __init__(self, folder: UPath) -> None:
        self._folder = folder
        self._path = folder / ".lock"
        self._token = uuid.uuid4().hex
        since = datetime.now(UTC).isoformat(timespec="seconds")
        self._content = {"token": self._token, "host": socket.gethostname(), "process": os.getpid(), "since": since}
        self._content["machine"] = _machine()
        self._confirmed = 0.0  # when it was certainly ours, by the clock on the wall: the other one halts in sleep
        self._lost = False
        self._mutex = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew_regularly, name="lock", daemon=True)

    def acquire(self) -> None:
        """Take the lock, and begin to renew it.

        Raises:
            RunFolderError: another process holds it.
        """
        now = time.time()
        # Looking first also serves stores that ignore the condition of writing.
        if self._holder() is not None or not self._create():
            self._take_over()
        self._confirmed = now
        _held_here.add(self._token)
        self._thread.start()

    def check(self) -> None:
        """Make sure of the lock; asks the store only if that was not done for a while.

        Raises:
            RunFolderError: another process has taken it over.
        """
        if not 0 <= time.time() - self._confirmed < STALE_SECONDS / 2:
            self._renew()
        if self._lost:
            raise RunFolderError(
                f"{self._folder}: another rlt-data process has taken this run folder over, because nothing was heard "
                "of this one for too long; it stops here, and what it had written is kept"
            )

    def release(self) -> None:
        """Give the lock up, if it is still ours and the store can be reached; else it becomes stale by itself."""
        self._stop.set()
        self._thread.join()
        _held_here.discard(self._token)
        with contextlib.suppress(OSError):
            if self._is_mine():
                remove_objects([self._path])

    def _create(self) -> bool:
        try:
            self._write(self._path, new=True)
        except FileExistsError:
            return False
        return True

    def _take_over(self) -> None:
        holder = self._holder()
        if holder and "token" in holder:  # else it is none of ours: the file lock of a run that was copied from a disk
            silent = self._silence()
            if silent < STALE_SECONDS and not _has_ended(holder):
                raise RunFolderError(self._refusal(holder, silent))
            logger.warning("%s: %s is gone; its lock is taken over", self._folder, _named(holder))
        self._write(self._path)
        time.sleep(SETTLE_SECONDS)
        if not self._is_mine():
            raise RunFolderError(f"{self._folder}: another rlt-data process began to write to it at the same moment")

    def _refusal(self, holder: dict[str, Any], silent: float) -> str:
        free = datetime.now(UTC) + timedelta(seconds=STALE_SECONDS - silent)
        return (
            f"{self._folder}: another rlt-data process is writing to this run folder: {_named(holder)}, heard of "
            f"{silent:.0f} s ago. If it was killed, the folder is free from {free.astimezone():%H:%M:%S}"
        )

    def _silence(self) -> float:
        """Return the seconds since the lock was last written, both ends by the store's clock."""
        probe = self._folder / f".lock-{self._token}"
        self._write(probe)
        try:
            with store_errors():
                now, written = (self._folder.fs.modified(path.path) for path in (probe, self._path))
                return float((now - written).total_seconds())
        except FileNotFoundError:
            return STALE_SECONDS  # released meanwhile
        finally:
            remove_objects([probe])

    def _holder(self) -> dict[str, Any] | None:
        """Return what the lock says, or None if there is none."""
        try:
            content = json.loads(read_bytes(self._path))
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return content if isinstance(content, dict) else {}

    def _is_mine(self) -> bool:
        return (self._holder() or {}).get("token") == self._token

    def _write(self, path: UPath, *, new: bool = False) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "lock"
            file.write_text(json.dumps(self._content), encoding="utf-8")
            upload(file, path, new=new)

    def _renew(self) -> None:
        with self._mutex:
            now = time.time()
            if self._is_mine():
                self._write(self._path)
                self._confirmed = now
            else:
                self._lost = True

    def _renew_regularly(self) -> None:
        while not self._lost and not self._stop.wait(REFRESH_SECONDS):
            with contextlib.suppress(OSError):  # out of reach for now; check says so if it lasts
                self._renew()


def _named(holder: dict[str, Any]) -> str:
    return f"process {holder.get('process')} on {holder.get('host')} (since {holder.get('since')})"


def _machine() -> str | None:
    """Name this start of this machine, and this container in it; None where that cannot be known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return None


def _has_ended(holder: dict[str, Any]) -> bool:
    """Whether a lock was left by a process of this machine that is gone, or by this one when the store was."""
    if _machine() is None or (holder.get("machine"), holder.get("host")) != (_machine(), socket.gethostname()):
        return False
    if holder["process"] == os.getpid():
        return holder["token"] not in _held_here
    try:
        os.kill(int(holder["process"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it runs, as somebody else's
    return False
