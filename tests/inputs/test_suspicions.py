"""What check warns of, and that it says how an input is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlt_data.inputs import CheckReport, check
from rlt_data.settings import CheckSettings
from tests.conftest import Rlt, write_jsonl

LONG = "Six sevens are 42, because 6 times 7 is 42."
ROW = {"question": "q", "solution": "s"}
CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "s"}]


def report(folder: Path, *rows: dict[str, Any], **settings: Any) -> CheckReport:
    return check(CheckSettings(input=str(write_jsonl(folder / "rows.jsonl", list(rows))), **settings))


@pytest.mark.parametrize(
    ("rows", "warning"),
    [
        ([ROW, {**ROW, "solution": "Write </think> here."}],
         "1 row: the solution contains a thought tag such as </think> (first: line 2)"),
        ([{"messages": CHAT, "solution": "s."}],
         "1 row: 'solution' is not used; --solution-column solution reads it as the solution (first: line 1)"),
        ([{"query": "q", "response": "s", "target": "t"}], None),
        ([{"messages": CHAT, "solution": " s"}], None),
        ([{"question": "q", "answer": "42", "response": "s"}],
         "1 row: 'response' is not used; --solution-column response reads it as the solution (first: line 1)"),
        ([{**ROW, "question": f"q{i}", "explanation": LONG if i else None} for i in range(3)],
         "1 of 3 rows have no trace (first: line 1)"),
        ([{**ROW, "id": 1}, {"question": "r", "solution": "s", "id": "1"}],
         "1 row: the id is that of an earlier row with another question (first: line 2)"),
        ([{**ROW, "id": 1, "explanation": LONG}, {**ROW, "id": 1, "explanation": "e"}], None),
        ([{**ROW, "options": {"A": "x", "B": "y"}}],
         "1 row: the options in 'options' are not shown with the question (first: line 1)"),
        ([{**ROW, "context": "Once."}, {**ROW, "question": "r", "context": ""}],
         "1 row: the text in 'context' is not shown with the question (first: line 1)"),
        ([{**ROW, "generation": LONG}],
         "'generation' may have traces, but no column of traces is read (--explanation-column generation)"),
        ([{**ROW, "deepseek_reasoning": LONG, "r1_generation": [LONG, LONG]}],
         "'deepseek_reasoning' and 'r1_generation' may have traces, but no column of traces is read "
         "(--explanation-column deepseek_reasoning)"),
        ([{**ROW, "generation": LONG, "explanation": LONG}], None),
        ([{**ROW, "explanation": LONG, "gold answer": 42}],
         "1 row: 'gold answer' may have the known answer (--answer-column 'gold answer') (first: line 1)"),
        ([{**ROW, "explanation": LONG, "answer": "42", "gold": "42", "answer_type": "number"}], None),
        ([{**ROW, "gold": "42"}], None),
        ([{**ROW, "reasoning": "on", "cot_type": "math", "generation_model": "some-model", "cot": None}], None),
        ([{**ROW, "answer": float("nan")}], "1 row: answer is NaN and counts as missing (first: line 1)"),
    ],
)  # fmt: skip
def test_suspicious_rows_are_counted(rows: list[dict[str, Any]], warning: str | None, tmp_path: Path) -> None:
    counts = report(tmp_path, *rows)
    assert counts.good == len(rows) and counts.warnings == ([warning] if warning else [])


def test_the_origin_of_each_field_is_shown(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be brief."}, CHAT[0], {"role": "assistant", "content": "<think>t</think>s"}]
    counts = report(
        tmp_path, {"messages": turns, "choices": ["x", "y"], "answer": ["1", "2"], "note": 1, "kept": 2}, keep=("kept",)
    )
    assert {name: (origin.column, origin.rule) for name, origin in counts.fields.items()} == {
        "question": ("messages[user].content", "options of 'choices' appended"),
        "solution": ("messages[assistant].content", "text after the thought, the trace's own"),
        "explanation": ("messages[assistant].content", "thought in tags"),
        "system": ("messages[system].content", "preset messages"),
        "answer": ("answer", "column name, items joined by commas"),
        "id": (None, "row number"),
    }
    assert counts.unused_columns == ["note"]


def test_a_plug_in_does_not_tell_which_columns_it_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_too.py").write_text(
        "def faq(record): return {'question': record['Q'], 'solution': record['A']}\n"
    )
    monkeypatch.chdir(tmp_path)
    counts = report(tmp_path, {"Q": "q", "A": "s", "generation": LONG}, preset="mine_too:faq")
    assert counts.unused_columns is None and counts.warnings == []
    assert counts.fields["question"].rule == "preset mine_too:faq"


def test_the_report_is_one_json_object(tmp_path: Path, rlt: Rlt) -> None:
    rows: list[dict[str, Any]] = [
        ROW,
        {**ROW, "question": "\u202e" + "q" * 5000, "explanation": LONG, "x": 1},
        {"question": "r"},
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    content = json.loads(rlt("check", path, "--json", code=3).stdout)
    assert content == {
        "source": str(path),
        "preset": "question-solution",
        "rows": 3,
        "good": 2,
        "traces": 1,
        "own_solutions": 0,
        "without_solution": 0,
        "duplicates": 0,
        "repeated_questions": 0,
        "columns": ["question", "solution", "explanation", "x"],
        "unused_columns": ["x"],
        "fields": {
            "question": {"column": "question", "rule": "preset question-solution"},
            "solution": {"column": "solution", "rule": "preset question-solution"},
            "id": {"column": None, "rule": "row number"},
            "explanation": {"column": "explanation", "rule": "column name"},
        },
        "characters": {
            "question": {"mean": 2501.0, "longest": 5001},
            "solution": {"mean": 1.0, "longest": 1},
            "explanation": {"mean": float(len(LONG)), "longest": len(LONG)},
        },
        "example": {
            "location": "line 2",
            "id": "1",
            "question": "\u202e" + "q" * 5000,
            "solution": "s",
            "system": None,
            "answer": None,
            "explanation": LONG,
            "completion": None,
            "finish_reason": None,
            "meta": None,
        },
        "bad": 1,
        "bad_reasons": {"solution: missing": 1},
        "bad_rows": [{"location": "line 3", "reason": "solution: missing"}],
        "warnings": ["1 of 2 rows have no trace (first: line 1)"],
        "notices": [],
    }
    text = (Path(__file__).parents[2] / "docs" / "inputs.md").read_text(encoding="utf-8")
    assert all(f"`{key}`" in text for key in content)


def test_the_printed_example_is_cut_visibly(tmp_path: Path, rlt: Rlt) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{**ROW, "question": "q" * 1500, "extra": 1}])
    printed = rlt("check", path).stdout
    assert "q" * 1000 + " [... 500 more characters]" in printed and "unused columns: extra" in printed
    assert "  question    question: preset question-solution" in printed
