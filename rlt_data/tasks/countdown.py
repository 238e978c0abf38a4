"""Countdown: reach a target from given numbers, each used once, by arithmetic. Makes problems and checks answers.

Checking is exact (fractions, a parser of our own; nothing is evaluated by Python), so 1 / 3 * 3 is 1 and an answer can
do no harm.
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

#: An answer with more characters is wrong without being read.
LONGEST_ANSWER = 500
#: Draws in a row without a new problem after which there are taken to be no more.
_FRUITLESS_DRAWS = 20_000

_TOKEN = re.compile(r"\s*(?:(\d+)|([-+*/()]))")
_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "x": "*", "[": "(", "]": ")"})
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}


@dataclass(frozen=True)
class Problem:
    """Numbers, the target, and one expression that reaches it."""

    numbers: tuple[int, ...]
    target: int
    expression: str

    @property
    def key(self) -> str:
        """The multiset of numbers and the target; the order in which they are shown plays no part."""
        return f"{sorted(self.numbers)} {self.target}"

    @property
    def question(self) -> str:
        """The problem in words."""
        return question_text(self.numbers, self.target)

    def row(self, number: int, split: str) -> dict[str, Any]:
        """Return the problem as a line of a questions file."""
        return {
            "id": f"countdown-{split}-{number}",
            "question": self.question,
            "solution": self.expression,
            "answer": self.expression,
            "numbers": list(self.numbers),
            "target": self.target,
        }


def question_text(numbers: Sequence[int], target: int) -> str:
    """Put a problem into words."""
    *others, last = numbers
    listed = f"{', '.join(map(str, others))} and {last}"
    return (
        f"Combine the numbers {listed} with +, -, * and / to reach {target}. Use every number exactly once; brackets "
        "are allowed. Answer with one expression."
    )


def problems(settings: CountdownSettings) -> Iterator[Problem]:
    """Make problems of one split, none twice; the same for the same settings.

    Which split a problem belongs to follows from a hash of its multiset of numbers and its target alone, so the splits
    of all files ever made with one ``test_share`` are disjoint, whatever the seed.

    Raises:
        SettingsError: there are fewer problems than rows.
    """
    draw = random.Random(f"{settings.seed}/{settings.split}")
    seen: set[str] = set()
    fruitless = 0
    while len(seen) < settings.rows:
        problem = _draw(draw, settings)
        if problem is None or problem.key in seen or split_of(problem, settings.test_share) != settings.split:
            fruitless += 1
            if fruitless == _FRUITLESS_DRAWS:
                raise SettingsError(
                    f"--rows: only {len(seen)} different problems of the {settings.split} split were found in these "
                    "ranges; widen them or ask for fewer"
                )
            continue
        fruitless = 0
        seen.add(problem.key)
        yield problem


def split_of(problem: Problem, test_share: float) -> str:
    """Return ``train`` or ``test``."""
    place = int.from_bytes(hashlib.blake2b(problem.key.encode(), digest_size=8).digest(), "big")
    return "test" if place < test_share * 2**64 else "train"


def _draw(draw: random.Random, settings: CountdownSettings) -> Problem | None:
    """Combine random numbers by random operators; None where that leaves the ranges."""
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
        level = _PRECEDENCE[operator]
        text = f"{_bracketed(left, level)} {operator} {_bracketed(right, level + (operator in '-/'))}"
        terms.append((int(value), text, level))
    target, expression, _ = terms[0]
    if not settings.smallest_target <= target <= settings.largest_target or target in numbers:
        return None
    return Problem(tuple(numbers), target, expression)


def _bracketed(term: tuple[int, str, int], level: int) -> str:
    return f"({term[1]})" if term[2] < level else term[1]


def problem_with_answer(answer: str, numbers: tuple[int, ...], target: int) -> str | None:
    """Say why an answer is wrong, or None if it is right.

    Args:
        answer: an expression; a closing ``= target`` is allowed.
        numbers: those that must be used, each as often as it is listed.
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
    """Reads an expression of numbers, + - * / and brackets."""

    def __init__(self, text: str) -> None:
        self._tokens: list[str] = []
        self._used: list[int] = []
        at = 0
        text = text.rstrip()
        while at < len(text):
            found = _TOKEN.match(text, at)
            if not found:
                raise ValueError(f"not an expression: {text[at : at + 20]!r}")
            self._tokens.append(found[1] or found[2])
            at = found.end()

    def parse(self) -> tuple[Fraction, list[int]]:
        value = self._sum()
        if self._tokens:
            raise ValueError(f"not an expression at {self._tokens[0]!r}")
        return value, self._used

    def _next(self, wanted: str) -> str | None:
        return self._tokens.pop(0) if self._tokens and self._tokens[0] in wanted else None

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
