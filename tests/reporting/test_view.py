"""The live page: its progress, who may read it, and kills of the step or the server."""

from __future__ import annotations

import http.client
import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from rlt_data.reporting import live
from rlt_data.reporting.live import Watch
from rlt_data.reporting.serve import Viewer
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import to_table
from tests.children import Child, write_slowly
from tests.conftest import Rlt, write_jsonl
from tests.made_runs import distilled, make_run, ranked, trace


class Viewed:
    """A server of the page in another process."""

    def __init__(self, run: object, *options: object) -> None:
        self.process = Child("view", run, *(options or ("--port", 0)))
        self.process.wait_for(lambda: "\n" in self.process.stdout)
        self.address = self.process.stdout.split()[0]
        self.port = int(self.address.rstrip("/").rpartition(":")[2])

    def ask(self, path: str, host: str | None = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", path, headers={"Host": host or f"127.0.0.1:{self.port}"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    def get(self, path: str) -> Any:
        status, text = self.ask(path)
        assert status == 200, text
        return json.loads(text)

    def step(self, name: str = "generate") -> dict[str, Any]:
        return next((dict(entry) for entry in self.get("/live")["steps"] if entry["step"] == name), {"done": 0})

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait()


@pytest.fixture
def viewed() -> Iterator[Callable[..., Viewed]]:
    servers: list[Viewed] = []

    def start(run: object, *options: object) -> Viewed:
        servers.append(Viewed(run, *options))
        return servers[-1]

    yield start
    for entry in servers:
        entry.process.kill()


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = make_run(tmp_path / "run", [trace("a", i, float(i)) for i in range(3)], [trace("b", 0, 1.0)])
    run.record("generate", {"settings": {"n": 3}})
    ranked(run)
    return run


def until(happens: Callable[[], bool], seconds: float = 120.0) -> None:
    ends = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < ends
        time.sleep(0.2)


# Who may read it


def test_it_listens_on_loopback_alone(viewed: Callable[..., Viewed], run: RunFolder) -> None:
    server = viewed(run.path)
    assert server.address == f"http://127.0.0.1:{server.port}/"
    sockets = [
        line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()
    ]
    places = {fields[1] for fields in sockets if fields[1].endswith(f":{server.port:04X}") and fields[3] == "0A"}
    assert places == {f"0100007F:{server.port:04X}"}
    assert server.end() == 0


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example:1", "localhost.evil.example"]
)
def test_foreign_hosts_are_refused(viewed: Callable[..., Viewed], run: RunFolder, host: str) -> None:
    server = viewed(run.path)
    for path in ("/", "/live", "/index", "/question/a", "/trace/a%2F0", "/overview", "/nothing"):
        status, text = server.ask(path, host)
        assert status == 403 and "a/0" not in text
    for own in ("localhost", "localhost:9000", f"127.0.0.1:{server.port}", "[::1]:80"):
        assert server.ask("/live", own)[0] == 200


def test_answers_are_what_the_run_holds(viewed: Callable[..., Viewed], run: RunFolder) -> None:
    server = viewed(run.path, "--limit", 3, "--port", 0)
    status, text = server.ask("/")
    assert status == 200 and "connect-src 'self'" in text and 'id="live"' in text
    index = server.get("/index")
    assert index["columns"]["trace_id"] == ["a/0", "a/1", "a/2"]  # the limit
    assert [entry["trace_id"] for entry in server.get("/question/a")["traces"]] == ["a/0", "a/1", "a/2"]
    [other] = server.get("/trace/b%2F0")["traces"]  # beyond the limit, as the newest ones may be
    assert other["figures"]["reward"] == 1.0 and other["trace_id"] == "b/0"
    assert server.ask("/trace/none")[0] == server.ask("/question/none")[0] == 404
    assert {entry["trace_id"] for entry in server.get("/live")["newest"]} == {"a/0", "a/1", "a/2", "b/0"}


def test_mistakes(viewed: Callable[..., Viewed], run: RunFolder) -> None:
    port = str(viewed(run.path).port)
    for options, code, message in [
        ((run.path, "--port", port), 2, f"--port: {port}"),
        (("nothing",), 5, "nothing: no such run folder"),
    ]:
        child = Child("view", *options)
        assert (child.wait(), child.stdout, child.stderr.count("\n")) == (code, "", 1)
        assert child.stderr.startswith("error: ") and message in child.stderr


def test_a_run_that_disappears_may_come_back(viewed: Callable[..., Viewed], run: RunFolder, tmp_path: Path) -> None:
    server = viewed(run.path)
    Path(str(run.path)).rename(tmp_path / "elsewhere")
    status, text = server.ask("/live")
    assert status == 503 and "no such run folder" in text
    (tmp_path / "elsewhere").rename(str(run.path))
    assert server.step()["done"] == 4


# A running step


def test_it_shows_rows_as_they_are_written_and_after_a_kill(
    viewed: Callable[..., Viewed], rlt: Rlt, tiny: Callable[..., Path], problems: Path
) -> None:
    generate = "generate", "--teacher", tiny(), "--in", problems, "--n", 40, "--max-tokens", 4, "--out", "run"
    writing = Child(*generate, prepare=write_slowly)
    writing.wait_for(lambda: RunFolder.exists_at("run"))
    server = viewed("run")
    writing.wait_for(lambda: server.step()["done"])
    assert server.step()["total"] == 240
    writing.kill()
    stopped = server.step()["done"]
    rows = pl.read_parquet([str(path) for path in Path("run").rglob("*.parquet") if "traces" in path.parts])
    assert stopped == rows["trace_id"].n_unique() < 240
    rlt(*generate)
    assert (server.step()["done"], server.step()["state"]) == (240, "done")
    newest = server.get("/live")["newest"]
    assert newest and server.get(f"/trace/{newest[0]['trace_id']}")["traces"]


