"""The lock of a folder in an object store: an object that names its holder and is renewed all the time.

A store knows nothing of processes, so the holder writes the object anew every :data:`REFRESH_SECONDS`; one that is
older than :data:`STALE_SECONDS` may be taken over. Ages come from the store's own times, so clocks may differ. A
process that slept meanwhile (a suspended laptop) may wake up and try to continue, so a writer makes sure that it still
has the lock before it writes, and stops if it has lost it.

S3 writes an object only if it is absent, or only in place of a given version, so two processes can never both get the
lock. Other stores offer the former at most; there a process that takes a lock over waits and looks again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import threading
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlt_data.errors import RunFolderError
from rlt_data.storage.paths import has_whole_objects, store_errors

if TYPE_CHECKING:
    from upath import UPath

logger = logging.getLogger(__name__)

#: Seconds between two renewals of a lock in a store.
REFRESH_SECONDS = 20.0
#: Seconds without renewal after which a lock may be taken over.
STALE_SECONDS = 120.0
#: Seconds after which a process that took a lock over, in a store without conditional writes, looks whether another one
#: did so at the same moment.
SETTLE_SECONDS = 2.0
#: Protocols of stores that write an object in place of a given version only.
_CONDITIONAL = {"s3", "s3a"}

#: Tokens of the locks that this process holds.
_held_here: set[str] = set()


class StoreLock:
    """A lock object; its methods raise OSError where the store refuses."""

    def __init__(self, folder: UPath) -> None:
        self._folder = folder
        self._path = folder / ".lock"
        self._token = uuid.uuid4().hex
        since = datetime.now(UTC).isoformat(timespec="seconds")
        self._content: dict[str, Any] = {
            "token": self._token,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "since": since,
            "machine": _machine(),
            "written": 0,
        }
        self._conditional = self._path.protocol in _CONDITIONAL
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
        holder, _ = self._look()
        if holder is not None or not self._create():
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
        with contextlib.suppress(OSError), store_errors():
            if self._is_mine():
                self._path.fs.rm_file(self._path.path)

    def _take_over(self) -> None:
        holder, version = self._look()
        if holder and "token" in holder:  # else it is none of ours: the file lock of a run that was copied from a disk
            silent = self._silence()
            if silent < STALE_SECONDS and not _has_ended(holder):
                raise RunFolderError(self._refusal(holder, silent))
            logger.warning("%s: %s is gone; its lock is taken over", self._folder, _named(holder))
        taken = self._overwrite(version)
        if not self._conditional:
            time.sleep(SETTLE_SECONDS)
        if not (taken and self._is_mine()):
            raise RunFolderError(f"{self._folder}: another rlt-data process began to write to it at the same moment")

    def _refusal(self, holder: dict[str, Any], silent: float) -> str:
        free = datetime.now(UTC) + timedelta(seconds=STALE_SECONDS - silent)
        return (
            f"{self._folder}: another rlt-data process is writing to this folder: {_named(holder)}, heard of "
            f"{silent:.0f} s ago. If it was killed, the folder is free from {free.astimezone():%H:%M:%S}"
        )

    def _silence(self) -> float:
        """Return the seconds since the lock was last written, both ends by the store's clock."""
        fs, probe = self._path.fs, f"{self._path.path}-{self._token}"
        with store_errors():
            fs.pipe_file(probe, b"")
            try:
                now, written = (fs.modified(path) for path in (probe, self._path.path))
                return float((now - written).total_seconds())
            except FileNotFoundError:
                return STALE_SECONDS  # released meanwhile
            finally:
                fs.rm_file(probe)

    def _look(self) -> tuple[dict[str, Any] | None, str | None]:
        """Return what the lock says, None if there is none, and its version in stores that write conditionally."""
        fs, path = self._path.fs, self._path.path
        try:
            with store_errors():
                version = fs.info(path)["ETag"] if self._conditional else None
                text = fs.cat_file(path)
        except FileNotFoundError:
            return None, None
        try:
            content = json.loads(text)
        except ValueError:
            content = {}
        return content if isinstance(content, dict) else {}, version

    def _is_mine(self) -> bool:
        return ((self._look()[0]) or {}).get("token") == self._token

    def _create(self) -> bool:
        """Write the lock if there is none, and return whether that was so."""
        with store_errors():
            if not has_whole_objects(self._path):
                self._path.fs.makedirs(self._folder.path, exist_ok=True)
            try:
                self._path.fs.pipe_file(self._path.path, self._next_content(), mode="create")
            except FileExistsError:
                return False
        return True

    def _overwrite(self, version: str | None) -> bool:
        """Write the lock in place of a version, and return whether that was still there."""
        condition = {"IfMatch": version} if self._conditional and version else {}
        try:
            with store_errors():
                self._path.fs.pipe_file(self._path.path, self._next_content(), **condition)
        except OSError as error:
            if condition and error.errno == errno.EINVAL:  # how s3fs reports a condition that failed
                return False
            raise
        return True

    def _next_content(self) -> bytes:
        self._content["written"] += 1  # so that no version is like another
        return json.dumps(self._content).encode()

    def _renew(self) -> None:
        with self._mutex:
            now = time.time()
            holder, version = self._look()
            if (holder or {}).get("token") == self._token and self._overwrite(version):
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
