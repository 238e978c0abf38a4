"""The write lock of a folder in an object store: an object that names its holder and is renewed regularly.

A store cannot tell whether a process is alive, so the holder rewrites the object every :data:`REFRESH_SECONDS`, and
other processes may take over a lock that is older than :data:`STALE_SECONDS`. Ages are computed from the times of the
store, so the clocks of the machines may differ. A suspended process may wake up after its lock was taken over.
Therefore a writer checks its lock before each write, and stops if the lock is lost.

S3 can write an object only if it does not exist or has a given version, so two processes never get the same lock.
Other stores support the first condition at most. There, a process that takes over a lock waits and then reads it again.
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
from rlt_data.storage.paths import store_errors, uploads_atomically

if TYPE_CHECKING:
    from upath import UPath

logger = logging.getLogger(__name__)

#: Seconds between two renewals of a lock.
REFRESH_SECONDS = 20.0
#: Seconds without renewal after which a lock may be taken over.
STALE_SECONDS = 120.0
#: Seconds after which a process that has taken over a lock checks whether another process did so at the same time. Used
#: in stores without conditional writes.
SETTLE_SECONDS = 2.0
#: Protocols of stores that can make a write conditional on the version of the object.
_CONDITIONAL = {"s3", "s3a"}

#: Tokens of the locks that this process holds.
_held_tokens: set[str] = set()


class StoreLock:
    """A lock object. Its methods raise OSError if the store refuses a request."""

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
        self._confirmed = 0.0  # last confirmed ownership (wall clock: the monotonic clock stops during suspend)
        self._lost = False
        self._mutex = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew_regularly, name="lock", daemon=True)

    def acquire(self) -> None:
        """Take the lock and start to renew it.

        Raises:
            RunFolderError: another process holds the lock.
        """
        now = time.time()
        # The read also protects in stores that ignore the condition of a write.
        holder, _ = self._read()
        if holder is not None or not self._create():
            self._take_over()
        self._confirmed = now
        _held_tokens.add(self._token)
        self._thread.start()

    def check(self) -> None:
        """Check that this process still holds the lock. Asks the store only if the last confirmation is old.

        Raises:
            RunFolderError: another process has taken over the lock.
        """
        if not 0 <= time.time() - self._confirmed < STALE_SECONDS / 2:
            self._renew()
        if self._lost:
            raise RunFolderError(
                f"{self._folder}: another rlt-data process has taken over this run folder, because this process did "
                "not renew its lock in time; this process stops, and the rows that it has written are kept"
            )

    def release(self) -> None:
        """Release the lock. If the store cannot be reached, the lock expires later."""
        self._stop.set()
        self._thread.join()
        _held_tokens.discard(self._token)
        with contextlib.suppress(OSError), store_errors():
            if self._is_held():
                self._path.fs.rm_file(self._path.path)

    def _take_over(self) -> None:
        holder, version = self._read()
        if holder and "token" in holder:  # else it is the file lock of a run that was copied from a disk
            age = self._age()
            if age < STALE_SECONDS and not _has_ended(holder):
                free_at = datetime.now(UTC) + timedelta(seconds=STALE_SECONDS - age)
                raise RunFolderError(
                    f"{self._folder}: another rlt-data process is writing to this folder: {_describe(holder)}, which "
                    f"renewed its lock {age:.0f} s ago. If it was killed, the lock expires at "
                    f"{free_at.astimezone():%H:%M:%S}."
                )
            logger.warning("%s: %s has ended; its lock is taken over", self._folder, _describe(holder))
        is_overwritten = self._overwrite(version)
        if not self._conditional:
            time.sleep(SETTLE_SECONDS)
        if not (is_overwritten and self._is_held()):
            raise RunFolderError(f"{self._folder}: another rlt-data process took the lock at the same time")

    def _age(self) -> float:
        """Return the seconds since the lock was last written, by the clock of the store."""
        fs, probe = self._path.fs, f"{self._path.path}-{self._token}"
        with store_errors():
            fs.pipe_file(probe, b"")
            try:
                now, written = (fs.modified(path) for path in (probe, self._path.path))
                return float((now - written).total_seconds())
            except FileNotFoundError:
                return STALE_SECONDS  # just released
            finally:
                fs.rm_file(probe)

    def _read(self) -> tuple[dict[str, Any] | None, str | None]:
        """Return the content of the lock (None: no lock) and its version (None: the store has no versions)."""
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

    def _is_held(self) -> bool:
        return (self._read()[0] or {}).get("token") == self._token

    def _create(self) -> bool:
        """Write the lock if none exists, and return whether it was written."""
        with store_errors():
            if not uploads_atomically(self._path):
                self._path.fs.makedirs(self._folder.path, exist_ok=True)
            try:
                self._path.fs.pipe_file(self._path.path, self._next_content(), mode="create")
            except FileExistsError:
                return False
        return True

    def _overwrite(self, version: str | None) -> bool:
        """Overwrite a version of the lock, and return whether that version still existed."""
        condition = {"IfMatch": version} if self._conditional and version else {}
        try:
            with store_errors():
                self._path.fs.pipe_file(self._path.path, self._next_content(), **condition)
        except OSError as error:
            if condition and error.errno == errno.EINVAL:  # s3fs reports a failed condition this way
                return False
            raise
        return True

    def _next_content(self) -> bytes:
        self._content["written"] += 1  # makes every version unique
        return json.dumps(self._content).encode()

    def _renew(self) -> None:
        with self._mutex:
            now = time.time()
            holder, version = self._read()
            if (holder or {}).get("token") == self._token and self._overwrite(version):
                self._confirmed = now
            else:
                self._lost = True

    def _renew_regularly(self) -> None:
        while not self._lost and not self._stop.wait(REFRESH_SECONDS):
            with contextlib.suppress(OSError):  # temporary; check() raises if it persists
                self._renew()


def _describe(holder: dict[str, Any]) -> str:
    return f"process {holder.get('process')} on {holder.get('host')} (since {holder.get('since')})"


def _machine() -> str | None:
    """Return an id of this boot of this machine and of this container, or None if it cannot be determined."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return None


def _has_ended(holder: dict[str, Any]) -> bool:
    """Return whether the holder is a process of this machine that has ended or no longer holds the lock."""
    if _machine() is None or (holder.get("machine"), holder.get("host")) != (_machine(), socket.gethostname()):
        return False
    if holder["process"] == os.getpid():
        return holder["token"] not in _held_tokens  # release() could not reach the store
    try:
        os.kill(int(holder["process"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it runs as another user
    return False
