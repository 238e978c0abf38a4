"""Making Countdown problems and checking answers."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlt_data.errors import SettingsError
from rlt_data.settings import CountdownSettings
from rlt_data.tasks.countdown import problems, why_wrong
from tests.children import Child, run_child


def settings(**changes: object) -> CountdownSettings:
    return CountdownSettings(out="x.jsonl", **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("operators", "fewest", "most"), [("+-*/", 3, 4), ("+-*/", 6, 6), ("+-*", 2, 5), ("/", 2, 2), ("-", 2, 3)]
)
def test_every_problem_is_solved_by_its_expression(operators: str, fewest: int, most: int) -> None:
    options = settings(rows=20, operators=operators, fewest=fewest, most=most, smallest_target=1, largest=400)
    drawn = list(problems(options))
    for problem in drawn:
        assert fewest <= len(problem.numbers) <= most and 1 <= problem.target <= 100
        assert all(1 <= number <= 400 for number in problem.numbers)
        assert why_wrong(problem.expression, problem.numbers, problem.target) is None
        assert set(problem.expression) <= set("0123456789 ()" + operators)
    assert len({problem.key for problem in drawn}) == 20


def test_splits_share_no_problem_whatever_the_seed() -> None:
    ranges = {"smallest": 1, "largest": 6, "fewest": 3, "most": 3, "smallest_target": 1}
    train = {p.key for seed in range(3) for p in problems(settings(rows=150, seed=seed, **ranges))}
    test = {p.key for seed in range(3) for p in problems(settings(rows=50, seed=seed, split="test", **ranges))}
    assert train and test and not train & test


def test_a_seed_makes_the_same_problems_and_another_seed_others() -> None:
    first, again, other = (list(problems(settings(rows=30, seed=seed))) for seed in (1, 1, 2))
    assert first == again and not {p.key for p in first} & {p.key for p in other}


def test_more_rows_than_problems_is_an_error() -> None:
    with pytest.raises(SettingsError, match="only [0-9]+ problems"):
        list(problems(settings(rows=1000, smallest=1, largest=2, fewest=2, most=2, smallest_target=1)))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("3 * 4 - 5", None),
        ("(4*3) - 5.", None),
        ("3 × 4 − 5 = 7", None),
        ("[3 x 4] - 5", None),
        ("4 / (1 / 3) - 5", "uses"),
        ("3 * 4 - 5 = 8", "claims to be 8"),
        ("3 * 4 = 12 - 5 = 7", "claims"),
        ("3 + 4 - 5", "is 2 instead of 7"),
        ("3 * 4", "uses"),
        ("3 * 4 - 5 + 5 - 5", "uses"),
        ("3 * 4 - 5)", "not an expression at"),
        ("(3 * 4 - 5", "a bracket is not closed"),
        ("3 4 - 5", "not an expression at"),
        ("-5 + 3 * 4", "a number is missing"),
        ("5 / (3 - 3)", "divides by zero"),
        ("__import__('os')", "not an expression"),
        ("3 ** 4", "a number is missing"),
        ("", "a number is missing"),
        ("(" * 400, "a number is missing|nested"),
        ("9" * 600, "too long"),
    ],
)
def test_answers_are_checked(answer: str, reason: str | None) -> None:
    message = why_wrong(answer, (3, 4, 5), 7)
    assert message is None if reason is None else re.search(reason, message or "")


def test_intermediate_fractions_are_exact() -> None:
    assert why_wrong("8 / (3 - 8 / 3)", (3, 3, 8, 8), 24) is None


@given(st.lists(st.integers(1, 30), min_size=3, max_size=3), st.sampled_from(list(itertools.product("+-*", repeat=2))))
def test_integer_arithmetic_agrees_with_python(numbers: list[int], operators: tuple[str, str]) -> None:
    a, b, c = numbers
    for text in (f"{a} {operators[0]} {b} {operators[1]} {c}", f"{a} {operators[0]} ({b} {operators[1]} {c})"):
        target = eval(text)
        assert why_wrong(text, (a, b, c), target) is None
        assert why_wrong(text, (a, b, c), target + 1) is not None


def import_first_from(folder: str) -> None:
    sys.path.insert(0, folder)


def test_countdown_is_evaluated_without_math_verify(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for package in ("math_verify", "latex2sympy2_extended"):
        (blocked / f"{package}.py").write_text(f"raise ImportError('{package} is blocked')\n")

    monkeypatch.setenv("PYTHONPATH", str(blocked))  # for the process of the grader
    block = partial(import_first_from, str(blocked))
    run_child("countdown", "make", "--out", "problems.jsonl", "--rows", 3, "--split", "test", prepare=block)
    evaluate = "evaluate", "--model", tiny(), "--in", "problems.jsonl", "--max-tokens", 5, "--benchmark"
    assert "3 answers to 3 questions" in run_child(*evaluate, "countdown", "--out", "run", prepare=block).stdout
    child = Child(*evaluate, "math", "--out", "other", prepare=block)
    assert child.wait() == 6 and "math_verify is blocked" in child.stderr and "[eval]" in child.stderr
