"""Whose solution a row has: the trace's own, a reference, or none."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from rlt_data.errors import InputError
from rlt_data.formats import load_format
from rlt_data.inputs import check, ingest
from rlt_data.inputs.reader import RowReader
from rlt_data.inputs.rows import Row, question_id
from rlt_data.settings import CheckSettings, InputSettings, parse_settings
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import content_hash
from tests.conftest import Rlt, write_jsonl

#: Replies of two models, which word their solutions differently.
REPLIES: list[dict[str, Any]] = [
    {
        "question": f"What is {i} + 2?",
        "response": f"<think>\n{thought}\n</think>\n\n{solution}",
        "answer": str(i + 2),
        "model": model,
    }
    for i in range(3)
    for model, thought, solution in (("A", "Add 2.", f"It is {i + 2}."), ("B", "Add 2.", f"{i} + 2 = {i + 2}"))
]


def take(path: Path, rows: Iterable[dict[str, Any]], *, traces: bool = True, **settings: Any) -> RunFolder:
    """Import rows into a run."""
    run = RunFolder(path)
    file = write_jsonl(path.parent / f"{path.name}.jsonl", list(rows))
    with run.locked():
        ingest(run, parse_settings(InputSettings, {"in": str(file), **settings}), load_format("rlt"), [], traces=traces)
    return run


def rows(run: RunFolder) -> pl.DataFrame:
    return run.scan().collect()


def read(data: Mapping[str, Any], **settings: Any) -> Row:
    [row] = RowReader(parse_settings(InputSettings, {"in": "x", **settings}), dict(data), "x.jsonl")(dict(data), 0)
    return row


CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>t</think>s"}]
FIELDS = [CHAT[0], {"role": "assistant", "content": "s", "reasoning_content": "t"}]


@pytest.mark.parametrize(
    ("data", "settings", "solution", "own"),
    [
        ({"question": "q", "response": "<think>t</think>s"}, {}, "s", True),
        ({"question": "q", "response": "<think>t</think>s", "answer": "5"}, {}, "s", True),
        ({"problem": "q", "response": "<think>t</think>s", "answer": "5"}, {}, "s", True),
        ({"question": "q", "response": "<think>t</think>s", "answer": "5"}, {"solution_column": "response"}, "s", True),
        ({"question": "q", "response": "<think>t</think>s", "answer": "5"}, {"explanation_column": "response"}, "5",
         False),
        ({"question": "q", "response": "<think>t</think>s"}, {"explanation_column": "response"}, "s", True),
        ({"question": "q", "r1": "<think>t</think>s"}, {"explanation_column": "r1"}, "s", True),
        ({"question": "q", "r1": "<think>t</think>s"}, {"completion_column": "r1"}, "s", True),
        ({"question": "q", "r1": "<think>t</think>s", "gold": "g"},
         {"explanation_column": "r1", "solution_column": "gold"}, "g", False),
        ({"question": "q", "solution": "g", "response": "<think>t</think>s"}, {"explanation_column": "response"}, "g",
         False),
        ({"question": "q", "solution": "<think>t</think>s"}, {}, "s", True),
        ({"question": "q", "solution": "<think>u</think>s", "explanation": "t"}, {}, "s", False),
        ({"question": "q", "solution": "g", "explanation": "t"}, {}, "g", False),
        ({"question": "q", "answer": "5", "explanation": "t"}, {}, "5", False),
        ({"question": "q", "answer": "So\n#### 5", "response": "<think>t</think>s", "explanation": "t"}, {},
         "So\nThe answer is 5.", False),
        ({"problem": "q", "solution": "g", "generations": ["<think>t</think>s"]}, {}, "g", False),
        ({"problem": "q", "answer": "5", "generations": ["<think>t</think>s"]}, {}, "5", False),
        ({"problem": "q", "generations": ["<think>t</think>s"]}, {}, "s", True),
        ({"question": "q", "solution": "g", "thinking_trajectories": ["t"], "attempt": "s"}, {}, "g", False),
        ({"messages": CHAT}, {}, "s", True),
        ({"messages": FIELDS}, {}, "s", True),
        ({"messages": FIELDS, "gold": "g"}, {"solution_column": "gold"}, "g", False),
        ({"messages": FIELDS, "r1": "t"}, {"explanation_column": "r1"}, "s", False),
        ({"conversations": CHAT}, {}, "s", True),
        ({"prompt": "q", "completion": "<think>t</think>s"}, {}, "s", True),
        ({"prompt": CHAT[:1], "completion": FIELDS[1:]}, {}, "s", True),
        ({"prompt": "q", "completion": "<think>t</think>s", "solution": "g"}, {}, "g", False),
        ({"instruction": "q", "output": "<think>t</think>s"}, {}, "s", True),
        ({"Question": "q", "Complex_CoT": "t", "Response": "s"}, {}, "s", True),
        ({"query": "q", "response": "s", "explanation": "t"}, {}, "s", False),
        ({"prompt": CHAT[:1], "reward_model": {"ground_truth": "5"}, "explanation": "t"}, {}, "5", False),
        ({"question": "q", "explanation": "t"}, {}, "", False),
        ({"question": "q", "completion": "t"}, {}, "", False),
        ({"question": "q", "solution": " ", "explanation": "t"}, {}, "", False),
        ({"question": "q", "solution": float("nan"), "explanation": "t"}, {}, "", False),
        ({"question": "q", "response": "<think>t</think>"}, {}, "", False),
        ({"problem": "q", "generations": ["t"]}, {}, "", False),
        ({"question": "q", "r1": "t", "reply": "s", "gold": "5"},
         {"explanation_column": "r1", "own_solution_column": "reply", "answer_column": "gold"}, "s", True),
        ({"question": "q", "solution": "g", "r1": "t", "reply": "s"},
         {"explanation_column": "r1", "own_solution_column": "reply"}, "s", True),
    ],
)  # fmt: skip
def test_a_solution_that_follows_the_thought_is_the_traces_own(
    data: dict[str, Any], settings: dict[str, Any], solution: str, own: bool
) -> None:
    row = read(data, **settings)
    assert (row.question, row.solution, row.own_solution) == ("q", solution, own)
    assert "t" in str(row.explanation or row.completion)


def test_traces_of_two_models_share_their_question_whatever_the_order_and_the_number_of_runs(tmp_path: Path) -> None:
    run = take(tmp_path / "run", REPLIES)
    found = rows(run)
    assert found["question_id"].unique(maintain_order=True).to_list() == [
        question_id(f"What is {i} + 2?", "") for i in range(3)
    ]
    assert found["solution"].to_list() == [row["response"].split("\n\n")[1] for row in REPLIES]
    assert set(found["question_solution"]) == {""} and found["origin"].to_list() == ["A", "B"] * 3
    assert run.read("questions", 0)["answer"].to_pylist() == ["2", "3", "4"]
    shuffled = rows(take(tmp_path / "shuffled", REPLIES[::-1]))
    shares = [rows(take(tmp_path / name, [row for row in REPLIES if row["model"] == name])) for name in "AB"]
    columns = ["trace_id", "question_id", "solution", "origin"]
    for other in (shuffled, pl.concat(shares)):
        assert other.select(columns).sort("trace_id").equals(found.select(columns).sort("trace_id"))


def test_equal_thoughts_with_other_solutions_are_other_traces(tmp_path: Path) -> None:
    pair = [{**row, "model": None} for row in REPLIES[:2]]
    found = rows(take(tmp_path / "run", [*pair, *pair]))
    assert found["completion"].n_unique() == 1 and found["solution"].to_list() == ["It is 2.", "0 + 2 = 2"]


def test_keys_of_rows_with_a_reference_do_not_change(tmp_path: Path) -> None:
    found = rows(take(tmp_path / "run", [{"question": "q", "solution": "s", "explanation": "t", "model": "A"}]))
    completion = "t\n\n<|end_of_explanation|>"
    assert found["question_id"].to_list() == [question_id("q", "s")] and found["question_solution"].to_list() == ["s"]
    assert found["trace_id"].to_list() == [content_hash("imported", question_id("q", "s"), completion, None, "A")]


def test_each_generation_has_its_own_solution_if_there_is_no_reference(tmp_path: Path) -> None:
    texts = ["<think>a</think>It is 5.", "<think>b</think>five", "<think>c"]
    found = rows(take(tmp_path / "run", [{"problem": "q", "generations": texts}]))
    assert found["solution"].to_list() == ["It is 5.", "five", ""] and found["question_id"].n_unique() == 1
    assert found["finish_reason"].to_list() == ["stop", "stop", "length"]


def test_questions_for_generate_have_the_solution_of_the_reply(tmp_path: Path) -> None:
    run = take(tmp_path / "run", REPLIES, traces=False)
    pairs = [(row["question"], row["response"].split("\n\n")[1]) for row in REPLIES]
    table = run.read("questions", 0)
    assert list(zip(table["question"].to_pylist(), table["solution"].to_pylist(), strict=True)) == pairs
    assert table["question_id"].to_pylist() == [question_id(*pair) for pair in pairs]


@pytest.mark.parametrize("traces", [True, False])
def test_a_run_of_an_earlier_version_continues_with_its_keys(tmp_path: Path, traces: bool) -> None:
    settings: dict[str, Any] = {"solution_column": "response"} if traces else {}
    solutions = [row["response"].split("\n\n")[1] if traces else row["answer"] for row in REPLIES]
    keys = [question_id(row["question"], solution) for row, solution in zip(REPLIES, solutions, strict=True)]
    run = RunFolder(tmp_path / "run")
    with run.locked():
        run.record("input", {"own_solutions": False, "origins_in_keys": True})
    take(tmp_path / "run", REPLIES[:4], traces=traces, **settings)
    assert run.keys("questions", 0) == set(keys[:4])
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    del info["steps"]["input"]["own_solutions"]  # which earlier versions did not record
    run.write_json("run.json", info)
    after = take(tmp_path / "run", REPLIES, traces=traces, **settings)
    assert after.keys("questions", 0) == set(keys) and after.step("input")["own_solutions"] is False
    if traces:
        assert after.read("traces", 0)["solution"].to_pylist() == [None] * 6


def test_check_says_whose_the_solutions_are(tmp_path: Path, rlt: Rlt) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", REPLIES)
    printed = rlt("check", path).stdout
    assert "text after the thought, the trace's own" in printed and "6 traces (6 with their own solution)" in printed
    row = {"question": "q", "solution": "s", "explanation": "t"}
    report = check(CheckSettings(input=str(write_jsonl(path, [row]))))
    assert report.fields["solution"].rule == "preset question-solution, reference" and report.own_solutions == 0


def test_traces_without_a_solution_are_scored_but_are_no_questions_for_generate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, rlt: Rlt
) -> None:
    data = [{"question": f"q{i}", "explanation": "t", "solution": "s" if i == 2 else None} for i in range(3)]
    path = write_jsonl(tmp_path / "rows.jsonl", data)
    notice = "2 rows have no solution; they get measures but no reward"
    report = check(CheckSettings(input=str(path)))
    assert report.notices == (notice,) and not report.bad and "solution" in report.mean
    assert rlt("check", path).stdout.count(notice) == 1
    caplog.set_level("INFO")
    found = rows(take(tmp_path / "run", data))
    assert found["solution"].to_list() == ["", "", "s"] and caplog.messages.count(notice) == 1
    assert found["question_id"].to_list() == [question_id("q0", ""), question_id("q1", ""), question_id("q2", "s")]
    with pytest.raises(InputError, match="line 1: solution: missing; only score takes traces without one"):
        take(tmp_path / "questions", data, traces=False)
    assert not (tmp_path / "questions").exists()
    for bad in ({"question": "q"}, {"question": "q", "solution": ""}):
        with pytest.raises(InputError, match="solution: missing$"):
            take(tmp_path / "bad", [data[2], bad])


def test_rows_without_a_solution_and_with_an_own_one_share_their_question(tmp_path: Path) -> None:
    found = rows(
        take(
            tmp_path / "run",
            [{"question": "q", "response": text} for text in ("<think>t</think>", "<think>u</think>s")],
        )
    )
    assert found["question_id"].to_list() == [question_id("q", "")] * 2 and found["solution"].to_list() == ["", "s"]


def test_the_key_of_the_question_tells_whose_solution_a_row_of_ours_has() -> None:
    row = {"question": "q", "solution": "s", "explanation": "t", "question_id": question_id("q", "")}
    assert read(row).own_solution and not read({**row, "question_id": question_id("q", "s")}).own_solution
    chat = {"messages": CHAT, "question_id": question_id("q", "s")}
    assert not read(chat).own_solution and read({**chat, "question_id": 70}).own_solution
    with_system = {**row, "system": "Be brief.", "question_id": question_id("q", "", "Be brief.")}
    assert read(with_system).own_solution and not read({**with_system, "system": None}).own_solution


def test_a_column_with_own_solutions_takes_the_place_of_that_of_references(rlt: Rlt) -> None:
    write_jsonl(Path("rows.jsonl"), [{"question": "q", "r1": "t", "reply": "s", "gold": "5"}])
    columns = ["--explanation-column", "r1", "--own-solution-column", "reply"]
    assert "solution    reply: --own-solution-column, the trace's own" in rlt("check", "rows.jsonl", *columns).stdout
    message = rlt("check", "rows.jsonl", *columns, "--solution-column", "gold", code=2).stderr
    assert message == "error: --own-solution-column: cannot be combined with --solution-column\n"
    message = rlt("check", "rows.jsonl", *columns[:3], "answer", code=3).stderr
    assert "--own-solution-column: no column 'answer'" in message
