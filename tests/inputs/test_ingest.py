from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from rlt_data.errors import InputError
from rlt_data.formats import load_format
from rlt_data.inputs import ingest
from rlt_data.inputs.ingest import question_id
from rlt_data.settings import InputSettings, parse_settings
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import QUESTIONS_PER_PART, to_table
from tests.conftest import write_jsonl


def take(run: RunFolder, path: Path, *, traces: bool = False, **settings: Any) -> None:
    with run.locked():
        ingest(run, parse_settings(InputSettings, {"in": str(path), **settings}), load_format("rlt"), traces=traces)


def questions(run: RunFolder) -> list[str]:
    return [q for part in run.parts("questions") for q in run.read("questions", part)["question"].to_pylist()]


def rows(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [{"question": f"q{i}", "solution": f"s{i}"} for i in range(first, first + count)]


def test_parts_contain_256_questions_in_input_order(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    take(run, write_jsonl(tmp_path / "rows.jsonl", rows(QUESTIONS_PER_PART + 10)))
    assert run.parts("questions") == [0, 1]
    assert questions(run) == [f"q{i}" for i in range(QUESTIONS_PER_PART + 10)]


def test_a_longer_input_adds_its_new_questions_and_moves_none(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    take(run, write_jsonl(tmp_path / "rows.jsonl", rows(300)))
    take(run, write_jsonl(tmp_path / "rows.jsonl", [*rows(300, first=300), *reversed(rows(300))]))
    assert questions(run) == [f"q{i}" for i in range(600)]
    take(run, write_jsonl(tmp_path / "rows.jsonl", rows(600)))
    assert questions(run) == [f"q{i}" for i in range(600)]


def test_bad_rows_stop_before_anything_is_written_or_are_left_out(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    path = write_jsonl(tmp_path / "rows.jsonl", [*rows(2), {"question": "no solution"}])
    with pytest.raises(InputError, match="line 3: solution: "):
        take(run, path)
    assert not run.path.exists()
    take(run, path, skip_bad_rows=True)
    assert questions(run) == ["q0", "q1"] and run.step("input")["bad_rows"] == 1


def test_traces_are_grouped_by_their_question_and_bare_explanations_get_a_closing_tag(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    problem, other = {"question": "q", "solution": "s"}, {"question": "r", "solution": "s"}
    traces = [
        {**problem, "explanation": " why "},
        {**other, "completion": "because"},
        {**problem, "completion": "so <|end_of_explanation|>", "id": "x", "finish_reason": "length"},
    ]
    take(run, write_jsonl(tmp_path / "traces.jsonl", traces), traces=True)
    table = run.read("traces", 0).to_pylist()
    assert [(row["completion"], row["finish_reason"], row["source_id"], row["sample_index"]) for row in table] == [
        ("why\n\n<|end_of_explanation|>", "stop", "0", 0),
        ("so <|end_of_explanation|>", "length", "x", 1),
        ("because", None, "1", 0),
    ]
    take(run, write_jsonl(tmp_path / "more.jsonl", [*traces, {**problem, "explanation": "third"}]), traces=True)
    assert [row["sample_index"] for row in run.read("traces", 0).to_pylist()] == [0, 1, 2, 0]


def test_rows_without_a_trace_are_refused_where_traces_are_needed(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", rows(2))
    with pytest.raises(InputError, match="2 of 2 rows"):
        take(RunFolder(tmp_path / "run"), path, traces=True)
    path = write_jsonl(tmp_path / "some.jsonl", [*rows(2), {**rows(1)[0], "explanation": "why"}])
    with pytest.raises(InputError, match="line 2: no explanation or completion"):
        take(RunFolder(tmp_path / "run"), path, traces=True)
    run = RunFolder(tmp_path / "run")
    take(run, path, traces=True, skip_bad_rows=True)
    assert run.step("input")["bad_rows"] == 2 and run.read("traces", 0).num_rows == 1


def test_completions_in_the_tags_of_another_model_are_converted(tmp_path: Path) -> None:
    problem = {"question": "q", "solution": "s"}
    completions = ["<think>\nOne.\n</think>\n\nTwo.", "Three.\n</think>\n\nFour.", "<think>Five", "Six </think>."]
    path = write_jsonl(tmp_path / "rows.jsonl", [{**problem, "completion": text} for text in completions])
    run = RunFolder(tmp_path / "run")
    take(run, path, traces=True)
    end = "\n\n<|end_of_explanation|>"
    assert run.read("traces", 0)["completion"].to_pylist() == [f"One.{end}", f"Three.{end}", *completions[2:]]


def test_the_generations_of_a_record_are_traces_with_their_finish_reasons_and_kept_columns(tmp_path: Path) -> None:
    record = {
        "problem": "q",
        "solution": "s",
        "answer": [1, 2.5, 3, 4],
        "options": ["w", "x", "y", "z"],
        "generations": ["<think>A</think>1", None, "B</think>\n1", "<think>C"],
        "finish_reasons": ["stop", None, "length", "stop"],
        "correct": [True, False, False, True],
        "source": "web",
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>A</think>1"}],
    }
    run = RunFolder(tmp_path / "run")
    take(run, write_jsonl(tmp_path / "rows.jsonl", [record]), traces=True, keep=["correct", "source"])
    assert run.read("questions", 0).select(["question", "solution", "answer"]).to_pylist() == [
        {"question": "q\n\nA. w\nB. x\nC. y\nD. z", "solution": "s", "answer": "1, 2.5, 3, 4"}
    ]
    end = "\n\n<|end_of_explanation|>"
    assert [
        (row["completion"], row["finish_reason"], row["meta"], row["sample_index"])
        for row in run.read("traces", 0).to_pylist()
    ] == [
        (f"A{end}", "stop", '{"correct": true, "source": "web"}', 0),
        (f"B{end}", "length", '{"correct": false, "source": "web"}', 1),
        (f"C{end}", "length", '{"correct": true, "source": "web"}', 2),
    ]


def test_kept_columns_belong_to_the_row_they_came_with(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    problem = {"question": "q", "solution": "s", "answer": "1"}
    traces = [
        {**problem, "completion": "a", "model": "A"},
        {**problem, "completion": "b", "model": "B", "answer": "2"},
        {**problem, "completion": "a", "model": "B"},
    ]
    path = write_jsonl(tmp_path / "traces.jsonl", traces)
    kept, bare = RunFolder(tmp_path / "kept"), RunFolder(tmp_path / "bare")
    take(kept, path, traces=True, keep=["model"])
    take(bare, path, traces=True)
    assert kept.read("traces", 0)["meta"].to_pylist() == ['{"model": "A"}', '{"model": "B"}']
    assert kept.read("questions", 0).select(["answer", "meta"]).to_pylist() == [{"answer": "1", "meta": None}]
    assert kept.read("traces", 0, ["trace_id"]) == bare.read("traces", 0, ["trace_id"])
    assert bare.read("traces", 0)["meta"].to_pylist() == [None, None]
    assert f"{path}: 1 questions" in caplog.text
    assert caplog.text.count("--keep") == 1  # bare has no such columns
    questions_only = RunFolder(tmp_path / "questions")
    take(questions_only, path, keep=["model"])
    assert questions_only.read("questions", 0)["meta"].to_pylist() == ['{"model": "A"}']


def test_a_system_text_is_stored_and_is_part_of_the_key(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    plain = {"question": "q", "solution": "s"}
    take(run, write_jsonl(tmp_path / "rows.jsonl", [plain, {**plain, "system": "Be brief."}, {**plain, "system": ""}]))
    table = run.read("questions", 0)
    assert table["system"].to_pylist() == [None, "Be brief."]
    assert table["question_id"].to_pylist() == [question_id("q", "s"), question_id("q", "s", "Be brief.")]
    assert question_id("q", "s") == "6b427f9a7720fcd2c35f6d81efd446b3"  # keys of earlier runs


def test_a_run_without_the_system_column_is_read_and_gets_it_with_new_questions(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    earlier = [
        {**row, "question_id": question_id(row["question"], row["solution"])} for row in rows(QUESTIONS_PER_PART)
    ]
    with run.locked():
        run.write_part("questions", 0, to_table("questions", earlier).drop_columns(["system"]))
    assert set(run.read("questions", 0)["system"].to_pylist()) == {None}
    take(run, write_jsonl(tmp_path / "rows.jsonl", [*rows(1), {**rows(1)[0], "system": "Be brief."}]))
    assert run.parts("questions") == [0, 1] and run.count("questions") == QUESTIONS_PER_PART + 1
    assert run.read("questions", 1)["system"].to_pylist() == ["Be brief."]
    table = pl.read_parquet(tmp_path / "run" / "questions" / "*.parquet")
    assert table["question_id"].to_list()[:-1] == [row["question_id"] for row in earlier]
