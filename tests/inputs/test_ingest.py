from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlt_data.errors import InputError
from rlt_data.formats import load_format
from rlt_data.inputs import ingest, recorded_inputs
from rlt_data.inputs.rows import question_id
from rlt_data.settings import InputSettings, parse_settings
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import QUESTIONS_PER_PART
from tests.conftest import write_jsonl


def take(run: RunFolder, path: Path, *, traces: bool = False, **settings: Any) -> None:
    with run.locked():
        ingest(run, parse_settings(InputSettings, {"in": str(path), **settings}), load_format("rlt"), [], traces=traces)


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


def test_all_inputs_of_a_run_are_recorded_by_name(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    for name in ("one", "two", "one"):
        take(run, write_jsonl(tmp_path / f"{name}.jsonl", rows(2)), max_chars=1000)
    names = [{"name": f"{name}.jsonl", "on_hub": False} for name in ("one", "two")]
    assert recorded_inputs(run.step("input")) == names
    # Runs of earlier versions recorded the last input only, and not where it came from.
    assert recorded_inputs({"settings": {"in": "org/rows"}}) == [{"name": "org/rows", "on_hub": None}]
    assert recorded_inputs({}) == []


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
        {**problem, "completion": "a", "batch": 1},
        {**problem, "completion": "b", "batch": 2, "answer": "2"},
        {**problem, "completion": "a", "batch": 2},
    ]
    path = write_jsonl(tmp_path / "traces.jsonl", traces)
    kept, bare = RunFolder(tmp_path / "kept"), RunFolder(tmp_path / "bare")
    take(kept, path, traces=True, keep=["batch"])
    assert [line.split(": ", 1)[1] for line in caplog.messages] == [
        "1 duplicates whose answers or --keep columns differ (the first row's are used)"
    ]
    take(bare, path, traces=True)
    assert len(caplog.messages) == 1  # bare has no such columns
    assert kept.read("traces", 0)["meta"].to_pylist() == ['{"batch": 1}', '{"batch": 2}']
    assert kept.read("traces", 0)["answer"].to_pylist() == ["1", "2"]
    assert kept.read("questions", 0).select(["answer", "meta"]).to_pylist() == [{"answer": "1", "meta": None}]
    assert kept.read("traces", 0, ["trace_id"]) == bare.read("traces", 0, ["trace_id"])
    assert bare.read("traces", 0)["meta"].to_pylist() == [None, None]
    before = bare.read("traces", 0)
    take(bare, path, traces=True, keep=["batch"])
    assert bare.read("traces", 0) == before and "2 rows have traces that are already in the run" in caplog.messages[-1]
    questions_only = RunFolder(tmp_path / "questions")
    take(questions_only, path, keep=["batch"])
    assert questions_only.read("questions", 0)["meta"].to_pylist() == ['{"batch": 1}']
    assert "1 questions whose rows have different answers or --keep columns" in caplog.messages[-2]


def test_the_same_trace_as_explanation_and_completion_is_one_and_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    problem = {"question": "q", "solution": "s"}
    rows = [
        {**problem, "explanation": "a", "answer": "1"},
        {**problem, "completion": "a\n\n<|end_of_explanation|>", "answer": "2"},
    ]
    run = RunFolder(tmp_path / "run")
    take(run, write_jsonl(tmp_path / "traces.jsonl", rows), traces=True)
    assert (
        run.read("traces", 0)["answer"].to_pylist() == ["1"] and "1 rows have traces that are already in" in caplog.text
    )


def origins(run: RunFolder) -> list[tuple[str | None, ...]]:
    traces = run.read("traces", 0, ["completion", "origin", "answer", "meta"])
    return [tuple(row.values()) for row in traces.to_pylist()]


def test_each_trace_keeps_the_origin_answer_and_kept_columns_of_its_row_in_any_order(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"question": question, "solution": "s", "completion": text, "model": model, "answer": answer, "row": number}
        for number, (question, text, model, answer) in enumerate(
            [
                ("q", "one", "B", "1"),
                ("r", "one", "A", "2"),
                ("q", "one", "A", "3"),
                ("q", "two", "A", "4"),
                ("r", "two", None, "5"),
                ("q", "one", None, "6"),
                ("r", "one", "B", None),
                ("q", "three", "B", "8"),
            ]
        )
    ]
    for name, order in (("forth", rows), ("back", rows[::-1])):
        run = RunFolder(tmp_path / name)
        take(run, write_jsonl(tmp_path / "traces.jsonl", order), traces=True, keep=["row"])
        table = run.scan().collect()
        assert len(table) == len(rows)
        for row in table.iter_rows(named=True):
            [expected] = [source for source in rows if row["meta"] == f'{{"row": {source["row"]}}}']
            first = next(source for source in order if source["question"] == expected["question"])
            answer = expected["answer"] or first["answer"]
            assert (row["question"], row["completion"], row["origin"], row["answer"]) == (
                expected["question"], expected["completion"], expected["model"], answer,
            )  # fmt: skip
        keys = set(table["trace_id"])
        take(run, write_jsonl(tmp_path / "more.jsonl", [*order, {**rows[0], "model": "C"}]), traces=True, keep=["row"])
        assert len(keys) == 8 and len(run.keys("traces", 0) - keys) == 1
    assert keys == set(RunFolder(tmp_path / "forth").keys("traces", 0)) & keys


