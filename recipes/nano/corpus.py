"""Training texts: what the base student reads, and the explanations that warm the teacher up.

The base owns every sub-skill (arithmetic, the check whether a value is the target, answering the last attempt) and
lacks the policy: its attempts are drawn at random, it goes on after a hit and ends where it likes. Explanations of the
warm-up are of several styles, good and bad, so that sampling the teacher gives the reward something to tell apart.

There are two domains of problems: with small inputs, and with large ones. The base knows both. The warm-up of the
packaged teacher is of small inputs alone; a share of large ones, never searched, can be mixed in, so that a search with
large inputs shows what transfers.

Problems come from the product's own generator and its train split; no text holds a problem of the test split.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice, permutations

from rlt_data.formats import Views
from rlt_data.recipes.nano.tokenizer import LARGEST_VALUE
from rlt_data.settings import CountdownSettings
from rlt_data.tasks.countdown import Problem, problems, question_text
from rlt_data.training.examples import TrainingText

OPERATORS = "+-*"


@dataclass(frozen=True)
class Domain:
    """Problems whose inputs lie in a range, and how many of the train split are drawn from."""

    smallest: int
    largest: int
    problems: int


#: There are some 4,800 of the train split.
SMALL = Domain(1, 14, 4700)
#: Products fit after a difference alone, so it is mostly sums and differences.
LARGE = Domain(15, 40, 10_000)
#: Share of the base's problems that have large inputs. Of its pure facts it is half, because those are more.
LARGE_SHARE = 0.3

#: Kinds of text of the base corpus, and their shares.
BASE_MIXTURE = {"facts": 0.16, "checks": 0.25, "attempts": 0.55, "copied": 0.04}
#: Styles of the warm-up, and their shares.
STYLES = {
    "search": 0.36,
    "terse": 0.22,
    "step-left-out": 0.12,
    "wrong-arithmetic": 0.09,
    "copy": 0.08,
    "ramble": 0.06,
    "only-wrong": 0.07,
}
#: Styles with large inputs, where a warm-up has any: none that searches.
LARGE_STYLES = {"terse": 0.4, "step-left-out": 0.2, "copy": 0.15, "ramble": 0.1, "only-wrong": 0.15}
#: Share of the base's traces of attempts that hold a hit.
HIT_SHARE = 0.5
MOST_ATTEMPTS = 11
#: Wrong attempts before the right one in an explanation.
MOST_MISSES = 6
_FACTS = 12  # of a text of facts


@dataclass(frozen=True)
class Step:
    """One computation."""

    left: int
    operator: str
    right: int

    @property
    def value(self) -> int:
        """Its right result."""
        return {"+": self.left + self.right, "-": self.left - self.right, "*": self.left * self.right}[self.operator]

    def text(self, value: int | None = None) -> str:
        """Write it with its result, or with another that is claimed to be it."""
        return f"{self.left} {self.operator} {self.right} = {self.value if value is None else value}"


@dataclass(frozen=True)
class Attempt:
    """Two steps that use three numbers once each, the second one the value of the first.

    Attributes:
        first: of two of the numbers.
        second: of the third number and the first's value.
        left: whether that value stands left of the operator.
        expression: both in one.
    """

    first: Step
    second: Step
    left: bool
    expression: str

    @property
    def key(self) -> tuple[Step, Step]:
        """The same for attempts that differ by the order of summands or factors alone."""
        return _sorted(self.first), _sorted(self.second)

    def text(self, target: int) -> str:
        """Write both steps, and whether the target is reached."""
        return f"{self.first.text()} {self.second.text()} {'yes' if self.second.value == target else 'no'}"


@cache
def attempts(numbers: tuple[int, ...]) -> tuple[Attempt, ...]:
    """Return all attempts with three numbers whose values stay between 0 and the largest; numbers are sorted."""
    found = {}
    for a, b, c in permutations(numbers):
        for operator in OPERATORS:
            first = Step(a, operator, b)
            for then in OPERATORS:
                for left in (True, False):
                    second = Step(first.value, then, c) if left else Step(c, then, first.value)
                    if all(0 <= step.value <= LARGEST_VALUE for step in (first, second)):
                        expression = _expression(first, second, left=left)
                        found[first.text(), second.text(), expression] = Attempt(first, second, left, expression)
    return tuple(found.values())


def _sorted(step: Step) -> Step:
    return step if step.operator == "-" or step.left <= step.right else Step(step.right, step.operator, step.left)


@cache
def families(numbers: tuple[int, ...]) -> tuple[tuple[Attempt, ...], ...]:
    """Return the attempts with three numbers, those together that differ by the order of operands alone."""
    found: dict[tuple[Step, Step], list[Attempt]] = {}
    for each in attempts(numbers):
        found.setdefault(each.key, []).append(each)
    return tuple(map(tuple, found.values()))


def _expression(first: Step, second: Step, *, left: bool) -> str:
    """Write two steps as the product's generator does, with the brackets that are needed."""
    inner = f"{first.left} {first.operator} {first.right}"
    weaker = first.operator in "+-"
    if weaker and (second.operator == "*" or (second.operator == "-" and not left)):
        inner = f"({inner})"
    return f"{inner} {second.operator} {second.right}" if left else f"{second.left} {second.operator} {inner}"


