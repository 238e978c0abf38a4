"""Paths and URLs of run folders, and stores other than S3."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import s3fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from rlt_data.errors import DiskError, RunFolderError
from rlt_data.storage.backends import open_folder
from rlt_data.storage.outputs import new_folder
from rlt_data.storage.paths import storage_path
from rlt_data.storage.run import RunFolder
from tests.conftest import Rlt
from tests.made_runs import distilled, make_run, ranked, table, trace
from tests.store_server import StoreServer

Tiny = Callable[..., Path]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[StoreServer]:
    """A store without a bucket."""
    server = StoreServer()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield server
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("runs/demo", "runs/demo"),
        ("file:///runs/demo", "/runs/demo"),
        ("local:///runs/demo", "/runs/demo"),
        ("C://runs", "C:/runs"),
        ("C:\\runs\\demo", "C:\\runs\\demo"),
        ("odd:name", "odd:name"),
        ("runs/a://b", "runs/a:/b"),
        ("run*[1]?", "run*[1]?"),
    ],
)
def test_paths_on_a_disk(name: str, path: str) -> None:
    assert storage_path(name) == Path(path)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("s4://bucket/run", "s4://bucket/run: unknown protocol s4://"),
        ("S3://bucket/run", "S3://bucket/run: unknown protocol S3://"),
        ("s3:/bucket/run", "s3:/bucket/run: a URL needs two slashes"),
        ("simplecache::s3://bucket/run", "without any of :: * ? ["),
        ("s3://bucket/run*", "without any of :: * ? ["),
        ("s3:///", "s3:///: the URL of a run folder must be PROTOCOL://FOLDER"),
        ("gs://bucket/run", "the package for gs:// is not installed: pip install 'rlt-data[gcs]'"),
        ("abfs://bucket/run", "the package for abfs:// is not installed: Install adlfs"),
    ],
)
@pytest.mark.parametrize("command", ["generate", "score", "rank", "stats"])
def test_an_invalid_url(
    rlt: Rlt, problems: Path, monkeypatch: pytest.MonkeyPatch, command: str, name: str, says: str
) -> None:
    for package in ("gcsfs", "adlfs"):
        monkeypatch.setitem(sys.modules, package, None)
    commands: dict[str, tuple[Any, ...]] = {
        "generate": ("generate", "--in", problems, "--teacher", "nano", "--out", name),
        "score": ("score", "--in", problems, "--student", "nano", "--out", name),
        "rank": ("rank", "--in", name),
        "stats": ("stats", name),
    }
    result = rlt(*commands[command], code=5)
    assert says in result.stderr and len(result.stderr.splitlines()) == 1
    assert not [path for path in Path().iterdir() if path.suffix != ".jsonl"]


def test_a_missing_bucket_or_run(rlt: Rlt, tiny: Tiny, problems: Path, server: StoreServer) -> None:
    step = "generate", "--in", problems, "--teacher", tiny(), "--max-tokens", 5, "--out", "s3://no-such-bucket/run"
    assert "cannot write s3://no-such-bucket/run: " in rlt(*step, code=7).stderr
    assert "s3://no-such-bucket/run: " in rlt("stats", "s3://no-such-bucket/run", code=5).stderr
    assert (
        "s3://no-such-bucket/run: "
        in rlt("score", "--in", "s3://no-such-bucket/run", "--student", "nano", code=5).stderr
    )
    s3fs.S3FileSystem().mkdir("there")
    s3fs.S3FileSystem().touch("there/else/note.txt")
    assert "s3://there/else: " in rlt("rank", "--in", "s3://there/else", code=5).stderr


@pytest.mark.parametrize("command", ["generate", "stats"])
def test_without_credentials(
    rlt: Rlt, problems: Path, server: StoreServer, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    url = "s3://bucket/run"
    step = (
        ("generate", "--in", problems, "--teacher", "nano", "--out", url) if command == "generate" else ("stats", url)
    )
    result = rlt(*step, code=5)
    assert "s3://" in result.stderr and len(result.stderr.splitlines()) == 1


def test_an_unreachable_server(rlt: Rlt, server: StoreServer) -> None:
    server.stop()
    try:
        assert "s3://bucket/run: " in rlt("stats", "s3://bucket/run", code=5).stderr
    finally:
        server.start()


def test_inputs_and_outputs_that_must_be_local(rlt: Rlt) -> None:
    url = "s3://bucket/rows.jsonl"
    assert f"{url}: " in rlt("check", "--in", url, code=3).stderr
    made = rlt("countdown", "make", "--out", url, code=2)
    assert "--out: " in made.stderr
    trained = rlt("train-student", "--in", "x.jsonl", "--model", "nano", "--out", "s3://bucket/model", code=2)
    assert "--out: " in trained.stderr


class Shelf(LocalFileSystem):
    """A store in which incomplete uploads are visible, such as sftp."""

    protocol = "shelf"

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return super()._strip_protocol(str(path).removeprefix("shelf://"))

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        assert Path(rpath).name.endswith((".tmp", ".lock")), "an incomplete file would be visible"
        super().put_file(lpath, rpath, **options)


def test_without_atomic_uploads_files_are_moved_into_place(tmp_path: Path) -> None:
    fsspec.register_implementation("shelf", Shelf, clobber=True)
    run = make_run(f"shelf://{tmp_path}/run", [trace("q", 0), trace("q", 1)], [trace("r", 0)])
    assert ranked(run).rows == 3 and distilled(run).rows == 2
    disk = make_run(tmp_path / "disk", [trace("q", 0), trace("q", 1)], [trace("r", 0)])
    ranked(disk)
    assert table(RunFolder(tmp_path / "run"), "ranks").equals(table(disk, "ranks"))
    assert not [path for path in (tmp_path / "run").rglob(".*") if path.is_file()]


def test_a_failed_replacement_in_a_store_changes_nothing_or_is_finished_later(monkeypatch: pytest.MonkeyPatch) -> None:
    MemoryFileSystem.store.clear()
    folder = storage_path("memory://runs/folder")
    content = open_folder(folder)
    content.write("old.json", lambda path: path.write_text("1"))

    def write() -> None:
        with new_folder(folder) as staging:
            for name in ("last.json", "inner/first.json"):
                (staging / name).parent.mkdir(exist_ok=True)
                (staging / name).write_text("2")

    def refusing(self: MemoryFileSystem, local: str, path: str, **options: Any) -> None:
        if path.endswith("last.json"):
            raise ConnectionError("gone")
        original(self, local, path, **options)

    original = MemoryFileSystem.put_file
    monkeypatch.setattr(MemoryFileSystem, "put_file", refusing)
    with pytest.raises(DiskError, match="memory://runs/folder: gone"):
        write()
    assert content.names() == {"old.json"} and not MemoryFileSystem().find("/runs/.folder.rlt-data/new")
    monkeypatch.undo()
    moved: list[str] = []

    def moving(self: MemoryFileSystem, source: str, target: str, **options: Any) -> None:
        moved.append(target)
        if len(moved) == 2:
            raise ConnectionError("gone")
        move(self, source, target, **options)

    move = MemoryFileSystem.mv
    monkeypatch.setattr(MemoryFileSystem, "mv", moving)
    with pytest.raises(DiskError, match="gone"):
        write()
    monkeypatch.undo()
    open_folder("memory://runs").recover()
    assert content.names() == {"inner", "last.json"} and not MemoryFileSystem().find("/runs/.folder.rlt-data")


def test_lines_are_appended_even_after_an_error() -> None:
    MemoryFileSystem.store.clear()
    run = open_folder("memory://run")
    with run.append_to("run.log") as file:
        file.write_text("one\n")
    with pytest.raises(ZeroDivisionError), run.append_to("run.log") as file:
        file.write_text("two\n")
        raise ZeroDivisionError
    with run.append_to("run.log"):
        pass
    assert MemoryFileSystem().cat_file("/run/run.log") == b"one\ntwo\n"


def test_a_run_of_a_newer_layout_is_refused_in_a_store_too() -> None:
    MemoryFileSystem.store.clear()
    MemoryFileSystem().pipe_file("/run/run.json", b'{"version": 99}')
    with pytest.raises(RunFolderError, match="layout version 99"):
        RunFolder("memory://run")
