"""Traces of files in score and curate: one import, in whatever order the steps run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlt_data.storage.run import RunFolder
from tests.conftest import Rlt, write_jsonl


def chat(number: int, model: str, thought: str = "Add 2.", system: str | None = None) -> dict[str, Any]:
    turns = [
        {"role": "user", "content": f"What is {number} + 2? Explain it."},
        {"role": "assistant", "content": f"<think>{thought}</think>The answer is {number + 2}."},
    ]
    if system:
        turns.insert(0, {"role": "system", "content": system})
    return {"id": f"{number}-{model}", "model": model, "answer": f"{number + 2}", "messages": turns}


@pytest.fixture
def files() -> tuple[str, str]:
    """Chats of two models about the same questions."""
    for model in "ab":
        write_jsonl(Path(f"{model}.jsonl"), [chat(number, model, f"Add 2 to {number}.") for number in range(4)])
    return "a.jsonl", "b.jsonl"


def keys(path: str) -> set[str]:
    run = RunFolder.existing(path)
    return {key for part in run.parts("traces") for key in run.keys("traces", part)}


def test_curate_imports_files_into_one_pool_without_a_model(rlt: Rlt, files: tuple[str, str]) -> None:
    first, second = files
    printed = rlt("curate", first, "--out", "pool").stdout
    assert "answer: 4 rows (4 new); answer_verdict correct: 4" in printed
    printed = rlt("curate", second, "--out", "pool").stdout
    assert "answer: 8 rows (4 new); answer_verdict correct: 8" in printed
    rows = RunFolder.existing("pool").scan().collect()
    assert rows["origin"].value_counts().sort("origin").rows() == [("a", 4), ("b", 4)]
    assert rows["question_id"].n_unique() == 4
    rlt("curate", first, second, "--out", "together")
    assert keys("together") == keys("pool")


def test_score_of_the_same_file_adds_no_traces(rlt: Rlt, files: tuple[str, str]) -> None:
    rlt("curate", files[0], "--out", "pool")
    imported = keys("pool")
    printed = rlt("score", files[0], "--student", "nano", "--teacher", "none", "--out", "pool")
    assert "4 scores (4 new)" in printed.stdout and keys("pool") == imported
    # nano has its own format, with other tags for explanations than those in the run
    assert "explanations have the padding of the format rlt" in printed.stderr
    assert RunFolder.existing("pool").scan().collect()["well_formed"].all()
    rlt("rank", "pool", "--by=-rsr", "--where", "answer_verdict = 'correct'")
    assert "4 rows from 4 questions" in rlt("distill", "pool").stdout


def test_a_student_reads_what_was_imported_for_another(rlt: Rlt, files: tuple[str, str], tiny: Any) -> None:
    rlt("score", files[0], "--student", "nano", "--teacher", "none", "--out", "nano")
    rlt("score", "nano", "--student", tiny(), "--teacher", "none", "--out", "tiny")
    assert RunFolder.existing("tiny").scan().collect()["well_formed"].all()
    rlt("score", files[1], "--student", tiny(), "--teacher", "none", "--out", "tiny")
    rows = RunFolder.existing("tiny").scan().collect()
    assert len(rows) == 8 and rows["well_formed"].all()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["a.jsonl"], 2, "--out: requires the run folder into which the traces of a.jsonl are imported"),
        (["c.jsonl"], 5, "c.jsonl: no such run or file"),
        (["c.jsonl", "--out", "new"], 3, "c.jsonl: no such file"),
        (["a.jsonl", "--out", "pool", "--format", "think"], 2, "have different explanation_tags; omit --format"),
        (["pool", "--out", "new"], 2, "--out: no effect with a run"),
        (["pool", "--system", "format", "--skip-bad-rows"], 2, "--skip-bad-rows, --system: no effect with a run"),
        (["pool", "a.jsonl", "--out", "new"], 2, "pool is a run, which is read alone"),
        (["pool", "--against", "none.jsonl", "--similarity", "0.9"], 3, "--against: none.jsonl: no such file"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(
    rlt: Rlt, files: tuple[str, str], arguments: list[str], code: int, message: str
) -> None:
    rlt("curate", files[0], "--out", "pool", "--signals", "text")
    before = RunFolder.existing("pool").signals
    printed = rlt("curate", *arguments, code=code).stderr
    assert message in printed and printed.count("error: ") == 1
    assert RunFolder.existing("pool").signals == before and not Path("new").exists()


def test_a_run_of_generated_traces_takes_no_imports(rlt: Rlt, files: tuple[str, str], tiny: Any) -> None:
    write_jsonl(Path("questions.jsonl"), [{"question": "What is 1 + 2?", "solution": "3"}])
    rlt("generate", "questions.jsonl", "--teacher", tiny(), "--n", 1, "--max-tokens", 4, "--out", "run")
    assert "has generated traces" in rlt("curate", files[0], "--out", "run", code=5).stderr
    assert len(keys("run")) == 1


def test_a_signal_that_misses_the_new_rows_is_named(rlt: Rlt, files: tuple[str, str]) -> None:
    write_jsonl(Path("benchmark.jsonl"), [{"question": "What is 5 + 6 + 7?", "solution": "18"}])
    assert "again" not in rlt("curate", files[0], "--out", "pool", "--against", "benchmark.jsonl").stdout
    write_jsonl(Path("b.jsonl"), [chat(9, "b")])
    printed = rlt("curate", files[1], "--out", "pool").stdout
    assert "contamination: not computed, out of date; rlt-data curate RUN --against ..." in printed


def test_a_student_that_cannot_show_system_texts_imports_nothing(rlt: Rlt) -> None:
    write_jsonl(Path("a.jsonl"), [chat(number, "a", system="Think first.") for number in range(2)])
    message = rlt("score", "a.jsonl", "--student", "nano", "--teacher", "none", "--out", "run", code=6).stderr
    assert "omits or changes the system text" in message and "(--system format)" in message
    assert not RunFolder("run").parts("questions")
    rlt("score", "a.jsonl", "--student", "nano", "--teacher", "none", "--system", "format", "--out", "run")
    assert len(keys("run")) == 2 and RunFolder.existing("run").count("questions") == 2


def test_rows_that_are_left_out_are_counted(rlt: Rlt) -> None:
    cut = chat(1, "a")
    cut["messages"][1]["content"] = "<think>Add"
    write_jsonl(Path("a.jsonl"), [chat(0, "a"), cut])
    printed = rlt("curate", "a.jsonl", "--out", "run", "--skip-bad-rows")
    assert "a.jsonl: 1 of 2 rows are bad and left out: 1 solution: the thought that <think> opens" in printed.stderr
    assert len(keys("run")) == 1


def test_the_counts_of_all_files_are_recorded(rlt: Rlt, files: tuple[str, str]) -> None:
    write_jsonl(Path("a.jsonl"), [chat(0, "a"), {"messages": []}])
    for _ in range(2):  # the second time, nothing changes
        rlt("curate", "a.jsonl", "--out", "run", "--skip-bad-rows")
        rlt("curate", "b.jsonl", "--out", "run")
        entry = RunFolder.existing("run").step("input")
        assert (entry["rows"], entry["bad_rows"], entry["duplicates"]) == (6, 1, 0)
    write_jsonl(Path("a.jsonl"), [chat(0, "a"), chat(1, "a"), chat(1, "a")])
    rlt("curate", "a.jsonl", "--out", "run")
    entry = RunFolder.existing("run").step("input")
    assert (entry["rows"], entry["bad_rows"], entry["duplicates"]) == (7, 0, 1)


def test_merged_imports_keep_their_format(rlt: Rlt, files: tuple[str, str]) -> None:
    for name, file in zip("ab", files, strict=True):
        rlt("curate", file, "--out", f"run-{name}")
    rlt("merge", "run-a", "run-b", "--out", "both")
    assert "answer_verdict correct: 8" in rlt("curate", "both").stdout
    rlt("curate", files[0], "--out", "other", "--format", "think")
    message = rlt("merge", "run-a", "other", "--out", "mixed", code=5).stderr
    assert "have different explanation_tags" in message