def test_the_origin_is_a_named_column_or_the_first_of_the_usual_ones_that_has_text(tmp_path: Path) -> None:
    record = {"question": "q", "solution": "s", "origin": None, "generator": " ", "model_name": {"id": 7}, "model": "M"}
    cases: list[tuple[dict[str, Any], dict[str, Any], list[str | None]]] = [
        ({"explanation": "a"}, {}, ["M"]),
        ({"explanation": "a", "origin": "O"}, {}, ["O"]),
        ({"explanation": "a", "model": 7}, {}, [None]),
        ({"explanation": "a", "model": 7}, {"origin_column": "model"}, ["7"]),
        ({"explanation": "a"}, {"origin_column": "model_name.id"}, ["7"]),
        ({"generations": ["a", "b"], "model": ["A", "B"]}, {}, ["A", "B"]),
        ({"generations": ["a", "b"], "by": ["A", "B"]}, {"origin_column": "by"}, ["A", "B"]),
        ({"generations": ["a", "b"]}, {}, ["M", "M"]),
    ]
    for number, (more, settings, expected) in enumerate(cases):
        run = RunFolder(tmp_path / str(number))
        take(run, write_jsonl(tmp_path / "rows.jsonl", [{**record, **more}]), traces=True, **settings)
        assert run.read("traces", 0)["origin"].to_pylist() == expected
    path = write_jsonl(tmp_path / "rows.jsonl", [{**record, "explanation": "a"}])
    with pytest.raises(InputError, match="line 1: origin: expected text, got an object"):
        take(RunFolder(tmp_path / "bad"), path, traces=True, origin_column="model_name")
    with pytest.raises(InputError, match="--origin-column: no column 'author'"):
        take(RunFolder(tmp_path / "bad"), path, traces=True, origin_column="author")


def test_traces_that_an_earlier_version_imported_keep_their_keys(tmp_path: Path) -> None:
    rows = [
        {"question": "q", "solution": "s", "explanation": text, "model": model}
        for text, model in (("a", "A"), ("b", "B"), ("a", "B"))
    ]
    path = write_jsonl(tmp_path / "traces.jsonl", [{**row, "model": None} for row in rows])
    run = RunFolder(tmp_path / "run")
    take(run, path, traces=True)  # keys without origins, as earlier versions made them
    before = run.keys("traces", 0)
    entry = run.step("input")
    del entry["origins_in_keys"]
    run.write_json("run.json", {"version": 2, "steps": {"input": entry}})
    write_jsonl(path, [*rows, {**rows[0], "explanation": "c"}])
    for _ in range(2):
        take(run, path, traces=True)
        assert before < run.keys("traces", 0)
        assert origins(run) == [(f"{text}\n\n<|end_of_explanation|>", origin, None, None)
                                for text, origin in (("a", None), ("b", None), ("c", "A"))]  # fmt: skip


def test_an_import_that_was_killed_continues_with_the_same_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"question": "q", "solution": "s", "explanation": f"{i}", "model": f"{i}"} for i in range(9)]
    path = write_jsonl(tmp_path / "traces.jsonl", rows)
    whole, run = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "run")
    take(whole, path, traces=True)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "compact_all", _killed_after_the_questions(RunFolder.compact_all))
        with pytest.raises(KeyboardInterrupt):
            take(run, path, traces=True)
    assert "digest" not in run.step("input") and len(run.keys("traces", 0)) == 9
    take(run, path, traces=True)
    assert run.read("traces", 0) == whole.read("traces", 0)


def _killed_after_the_questions(compact_all: Callable[[RunFolder, str], None]) -> Callable[[RunFolder, str], None]:
    def killed(run: RunFolder, table: str) -> None:
        if table == "traces":
            raise KeyboardInterrupt
        compact_all(run, table)

    return killed


def test_a_system_text_is_stored_and_is_part_of_the_key(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    plain = {"question": "q", "solution": "s"}
    take(run, write_jsonl(tmp_path / "rows.jsonl", [plain, {**plain, "system": "Be brief."}, {**plain, "system": ""}]))
    table = run.read("questions", 0)
    assert table["system"].to_pylist() == [None, "Be brief."]
    assert table["question_id"].to_pylist() == [question_id("q", "s"), question_id("q", "s", "Be brief.")]
    assert question_id("q", "s") == "6b427f9a7720fcd2c35f6d81efd446b3"  # keys of earlier runs