@cache
def train_problems(domain: Domain) -> tuple[Problem, ...]:
    """Return problems of the train split, the same each time."""
    return tuple(problems(countdown_settings(domain, "train", domain.problems)))


def countdown_settings(domain: Domain, split: str, rows: int, seed: int = 0) -> CountdownSettings:
    """Return the ranges of a domain for the product's generator."""
    return CountdownSettings.model_validate(
        {"out": "-", "rows": rows, "split": split, "seed": seed, "operators": OPERATORS}
        | {"fewest": 3, "most": 3, "smallest": domain.smallest, "largest": domain.largest}
        | {"smallest_target": 0, "largest_target": LARGEST_VALUE, "largest_value": LARGEST_VALUE}
    )


def solving(problem: Problem) -> Attempt:
    """Return the attempt that is the problem's own expression; of 1 + 2 + 3 the one from left to right."""
    found = [each for each in attempts(tuple(sorted(problem.numbers))) if each.expression == problem.expression]
    return min(found, key=lambda each: not each.left)


def facts(draw: random.Random, count: int, domains: Sequence[Domain] = (SMALL, LARGE)) -> str:
    """Return computations as they occur in attempts, with right results."""
    return " ".join(_fact(draw, draw.choice(domains)).text() for _ in range(count))


def _fact(draw: random.Random, domain: Domain, value: int | None = None) -> Step:
    """Draw a computation, with a given value if there is one."""
    if value is not None:
        return draw.choice(_steps_by_value(domain)[value])
    while True:
        operator = draw.choice(OPERATORS)
        pair = draw.randint(0, LARGEST_VALUE), draw.randint(domain.smallest, domain.largest)
        left, right = pair if draw.random() < 0.5 else pair[::-1]
        step = Step(left, operator, right)
        if 0 <= step.value <= LARGEST_VALUE:
            return step


@cache
def _steps_by_value(domain: Domain) -> dict[int, list[Step]]:
    found: dict[int, list[Step]] = {value: [] for value in range(LARGEST_VALUE + 1)}
    for a in range(LARGEST_VALUE + 1):
        for b in range(domain.smallest, domain.largest + 1):
            for step in dict.fromkeys(Step(*each) for op in OPERATORS for each in ((a, op, b), (b, op, a))):
                if step.value in found:
                    found[step.value].append(step)
    return found


def base_texts(seed: int, views: Views) -> Iterator[TrainingText]:
    """Draw the base corpus, endlessly; of texts with a question only what follows the question is learned.

    Args:
        seed: of the draw.
        views: format and chat template of the models.
    """
    draw = random.Random(f"base/{seed}")
    start, end = views.template.split([])[0].rstrip(), views.template.end
    while True:
        [kind] = draw.choices(list(BASE_MIXTURE), list(BASE_MIXTURE.values()))
        if kind == "facts":
            yield TrainingText(start, f" {facts(draw, _FACTS)}{end}")
            continue
        domain = LARGE if draw.random() < LARGE_SHARE else SMALL
        problem = draw.choice(train_problems(domain))
        question = question_text(draw.sample(problem.numbers, 3), problem.target)
        thought, solution = _base_thought(draw, kind, problem, domain)
        given = views.solver_prompt(question)
        yield TrainingText(given, views.student(question, solution, f" {thought} ").text[len(given) :])


def _base_thought(draw: random.Random, kind: str, problem: Problem, domain: Domain) -> tuple[str, str]:
    """Return a thought of the base and the solution that it answers with."""
    if kind == "attempts":
        chosen = some_attempts(draw, problem, draw.randint(1, MOST_ATTEMPTS), hit=draw.random() < HIT_SHARE)
        return " ".join(each.text(problem.target) for each in chosen), chosen[-1].expression
    answer = draw.choice(attempts(tuple(sorted(problem.numbers)))).expression
    return (_checks(draw, problem.target, domain) if kind == "checks" else answer), answer


