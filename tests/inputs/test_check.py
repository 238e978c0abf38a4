from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlt_data.errors import InputError
from rlt_data.inputs import CheckReport, check
from rlt_data.settings import CheckSettings, parse_settings
from tests.conftest import Rlt, write_jsonl


def report(path: Path, **settings: Any) -> CheckReport:
    return check(parse_settings(CheckSettings, {"in": str(path), **settings}))


def test_a_complete_input_is_counted(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"question": "one", "solution": "1"},
        {"question": "one", "solution": "1"},
        {"question": "one", "solution": "I"},
        {"question": "three", "solution": "3", "explanation": "e"},
        {"question": "", "solution": "4"},
        {"question": "five"},
        {"question": "six", "solution": "<|end_of_solution|> 6"},
    ]
    counts = report(write_jsonl(tmp_path / "rows.jsonl", rows))
    assert (counts.rows, counts.good, counts.traces) == (7, 4, 1)
    assert (counts.duplicates, counts.repeated_questions) == (1, 1)
    assert counts.columns == ["question", "solution", "explanation"] and counts.preset == "question-solution"
    assert [place for place, _ in counts.bad_rows] == ["line 5", "line 6", "line 7"]
    assert counts.longest == {"question": 5, "solution": 1, "explanation": 1}
    assert counts.mean["question"] == (3 + 3 + 3 + 5) / 4


def test_the_first_ten_bad_rows_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"question": "q", "solution": "s"}, *({"question": f"q{i}"} for i in range(13))]
    counts = report(write_jsonl(tmp_path / "rows.jsonl", rows))
    assert len(counts.bad_rows) == 10 and sum(counts.bad.values()) == 13
    with pytest.raises(InputError) as error:
        counts.refuse_bad_rows(skip=False)
    assert "13 of 14 rows" in str(error.value)
    assert "line 2: solution: " in str(error.value) and "and 3 more" in str(error.value)
    counts.refuse_bad_rows(skip=True)


def test_an_input_without_a_good_row_is_refused_even_if_bad_rows_are_skipped(tmp_path: Path) -> None:
    counts = report(write_jsonl(tmp_path / "rows.jsonl", [{"question": "q", "solution": ""}]))
    with pytest.raises(InputError, match="1 of 1 rows"):
        counts.refuse_bad_rows(skip=True)
    (tmp_path / "blank.jsonl").write_text("\n\n")
    with pytest.raises(InputError, match="blank.jsonl: "):
        report(tmp_path / "blank.jsonl").refuse_bad_rows(skip=True)


def test_equal_traces_are_duplicates_unless_their_ids_tell_them_apart(tmp_path: Path) -> None:
    row = {"question": "q", "solution": "s", "completion": "c"}
    assert report(write_jsonl(tmp_path / "a.jsonl", [row, row])).duplicates == 1
    assert report(write_jsonl(tmp_path / "b.jsonl", [row | {"id": 1}, row | {"id": 2}])).duplicates == 0


def test_a_solution_must_not_contain_the_tags_of_the_format(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"question": "q", "solution": "</answer> s"}])
    assert report(path).good == 1
    assert report(path, format="think").good == 0


def test_rows_that_disagree_about_the_answer_or_differ_in_kept_columns_are_counted(tmp_path: Path, rlt: Rlt) -> None:
    problem = {"question": "q", "solution": "s", "answer": "1"}
    rows: list[dict[str, Any]] = [
        {**problem, "completion": "a", "batch": 1},
        {**problem, "completion": "a", "batch": 2},
        {**problem, "completion": "a", "batch": 1},
        {**problem, "completion": "a", "batch": 1, "answer": "2"},
        {**problem, "completion": "b", "batch": 2, "answer": "2"},
        {**problem, "completion": "c", "batch": 2, "answer": None},
        {"question": "r", "solution": "s", "answer": "3", "completion": "a", "batch": 2},
        {"question": "r", "solution": "s", "answer": "3", "completion": "b", "batch": 2},
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    counts = report(path, keep=["batch"])
    assert (counts.duplicates, counts.other_meta, counts.disagreements) == (3, 2, 1)
    printed = rlt("check", "--in", path, "--keep", "batch").stdout
    assert all(f"warning: {line}" in printed.splitlines() for line in counts.conflicts) and len(counts.conflicts) == 2
    assert report(path).other_meta == 1  # the answer
    path = write_jsonl(tmp_path / "questions.jsonl", [{"question": "q", "solution": "s", "batch": i} for i in "aab"])
    counts = report(path, keep=["batch"])
    assert (counts.duplicates, counts.disagreements, len(counts.conflicts)) == (2, 1, 1)


def test_traces_of_several_origins_are_several_traces_and_are_counted_by_origin(tmp_path: Path, rlt: Rlt) -> None:
    rows = [{"question": "q", "solution": "s", "completion": "c", "model": model} for model in ("A", "B", "A", " ", 7)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    counts = report(path)
    assert counts.origins == {"A": 2, "B": 1} and counts.duplicates == 2
    assert "origins of the traces: A 2, B 1" in rlt("check", "--in", path).stdout.splitlines()
