"""Run folders in an S3 store: the same tables, guarantees and resuming as on a disk."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
import s3fs

from rlt_data.errors import DiskError, RunFolderError
from rlt_data.reporting.live import Watch
from rlt_data.reporting.report import report
from rlt_data.settings import GenerateSettings, ReportSettings, ScoreSettings, parse_settings
from rlt_data.steps.generate import generate
from rlt_data.steps.score import score
from rlt_data.storage import locks, objects, writer
from rlt_data.storage.backends import open_folder
from rlt_data.storage.errorlog import ErrorLog, failures
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import to_table
from tests.children import Child, write_slowly
from tests.conftest import Rlt
from tests.killing import table_bytes, write_questions
from tests.made_runs import distilled, drop_part, make_run, ranked, trace
from tests.store_server import StoreServer, fetched, files, running_store, sent

Tiny = Callable[..., Path]
TABLES = ("questions", "traces", "scores", "ranks")


@pytest.fixture(scope="module")
def server() -> Iterator[StoreServer]:
    with running_store() as server:
        yield server


@pytest.fixture
def url(server: StoreServer, request: pytest.FixtureRequest) -> str:
    """The URL of a run, different for each test."""
    return "s3://bucket/runs/" + re.sub(r"\W", "-", request.node.name)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the requests to the store by type."""
    counted: Counter[str] = Counter()
    original = s3fs.S3FileSystem._call_s3

    async def counting(self: Any, method: str, *args: Any, **options: Any) -> Any:
        counted[method] += 1
        return await original(self, method, *args, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counting)
    return counted


