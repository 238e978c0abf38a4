"""A trace's own solution takes the place of the question's in all steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from transformers import AutoTokenizer

import rlt_data
from rlt_data.errors import InputError
from rlt_data.formats import ChatTemplate, Views, load_format
from rlt_data.inputs.check import good_rows
from rlt_data.plugins import SHAPES
from rlt_data.publish.facts import best_and_worst
from rlt_data.reporting.collect import ListedTraces
from rlt_data.settings import InputSettings
from rlt_data.storage.run import RunFolder
from tests.conftest import Rlt, write_jsonl

Tiny = Callable[..., Path]

#: Question, model, thought and solution of each reply.
TEXTS = [
    (question, model, f"{thought} says {model}.", solution)
    for question, replies in {
        "What is 1 + 2?": {"R1": ("Add them,", "It is 3."), "QwQ": ("Count up,", "The sum of 1 and 2 is 3.")},
        "What is 6 / 2?": {"R1": ("Halve six,", "It is three."), "QwQ": ("Count down,", "6 / 2 = 3")},
    }.items()
    for model, (thought, solution) in replies.items()
]
OF_THOUGHT = {thought: (question, model, solution) for question, model, thought, solution in TEXTS}


def replies(only: str | None = None) -> list[dict[str, Any]]:
    return [
        {"question": question, "response": f"<think>\n{thought}\n</think>\n\n{solution}", "answer": "3", "model": model}
        for question, model, thought, solution in TEXTS
        if only in (None, model)
    ]


@pytest.fixture
def run(rlt: Rlt, tiny: Tiny, tmp_path: Path) -> Path:
    path = write_jsonl(tmp_path / "replies.jsonl", replies())
    rlt("score", "--in", path, "--student", tiny(), "--teacher", tiny(seed=1), "--per-token", "--out", "run")
    rlt("rank", "run")
    return tmp_path / "run"


def test_scores_are_those_of_the_own_solution_for_student_and_teacher(
    run: Path, rlt: Rlt, tiny: Tiny, tmp_path: Path
) -> None:
    given = [
        {"question": question, "solution": solution, "explanation": thought, "model": model}
        for question, model, thought, solution in TEXTS
    ]
    path = write_jsonl(tmp_path / "given.jsonl", given)
    rlt("score", "--in", path, "--student", tiny(), "--teacher", tiny(seed=1), "--out", "given")
    terms = ["completion", "solution", "reward", "r_ss", "r_kl", "solution_tokens"]
    own, reference = (rlt_data.Run(path).scan().collect() for path in (run, tmp_path / "given"))
    assert own.select(terms).sort("completion").equals(reference.select(terms).sort("completion"))
    assert own["question_id"].n_unique() == 2 and reference["question_id"].n_unique() == 4
    assert own["traces"].to_list() == [2] * 4 and own["answer"].to_list() == ["3"] * 4


def test_merged_runs_of_one_model_each_equal_one_run_of_both(run: Path, rlt: Rlt, tiny: Tiny, tmp_path: Path) -> None:
    for model in ("R1", "QwQ"):
        path = write_jsonl(tmp_path / f"{model}.jsonl", replies(model))
        rlt("score", "--in", path, "--student", tiny(), "--teacher", tiny(seed=1), "--per-token", "--out", model)
    rlt("merge", "R1", "QwQ", "--out", "both")
    rlt("rank", "both")
    columns = ["trace_id", "question_id", "solution", "question_solution", "origin", "reward", "rank", "traces"]
    merged, whole = (rlt_data.Run(path).scan().collect().select(columns) for path in (tmp_path / "both", run))
    assert merged.sort("trace_id").equals(whole.sort("trace_id"))


@pytest.mark.parametrize("shape", [shape for shape in SHAPES.built_in if shape != "privileged"])  # without thoughts
def test_distilled_rows_have_the_own_solution_after_the_thought_and_can_be_read_again(
    run: Path, rlt: Rlt, tiny: Tiny, shape: str
) -> None:
    rlt("distill", run, "--select", "best" if shape == "preference" else "all", "--shape", shape, "--out", "data")
    rows = [json.loads(line) for line in Path("data/train.jsonl").read_text().splitlines()]
    assert len(rows) == (2 if shape == "preference" else 4)
    for row in rows:
        texts = [row["chosen"], row["rejected"]] if shape == "preference" else [str(row)]
        for text in texts:
            [(thought, (_, _, solution))] = [item for item in OF_THOUGHT.items() if item[0] in text]
            assert solution in text.split(thought)[1]
            assert all(other not in text for _, _, other in OF_THOUGHT.values() if other != solution)
    rlt("score", "--in", "data", "--student", tiny(), "--teacher", "none", "--out", "again")
    again, before = (rlt_data.Run(path).scan().collect() for path in (Path("again"), run))
    assert set(again["question_id"]) == set(before["question_id"]) and set(again["question_solution"]) == {""}
    assert set(again["solution"]) <= set(before["solution"]) and len(again) == len(rows)


def test_a_distilled_reference_solution_stays_one(rlt: Rlt, tiny: Tiny, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"question": "q", "solution": "It is 3.", "explanation": "Add."}])
    rlt("score", "--in", path, "--student", tiny(), "--teacher", "none", "--out", "run")
    rlt("rank", "run", "--by", "r_ss")
    rlt("distill", "run", "--out", "data")
    rlt("score", "--in", "data", "--student", tiny(), "--teacher", "none", "--out", "again")
    before, again = (rlt_data.Run(path).scan("questions").collect() for path in ("run", "again"))
    assert before.select("question_id", "solution").equals(again.select("question_id", "solution"))


def test_show_preview_and_report_have_the_solution_of_each_trace(run: Path, rlt: Rlt, tiny: Tiny) -> None:
    scan = rlt_data.Run(run).scan().collect()
    key = scan["question_id"][0]
    shown = rlt("show", run, key).stdout
    assert shown.count("solution of this trace") == 2
    for row in scan.filter(question_id=key).to_dicts():
        assert row["solution"] in shown.split(row["completion"].split("\n")[0])[1]
        one = rlt("preview", run, "--student", tiny(), "--key", row["trace_id"], "--json").stdout
        text, (start, end) = (json.loads(one)[name] for name in ("student_text", "solution"))
        assert text[start:end].strip() == row["solution"]
    best = rlt("show", run, "--best", "1").stdout
    assert scan.sort("value")["solution"][-1] in best
    listed = ListedTraces({"run": RunFolder.existing(str(run))}, 10)
    for question in map(listed.texts, listed.selected):
        assert question["solution"] == ""
        for trace in question["traces"]:
            [(_, _, solution)] = [text for thought, text in OF_THOUGHT.items() if thought in trace["thought"]]
            assert trace["solution"] == solution and trace["content"].strip() == solution
            assert trace["solution_tokens"]["begin"] + sum(trace["solution_tokens"]["lengths"]) == len(trace["content"])


def test_the_samples_of_a_card_have_the_solution_of_their_trace(run: Path) -> None:
    for sample in best_and_worst(RunFolder.existing(str(run))).values():
        [(question, _, solution)] = [text for thought, text in OF_THOUGHT.items() if thought in sample["completion"]]
        assert (sample["question"], sample["solution"]) == (question, solution)


def test_an_interrupted_or_grown_file_adds_only_what_is_new(run: Path, rlt: Rlt, tiny: Tiny, tmp_path: Path) -> None:
    before = rlt_data.Run(run).scan("traces").collect()
    more = {**replies()[0], "response": "<think>Look it up.</think>It is 3."}
    path = write_jsonl(tmp_path / "replies.jsonl", [more, *replies()[::-1]])
    rlt("score", "--in", path, "--student", tiny(), "--teacher", tiny(seed=1), "--per-token", "--out", "run")
    after = rlt_data.Run(run).scan("traces").collect()
    assert set(before["trace_id"]) < set(after["trace_id"]) and len(after) == 5
    assert rlt_data.Run(run).scan("questions").select(pl.len()).collect().item() == 2


def test_a_teacher_is_warmed_up_on_each_explanation_with_its_own_solution(tiny: Tiny, tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="needs the extra train")
    from rlt_data.training.teacher import teacher_texts

    path = write_jsonl(tmp_path / "replies.jsonl", replies())
    format = load_format("rlt")
    rows = good_rows(InputSettings(input=str(path)), format)
    texts = list(teacher_texts(rows, Views(format, ChatTemplate(AutoTokenizer.from_pretrained(tiny()))), "replies"))
    assert len(texts) == len(TEXTS)
    for text, (question, _, thought, solution) in zip(texts, TEXTS, strict=True):
        assert question in text.prompt and solution in text.prompt and text.completion.startswith(thought)
    write_jsonl(path, [{"question": "q", "explanation": "t"}])
    with pytest.raises(InputError, match="line 1: solution: missing; only score takes traces without one"):
        good_rows(InputSettings(input=str(path)), format)
