"""Signal ``answer``: the final answer of a trace, and whether it is the known one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import polars as pl

from rlt_data.inputs.questions import asks_for_code
from rlt_data.progress import Progress
from rlt_data.settings import CurateSettings
from rlt_data.signals.base import Column, Signal
from rlt_data.signals.parallel import cores
from rlt_data.tasks.answers import bare_answer, chosen, compared, is_choice, normal, options
from rlt_data.tasks.countdown import numbers_and_target, why_wrong
from rlt_data.tasks.grading import TIMEOUT, Graders, stated_answer

Verdict = Literal["correct", "wrong", "none", "timeout", "code"]

_READS = ("question", "answer", "question_meta", "question_solution", "trace_solution", "explanation")


@dataclass(frozen=True)
class _Problem:
    """What the answer to a question is compared with.

    Attributes:
        known: the known answer; the text of the choice if the answer is its letter.
        letter: letter of the right choice, if the answer is a choice.
        options: texts of the choices by letter.
        countdown: numbers and target of a Countdown problem.
        is_code: whether the question asks for a program, whose answers are not compared.
    """

    known: str | None
    letter: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    countdown: tuple[tuple[int, ...], int] | None = None
    is_code: bool = False

    def verdict(self, answer: str) -> Verdict | None:
        """Return the verdict on an answer; None if only math-verify can tell."""
        if self.countdown:
            return "wrong" if why_wrong(_arithmetic(answer), *self.countdown) else "correct"
        if self.known is None:
            return "none"
        equal: bool | None
        if self.letter and (choice := chosen(answer, self.options)):
            equal = choice == self.letter
        else:
            equal = compared(answer, self.known)
        return None if equal is None else "correct" if equal else "wrong"


def _problem(question: str, known: str | None, meta: str | None) -> _Problem:
    if asks_for_code(question):
        return _Problem(None, is_code=True)
    countdown = _countdown(meta) or numbers_and_target(question)
    if known is None or countdown:
        return _Problem(known, countdown=countdown)
    listed = options(question)
    letter = is_choice(known, listed)
    return _Problem(known if letter != normal(known).strip("()") else listed[letter] or known, letter, listed)


def _arithmetic(answer: str) -> str:
    """Return an expression without LaTeX."""
    for command, sign in (
        ("\\times", "*"),
        ("\\cdot", "*"),
        ("\\div", "/"),
        ("\\left", ""),
        ("\\right", ""),
        ("$", ""),
    ):
        answer = answer.replace(command, sign)
    return answer.strip()


def _countdown(meta: str | None) -> tuple[tuple[int, ...], int] | None:
    """Return numbers and target from the kept columns of a question, if it has them."""
    values = json.loads(meta or "null")
    if not isinstance(values, dict):
        return None
    numbers, target = values.get("numbers", values.get("nums")), values.get("target")
    if type(target) is not int or not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
        return None
    return tuple(numbers), target


def _known_answer(answer: str | None, solution: str | None) -> str | None:
    """Return the known answer: that of the row or question, or the one that the question's known solution states."""
    return answer or (solution and _answer_of(solution)) or None


def _answer_of(solution: str) -> str | None:
    return stated_answer(solution) or bare_answer(solution)


def _final_answer(solution: str | None, explanation: str | None) -> str | None:
    """Return the answer of a trace, which its own solution states, or else its explanation."""
    return (solution and _answer_of(solution)) or (explanation and stated_answer(explanation)) or None


def _compute(frames: Iterable[pl.DataFrame], settings: CurateSettings, progress: Progress) -> Iterator[pl.DataFrame]:
    with Graders(cores(), TIMEOUT) as graders:
        for frame in frames:
            yield _verdicts(frame, graders)
            progress.advance(len(frame))


def _verdicts(frame: pl.DataFrame, graders: Graders) -> pl.DataFrame:
    problem = cache(_problem)
    answers: list[str | None] = []
    problems: list[_Problem] = []
    for question, known, meta, solution, trace_solution, explanation in frame.select(_READS).iter_rows():
        asked = problem(question, _known_answer(known, solution), meta)
        problems.append(asked)
        answers.append(None if asked.is_code else _final_answer(trace_solution, explanation))

    verdicts: dict[tuple[int, str], Verdict | None] = {}
    open_pairs: dict[tuple[str, str], None] = {}
    for answer, asked in zip(answers, problems, strict=True):
        if answer is not None and (id(asked), answer) not in verdicts:
            verdict = verdicts[id(asked), answer] = asked.verdict(answer)
            if verdict is None and asked.known is not None:
                open_pairs[answer, asked.known] = None
    grades = dict(zip(open_pairs, graders.grade(list(open_pairs)), strict=True)) if open_pairs else {}

    def verdict_of(answer: str | None, asked: _Problem) -> Verdict:
        if answer is None:
            return "code" if asked.is_code else "none"
        verdict = verdicts[id(asked), answer]
        if verdict is not None or asked.known is None:
            return verdict or "none"
        grade = grades[answer, asked.known]
        return "timeout" if grade.failed else "correct" if grade.correct else "wrong"

    return frame.select(
        "trace_id",
        pl.Series("answer_verdict", map(verdict_of, answers, problems), pl.String),
        pl.Series("final_answer", answers, pl.String),
    )


SIGNAL = Signal(
    name="answer",
    level="trace",
    columns={
        "answer_verdict": Column(
            pl.String,
            "whether final_answer is the known answer: correct, wrong, none (one of them is missing), timeout (the "
            "grader failed) or code (the question asks for a program)",
        ),
        "final_answer": Column(pl.String, "answer that the trace states; null: none"),
    },
    reads=_READS,
    compute=_compute,
    package="math-verify",
    version=3,
)