@pytest.fixture(scope="module")
def straight(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Settings of generate for 300 questions, which are two parts, and the run they make on the disk in one go."""
    folder = tmp_path_factory.mktemp("straight")
    questions = write_questions(folder / "questions.jsonl", 300)
    settings = {"in": str(questions), "teacher": str(tiny()), "n": 1, "max_tokens": 5}
    generate(parse_settings(GenerateSettings, {**settings, "out": str(folder / "run")}))
    return settings, folder / "run"


def continued(settings: dict[str, Any], out: str) -> int:
    """Run generate until all 300 traces are there, and return how many of them it made."""
    summary = generate(parse_settings(GenerateSettings, {**settings, "out": out}))
    assert summary.rows == 300
    return summary.new


def assert_same_tables(run: Path, other: Path, *tables: str) -> None:
    for table in tables:
        assert table_bytes(run, table) == table_bytes(other, table) != {}, table
    assert not (run / "journal").exists()


def test_all_steps_write_the_same_to_a_store_and_to_a_disk(
    rlt: Rlt, tiny: Tiny, problems: Path, tmp_path: Path, url: str
) -> None:
    for out in ("disk", url):
        rlt("generate", "--in", problems, "--teacher", tiny(), "--n", 3, "--max-tokens", 30, "--out", out)
        rlt("score", "--in", out, "--student", tiny("chat", 1))
        rlt("rank", "--in", out)
        rlt("distill", "--in", out, "--select", "all", "--include", "truncated")
    run, disk = fetched(url, tmp_path / "run"), tmp_path / "disk"
    assert_same_tables(run, disk, *TABLES)
    names = {path.relative_to(disk).as_posix() for path in disk.rglob("*") if path.is_file()}
    assert {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()} == names - {".lock"}
    assert (run / "dataset" / "train.jsonl").read_bytes() == (disk / "dataset" / "train.jsonl").read_bytes()
    assert [line[24:] for line in (run / "run.log").read_text().splitlines()] == [
        line[24:] for line in (disk / "run.log").read_text().splitlines()
    ]
    assert rlt("show", url).stdout == rlt("show", disk).stdout
    in_store, local_path = (re.sub(r"[\d,]+ tokens/s", "", rlt("stats", run).stdout) for run in (url, disk))
    assert in_store == local_path
    again = rlt("generate", "--in", problems, "--teacher", tiny(), "--n", 3, "--max-tokens", 30, "--out", url)
    assert "18 traces (0 new)" in again.stdout
    rlt("distill", "--in", url, "--select", "all", "--include", "truncated", "--out", "here")
    assert pl.read_parquet("here/data/*.parquet").equals(pl.read_parquet(run / "dataset/data/*.parquet"))


def test_an_evaluation_writes_the_same_to_a_store(rlt: Rlt, tmp_path: Path, url: str) -> None:
    rlt("countdown", "make", "--rows", 4, "--out", "problems.jsonl")
    step = "evaluate", "--benchmark", "countdown", "--in", "problems.jsonl", "--model", "nano", "--max-tokens", 40
    shown = [rlt(*step, "--out", out).stdout.replace(str(out), "RUN") for out in ("disk", url)]
    assert shown[0] == shown[1]
    run = fetched(url, tmp_path / "run")
    assert_same_tables(run, Path("disk"), "questions", "answers", "grades")
    assert (run / "evaluation.json").read_bytes() == Path("disk/evaluation.json").read_bytes()


def test_scoring_into_another_folder_copies_the_traces_once(
    rlt: Rlt, tiny: Tiny, problems: Path, tmp_path: Path, url: str, calls: Counter[str]
) -> None:
    rlt("generate", "--in", problems, "--teacher", tiny(), "--n", 2, "--max-tokens", 10, "--out", "first")
    scored = "score", "--in", "first", "--student", tiny("chat", 1), "--out", url
    rlt(*scored)
    assert_same_tables(fetched(url, tmp_path / "run"), tmp_path / "first", "questions", "traces")
    before = files().modified(f"{url}/traces/part-00000.parquet")
    assert "12 scores (0 new)" in rlt(*scored).stdout
    assert files().modified(f"{url}/traces/part-00000.parquet") == before
    assert "12 scores (12 new)" in rlt("score", "--in", url, "--student", tiny(), "--out", "back").stdout


@pytest.mark.parametrize("begun", ["disk", "store"])
def test_a_run_can_be_continued_after_a_move_between_disk_and_store(
    straight: tuple[dict[str, Any], Path], tmp_path: Path, url: str, begun: str
) -> None:
    settings, complete = straight
    half = write_half(RunFolder("disk" if begun == "disk" else url), RunFolder(complete))
    (tmp_path / "disk").mkdir(exist_ok=True)
    (tmp_path / "disk" / ".lock").touch()  # a file lock may leave it
    run = sent(Path("disk"), url) if begun == "disk" else str(fetched(url, tmp_path / "fetched"))
    assert continued(settings, run) == 300 - half
    finished = fetched(url, tmp_path / "finished") if begun == "disk" else Path(run)
    assert_same_tables(finished, complete, "questions", "traces")


def write_half(half: RunFolder, whole: RunFolder) -> int:
    """Write a part of a run as a killed process leaves it, and return the number of traces."""
    with half.locked():
        half.adopt("questions", whole)
        for step in ("input", "generate"):
            half.record(step, whole.step(step))
        rows = whole.read("traces", 0)
        for start in (0, 60, 120):
            half.add_segment("traces", 0, rows.slice(start, 60))
        half.add_segment("traces", 1, whole.read("traces", 1).slice(10, 20))
    return 200


def test_a_killed_process_loses_seconds_and_its_lock(
    straight: tuple[dict[str, Any], Path], tmp_path: Path, url: str
) -> None:
    settings, complete = straight
    flags = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)]
    process = Child("generate", *flags, "--out", url, prepare=write_slowly)
    process.wait_for(lambda: files().find(f"{url}/journal/traces"))
    with (
        pytest.raises(RunFolderError, match=f"process {process.pid} on "),
        RunFolder(url).locked(),
    ):
        pass
    process.kill()
    assert files().exists(f"{url}/.lock")
    kept = RunFolder(url).count("traces")
    assert kept and continued(settings, url) == 300 - kept
    assert not files().exists(f"{url}/.lock")
    assert_same_tables(fetched(url, tmp_path / "run"), complete, "questions", "traces")


class StopsTheServer:
    """Progress that stops the store as soon as the journal has rows."""

    def __init__(self, server: StoreServer, url: str) -> None:
        self._server, self._url, self._rows, self.stopped = server, url, 0, False

    def start(self, task: str, total: int, done: int = 0) -> None:
        pass

    def advance(self, rows: int = 1, tokens: int = 0) -> None:
        self._rows += rows
        if not self.stopped and self._rows % 25 == 0 and files().find(f"{self._url}/journal/traces"):
            self._server.stop()
            self.stopped = True

    def finish(self) -> None:
        pass


def test_an_outage_of_the_store_ends_the_step_and_keeps_the_rows(
    straight: tuple[dict[str, Any], Path],
    tmp_path: Path,
    server: StoreServer,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings, complete = straight
    monkeypatch.setattr(writer, "FLUSH_SECONDS", 0.05)
    with pytest.raises(DiskError, match="cannot write s3://") as error:
        generate(parse_settings(GenerateSettings, {**settings, "out": url}), StopsTheServer(server, url))
    assert error.value.exit_code == 7 and "\n" not in str(error.value)
    server.start()
    kept = RunFolder(url).count("traces")
    assert 0 < kept < 300
    assert continued(settings, url) == 300 - kept
    assert_same_tables(fetched(url, tmp_path / "run"), complete, "questions", "traces")


def test_the_number_of_requests_grows_with_the_parts_only(tiny: Tiny, url: str, calls: Counter[str]) -> None:
    def scored(parts: int) -> int:
        rows = ([trace(f"{part}-{i}", 0, completion="So.") for i in range(2)] for part in range(parts))
        run = make_run(f"{url}/{parts}", *rows)
        for part in range(parts):
            drop_part(run, "scores", part)
        calls.clear()
        settings = {"in": str(run.path), "student": str(tiny()), "teacher": "none"}
        assert score(parse_settings(ScoreSettings, settings)).new == 2 * parts
        return calls.total()

    two, eight = scored(2), scored(8)
    assert two < 100 and (eight - two) / 6 < 12


def test_failures_are_written_in_batches(url: str, calls: Counter[str]) -> None:
    run = RunFolder(url)
    ErrorLog(run, "score").add("before", "reason", None)
    log = ErrorLog(run, "score")
    calls.clear()
    for i in range(100):
        log.add(f"k{i}", "reason", None)
    assert calls["put_object"] == 1 and len(failures(run)) == 2
    log.resolve("k7")
    log.close()
    assert calls["put_object"] == 2 and len(failures(run)) == 100


def test_a_killed_replacement_is_discarded_or_finished(tmp_path: Path, url: str) -> None:
    run = make_run(url, [trace("q", 0), trace("q", 1)], [trace("r", 0)])
    assert ranked(run).rows == 3
    assert distilled(run).rows == 2
    before = fetched(url, tmp_path / "before")
    with pytest.raises(ZeroDivisionError), run.replacing("ranks") as new:
        new.write(0, to_table("ranks", []))
        raise ZeroDivisionError
    assert RunFolder(url).count("ranks") == 3
    # As a process leaves it that is killed while it uploads: nothing has happened yet.
    files().pipe(f"{url}/.ranks.rlt-data/new/ranks/part-00000.parquet", b"half")
    assert distilled(run).rows == 2 and RunFolder(url).count("ranks") == 3
    # As one leaves it that is killed while it moves what it has uploaded: the next command finishes it.
    ranked(run, buckets=2)
    after = fetched(url, tmp_path / "after")
    for name in ("ranks/part-00000.parquet", "manifests/ranks.json", "run.json"):
        files().put(str(before / name), f"{url}/{name}")
    for name in ("ranks/part-00000.parquet", "ranks/part-00001.parquet", "manifests/ranks.json", "run.json"):
        files().put(str(after / name), f"{url}/.ranks.rlt-data/new/{name}")
    content = ["ranks/part-00000.parquet", "ranks/part-00001.parquet", "manifests/ranks.json", "run.json"]
    commit = {"folders": ["ranks"], "files": ["manifests/ranks.json", "run.json"], "content": content}
    files().pipe(f"{url}/.ranks.rlt-data/commit", json.dumps(commit).encode())
    assert distilled(run).rows == 2 and not files().find(f"{url}/.ranks.rlt-data/new")
    assert table_bytes(fetched(url, tmp_path / "found"), "ranks") == table_bytes(after, "ranks")


def test_runs_in_a_store_and_on_a_disk_are_merged(rlt: Rlt, tmp_path: Path, url: str) -> None:
    make_run(f"{url}/a", [trace("q", 0)], [trace("r", 0)])
    make_run(tmp_path / "b", [trace("r", 0), trace("s", 0)])
    rlt("merge", "--in", f"{url}/a", "--in", "b", "--out", f"{url}/all")
    rlt("merge", "--in", f"{url}/a", "--in", "b", "--out", "all")
    run = fetched(f"{url}/all", tmp_path / "fetched")
    assert_same_tables(run, tmp_path / "all", "questions", "traces", "scores")
    assert RunFolder(f"{url}/all").count("traces") == 3
    assert f"{url}/all" in rlt("merge", "--in", f"{url}/a", "--in", "b", "--out", f"{url}/all", code=5).stderr
    inside = rlt("merge", "--in", f"{url}/a", "--in", "b", "--out", f"{url}/a/all", code=2)
    assert f"{url}/a/all" in inside.stderr
    same = rlt("merge", "--in", f"{url}/a", "--in", f"{url}/a/", "--out", f"{url}/more", code=2)
    assert f"{url}/a" in same.stderr


def test_the_report_of_a_run_in_a_store_equals_that_of_one_on_a_disk(tmp_path: Path, url: str) -> None:
    local = make_run(tmp_path / url.rpartition("/")[2], [trace("a", i, float(i)) for i in range(3)])
    ranked(local)
    local.record("generate", {"settings": {"n": 3}})
    sent(Path(str(local.path)), url)
    pages = [report(parse_settings(ReportSettings, {"in": str(run), "out": f"{k}.html"})).out
             for k, run in enumerate([local.path, url])]  # fmt: skip
    assert pages[0].read_bytes() == pages[1].read_bytes()
    one, other = (Watch(str(run)).now() for run in (local.path, url))
    assert one["steps"] == other["steps"] and one["steps"][0]["state"] == "done"
    assert len(one["newest"]) == 3 and other["newest"] == []


def test_a_part_that_is_compacted_during_a_read_is_read_again(url: str) -> None:
    writer, reader = RunFolder(url), RunFolder(url)
    rows = [trace("q", i) for i in range(4)]
    writer.add_segment("traces", 0, to_table("traces", rows[:3]))
    assert reader.parts("traces") == [0]
    writer.add_segment("traces", 0, to_table("traces", rows[2:]))
    writer.compact_all("traces")
    assert reader.count("traces") == 4 and len(reader.read("traces", 0)) == 4


def test_large_parts_are_read_by_column(url: str, calls: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(url)
    rows = [trace("q", i, completion=random.Random(i).randbytes(400).hex()) for i in range(3000)]
    run.write_part("traces", 0, to_table("traces", rows))
    assert files().size(f"{url}/traces/part-00000.parquet") > 2**20
    calls.clear()
    assert run.keys("traces", 0) == {row["trace_id"] for row in rows}
    assert run.read("traces", 0)["completion"].to_pylist() == [row["completion"] for row in rows]
    assert run.count("traces") == 3000 and calls.total() < 20
    monkeypatch.setattr(objects, "_FOOTER", 16)
    assert run.folder.count_rows("traces/part-00000.parquet") == 3000


def test_a_replacement_whose_lock_was_taken_over_changes_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files().pipe_file(f"{url}/page", b"old")
    monkeypatch.setattr(locks, "STALE_SECONDS", 0.0)  # so that the lock is checked on each write
    upload = objects.upload

    def upload_and_lose(file: Path, path: Any) -> None:
        upload(file, path)
        files().pipe_file(f"{url}/.page.rlt-data/.lock", b'{"token": "other"}')
        files().pipe_file(f"{url}/.page.rlt-data/new/page", b"of the other")

    monkeypatch.setattr(objects, "upload", upload_and_lose)
    with pytest.raises(RunFolderError, match="has taken over this run folder"):
        with open_folder(url).replace("page", files=["page"]) as staging:
            (staging / "page").write_text("new")
    assert files().cat_file(f"{url}/page") == b"old"
    assert files().cat_file(f"{url}/.page.rlt-data/new/page") == b"of the other"


def test_a_read_only_user_reads_a_run_with_an_interrupted_replacement(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(url, [trace("a", 0)])
    files().pipe_file(f"{url}/.ranks.rlt-data/new/ranks/part-00000.parquet", b"half")

    original = s3fs.S3FileSystem._call_s3

    async def reading(self: Any, method: str, *args: Any, **options: Any) -> Any:
        if method in ("put_object", "delete_object", "delete_objects"):
            raise PermissionError("Access Denied")
        return await original(self, method, *args, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", reading)
    assert RunFolder.existing(url).read("scores", 0) == run.read("scores", 0)


def test_folder_placeholders_are_ignored(url: str) -> None:
    run = make_run(url, [trace("a", 0, 1.0), trace("a", 1, 2.0)])
    ranked(run)
    distilled(run)
    for name in ("ranks", "dataset", "dataset/data"):
        files().call_s3("put_object", Bucket="bucket", Key=f"{url.removeprefix('s3://bucket/')}/{name}/", Body=b"")
    assert ranked(run, buckets=2).rows == 2 and distilled(run, select="all").rows == 2


def test_a_kill_while_a_run_of_the_first_layout_gets_its_manifests_loses_nothing(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(url, *([trace(str(part), 0)] for part in range(3)))
    expected = [run.read("traces", part) for part in range(3)]
    files().rm(f"{url}/manifests", recursive=True)
    for part in range(3):  # as version 1 wrote it: without a column, in files of another size
        pq.write_table(expected[part].drop(["origin", "answer", "meta"]), f"{part}.parquet")
        files().put_file(f"{part}.parquet", f"{url}/traces/part-{part:05d}.parquet")
    run.write_json("run.json", {"version": 1, "steps": {}})
    upload = objects.upload

    def upload_others(file: Path, path: Any) -> None:
        if str(path).endswith("traces/part-00001.parquet"):
            raise KeyboardInterrupt
        upload(file, path)

    with monkeypatch.context() as patch:
        patch.setattr(objects, "upload", upload_others)
        with pytest.raises(KeyboardInterrupt), RunFolder(url).locked():
            pass
    with RunFolder(url).locked():
        pass
    reopened = RunFolder.existing(url)
    assert reopened.info["version"] == 4 and [reopened.read("traces", part) for part in range(3)] == expected
