"""Countdown problems and answers: reach a target by arithmetic on given numbers, each used exactly once.

Answers are parsed here and computed with fractions. Python never evaluates them, so 1 / 3 * 3 is exactly 1 and an
answer cannot run code.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from rlt_data.errors import SettingsError
from rlt_data.settings import CountdownSettings

#: Longer answers, in characters, are wrong without being parsed.
LONGEST_ANSWER = 500
#: Give up after this many consecutive draws without a new problem.
_MAX_REJECTED_DRAWS = 20_000

_QUESTION = re.compile(r"Combine the numbers ((?:\d+, )*\d+ and \d+) with \+, -, \* and / to reach (\d+)\.")
_TOKEN = re.compile(r"\s*(?:(\d+)|([-+*/()]))")
_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "x": "*", "[": "(", "]": ")"})
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}


@dataclass(frozen=True)
class Problem:
    """A Countdown problem: the numbers, the target, and an expression that reaches it."""

    numbers: tuple[int, ...]
    target: int
    expression: str

    @property
    def key(self) -> str:
        """Identifies the problem: the sorted numbers and the target, whatever the order in the question."""
        return f"{sorted(self.numbers)} {self.target}"

    @property
    def question(self) -> str:
        """The text of the problem."""
        return question_text(self.numbers, self.target)

    def row(self, number: int, split: str) -> dict[str, Any]:
        """Return the problem as a record of a questions file.

        Args:
            number: index of the problem in the file.
            split: ``train`` or ``test``.
        """
        return {
            "id": f"countdown-{split}-{number}",
            "question": self.question,
            "solution": self.expression,
            "answer": self.expression,
            "numbers": list(self.numbers),
            "target": self.target,
        }


def question_text(numbers: Sequence[int], target: int) -> str:
    """Return the text of a problem."""
    *first, last = numbers
    listed = f"{', '.join(map(str, first))} and {last}"
    return (
        f"Combine the numbers {listed} with +, -, * and / to reach {target}. Use every number exactly once; brackets "
        "are allowed. Answer with one expression."
    )


def numbers_and_target(question: str) -> tuple[tuple[int, ...], int] | None:
    """Return the numbers and the target of a question that :func:`question_text` wrote; None for any other question."""
    match = _QUESTION.match(question.strip())
    return (tuple(map(int, re.findall(r"\d+", match[1]))), int(match[2])) if match else None


def problems(settings: CountdownSettings) -> Iterator[Problem]:
    """Yield distinct problems of one split; equal settings give equal problems.

    A problem's split is determined by a hash of its sorted numbers and its target. All files with one ``test_share``
    therefore have disjoint splits, whatever their seeds.

    Raises:
        SettingsError: the ranges contain fewer problems than ``rows``.
    """
    draw = random.Random(f"{settings.seed}/{settings.split}")
    seen: set[str] = set()
    rejected = 0
    while len(seen) < settings.rows:
        problem = _draw(draw, settings)
        if problem is None or problem.key in seen or split_of(problem, settings.test_share) != settings.split:
            rejected += 1
            if rejected == _MAX_REJECTED_DRAWS:
                raise SettingsError(
                    f"--rows: found only {len(seen)} problems of the {settings.split} split in these ranges; widen the "
                    "ranges or ask for fewer"
                )
            continue
        rejected = 0
        seen.add(problem.key)
        yield problem


def split_of(problem: Problem, test_share: float) -> str:
    """Return the split of a problem, ``train`` or ``test``.

    Args:
        problem: the problem.
        test_share: share of all problems that belong to the test split.
    """
    value = int.from_bytes(hashlib.blake2b(problem.key.encode(), digest_size=8).digest(), "big")
    return "test" if value < test_share * 2**64 else "train"


def _draw(draw: random.Random, settings: CountdownSettings) -> Problem | None:
    """Combine random numbers with random operators; return None if a value is out of range."""
    count = draw.randint(settings.fewest, settings.most)
    numbers = [draw.randint(settings.smallest, settings.largest) for _ in range(count)]
    terms = [(number, str(number), 3) for number in numbers]  # value, text, precedence
    while len(terms) > 1:
        right = terms.pop(draw.randrange(len(terms)))
        left = terms.pop(draw.randrange(len(terms)))
        operator = draw.choice(settings.operators)
        value = _apply(operator, Fraction(left[0]), Fraction(right[0]))
        if value is None or value.denominator != 1 or not 0 <= value <= settings.largest_value:
            return None
        precedence = _PRECEDENCE[operator]
        text = f"{_bracketed(left, precedence)} {operator} {_bracketed(right, precedence + (operator in '-/'))}"
        terms.append((int(value), text, precedence))
    target, expression, _ = terms[0]
    if not settings.smallest_target <= target <= settings.largest_target or target in numbers:
        return None
    return Problem(tuple(numbers), target, expression)


def _bracketed(term: tuple[int, str, int], precedence: int) -> str:
    return f"({term[1]})" if term[2] < precedence else term[1]


def why_wrong(answer: str, numbers: tuple[int, ...], target: int) -> str | None:
    """Return why an answer is wrong, or None if it is correct.

    Args:
        answer: an expression, optionally followed by ``= target``.
        numbers: the numbers to use, each exactly as often as it is listed.
        target: the value to reach.
    """
    if len(answer) > LONGEST_ANSWER:
        return "too long to be an expression"
    expression, *claims = answer.translate(_SIGNS).strip().rstrip(".").split("=")
    if len(claims) > 1 or (claims and claims[0].strip() != str(target)):
        return f"claims to be {claims[-1].strip() or 'nothing'}"
    try:
        value, used = _Parser(expression).parse()
    except ValueError as error:
        return str(error)
    except RecursionError:
        return "nested too deeply"
    if Counter(used) != Counter(numbers):
        return f"uses {sorted(used)} instead of {sorted(numbers)}"
    return None if value == target else f"is {value} instead of {target}"


class _Parser:
    """Recursive-descent parser and evaluator for numbers, + - * / and brackets."""

    def __init__(self, text: str) -> None:
        self._tokens: list[str] = []
        self._used: list[int] = []
        position = 0
        text = text.rstrip()
        while position < len(text):
            match = _TOKEN.match(text, position)
            if not match:
                raise ValueError(f"not an expression: {text[position : position + 20]!r}")
            self._tokens.append(match[1] or match[2])
            position = match.end()

    def parse(self) -> tuple[Fraction, list[int]]:
        value = self._sum()
        if self._tokens:
            raise ValueError(f"not an expression at {self._tokens[0]!r}")
        return value, self._used

    def _next(self, accepted: str) -> str | None:
        return self._tokens.pop(0) if self._tokens and self._tokens[0] in accepted else None

    def _sum(self) -> Fraction:
        value = self._product()
        while operator := self._next("+-"):
            value = self._combined(operator, value, self._product())
        return value

    def _product(self) -> Fraction:
        value = self._term()
        while operator := self._next("*/"):
            value = self._combined(operator, value, self._term())
        return value

    def _term(self) -> Fraction:
        if self._next("("):
            value = self._sum()
            if not self._next(")"):
                raise ValueError("a bracket is not closed")
            return value
        if not self._tokens or not self._tokens[0].isdigit():
            raise ValueError("a number is missing")
        number = int(self._tokens.pop(0))
        self._used.append(number)
        return Fraction(number)

    @staticmethod
    def _combined(operator: str, left: Fraction, right: Fraction) -> Fraction:
        value = _apply(operator, left, right)
        if value is None:
            raise ValueError("divides by zero")
        return value


def _apply(operator: str, left: Fraction, right: Fraction) -> Fraction | None:
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    return left / right if right else None
