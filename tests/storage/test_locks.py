"""Locks of run folders in a store, tested with a fast store in memory."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from rlt_data.errors import RunFolderError
from rlt_data.storage import locks
from rlt_data.storage.errorlog import ErrorLog
from rlt_data.storage.layout import run_log
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import to_table
from rlt_data.storage.writer import TableWriter
from tests.made_runs import trace

LOCK = "/run/.lock"


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> MemoryFileSystem:
    """An empty store."""
    monkeypatch.setattr(locks, "SETTLE_SECONDS", 0.05)
    files = MemoryFileSystem()
    files.store.clear()
    return files


@pytest.fixture
def run(files: MemoryFileSystem) -> RunFolder:
    return RunFolder("memory://run")


Left = Callable[..., None]


@pytest.fixture
def left(files: MemoryFileSystem) -> Left:
    """Leave the lock of another process: left(process=3, host="b")."""

    def leave(**changes: Any) -> None:
        holder = {"token": "of another", "host": socket.gethostname(), "process": os.getpid(), "since": "then"}
        files.pipe_file(LOCK, json.dumps({**holder, "machine": locks._machine(), **changes}).encode())

    return leave


def test_a_second_writer_is_refused_and_learns_when_the_lock_expires(run: RunFolder, files: MemoryFileSystem) -> None:
    before = time.time()
    with run.locked():
        with pytest.raises(RunFolderError) as refused, RunFolder("memory://run").locked():
            pass
        run.record("generate", {"rows": 1})
    said = str(refused.value)
    assert said.startswith("memory://run: ") and "\n" not in said
    assert f"process {os.getpid()} on {socket.gethostname()}" in said
    expiry = {time.strftime("%H:%M:%S", time.localtime(before + locks.STALE_SECONDS + late)) for late in range(60)}
    assert re.findall(r"\d\d:\d\d:\d\d", said)[-1] in expiry
    with RunFolder("memory://run").locked():
        pass
    assert not files.exists(LOCK) and RunFolder("memory://run").step("generate") == {"rows": 1}


def test_a_lock_that_is_not_renewed_is_taken_over(
    run: RunFolder, left: Left, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    left(host="elsewhere", process=77)
    with pytest.raises(RunFolderError, match="process 77 on elsewhere"), run.locked():
        pass
    monkeypatch.setattr(locks, "STALE_SECONDS", 0.2)
    time.sleep(0.3)
    with caplog.at_level(logging.WARNING, logger="rlt_data"), run.locked():
        run.record("generate", {})
    assert "process 77 on elsewhere" in caplog.text


def test_the_lock_of_an_ended_process_of_this_machine_is_taken_immediately(run: RunFolder, left: Left) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left(process=gone.pid, machine="another start of this machine")
    with pytest.raises(RunFolderError), run.locked():
        pass
    left(process=gone.pid)
    with run.locked():
        run.record("generate", {})


def test_a_lock_that_this_process_could_not_release_can_be_taken_again(run: RunFolder, left: Left) -> None:
    left()
    with run.locked():
        run.record("generate", {})


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}"])
def test_a_copied_file_lock_is_ignored(run: RunFolder, files: MemoryFileSystem, content: bytes) -> None:
    files.pipe_file(LOCK, content)
    with run.locked():
        run.record("generate", {})


@pytest.mark.parametrize(
    "write",
    [
        lambda run: run.write_part("traces", 0, to_table("traces", [])),
        lambda run: run.compact("traces", 0),
        lambda run: run.record("generate", {}),
        lambda run: ErrorLog(run, "generate").add("k", "reason", None),
        lambda run: replace(run, "traces"),
        lambda run: append(run, "traces"),
        lambda run: log(run, "a line"),
    ],
)
def test_a_writer_that_lost_its_lock_stops_before_it_writes(
    run: RunFolder,
    left: Left,
    files: MemoryFileSystem,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[RunFolder], None],
) -> None:
    with pytest.raises(RunFolderError, match="has taken over this run folder"), run.locked():
        append(run, "traces")
        written = files.find("/run")
        left(host="elsewhere")
        monkeypatch.setattr(locks, "STALE_SECONDS", 0.0)  # so that the lock is checked on each write
        write(run)
    assert files.find("/run") == written and b"elsewhere" in files.cat_file(LOCK)


def append(run: RunFolder, table: str) -> None:
    with TableWriter(run, table) as writer:
        writer.append(0, trace("q", 0))


def log(run: RunFolder, line: str) -> None:
    with run_log(run):
        logging.getLogger("rlt_data").warning(line)


def replace(run: RunFolder, table: str) -> None:
    with run.replacing(table) as new:
        new.write(0, to_table(table, []))


def test_a_lock_is_renewed_while_it_is_held_and_its_loss_is_noticed(
    run: RunFolder, files: MemoryFileSystem, left: Left, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "REFRESH_SECONDS", 0.05)
    monkeypatch.setattr(locks, "STALE_SECONDS", 1.5)
    with run.locked():
        for _ in range(2):
            time.sleep(1)
            with pytest.raises(RunFolderError, match="is writing"), RunFolder("memory://run").locked():
                pass
        run.record("generate", {})
        files.rm_file(LOCK)
        time.sleep(1)
        with pytest.raises(RunFolderError, match="taken over this run folder"):
            run.record("generate", {"more": 1})
    assert run.step("generate") == {}


def test_only_one_of_two_processes_takes_over_a_lock(
    run: RunFolder, left: Left, files: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    left()
    meanwhile = lambda seconds: files.pipe_file(LOCK, b'{"token": "of a third"}')  # noqa: E731
    monkeypatch.setattr(locks.time, "sleep", meanwhile)
    with pytest.raises(RunFolderError, match="at the same time"), run.locked():
        pass
    assert files.cat_file(LOCK) == b'{"token": "of a third"}'


def test_a_disk_uses_a_file_lock(tmp_path: Path) -> None:
    run = RunFolder((tmp_path / "run").as_uri())
    assert run.path == tmp_path / "run"
    with run.locked(), pytest.raises(RunFolderError, match="run: "):
        with RunFolder(tmp_path / "run").locked():
            pass
    assert not (tmp_path / "run").exists()
