"""Benchmarks: their data sets on the Hub, and the conversion of their records to questions with gold answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from rlt_data.errors import InputError, SettingsError
from rlt_data.inputs.rows import BadRow, Row
from rlt_data.inputs.rows import Fields as InputFields
from rlt_data.settings import EvaluateSettings, TrainSolverSettings
from rlt_data.tasks.answers import gold_letter
from rlt_data.tasks.countdown import question_text
from rlt_data.tasks.grading import Kind, final_answer

Fields = dict[str, Any]

_LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    Attributes:
        kind: kind of its answers, which determines the grader.
        row: converts a record to question, gold answer and, for Countdown, numbers and target.
        hub: Hub id of its data set; None if it has none.
        subset: configuration of the data set.
        split: split of the data set.
        template: what a model is asked; ``{question}`` is replaced by the question.
        one_column: whether a question is one column, so that settings can name another.
    """

    kind: Kind
    row: Callable[[Fields], tuple[str, str, Fields]]
    hub: str | None = None
    subset: str | None = None
    split: str = "test"
    template: str = "{question}"
    one_column: bool = True


def _math(question: str, answer: str) -> Callable[[Fields], tuple[str, str, Fields]]:
    return lambda data: (_text(data, question), _text(data, answer), {})


def _gsm8k(data: Fields) -> tuple[str, str, Fields]:
    return _text(data, "question"), final_answer(_text(data, "answer")).replace(",", ""), {}


def _gpqa(data: Fields) -> tuple[str, str, Fields]:
    """List the choices in an order that depends only on the question and their texts."""
    question, correct = _text(data, "Question"), _text(data, "Correct Answer")
    choices = [correct, *(_text(data, f"Incorrect Answer {number}") for number in (1, 2, 3))]
    choices.sort(key=lambda choice: hashlib.blake2b(f"{question}/{choice}".encode()).digest())
    text = f"{question.strip()}\n\n{listed_choices([choice.strip() for choice in choices])}"
    return text, _LETTERS[choices.index(correct)], {}


def listed_choices(choices: Sequence[str]) -> str:
    """Return choices as lines with their letters."""
    return "\n".join(f"{letter}) {choice}" for letter, choice in zip(_LETTERS, choices, strict=False))


def _countdown(data: Fields) -> tuple[str, str, Fields]:
    numbers, target = data.get("numbers", data.get("nums")), data.get("target")
    if not isinstance(numbers, list) or not numbers or not all(isinstance(number, int) for number in numbers):
        raise BadRow("numbers: must be a list of integers")
    if not isinstance(target, int):
        raise BadRow("target: must be an integer")
    question = data.get("question") or question_text(numbers, target)
    return str(question), str(target), {"numbers": numbers, "target": target}


BENCHMARKS = {
    "aime24": Benchmark("math", _math("problem", "answer"), "HuggingFaceH4/aime_2024", split="train"),
    "math500": Benchmark("math", _math("problem", "answer"), "HuggingFaceH4/MATH-500"),
    "gpqa-diamond": Benchmark(
        "choice",
        _gpqa,
        "Idavidrein/gpqa",
        "gpqa_diamond",
        "train",
        "{question}\n\nAnswer with the letter of the right choice.",
        one_column=False,
    ),
    "gsm8k": Benchmark("math", _gsm8k, "openai/gsm8k", "main"),
    "countdown": Benchmark("countdown", _countdown, "Jiayi-Pan/Countdown-Tasks-3to4", split="train", one_column=False),
    "math": Benchmark("math", _math("question", "answer")),
    "choice": Benchmark("choice", _math("question", "answer")),
}


class BenchmarkReader:
    """Converts records of a benchmark to rows; the gold answer takes the place of the solution.

    Args:
        benchmark: the benchmark.
        settings: settings that may name the columns of the question and the answer.
        first: the first record.
        source: the input, for messages.

    Raises:
        InputError: the record lacks a named column.
        SettingsError: columns are named, but the benchmark has its own.
    """

    preset: str = "benchmark"

    def __init__(
        self, benchmark: Benchmark, settings: EvaluateSettings | TrainSolverSettings, first: Fields, source: str
    ) -> None:
        self.found: InputFields = {}  # origins are those of the benchmark
        self._benchmark = benchmark
        columns = {"question": settings.question_column, "answer": settings.answer_column}
        self._named = {field: column for field, column in columns.items() if column}
        if self._named and not benchmark.one_column:
            raise SettingsError(
                f"--question-column, --answer-column: {settings.benchmark} has its own columns; leave out both flags"
            )
        for column in self._named.values():
            if column not in first:
                raise InputError(f"{source}: no column {column!r}; the columns are {', '.join(first)}")

    def __call__(self, data: Fields, number: int) -> list[Row]:
        """Convert a record to a row.

        Args:
            data: the record.
            number: its index in the data set, the id of records without one.

        Raises:
            BadRow: a field is missing or has the wrong type.
        """
        if self._named:
            question, gold = _text(data, self._named["question"]), _text(data, self._named["answer"])
            problem: Fields = {}
        else:
            question, gold, problem = self._benchmark.row(data)
        if self._benchmark.kind == "choice" and gold_letter(gold) is None:
            raise BadRow(f"{self._named.get('answer', 'answer')}: must be the letter of a choice, such as B")
        source_id = data.get("id", data.get("unique_id"))
        row = Row(
            question=question,
            solution=gold,
            answer=gold,
            source_id=str(number) if source_id is None else str(source_id),
            has_id=source_id is not None,
            meta=json.dumps(problem) if problem else None,
        )
        return [row]


def _text(data: Fields, column: str) -> str:
    value = data.get(column)
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        return str(value)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise BadRow(f"{column}: missing or empty")
    if not isinstance(value, str):
        raise BadRow(f"{column}: must be a text or a number")
    return value
