"""A folder on a disk, with several errors and with concurrent changes."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from rlt_data.errors import DiskError
from rlt_data.storage.local import LocalFolder, synchronise
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import to_table
from tests.conftest import Rlt
from tests.made_runs import distilled, files_of, make_run, ranked, trace


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = make_run(tmp_path / "run", *([trace(f"{part}", i, float(i)) for i in range(3)] for part in range(2)))
    ranked(run)
    return run


@contextmanager
def failing(fails: Callable[[int, str], bool]) -> Iterator[None]:
    """Make moves on the disk fail. ``fails`` receives the number of the move and its target."""
    number = -1

    def wrap(move: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(source: str, target: str) -> Any:
            nonlocal number
            number += 1
            if fails(number, str(target)):
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(source))
            return move(source, target)

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        for name in ("replace", "rename"):
            patch.setattr(os, name, wrap(getattr(os, name)))
        yield


def test_a_replacement_that_fails_and_cannot_be_undone_is_finished_later(run: RunFolder, tmp_path: Path) -> None:
    def ranking() -> tuple[object, ...]:
        read = RunFolder.existing(run.path)
        return read.read("ranks", 0), read.read("ranks", 1), read.step("rank")["settings"]["buckets"]

    outcomes = [ranking()]
    ranked(run, buckets=2)
    outcomes.append(ranking())
    complete = files_of(tmp_path)
    for first in range(1, 5):
        for second in range(first + 1, first + 6):
            ranked(run)
            with failing(lambda number, _: number == first or number >= second), pytest.raises(DiskError):  # noqa: B023
                ranked(run, buckets=2)
            assert ranking() in outcomes, (first, second)
            ranked(run, buckets=2)
            assert files_of(tmp_path).keys() == complete.keys()


def test_a_failed_write_of_a_part_does_not_damage_the_table(run: RunFolder) -> None:
    before = run.read("traces", 0)
    more = [to_table("traces", [trace(str(part), i) for i in range(5)]) for part in range(3)]
    with run.locked():
        for part in (0, 2):
            with failing(lambda _, target: "part-" in target), pytest.raises(DiskError):
                run.write_part("traces", part, more[part])
        run.write_part("traces", 1, more[1])
    reopened = RunFolder.existing(run.path)
    assert reopened.parts("traces") == [0, 1]
    assert reopened.read("traces", 0) == before and reopened.read("traces", 1) == more[1]


def test_a_reader_sees_a_replacement_that_stopped_between_a_table_and_its_manifest(run: RunFolder) -> None:
    old = run.read("ranks", 0)

    def replace(scored_by: str) -> None:
        column = old.column_names.index("scored_by")
        with run.replacing("ranks") as ranks:
            ranks.write(0, old.set_column(column, old.field(column), [[scored_by] * len(old)]))

    replace("test")
    reader = RunFolder(run.path)
    reader.read("ranks", 0)
    with failing(lambda _, target: "manifests" in target or target.endswith("/new/ranks")), pytest.raises(DiskError):
        replace("tesT")
    size = (run.path / "ranks/part-00000.parquet").stat().st_size
    assert [state.bytes for state in reader._listing.files("ranks").manifest.parts[0].states] == [size]
    assert reader.read("ranks", 0)["scored_by"].to_pylist() == ["tesT"] * len(old)


def test_a_folder_with_files_of_other_programs_is_not_replaced(rlt: Rlt, run: RunFolder) -> None:
    distilled(run)
    other_files = [run.path / name for name in ("ranks/notes.txt", "ranks/plots/1.png", "dataset/data/notes.txt")]
    for path in other_files:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    assert "ranks/notes.txt: " in rlt("rank", "--in", run.path, code=5).stderr
    other_files[0].rename("notes.txt")
    assert "ranks/plots/1.png: " in rlt("rank", "--in", run.path, code=5).stderr
    assert "(data/notes.txt)" in rlt("distill", "--in", run.path, code=5).stderr
    assert [path.read_text() for path in (Path("notes.txt"), *other_files[1:])] == ["mine"] * 3


def test_other_files_in_the_manifests_folder_are_kept(run: RunFolder) -> None:
    for name in ("notes.json", "scores (1).json", "notes.txt"):
        (run.path / "manifests" / name).write_text("mine")
    assert ranked(run).rows == 6
    assert (run.path / "manifests/notes.json").read_text() == "mine"


def test_a_file_does_not_replace_a_folder_or_a_pipe(rlt: Rlt, run: RunFolder) -> None:
    Path("folder").mkdir()
    Path("folder/file").write_text("mine")
    os.mkfifo("pipe")
    for out in ("folder", "pipe"):
        message = f"cannot write {out}: it exists and is not a file"
        assert message in rlt("report", run.path, "--out", out, code=7).stderr
        assert message in rlt("countdown", "make", "--rows", 3, "--out", out, code=7).stderr
    assert Path("folder/file").read_text() == "mine" and Path("pipe").is_fifo()


@contextmanager
def meanwhile(work: Callable[[], object]) -> Iterator[None]:
    """Call a function repeatedly in another thread."""
    stop = threading.Event()

    def again() -> None:
        while not stop.is_set():
            work()

    thread = threading.Thread(target=again)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_readers_tolerate_files_and_folders_that_appear_and_disappear(tmp_path: Path) -> None:
    folder = LocalFolder(tmp_path)
    (tmp_path / "traces").mkdir()
    (tmp_path / "traces/part-00000.parquet").touch()
    temporary = [tmp_path / "traces" / f"temporary-{i}" for i in range(20)]
    deep = tmp_path / "journal/traces/00000"
    staging = tmp_path / ".ranks.rlt-data"

    def come_and_go() -> None:
        deep.mkdir(parents=True)
        for path in temporary:
            path.touch()
        staging.mkdir(exist_ok=True)
        for path in temporary:
            path.unlink()
        deep.rmdir()
        deep.parent.rmdir()
        with suppress(OSError):  # already removed
            staging.rmdir()

    with meanwhile(come_and_go):
        for _ in range(1000):
            assert "part-00000.parquet" in folder.sizes("traces")
            assert folder.list_files("journal") == []
            folder.recover()


def test_a_staging_folder_removed_by_another_process_is_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging, listdir = tmp_path / ".page.rlt-data", os.listdir
    removed = 0

    def remove_first(path: Path) -> list[str]:
        nonlocal removed
        if path == staging and not removed:
            staging.rmdir()
            removed += 1
        return listdir(path)

    monkeypatch.setattr(os, "listdir", remove_first)
    with LocalFolder(tmp_path).replace("page", files=["page"]) as content:
        (content / "page").write_text("page")
    assert removed and listdir(tmp_path) == ["page"]
    staging.mkdir()
    removed = 0
    LocalFolder(tmp_path).recover()
    assert removed and listdir(tmp_path) == ["page"]


def test_a_run_is_readable_although_an_old_staging_folder_cannot_be_removed(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run.path / ".ranks.rlt-data/new/ranks").mkdir(parents=True)

    def refuse(path: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)  # tests may run as root, who can remove everything
    assert RunFolder.existing(run.path).count("ranks") == 6


def test_files_and_folders_are_synced_on_windows_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows refuses to open folders, and to sync files that are open for reading only."""
    flags: list[int] = []
    original = os.open

    def windows_open(path: Path, flag: int) -> int:
        if path.is_dir():
            raise PermissionError(errno.EACCES, "Permission denied")
        flags.append(flag)
        return original(path, flag)

    (tmp_path / "file").write_text("content")
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setattr(os, "open", windows_open)
    synchronise(tmp_path / "file")
    synchronise(tmp_path)
    assert flags == [os.O_RDWR]
