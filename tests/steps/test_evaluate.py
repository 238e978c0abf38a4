"""Accuracy on benchmarks: sampling answers, grading them, and the figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from rlt_data.formats import load_format
from rlt_data.formats.views import tagged_solution
from rlt_data.inputs.rows import BadRow
from rlt_data.progress import SILENT
from rlt_data.settings import EvaluateSettings
from rlt_data.steps.compare import mean_interval
from rlt_data.steps.evaluate import evaluation_of, grade_answers
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import to_table
from rlt_data.tasks.answers import gold_letter
from rlt_data.tasks.benchmarks import BENCHMARKS
from rlt_data.tasks.grading import Grader, grade
from tests.conftest import Rlt, write_jsonl
from tests.killing import table_bytes

pytest.importorskip("math_verify", reason="needs the extra eval")

Tiny = Callable[..., Path]
Read = Callable[[Path, str], pl.DataFrame]


def answered(thought: str, solution: str) -> str:
    return (
        f"<|begin_of_thought|>\n\n{thought}\n\n<|end_of_thought|>\n\n"
        f"<|begin_of_solution|>\n\n{solution}\n\n<|end_of_solution|>"
    )


def graded_run(folder: Path, gold: dict[str, str], completions: dict[str, list[str]]) -> RunFolder:
    """Make a run with the given answers, graded as gsm8k."""
    run = RunFolder(folder)
    questions = [{"question_id": key, "question": key, "solution": text, "answer": text} for key, text in gold.items()]
    run.write_part("questions", 0, to_table("questions", questions))
    answers = [
        {
            "answer_id": f"{key}-{index}",
            "question_id": key,
            "sample_index": index,
            "completion": text,
            "finish_reason": "stop" if text.endswith(">") else "length",
            "completion_tokens": len(text),
            "made_by": "test",
        }
        for key, texts in completions.items()
        for index, text in enumerate(texts)
    ]
    run.write_part("answers", 0, to_table("answers", answers))
    with Grader() as grader:
        grade_answers(run, BENCHMARKS["gsm8k"], partial(tagged_solution, load_format("rlt")), grader, SILENT)
    return run


def test_figures_follow_from_the_grades(tmp_path: Path) -> None:
    gold = {"a": "4", "b": "1,000", "c": "7"}
    completions = {
        "a": [answered("2 + 2", "The answer is 4."), answered("", "5"), answered("", "It is \\boxed{4}"), "4"],
        "b": [answered("", "1000"), answered("", "999"), answered("", "999"), answered("", "998")],
        "c": [answered("", "x"), "<|begin_of_thought|> on and", answered("", "8"), answered("", "8")],
    }
    run = graded_run(tmp_path / "run", gold, completions)
    settings = EvaluateSettings(model="m", benchmark="gsm8k", n=4, temperature=1.0)
    evaluation = evaluation_of(run, settings)
    right = {"a": 3, "b": 1, "c": 0}
    assert (evaluation.questions, evaluation.answers) == (3, 12)
    assert evaluation.accuracy == pytest.approx((3 / 4 + 1 / 4 + 0) / 3)
    assert evaluation.pass_at == {
        k: pytest.approx(sum(1 - comb(4 - hits, k) / comb(4, k) for hits in right.values()) / 3) for k in (1, 2, 4)
    }
    assert evaluation.majority == pytest.approx(1 / 3)  # only a: 4 is given three times; b's 999 is wrong
    assert evaluation.formatted == pytest.approx(10 / 12) and evaluation.truncated == pytest.approx(2 / 12)
    assert evaluation.low <= evaluation.accuracy <= evaluation.high and evaluation.low < evaluation.high
    assert evaluation_of(run, settings.model_copy(update={"n": 1})).accuracy == pytest.approx(2 / 3)


def test_grading_again_changes_no_grade(tmp_path: Path) -> None:
    completions = {"a": [answered("", "4")]}
    run = graded_run(tmp_path / "run", {"a": "4"}, completions)
    before = table_bytes(run.path, "grades")
    graded_run(tmp_path / "run", {"a": "4"}, completions)
    assert table_bytes(run.path, "grades") == before


@pytest.mark.parametrize(
    ("completion", "solution", "formatted"),
    [
        (answered("t", "s"), "s", True),
        ("\n" + answered("t", "s") + "\n", "s", True),
        ("words " + answered("t", "s"), "s", False),
        (answered("t", "s") + " more", "s", False),
        ("<|begin_of_thought|> t <|end_of_thought|> s", "s", False),
        ("<|begin_of_thought|> t", "<|begin_of_thought|> t", False),
        ("just 5", "just 5", False),
    ],
)
def test_the_solution_is_extracted_with_and_without_the_format(completion: str, solution: str, formatted: bool) -> None:
    assert tagged_solution(load_format("rlt"), completion) == (solution, formatted)


def test_a_second_evaluation_adds_nothing(rlt: Rlt, read: Read, tiny: Tiny) -> None:
    rlt("countdown", "make", "--out", "problems.jsonl", "--rows", 5, "--split", "test")
    options = (
        "--model",
        tiny(),
        "--benchmark",
        "countdown",
        "--in",
        "problems.jsonl",
        "--max-tokens",
        12,
        "--out",
        "run",
    )
    result = rlt("evaluate", *options, "--n", 2, "--temperature", 1)
    assert "10 answers to 5 questions" in result.stdout and "accuracy 0.0%" in result.stdout
    grades = read(Path("run"), "grades")
    assert len(grades) == 10 and not grades["correct"].any() and grades["note"].is_not_null().all()
    before = {table: table_bytes(Path("run"), table) for table in ("answers", "grades")}
    assert rlt("evaluate", *options, "--n", 2, "--temperature", 1).stdout == result.stdout
    assert {table: table_bytes(Path("run"), table) for table in ("answers", "grades")} == before
    assert json.loads(Path("run/evaluation.json").read_text())["accuracy"] == 0.0
    assert "15 answers" in rlt("evaluate", *options, "--n", 3, "--temperature", 1).stdout
    stderr = rlt("evaluate", *options, "--n", 3, "--temperature", 0.5, code=5).stderr
    assert "temperature was 1.0, now 0.5" in stderr


@pytest.mark.parametrize(
    ("gold", "letter"),
    [
        *(("B", "B"), (" (b) ", "B"), ("B.", "B"), ("C)", "C"), ("(D) 7 apples", "D"), ("A: one\ntwo", "A")),
        *((text, None) for text in ("2", "Berlin", "A cat", "AB", "", "(", "K", "B7")),
    ],
)
def test_the_letter_of_a_choice_is_read(gold: str, letter: str | None) -> None:
    assert gold_letter(gold) == letter
    if letter:
        assert grade("choice", f"The answer is {letter}.", gold).correct
        assert not grade("choice", "The answer is E.", gold).correct


def test_an_answer_that_is_no_letter_is_a_bad_row(rlt: Rlt, tiny: Tiny) -> None:
    rows = [{"question": "q", "answer": "B."}, {"question": "r", "answer": 2}, {"question": "s", "answer": True}]
    command = "evaluate", "--model", tiny(), "--benchmark", "choice", "--in", write_jsonl(Path("rows.jsonl"), rows)
    command += "--max-tokens", 4, "--out", "run"
    error = rlt(*command, code=3).stderr
    assert "2 of 3 rows are bad; --skip-bad-rows leaves them out" in error
    assert "2: answer: must be the letter of a choice, such as B" in error
    assert "3: answer: must be a text or a number" in error
    assert "1 answers to 1 questions" in rlt(*command, "--skip-bad-rows").stdout


@pytest.mark.parametrize("benchmark", ["countdown", "gpqa-diamond"])
def test_columns_of_a_benchmark_with_several_are_not_replaced(rlt: Rlt, tiny: Tiny, benchmark: str) -> None:
    rows = write_jsonl(Path("rows.jsonl"), [{"question": "q", "numbers": [3, 4], "target": 7}] * 2)
    columns = "--in", rows, "--question-column", "question", "--answer-column", "target"
    error = rlt("evaluate", "--model", tiny(), "--benchmark", benchmark, *columns, "--out", "run", code=2).stderr
    assert f"--question-column, --answer-column: {benchmark} has its own columns" in error
    if benchmark == "countdown":
        error = rlt("train-solver", "--model", tiny(), "--benchmark", benchmark, *columns, "--out", "s", code=2).stderr
        assert "--question-column, --answer-column: countdown has its own columns" in error


def test_answers_that_fail_are_counted_as_answers(rlt: Rlt) -> None:
    rows = [{"numbers": [1, 2, 3], "target": 6}, {"question": "Why?", "numbers": [1, 2, 3], "target": 6}]
    command = "evaluate", "--model", "nano", "--benchmark", "countdown", "--in", write_jsonl(Path("rows.jsonl"), rows)
    printed = rlt(*command, "--n", 3, "--temperature", 1, "--max-tokens", 20, "--out", "run", code=4).stdout
    assert "3 answers failed and are not counted" in printed
    assert json.loads(Path("run/evaluation.json").read_text())["failed"] == 3


@pytest.mark.parametrize("right", [0, 1])
def test_answers_that_are_all_wrong_or_all_right_have_an_interval(right: int) -> None:
    low, high = mean_interval(np.full(30, float(right)))
    scipy = pytest.importorskip("scipy.stats").binomtest(30 * right, 30).proportion_ci(method="exact")
    assert (low, high) == pytest.approx((scipy.low, scipy.high)) and high - low > 0.1


def test_an_evaluation_without_answers_says_why(rlt: Rlt) -> None:
    rows = write_jsonl(Path("rows.jsonl"), [{"question": "Why is the sky blue?", "answer": "7"}])
    flags = "evaluate", "--model", "nano", "--benchmark", "math", "--in", rows, "--max-tokens", 5, "--out", "run"
    assert "run: no question has an answer: the model's vocabulary lacks" in rlt(*flags, code=3).stderr


def test_prompts_contain_only_the_question(rlt: Rlt, read: Read, tiny: Tiny, tmp_path: Path) -> None:
    for name, answer in (("one", "7"), ("other", "a much longer gold answer that would change every prompt")):
        rows = write_jsonl(tmp_path / f"{name}.jsonl", [{"question": "What is 3 + 4?", "answer": answer}])
        rlt("evaluate", "--model", tiny(), "--benchmark", "math", "--in", rows, "--max-tokens", 5, "--out", name)
    one, other = (read(Path(name), "answers") for name in ("one", "other"))
    assert one["prompt_tokens"].equals(other["prompt_tokens"]) and one["completion"].equals(other["completion"])


def test_prompts_of_a_file_are_used_and_recorded(rlt: Rlt, read: Read, tiny: Tiny, tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"question": "What is 3 + 4?", "answer": "7"}])
    prompts = tmp_path / "mine.yaml"
    prompts.write_text("question_template: 'Box it. {question}'\nsolver_system: ''\n")
    flags = "--model", tiny(), "--benchmark", "math", "--in", rows, "--max-tokens", 5, "--out"
    rlt("evaluate", *flags, "own")
    text = rlt("evaluate", *flags, "other", "--prompts", prompts).stdout
    assert "prompts of mine.yaml: 'Box it. {question}'" in text and "system text: ''" in text
    recorded = {
        "source": "mine.yaml",
        "version": None,
        "question_template": "Box it. {question}",
        "solver_system": "",
    }
    assert json.loads(Path("other/evaluation.json").read_text())["prompts"] == recorded
    assert json.loads(Path("other/run.json").read_text())["steps"]["evaluate"]["prompts"] == recorded
    own, other = (read(Path(name), "answers")["prompt_tokens"][0] for name in ("own", "other"))
    assert own > other  # without the system text
    assert read(Path("own"), "questions").equals(read(Path("other"), "questions"))
    assert "prompts was 'mine.yaml', now 'format rlt'" in rlt("evaluate", *flags, "other", code=5).stderr
    prompts.write_text("solver_system: ''\n")
    assert "texts of format 'rlt' differ" in rlt("evaluate", *flags, "other", "--prompts", prompts, code=5).stderr
    assert "neither rlt, lighteval nor" in rlt("evaluate", *flags, "new", "--prompts", "none.yaml", code=2).stderr
    assert not Path("new").exists()


@pytest.mark.parametrize(
    ("name", "record", "question", "gold"),
    [
        ("gsm8k", {"question": "q", "answer": "1 + 1 = <<1+1=2>>2\n#### 1,002"}, "q", "1002"),
        ("math500", {"problem": "p", "answer": "\\frac12", "solution": "s"}, "p", "\\frac12"),
        ("aime24", {"problem": "p", "answer": "033"}, "p", "033"),
        ("countdown", {"nums": [3, 4], "target": 7}, "Combine the numbers 3 and 4", "7"),
        ("countdown", {"question": "own", "numbers": [3, 4], "target": 7}, "own", "7"),
    ],
)
def test_records_of_benchmarks_are_read(name: str, record: dict[str, Any], question: str, gold: str) -> None:
    fields = BENCHMARKS[name].row(record)
    assert fields[0].startswith(question) and fields[1] == gold
    assert bool(fields[2]) == (name == "countdown")


def test_choices_are_shuffled_by_a_hash_of_the_question() -> None:
    record = {
        "Question": "Which?",
        "Correct Answer": "right",
        **{f"Incorrect Answer {i}": f"no {i}" for i in (1, 2, 3)},
    }
    text, letter, _ = BENCHMARKS["gpqa-diamond"].row(record)
    assert f"{letter}) right" in text and BENCHMARKS["gpqa-diamond"].row(record)[1] == letter
    letters = {BENCHMARKS["gpqa-diamond"].row(record | {"Question": f"Which {i}?"})[1] for i in range(40)}
    assert letters == set("ABCD")


@pytest.mark.parametrize("record", [{"nums": "3, 4", "target": 7}, {"nums": [3, 4]}, {"nums": [], "target": 1}])
def test_records_without_numbers_or_target_are_bad_rows(record: dict[str, Any]) -> None:
    with pytest.raises(BadRow):
        BENCHMARKS["countdown"].row(record)


def test_mistakes_get_one_line(rlt: Rlt, tiny: Tiny, tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"question": "q"}])
    model = "--model", tiny(), "--benchmark"
    assert "--in: " in rlt("evaluate", *model, "math", code=2).stderr
    assert "answer: " in rlt("evaluate", *model, "math", "--in", rows, code=3).stderr
    columns = "--question-column", "question", "--answer-column", "gold"
    assert "'gold'" in rlt("evaluate", *model, "math", "--in", rows, *columns, code=3).stderr
    assert "at temperature 0" in rlt("evaluate", *model, "math", "--in", rows, "--n", 2, code=2).stderr
    assert "fewest" in rlt("countdown", "make", "--out", "x", "--fewest", 4, "--most", 3, code=2).stderr
    assert not Path("x").exists()
