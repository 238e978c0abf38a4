"""The data of a report is that of its runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from rlt_data.reporting.collect import ListedTraces
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import to_table
from tests.conftest import Rlt
from tests.made_runs import distilled, make_run, ranked, table, trace


def scored(folder: Path, *more: Any) -> RunFolder:
    run = make_run(
        folder,
        [*(trace("a", i, float(i)) for i in range(3)), *(trace("b", i, 0.5) for i in range(2))],
        [trace("c", 0, float("nan")), *more],
    )
    ranked(run)
    return run


def test_an_index_has_every_figure_of_every_trace(tmp_path: Path) -> None:
    run = scored(tmp_path / "run")
    index = ListedTraces({"run": run}, 100).index()
    columns = index["columns"]
    assert columns["trace_id"] == ["a/0", "a/1", "a/2", "b/0", "b/1", "c/0"]
    assert columns["reward"] == [0.0, 1.0, 2.0, 0.5, 0.5, None]
    assert columns["rank"] == table(run, "ranks").sort("trace_id")["rank"].to_list()
    assert [index["questions"][number][0] for number in columns["question"]] == list("aaabbc")
    assert index["questions"][2] == ["c", "source of c", "What is c?"]
    assert "flaw" not in columns  # no trace has one
    assert "in_data_set" not in columns  # there is none


def test_the_list_has_the_start_of_each_explanation(tmp_path: Path) -> None:
    texts = ["One\n\n  line.", "w" * 159 + " more", "a b\n" * 300]
    run = make_run(tmp_path / "run", [
        trace("a", i, completion=f"{text}<|end_of_explanation|>") for i, text in enumerate(texts)
    ])  # fmt: skip
    starts = ListedTraces({"run": run}, 10).index()["columns"]["start"]
    assert starts == ["One line.", "w" * 159 + "…", ("a b " * 40).rstrip() + "…"]


def test_traces_in_the_data_set_are_marked(tmp_path: Path) -> None:
    run, bare = scored(tmp_path / "run"), scored(tmp_path / "bare")
    distilled(run, select="best", limit=2)
    index = ListedTraces({"run": run, "bare": bare}, 100).index()
    rows = [row for row in pl.DataFrame(index["columns"]).iter_rows(named=True) if row["in_data_set"]]
    data_set = pl.read_ndjson(run.path / "dataset" / "train.jsonl")
    assert [row["trace_id"] for row in rows] == data_set["trace_id"].to_list() and len(rows) == 2
    assert {row["in_data_set"] for row in pl.DataFrame(index["columns"]).filter(source=1).iter_rows(named=True)} == {
        None
    }


def test_a_page_holds_whole_questions_up_to_its_limit(tmp_path: Path) -> None:
    run = scored(tmp_path / "run")
    for limit, questions in [(1, ["a"]), (3, ["a"]), (4, ["a"]), (5, ["a", "b"]), (6, ["a", "b", "c"])]:
        selection = ListedTraces({"run": run}, limit)
        assert [question.question_id for question in selection.selected] == questions
        assert (selection.questions, selection.traces) == (3, 6)
    assert [len(group) for group in ListedTraces({"run": run}, 6).blocks(4)] == [1, 2]


def test_two_runs_show_the_questions_that_both_have(tmp_path: Path) -> None:
    one = scored(tmp_path / "one")
    other = make_run(tmp_path / "other", [trace("x", 0, 1.0)], [trace("c", 0, 2.0), trace("b", 0, 3.0)])
    selection = ListedTraces({"one": one, "other": other}, 100)
    assert [(question.question_id, question.traces, question.parts) for question in selection.selected] == [
        ("b", 3, (0, 1)),
        ("c", 2, (1, 1)),
    ]
    columns = selection.index()["columns"]
    assert columns["source"] == [0, 0, 1, 0, 1] and columns["reward"] == [0.5, 0.5, 3.0, None, 2.0]
    shown = selection.texts(selection.selected[0])
    assert [trace["source"] for trace in shown["traces"]] == [0, 0, 1]


def test_tokens_cover_the_text_that_was_scored(rlt: Rlt) -> None:
    rlt("countdown", "make", "--out", "q.jsonl", "--rows", 4, "--most", 3, "--largest", 14, "--largest-target", 120)
    rlt("generate", "--teacher", "nano", "--in", "q.jsonl", "--n", 4, "--max-tokens", 60, "--out", "run")
    rlt("score", "--in", "run", "--student", "nano", "--per-token")
    run = RunFolder("run")
    selection = ListedTraces({"run": run}, 100)
    scores = {row["trace_id"]: row for row in table(run, "scores").iter_rows(named=True)}
    seen = 0
    for question in selection.selected:
        shown = selection.texts(question)
        for each in shown["traces"]:
            score = scores[each["trace_id"]]
            for name, text, values, mean in [
                ("thought_tokens", each["thought"], "thought_logprobs", None),
                ("kl_tokens", each["thought"], "thought_kl", "kl_mean"),
                ("solution_tokens", shown["contents"][0], "solution_logprobs", "solution_logprob_mean"),
            ]:
                if not score[values]:
                    continue
                tokens = each[name]
                places = tokens if "lengths" in tokens else each["thought_tokens"]
                assert places["begin"] + sum(places["lengths"]) == len(text)
                assert len(places["lengths"]) == len(tokens["values"]) == len(score[values])
                assert np.allclose(np.array(tokens["values"]) / 100, score[values], atol=0.0051)
                if mean:
                    assert abs(np.mean(tokens["values"]) / 100 - score[mean]) < 0.006
                seen += 1
    assert seen > 30


def test_what_is_not_scored_is_shown_as_it_was_written(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "bare")
    run.write_part("questions", 0, to_table("questions", [{"question_id": "q", "question": "Q?", "solution": "S"}]))
    row = {"trace_id": "t", "question_id": "q", "sample_index": 0, "completion": "so</explanation>", "made_by": "m"}
    run.write_part("traces", 0, to_table("traces", [row]))
    run.record("generate", {"settings": {"n": 1}})
    selection = ListedTraces({"bare": run}, 10)
    assert selection.index()["columns"] == {
        "trace_id": ["t"], "sample_index": [0], "start": ["so</explanation>"], "question": [0], "source": [0],
    }  # fmt: skip
    [shown] = selection.texts(selection.selected[0])["traces"]
    assert shown == {"source": 0, "trace_id": "t", "completion": "so</explanation>"}


@pytest.mark.parametrize("completion", ["no tag at all", "one<|end_of_explanation|>and more"])
def test_a_completion_that_is_more_than_its_thought_is_shown_too(tmp_path: Path, completion: str) -> None:
    run = make_run(tmp_path / "run", [trace("a", 0, 1.0, completion=completion), trace("a", 1, 1.0)])
    one, other = (lambda c: c.texts(c.selected[0]))(ListedTraces({"run": run}, 10))["traces"]
    assert one["completion"] == completion and "completion" not in other
    assert pl.Series([one["thought"], other["thought"]]).str.contains("<|end_of", literal=True).sum() == 0


def test_a_trace_brings_its_own_origin_answer_and_kept_columns(tmp_path: Path) -> None:
    own: dict[str, Any] = {"meta": '{"m": "A"}', "origin": "A", "answer": "1"}
    run = make_run(tmp_path / "run", [trace("a", 0, **own), trace("a", 1)])
    content = (lambda c: c.texts(c.selected[0]))(ListedTraces({"run": run}, 10))
    one, other = content["traces"]
    assert one.items() >= own.items() and not own.keys() & other.keys()
    assert content["answer"] == "a" and content["meta"] is None
