from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlt_data.errors import InputError
from rlt_data.inputs.check import good_rows
from rlt_data.inputs.questions import QuestionReader
from rlt_data.settings import InputSettings


def read(folder: Path, *records: dict[str, Any]) -> list[tuple[str | None, str]]:
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    rows = good_rows(InputSettings.model_validate({"in": str(file)}), None, QuestionReader)
    return [(row.source_id, row.question) for row in rows]


@pytest.mark.parametrize(
    "record",
    [
        {"question": "How many?"},
        {"problem": "How many?", "level": 3},
        {"prompt": [{"role": "user", "content": "How many?"}]},
        {"messages": [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "2"}]},
        {"problem": "How many?", "solution": "2", "unique_id": "0"},
        {"question": "How many?", "answer": "It is 2.\n#### 2"},
    ],
)
def test_questions_are_read_without_and_with_solutions(tmp_path: Path, record: dict[str, Any]) -> None:
    assert read(tmp_path, record) == [("0", "How many?")]


def test_ids_are_those_of_the_records(tmp_path: Path) -> None:
    assert read(tmp_path, {"id": 7, "question": "a"}, {"id": "x", "question": "b"}) == [("7", "a"), ("x", "b")]


def test_a_record_without_a_question_is_an_error_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 2: question: missing or empty"):
        read(tmp_path, {"question": "a"}, {"question": " "})


def test_unknown_columns_are_an_error_that_lists_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no column is known to be the question; the columns are first, second"):
        read(tmp_path, {"first": "a", "second": "b"})
