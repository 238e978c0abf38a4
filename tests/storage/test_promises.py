"""The guarantees of storage under faults. `make torture` tries many more."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest

import rlt_data
from rlt_data.errors import RunFolderError
from rlt_data.settings import GenerateSettings, parse_settings
from rlt_data.steps.generate import generate
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import SCHEMAS, to_table
from rlt_data.storage.writer import TableWriter
from tests.children import run_child
from tests.conftest import Rlt
from tests.made_runs import as_second_layout, distilled, files_of, make_run, ranked, table, trace
from tests.permissions import permissions_apply
from tests.storage.faults import FAULTS

Tiny = Callable[..., Path]


def torture(function: str, *arguments: object) -> dict[str, object]:
    """Call a function of torture.py in a process that has not used polars, so that it can fork."""
    child = run_child(prepare=partial(_torture, function, *arguments))
    return dict(json.loads(child.stdout.splitlines()[-1]))


def _torture(function: str, *arguments: object) -> None:
    from tests.storage import torture

    print(json.dumps(getattr(torture, function)(*arguments)))
    sys.exit()


@pytest.mark.parametrize(
    ("step", "kinds"),
    [(17, ("SIGKILL",)), pytest.param(5, tuple(FAULTS), marks=pytest.mark.slow)],
    ids=["some", "many"],
)
def test_no_fault_loses_an_earlier_result(step: int, kinds: tuple[str, ...]) -> None:
    results = torture("faults", step, kinds)
    assert results.keys() == {"rank", "distill", "report", "countdown", "merge"}
    for name, counts in results.items():
        assert isinstance(counts, dict) and counts["faults"] > 1, name
        assert counts["lost"] == counts["left"] == 0 and counts["old"] and counts["new"], (name, counts)


def test_two_concurrent_distills_write_one_data_set() -> None:
    assert torture("pairs", 2)["wrong"] == 0


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = make_run(tmp_path / "run", *([trace(f"{part}", i, float(i)) for i in range(3)] for part in range(3)))
    ranked(run)
    distilled(run)
    return run


def path_of(run: RunFolder, name: str) -> Path:
    return Path(str(run.path)) / name


def test_a_missing_truncated_swapped_or_unknown_part_is_reported_in_one_line(rlt: Rlt, run: RunFolder) -> None:
    folder = path_of(run, "scores")
    middle, first = folder / "part-00001.parquet", folder / "part-00000.parquet"
    content = middle.read_bytes()
    commands = (
        ("rank", "--in"),
        ("stats",),
        ("show",),
        ("distill", "--in"),
        ("merge", "--out", "m", "--in", "x", "--in"),
    )
    shutil.copytree(run.path, "x")

    def assert_reported(message: str) -> None:
        for command in commands:
            lines = rlt(*command, run.path, code=5).stderr.splitlines()
            assert len(lines) == 1 and message in lines[0], (command, lines)

    middle.unlink()
    assert_reported("scores/part-00001.parquet: is missing")
    middle.write_bytes(content[:-1])
    assert_reported("scores/part-00001.parquet: is truncated")
    middle.write_bytes(content)
    shutil.copy(first, folder / "part-00001 (1).parquet")
    assert_reported("scores/part-00001 (1).parquet: is not a part of this table")
    (folder / "part-00001 (1).parquet").rename(folder / "part-00003.parquet")
    assert_reported("scores/part-00003.parquet: is not a part of this table")
    (folder / "part-00003.parquet").unlink()
    pq.write_table(pq.read_table(first).slice(0, 1), first)
    assert_reported("scores/part-00000.parquet: is truncated")


def test_a_part_with_the_right_size_and_other_content_is_reported(run: RunFolder) -> None:
    file = path_of(run, "traces/part-00001.parquet")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    with pytest.raises(RunFolderError, match=r"traces/part-00001.parquet: is damaged"):
        RunFolder.existing(run.path).read("traces", 1, ["trace_id"])
    with pytest.raises(RunFolderError, match=r"traces/part-00001.parquet: is damaged"):
        RunFolder.existing(run.path).scan()


@pytest.mark.parametrize("command", [("stats",), ("show",), ("distill", "--in")])
def test_an_unreadable_part_is_reported_in_one_line(rlt: Rlt, run: RunFolder, command: tuple[str, ...]) -> None:
    file = path_of(run, "traces/part-00000.parquet")
    file.chmod(0)
    with permissions_apply():
        lines = rlt(*command, run.path, code=5).stderr.splitlines()
    assert len(lines) == 1 and f"{file}: " in lines[0] and "Permission denied" in lines[0]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"folders": "ranks", "files": 3}', '{"folders": [1], "files": []}']
)
def test_a_damaged_commit_is_reported_in_one_line_and_changes_nothing(rlt: Rlt, run: RunFolder, content: str) -> None:
    commit = path_of(run, ".ranks.rlt-data/commit")
    commit.parent.mkdir()
    commit.write_text(content)
    before = files_of(run.path)
    for command in (("stats",), ("rank", "--in")):
        lines = rlt(*command, run.path, code=5).stderr.splitlines()
        assert len(lines) == 1 and f"{commit}: " in lines[0]
    (commit.parent / "lock").unlink()
    assert files_of(run.path) == before


@pytest.mark.parametrize("entry", [3, {"settings": 3}, {"depends_on": []}])
def test_a_run_json_of_another_program_is_reported_in_one_line(rlt: Rlt, run: RunFolder, entry: object) -> None:
    path_of(run, "run.json").write_text(json.dumps({"version": 2, "steps": {"generate": entry}}))
    for command in ("stats", "report"):
        lines = rlt(command, run.path, code=5).stderr.splitlines()
        assert len(lines) == 1 and "run.json" in lines[0]


def test_a_run_keeps_working_when_the_working_directory_changes(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    opened = rlt_data.Run("run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert opened.stats().rows["traces"] == 9 and len(opened.scan("ranks").collect()) == 9
    assert opened.rank(buckets=2).summary.rows == 9
    assert not list((tmp_path / "elsewhere").iterdir())


def test_ranks_that_are_older_than_the_scores_are_not_used(rlt: Rlt, run: RunFolder) -> None:
    with run.locked():
        run.write_part("traces", 3, to_table("traces", [trace("3", 0)]))
        run.write_part("questions", 3, to_table("questions", [{"question_id": "3", "question": "?", "solution": "."}]))
        run.write_part("scores", 3, to_table("scores", [trace("3", 0)]))
    assert (
        "the ranks are older than the scores or signals that they were made from; run rlt-data rank again"
        in rlt("distill", "--in", run.path, code=5).stderr
    )
    pushed = rlt("push", "--in", run.path, "--repo-id", "me/data", "--dry-run", code=5)
    assert "the ranks are older than the scores" in pushed.stderr
    shown = rlt("stats", run.path)
    assert "the ranks are older than the scores" in shown.stderr and "bucket" not in shown.stdout
    assert "rank" not in RunFolder(run.path).scan().collect_schema()
    ranked(run)
    pushed = rlt("push", "--in", run.path, "--repo-id", "me/data", "--dry-run", code=5)
    assert "dataset: is older than the ranks; run rlt-data distill again" in pushed.stderr
    assert distilled(run).questions == 4


def test_a_run_with_unscored_traces_is_not_ranked(rlt: Rlt, run: RunFolder) -> None:
    with run.locked(), TableWriter(run, "traces") as writer:
        writer.append(0, trace("0", 7))
    assert "1 traces have no score; run rlt-data score" in rlt("rank", "--in", run.path, code=5).stderr


def test_ranks_that_change_while_a_data_set_is_written_are_noticed(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_of(path_of(run, "dataset"))
    from rlt_data.steps import distill as module

    describe = module._describe

    def rank_meanwhile(*arguments: object) -> None:
        describe(*arguments)  # type: ignore[arg-type]
        ranked(RunFolder(run.path), buckets=2)

    monkeypatch.setattr(module, "_describe", rank_meanwhile)
    with pytest.raises(RunFolderError, match="the ranks changed .* run rlt-data distill again"):
        distilled(run, select="all")
    assert files_of(path_of(run, "dataset")) == before


@pytest.mark.parametrize("what", ["deleted", "moved"])
def test_a_writer_stops_when_its_run_folder_disappears(tiny: Tiny, problems: Path, tmp_path: Path, what: str) -> None:
    out = tmp_path / "run"

    class GoesAway:
        """Progress that removes the folder after the third trace."""

        rows = 0

        def start(self, task: str, total: int, done: int = 0) -> None:
            pass

        def advance(self, rows: int = 1, tokens: int = 0) -> None:
            self.rows += rows
            if self.rows == 3:
                shutil.rmtree(out) if what == "deleted" else out.rename(tmp_path / "elsewhere")

        def finish(self) -> None:
            pass

    settings = {"in": str(problems), "teacher": str(tiny()), "n": 2, "max_tokens": 5, "out": str(out)}
    with pytest.raises(RunFolderError, match="the run folder was moved or deleted while this process was writing"):
        generate(parse_settings(GenerateSettings, settings), GoesAway())
    assert not out.exists()


def test_files_of_other_programs_are_never_removed(rlt: Rlt, tiny: Tiny, problems: Path) -> None:
    other_files = [
        Path(".chapter1.docx.tmp"),
        Path("notes/.draft.tmp"),
        Path(".rlt-data-mine.tmp"),
        Path(".ranks.new.tmp"),
    ]
    Path("notes").mkdir()
    for file in other_files:
        file.write_text("mine")
    rlt("generate", "--in", problems, "--teacher", tiny(), "--n", 1, "--max-tokens", 5, "--out", ".")
    rlt("score", "--in", ".", "--student", tiny("chat", 1))
    rlt("rank", "--in", ".")
    assert [file.read_text() for file in other_files] == ["mine"] * 4
    Path(".ranks.rlt-data").mkdir()
    Path(".ranks.rlt-data/book.txt").write_text("mine")
    assert ".ranks.rlt-data: contains files of another program (book.txt)" in rlt("rank", "--in", ".", code=5).stderr
    assert Path(".ranks.rlt-data/book.txt").read_text() == "mine"


def test_the_next_command_removes_the_staging_folder_of_a_killed_one(rlt: Rlt) -> None:
    left = Path(".problems.jsonl.rlt-data/new")
    left.mkdir(parents=True)
    (left / "problems.jsonl").write_text("half")
    rlt("countdown", "make", "--rows", 3, "--out", "problems.jsonl")
    assert [path.name for path in Path().iterdir()] == ["problems.jsonl"]


def test_a_table_that_is_a_symbolic_link_is_refused_and_a_data_set_is_written_where_its_link_points(
    rlt: Rlt, run: RunFolder, tmp_path: Path
) -> None:
    for name in ("ranks", "dataset"):
        path_of(run, name).rename(tmp_path / name)
        path_of(run, name).symlink_to(tmp_path / name)
    for _ in range(2):
        assert "ranks: is a symbolic link" in rlt("rank", "--in", run.path, code=5).stderr
        rlt("distill", "--in", run.path, "--select", "all")
        assert path_of(run, "dataset").is_symlink()
        assert len(pl.read_ndjson(tmp_path / "dataset" / "train.jsonl")) == 9


def test_a_run_of_the_first_layout_can_be_read_and_the_next_writer_adds_manifests(rlt: Rlt, run: RunFolder) -> None:
    expected = rlt("stats", run.path).stdout
    shutil.rmtree(path_of(run, "manifests"))
    info = json.loads(path_of(run, "run.json").read_text())
    info["version"] = 1
    info["steps"]["score"]["rows"] = 9
    path_of(run, "run.json").write_text(json.dumps(info))
    before = files_of(run.path)
    assert rlt("stats", run.path).stdout == expected and files_of(run.path) == before
    hidden = path_of(run, "scores/part-00001.parquet").rename(path_of(run, "hidden"))
    assert "scores: has 6 rows, but run.json says 9" in rlt("stats", run.path, code=5).stderr
    hidden.rename(path_of(run, "scores/part-00001.parquet"))
    ranked(RunFolder(run.path))
    assert json.loads(path_of(run, "run.json").read_text())["version"] == 4
    assert {path.stem for path in path_of(run, "manifests").iterdir()} == {"questions", "traces", "scores", "ranks"}
    path_of(run, "scores/part-00001.parquet").unlink()
    assert "scores/part-00001.parquet: is missing" in rlt("stats", run.path, code=5).stderr


def test_the_next_writer_adds_the_columns_that_a_run_of_the_second_layout_lacks(
    rlt: Rlt, run: RunFolder, tmp_path: Path
) -> None:
    ranked(run)
    rlt("distill", run.path, "--select", "all")
    run = as_second_layout(run)
    rlt("distill", run.path, "--select", "all")
    before = files_of(path_of(run, "."))
    rows = {name: run.scan(name).collect() for name in ("traces", "scores", "ranks")}
    joined = run.scan().collect()
    copy = RunFolder(tmp_path / "copy")
    with copy.locked():
        for name in ("questions", "traces", "scores"):
            copy.adopt(name, run)
    assert files_of(path_of(run, ".")) == before
    with run.locked():
        run.add_segment("traces", 0, to_table("traces", [trace("0", 5, origin="A", answer="1")]))
        run.compact("traces", 0)
    reopened = RunFolder.existing(run.path)
    assert reopened.info["version"] == 4 and reopened.is_current("ranks")
    assert json.loads(path_of(run, "dataset/distill.json").read_text())["made_from"] == {
        "ranks": reopened.digest("ranks")
    }
    assert reopened.scan("scores").collect().equals(rows["scores"])
    assert reopened.scan("ranks").collect().equals(rows["ranks"])
    new = reopened.scan("traces").collect()
    assert new.filter(pl.col("sample_index") < 5).equals(rows["traces"])
    assert new.filter(sample_index=5)["origin"].to_list() == ["A"]
    assert reopened.scan().filter(pl.col("sample_index") < 5).collect().equals(joined)
    for folder in (run, copy):  # other programs can read the tables
        assert all(table(folder, name).columns == SCHEMAS[name].names for name in ("traces", "scores"))


@pytest.mark.parametrize("kill", [2, 5, 8])
def test_a_kill_while_columns_are_added_loses_nothing(
    run: RunFolder, kill: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranked(run)
    run = as_second_layout(run)
    expected = {name: run.scan(name).collect() for name in ("questions", "traces", "scores")}
    whole = RunFolder.write_part
    writes = 0

    def killed(folder: RunFolder, *arguments: Any) -> None:
        nonlocal writes
        writes += 1
        if writes == kill:
            raise KeyboardInterrupt
        whole(folder, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_part", killed)
        with pytest.raises(KeyboardInterrupt), RunFolder(run.path).locked():
            pass
    opened = RunFolder.existing(run.path)
    assert opened.info["version"] == 2
    assert all(opened.scan(name).collect().equals(rows) for name, rows in expected.items())
    with RunFolder(run.path).locked():
        pass
    opened = RunFolder.existing(run.path)
    assert opened.info["version"] == 4
    assert all(table(opened, name).equals(rows) for name, rows in expected.items())


def test_readers_get_lazy_frames_and_data_sets(run: RunFolder) -> None:
    scores = run.scan("scores").collect()
    assert scores.equals(table(run, "scores"))
    with run.locked():
        run.add_segment("traces", 0, to_table("traces", [trace("0", 5)]))
    joined = run.scan()
    assert isinstance(joined, pl.LazyFrame)
    rows = joined.collect()
    assert len(rows) == 10 and rows["rank"].null_count() == 1
    best = rows.filter(rank=1).select("trace_id", "question", "reward").to_dicts()
    assert best == [{"trace_id": f"{i}/2", "question": f"What is {i}?", "reward": 2.0} for i in range(3)]
    opened = rlt_data.Run(run.path)
    assert opened.to_dataset("ranks").num_rows == 9 and "question" in opened.to_dataset().column_names
    with pytest.raises(RunFolderError, match="has no answers yet"):
        run.scan("answers")
    with pytest.raises(RunFolderError, match="nowhere: no such run folder$"):
        rlt_data.Run("nowhere")
