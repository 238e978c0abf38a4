"""Columns of several tables, for the traces of one part and of the whole run."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from rlt_data.storage.rows import OF_QUESTIONS, OWN, columns_of, read_rows
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import to_table
from tests.made_runs import add_signal, make_run, ranked, trace


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Return a ranked run with signals of both levels, whose last trace is in the journal and has no score."""
    first = [trace("q", i, float(i), origin="a" if i else None) for i in range(4)]
    first[1] |= {"answer": "7", "solution": "Mine.", "meta": "{}"}
    run = make_run(tmp_path / "run", first, [trace("r", 0, None)])
    ranked(run, by="r_ss")
    run.add_segment("traces", 1, to_table("traces", [trace("r", 1)]))
    add_signal(run, "length", "trace", words={"q/2": 5})
    add_signal(run, "topic", "question", topic={"r": "algebra"})
    return run


def test_rows_of_the_parts_equal_those_of_the_scan(run: RunFolder) -> None:
    whole = run.scan().collect()
    parts = pl.concat([read_rows(run, part, whole.columns) for part in (0, 1)])
    assert parts.select(whole.columns).equals(whole) and len(whole) == 6


def test_a_trace_without_answer_or_solution_takes_those_of_its_question(run: RunFolder) -> None:
    names = ["answer", "solution", "meta", *OWN, *OF_QUESTIONS]
    question = {"question": "What is q?", "question_solution": "It is q.", "system": None}
    question |= {"question_answer": "q", "question_meta": None}
    without, own, *_ = read_rows(run, 0, names).select(names).to_dicts()
    assert own == question | {
        "answer": "7", "solution": "Mine.", "meta": "{}", "trace_answer": "7", "trace_solution": "Mine."
    }  # fmt: skip
    assert without == question | {"answer": "q", "solution": "It is q.", "meta": None} | dict.fromkeys(OWN)


@pytest.mark.parametrize("name", ["reward", "question", "solution", "rank", "words", "topic", "trace_answer"])
def test_one_column_is_read_alone(run: RunFolder, name: str) -> None:
    assert read_rows(run, 0, [name]).columns == ["trace_id", "question_id", name]


def test_rows_of_scores_lack_the_traces_without_a_score(run: RunFolder) -> None:
    names = ["trace_id", "reward", "origin", "solution", "topic", "rank"]
    rows = read_rows(run, 1, names, of="scores").select(names).rows()
    assert rows == [("r/0", None, None, "It is r.", "algebra", 1)]
    whole = read_rows(run, 0, names, of="scores")
    assert whole.equals(read_rows(run, 0, names)) and whole["solution"][1] == "Mine."


def test_outdated_and_missing_tables_have_no_columns(run: RunFolder) -> None:
    assert {"rank", "words", "topic"} < columns_of(run).keys() == {*run.scan().collect_schema(), *OWN}
    run.write_part("scores", 1, run.read("scores", 1).slice(0, 0))
    run.add_segment("traces", 1, to_table("traces", [trace("r", 2)]))
    assert columns_of(run).keys() & {"reward", "rank", "words", "topic"} == {"reward", "topic"}
    assert columns_of(run).keys() == {*run.scan().collect_schema(), *OWN}
