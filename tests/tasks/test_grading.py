"""Grading answers, including those that hang or crash the grader."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlt_data.errors import ModelError
from rlt_data.tasks.grading import Grader, final_answer, grade

pytest.importorskip("math_verify", reason="needs the extra eval")


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader() as grader:
        yield grader


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("So \\boxed{\\frac{1}{2}} and then \\boxed{x^{2}}.", "x^{2}"),
        ("We get 5.\nThe answer is 72.", "72"),
        ("Final answer: 1,234", "1,234"),
        ("... #### 18", "18"),
        ("The answer is 3. No: the answer is 4.\n", "4"),
        ("\\boxed{unclosed", "\\boxed{unclosed"),
        ("42", "42"),
        ("The answer is 5. Let me check it.", "5"),
        ("#### Steps\nAdd.\nDone", "#### Steps\nAdd.\nDone"),
    ],
)
def test_the_final_answer_is_found(solution: str, answer: str) -> None:
    assert final_answer(solution) == answer


@pytest.mark.parametrize(
    ("kind", "solution", "gold", "correct"),
    [
        ("math", "The answer is \\boxed{0.5}.", "\\frac{1}{2}", True),
        ("math", "The answer is 33.", "033", True),
        ("math", "The answer is $1{,}234$.", "1234", True),
        ("math", "It is \\boxed{(3, \\frac{\\pi}{2})}", "\\left( 3, \\frac{\\pi}{2} \\right)", True),
        ("math", "It is \\boxed{(3, \\frac{\\pi}{3})}", "\\left( 3, \\frac{\\pi}{2} \\right)", False),
        ("math", "The answer is 34.", "033", False),
        ("math", "", "5", False),
        ("math", "8n^2 + 4n + 1", "1", False),
        ("math", "42 because 6 * 7 = 42", "42", True),
        ("choice", "The answer is (C).", "C", True),
        ("choice", "\\boxed{C}", "B", False),
        ("choice", "None of them.", "B", False),
    ],
)
def test_answers_are_compared(grader: Grader, kind: str, solution: str, gold: str, correct: bool) -> None:
    assert grader.grade(kind, solution, gold).correct is correct  # type: ignore[arg-type]


def test_countdown_is_checked_against_its_numbers(grader: Grader) -> None:
    problem = {"numbers": [3, 4, 5], "target": 7}
    assert grader.grade("countdown", "3 * 4 - 5", "", **problem).correct
    assert grader.grade("countdown", "3 + 4", "", **problem).note == "uses [3, 4] instead of [3, 4, 5]"


def test_a_hanging_answer_does_not_affect_the_next() -> None:
    with Grader() as grader:
        assert grader.grade("math", "\\boxed{2}", "2").correct  # the imports of the first one take their time
        grader._timeout = 1.0
        endless = grader.grade("math", "\\boxed{9999999^{999999999}}", "\\sqrt{2}")
        assert not endless.correct and endless.note == "the grader did not finish within 1 s"
        assert grader.grade("countdown", "1 + 1", "", numbers=[1, 1], target=2).correct


def test_an_answer_that_raises_in_the_grader_is_wrong_with_a_note(grader: Grader) -> None:
    grade = grader.grade("countdown", "1 + 1", "", numbers=["x"], target="no number")
    assert not grade.correct and grade.note == "the grader failed: ValueError"
    assert grader.grade("math", "5", "5").correct


def test_an_answer_that_needs_too_much_memory_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "math_verify.py").write_text(
        "def parse(text, **options): return bytearray(64 * 2**30) if 'large' in text else [text]\n"
        "def verify(*pair, **options): return True\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Grader() as grader:
        grade = grader.grade("math", "large", "5")
        assert grade.failed and grade.note == "the grader died of this answer"
        assert grader.grade("math", "5", "5").correct


def test_a_crashed_grader_is_restarted() -> None:
    with Grader() as grader:
        assert grader.grade("math", "5", "5").correct
        assert grader._process is not None
        grader._process.kill()
        grader._process.wait()
        assert grader.grade("math", "5", "5").note == "the grader died of this answer"
        assert grader.grade("math", "5", "5").correct


def test_a_grader_that_cannot_start_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ModelError, match=r"rlt-data\[eval\]"), Grader() as grader:
        grader.grade("math", "5", "5")


def test_grading_in_this_process_accepts_equal_answers() -> None:
    assert grade("math", "\\boxed{\\sqrt{8}}", "2\\sqrt{2}").correct
