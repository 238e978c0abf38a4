"""Shares of the questions: the runs of all shares, merged, are the run of all questions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from rlt_data.settings import GenerateSettings
from rlt_data.storage.layout import default_run_path
from tests.conftest import Rlt, write_jsonl
from tests.killing import table_bytes

Read = Callable[[Path, str], pl.DataFrame]
Tiny = Callable[..., Path]

SHARES = (1, 2, 3)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Seven questions in nine rows: one row occurs twice, and one question has two solutions."""
    rows = [{"id": f"q{i}", "question": f"What is {i} + 1?", "solution": f"{i + 1}"} for i in range(6)]
    rows += [rows[0], rows[5] | {"solution": "six"}, rows[2]]
    return write_jsonl(tmp_path / "questions.jsonl", rows)


def assert_same_run(run: Path, other: Path, *tables: str) -> None:
    for name in tables:
        assert table_bytes(run, name) == table_bytes(other, name) != {}, name


def test_merged_shares_are_the_run_of_all_questions(rlt: Rlt, read: Read, tiny: Tiny, questions: Path) -> None:
    generate = ["generate", questions, "--teacher", tiny(), "--n", 2, "--max-tokens", 8]
    rlt(*generate, "--out", "one")
    rlt("score", "one", "--student", tiny("chat", 1))
    for share in SHARES:
        made = rlt(*generate, "--share", f"{share}/3", "--out", f"share-{share}")
        assert f"share {share}/3: {2 + (share == 3)} of 7 questions" in made.stderr
        rlt("score", f"share-{share}", "--student", tiny("chat", 1))
    ids = [id for share in SHARES for id in read(Path(f"share-{share}"), "questions")["question_id"]]
    assert len(ids) == 7 and sorted(ids) == sorted(set(ids))
    rlt("merge", *(f"share-{share}" for share in SHARES), "--out", "merged")
    assert_same_run(Path("merged"), Path("one"), "questions", "traces", "scores")
    assert "0 new" in rlt(*generate, "--share", "2/3", "--out", "share-2").stdout  # continues
    assert "0 new" in rlt(*generate, "--out", "merged").stdout
    more = rlt(*generate, "--share", "3/3", "--out", "share-2").stdout  # two shares in one run
    assert "10 traces (6 new)" in more


def test_a_share_of_a_file_of_traces_has_all_traces_of_its_questions(rlt: Rlt, read: Read, tiny: Tiny) -> None:
    rows = [
        {"question": f"What is {i % 3} + 1?", "solution": f"{i % 3 + 1}", "explanation": f"We add 1 and get {i}."}
        for i in range(9)
    ]
    options = ["--student", tiny(), "--teacher", "none"]
    rlt("score", write_jsonl(Path("traces.jsonl"), rows), *options, "--out", "one")
    for share in (1, 2):
        rlt("score", "traces.jsonl", *options, "--share", f"{share}/2", "--out", f"share-{share}")
    assert read(Path("share-1"), "traces").group_by("question_id").len()["len"].to_list() == [3]
    rlt("merge", "share-1", "share-2", "--out", "merged")
    assert_same_run(Path("merged"), Path("one"), "questions", "traces", "scores")
    assert "--share: no effect with a run" in rlt("score", "one", *options, "--share", "1/2", code=2).stderr


def test_an_evaluation_of_shares_has_the_accuracy_of_one(rlt: Rlt, tiny: Tiny) -> None:
    pytest.importorskip("math_verify", reason="needs the extra eval")
    rows = [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(5)]
    options: list[Any] = ["evaluate", "--model", tiny(), "--benchmark", "math", "--max-tokens", 8]
    options += ["--in", write_jsonl(Path("test.jsonl"), rows)]
    rlt(*options, "--out", "one")
    for share in (1, 2):
        rlt(*options, "--share", f"{share}/2", "--out", f"share-{share}")
    rlt("merge", "share-1", "share-2", "--out", "merged")
    assert_same_run(Path("merged"), Path("one"), "questions", "answers", "grades")
    rlt(*options, "--out", "merged")
    figures = [json.loads(Path(run, "evaluation.json").read_text()) for run in ("merged", "one")]
    assert figures[0] == figures[1]


def test_wrong_shares_get_one_line(rlt: Rlt, tiny: Tiny, questions: Path) -> None:
    generate = ["generate", questions, "--teacher", tiny(), "--n", 1, "--out", "run"]
    for share in ("0/3", "4/3", "3", "1/0", "a/b", "1/3 ", "-1/3"):
        assert "--share: must be I/N with I from 1 to N" in rlt(*generate, "--share", share, code=2).stderr, share
    stderr = rlt(*generate, "--share", "1/8", code=2).stderr
    assert stderr.endswith(f"error: --share: 1/8 has no questions, because {questions} has only 7\n"), stderr


def test_each_share_has_its_own_default_run() -> None:
    settings = GenerateSettings(input="data/my.jsonl", teacher="m", share="3/8")
    assert str(default_run_path(settings.input, settings.teacher, settings.share)) == "runs/my-m-share-3-8"


@pytest.mark.parametrize("command", ["generate", "evaluate", "curate"])
def test_an_empty_share_leaves_nothing(rlt: Rlt, tiny: Tiny, command: str) -> None:
    rows = [{"question": f"What is {i}?", "solution": "s", "answer": "1", "explanation": "e"} for i in range(2)]
    flags = {
        "generate": ["--teacher", tiny()],
        "evaluate": ["--model", tiny(), "--benchmark", "math"],
        "curate": [],
    }[command]
    source = write_jsonl(Path("rows.jsonl"), rows)
    failed = rlt(command, "--in", source, *flags, "--share", "1/3", "--out", "new", code=2)
    assert "--share: 1/3 has no questions, because rows.jsonl has only 2" in failed.stderr
    assert not Path("new").exists()
