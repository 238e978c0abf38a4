"""The origin, answer and kept columns of a trace stay with it through all steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import rlt_data
from rlt_data.plugins import SHAPES
from tests.conftest import Rlt, write_jsonl

Tiny = Callable[..., Path]
Read = Callable[[Path, str], pl.DataFrame]

#: Traces of two models in mixed order, with other answers and two equal texts of each question.
ROWS: list[dict[str, Any]] = [
    {"question": question, "solution": "It is 3.", "explanation": text, "model": model, "answer": answer, "row": number}
    for number, (question, text, model, answer) in enumerate(
        [
            ("What is 1 + 2?", "Add one to two.", "R1", "3"),
            ("What is 6 / 2?", "Halve six.", "QwQ", "three"),
            ("What is 1 + 2?", "Add one to two.", "QwQ", "3.0"),
            ("What is 6 / 2?", "Count to three.", "R1", "III"),
            ("What is 1 + 2?", "Count up from one.", "R1", "three"),
            ("What is 6 / 2?", "Halve six.", "R1", "3"),
        ]
    )
]


@pytest.fixture
def run(rlt: Rlt, tiny: Tiny, tmp_path: Path) -> Path:
    path = write_jsonl(tmp_path / "traces.jsonl", ROWS)
    rlt("score", "--in", path, "--student", tiny(), "--teacher", "none", "--keep", "row", "--out", "run")
    rlt("rank", "run", "--by", "reward_without_entropy")
    return tmp_path / "run"


def own(row: dict[str, Any]) -> dict[str, Any]:
    """Return the input row of a trace."""
    return dict(ROWS[json.loads(row["meta"])["row"]])


def test_every_table_has_the_origin_and_kept_columns_of_each_row(run: Path, read: Read) -> None:
    texts = read(run, "traces").select("trace_id", "completion")
    questions = read(run, "questions").select("question_id", "question")
    for name in ("traces", "scores", "ranks"):
        table = read(run, name).select("trace_id", "question_id", "origin", "meta")
        rows = table.join(texts, on="trace_id").join(questions, on="question_id").to_dicts()
        assert len({row["meta"] for row in rows}) == len(ROWS)
        for row in rows:
            assert (row["origin"], row["question"]) == (own(row)["model"], own(row)["question"])
            assert row["completion"].startswith(own(row)["explanation"])
    for row in rlt_data.Run(run).scan().collect().to_dicts():
        assert row["answer"] == own(row)["answer"] and row["question_meta"] is None


@pytest.mark.parametrize("shape", [shape for shape in SHAPES.built_in if shape not in ("preference", "privileged")])
def test_every_row_of_a_data_set_has_what_its_trace_had(rlt: Rlt, run: Path, shape: str) -> None:
    rlt("distill", run, "--select", "all", "--shape", shape, "--out", "data")
    rows = [json.loads(line) for line in Path("data/train.jsonl").read_text().splitlines()]
    assert len(rows) == len(ROWS)
    for row in rows:
        assert (row["origin"], row["final_answer"]) == (own(row)["model"], own(row)["answer"])
        assert own(row)["question"] in str(row) and own(row)["explanation"] in str(row)
    assert json.loads(Path("data/distill.json").read_text())["counts"]["origins"] == {"QwQ": 2, "R1": 4}


def test_a_data_set_can_be_imported_again_with_its_origins(rlt: Rlt, run: Path, tiny: Tiny, read: Read) -> None:
    rlt("distill", run, "--select", "all", "--shape", "messages", "--out", "data")
    rlt("score", "--in", "data", "--student", tiny(), "--teacher", "none", "--keep", "meta", "--out", "again")
    before, after = (
        read(path, "traces").select("completion", "origin", "answer").sort(pl.all()) for path in (run, Path("again"))
    )
    assert [text.strip() for text in before["completion"]] == [text.strip() for text in after["completion"]]
    assert before.drop("completion").equals(after.drop("completion"))


def test_generated_traces_have_the_teacher_as_origin_and_questions_their_own_columns(
    rlt: Rlt, tiny: Tiny, tmp_path: Path, read: Read
) -> None:
    path = write_jsonl(tmp_path / "traces.jsonl", ROWS[:2])
    for out, teacher in (("one", tiny()), ("two", Path("..") / tiny().relative_to(tmp_path.parent))):
        rlt(
            "generate", "--in", path, "--teacher", teacher, "--n", 1, "--max-tokens", 8, "--keep", "model", "--out", out
        )
        assert read(Path(out), "traces")["origin"].to_list() == [tiny().name] * 2
    rlt("score", "one", "--student", tiny())
    rlt("rank", "one")
    rlt("distill", "one", "--select", "all", "--include", "truncated", "--out", "data")
    rows = [json.loads(line) for line in Path("data/train.jsonl").read_text().splitlines()]
    by_question = {row["question_meta"]: row for row in rows}
    assert by_question.keys() == {'{"model": "R1"}', '{"model": "QwQ"}'}
    assert all((row["origin"], row["meta"]) == (tiny().name, None) for row in rows)
    assert by_question['{"model": "QwQ"}']["final_answer"] == "three"