@pytest.mark.slow
def test_it_follows_a_run_through_its_kill_and_resume(viewed: Callable[..., Viewed], rlt: Rlt, tmp_path: Path) -> None:
    rlt("countdown", "make", "--out", "q.jsonl", "--rows", 600, "--most", 3, "--largest", 14, "--largest-target", 120)
    generate = "generate", "--teacher", "nano", "--in", "q.jsonl", "--n", 8, "--max-tokens", 96, "--out", "run"
    process = Child(*generate)
    until(lambda: RunFolder.exists_at("run"))
    server = viewed("run")
    steps: list[dict[str, Any]] = []

    def more_than(rows: int) -> bool:
        steps.append(server.step())
        assert process.runs() or steps[-1]["done"] == 4800
        return bool(steps[-1]["done"] > rows)

    until(lambda: more_than(100))
    time.sleep(2.5)
    until(lambda: more_than(steps[0]["done"]))
    moving = [entry for entry in steps if entry.get("tokens_per_second")]
    assert moving and moving[-1]["state"] == "running" and moving[-1]["total"] == 4800
    assert moving[-1]["seconds_left"] > 0
    process.kill()
    stopped = server.step()["done"]
    rows = pl.read_parquet([str(path) for path in Path("run").rglob("*.parquet") if "traces" in path.parts])
    assert stopped == rows["trace_id"].n_unique() < 4800
    process = Child(*generate)
    until(lambda: more_than(stopped))
    newest = server.get("/live")["newest"]
    assert len(newest) == live._NEWEST and all(entry["text"] for entry in newest)
    assert server.get(f"/trace/{newest[0]['trace_id']}")["traces"]
    assert process.wait() == 0
    assert server.step() | {"failed": 0} == {
        "step": "generate", "done": 4800, "failed": 0, "total": 4800, "tokens_per_second": None, "seconds_left": None,
        "state": "done",
    }  # fmt: skip
    assert len(server.get("/index")["columns"]["trace_id"]) == 4800
    assert server.end() == 0


def test_throughput_time_left_and_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(live.time, "monotonic", lambda: now)
    run = RunFolder(tmp_path / "run")
    questions = [{"question_id": f"q{i}", "question": "?", "solution": "!"} for i in range(10)]
    run.write_part("questions", 0, to_table("questions", questions))
    run.record("generate", {"settings": {"n": 2}})
    watch = Watch(str(run.path))

    def add(*keys: int) -> None:
        rows = [
            {"trace_id": f"t{k}", "question_id": f"q{k // 2}", "sample_index": k % 2, "completion": f"text {k}",
             "completion_tokens": 100, "made_by": "m"}
            for k in keys
        ]  # fmt: skip
        run.add_segment("traces", 0, to_table("traces", rows))

    def step() -> dict[str, Any]:
        return dict(watch.now()["steps"][0])

    assert (step()["done"], step()["total"], step()["tokens_per_second"]) == (0, 20, None)
    stamp = watch.now()["stamp"]
    now += 10
    add(0, 1, 2, 3)
    state = step()
    assert state["tokens_per_second"] == 40.0 and state["seconds_left"] == 40.0 and state["state"] == "running"
    assert watch.now()["stamp"] != stamp
    assert [entry["trace_id"] for entry in watch.now()["newest"]] == ["t3", "t2", "t1", "t0"]
    now += live._STALLED_AFTER + 5
    state = step()
    assert state["state"] == "no new rows for 25 s" and state["seconds_left"] is state["tokens_per_second"] is None
    now += 300
    add(4, 5)
    assert step()["state"] == "running"  # after a silence only what is new counts
    write_jsonl(Path(str(run.path)) / "errors.jsonl", [{"key": f"t{k}", "step": "generate"} for k in range(6, 20)])
    assert step()["state"] == "done" and step()["failed"] == 14
    run.compact_all("traces")
    assert step()["done"] == 6


def test_the_progress_of_an_evaluation_is_shown(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.write_part("questions", 0, to_table("questions", [{"question_id": "q", "question": "?", "solution": "!"}]))
    run.record("evaluate", {"settings": {"n": 4}})
    answer = {"question_id": "q", "completion": "42", "completion_tokens": 7, "made_by": "m"}
    answers = [answer | {"answer_id": f"a{number}", "sample_index": number} for number in range(3)]
    run.add_segment("answers", 0, to_table("answers", answers))
    viewer = Viewer(str(run.path), 10)
    assert viewer.index()["questions"] == [] and viewer.page().startswith("<!")
    [step] = viewer.live()["steps"]
    assert (step["step"], step["done"], step["total"], step["state"]) == ("evaluate", 3, 4, "running")


def test_a_new_data_set_changes_the_stamp(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [trace("a", i, float(i)) for i in range(2)])
    ranked(run)
    watch = Watch(str(run.path))
    before = watch.now()["stamp"]
    assert watch.now()["stamp"] == before
    distilled(run)
    assert watch.now()["stamp"] != before