def _checks(draw: random.Random, target: int, domain: Domain) -> str:
    """Return facts that have nothing to do with the inputs, half of them with the target as result, each marked.

    Hits are rare in attempts, so from them alone the base would learn to write "no" and never look at the target.
    """
    words = []
    for _ in range(draw.randint(2, 8)):
        step = _fact(draw, domain, target if draw.random() < 0.5 else None)
        words.append(f"{step.text()} {'yes' if step.value == target else 'no'}")
    return " ".join(words)


def some_attempts(draw: random.Random, problem: Problem, count: int, *, hit: bool) -> list[Attempt]:
    """Draw attempts at a problem, no two alike: all miss, except one at any place if there is to be a hit."""
    every = families(tuple(sorted(problem.numbers)))
    misses = [family for family in every if family[0].second.value != problem.target]
    chosen = draw.sample(misses, min(count, len(misses)))
    if hit:
        hits = [family for family in every if family[0].second.value == problem.target]
        chosen[draw.randrange(len(chosen))] = draw.choice(hits)
    return [draw.choice(family) for family in chosen]


def warm_up_rows(seed: int, count: int, large_share: float = 0.0) -> Iterator[dict[str, str]]:
    """Draw questions with solution and an explanation of a style.

    Args:
        seed: of the draw.
        count: rows.
        large_share: of them with large inputs; the others have small ones.

    Returns:
        Rows with the columns question, solution, explanation and style.
    """
    draw = random.Random(f"warm-up/{seed}")
    return islice(_warm_up(draw, large_share), count)


def _warm_up(draw: random.Random, large_share: float) -> Iterator[dict[str, str]]:
    while True:
        # without large inputs nothing is drawn for them, so the rows are those that the packaged teacher learned
        domain, styles = (LARGE, LARGE_STYLES) if large_share and draw.random() < large_share else (SMALL, STYLES)
        problem = draw.choice(train_problems(domain))
        [style] = draw.choices(list(styles), list(styles.values()))
        yield {
            "question": question_text(draw.sample(problem.numbers, 3), problem.target),
            "solution": problem.expression,
            "explanation": _EXPLAIN[style](draw, problem),
            "style": style,
        }


def _search(draw: random.Random, problem: Problem) -> str:
    return _written(_found(draw, problem), problem)


def _found(draw: random.Random, problem: Problem) -> list[Attempt]:
    """Return a search: misses, then exactly the given solution."""
    return [*some_attempts(draw, problem, draw.randint(0, MOST_MISSES), hit=False), solving(problem)]


def _terse(_: random.Random, problem: Problem) -> str:
    return _written([solving(problem)], problem)


def _step_left_out(_: random.Random, problem: Problem) -> str:
    return f"{solving(problem).second.text()} yes"


def _wrong_arithmetic(draw: random.Random, problem: Problem) -> str:
    """Return a search whose attempts are those of :func:`_search` with one or both values changed."""
    tried = _found(draw, problem)
    words = []
    for each in tried:
        wrong = draw.choice([value for value in range(LARGEST_VALUE + 1) if value != each.first.value])
        second = Step(wrong, each.second.operator, each.second.right) if each.left else each.second
        claimed = problem.target if each is tried[-1] else draw.randint(0, LARGEST_VALUE)
        words.append(f"{each.first.text(wrong)} {second.text(claimed)} {'yes' if claimed == problem.target else 'no'}")
    return " ".join(words)


def _copy(_: random.Random, problem: Problem) -> str:
    return problem.expression


def _ramble(draw: random.Random, problem: Problem) -> str:
    return facts(draw, draw.randint(2, 8), [SMALL if max(problem.numbers) <= SMALL.largest else LARGE])


def _only_wrong(draw: random.Random, problem: Problem) -> str:
    return _written(some_attempts(draw, problem, draw.randint(1, MOST_MISSES), hit=False), problem)


def _written(tried: Sequence[Attempt], problem: Problem) -> str:
    return " ".join(each.text(problem.target) for each in tried)


_EXPLAIN: dict[str, Callable[[random.Random, Problem], str]] = {
    "search": _search,
    "terse": _terse,
    "step-left-out": _step_left_out,
    "wrong-arithmetic": _wrong_arithmetic,
    "copy": _copy,
    "ramble": _ramble,
    "only-wrong": _only_wrong,
}
