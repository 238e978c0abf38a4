"""Training texts of the miniature models: the base student's corpus, and explanations for the teacher's warm-up.

The base student learns every sub-skill (arithmetic, comparing a value with the target, answering the last attempt) but
no policy: its attempts are random, continue after a hit and stop anywhere. The teacher's explanations have several
styles, good and bad, so that the reward can distinguish its samples.

Problems come from two domains, with small and with large inputs. The base knows both. The packaged teacher's warm-up
has only small inputs. A share of large inputs without searches can be mixed in, to measure whether search transfers.

All problems come from the train split of ``rlt-data countdown make``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice, permutations

from rlt_data import formats
from rlt_data.formats import Views
from rlt_data.recipes.nano.tokenizer import LARGEST_VALUE
from rlt_data.settings import CountdownSettings
from rlt_data.tasks.countdown import Problem, problems, question_text
from rlt_data.training.examples import TrainingText

OPERATORS = "+-*"


@dataclass(frozen=True)
class Domain:
    """Range of the inputs, and number of problems taken from the train split."""

    smallest: int
    largest: int
    problems: int


#: The train split has about 4,800 of these problems.
SMALL = Domain(1, 14, 4700)
#: Mostly sums and differences: products stay in range only after a difference.
LARGE = Domain(15, 40, 10_000)
#: Share of large inputs in the base's problems. In its facts the share is one half, because more facts exist.
LARGE_SHARE = 0.3

#: Kinds of text in the base corpus, and their shares.
BASE_MIXTURE = {"facts": 0.16, "checks": 0.25, "attempts": 0.55, "copied": 0.04}
#: Styles of the warm-up's explanations, and their shares.
STYLES = {
    "search": 0.36,
    "terse": 0.22,
    "step-left-out": 0.12,
    "wrong-arithmetic": 0.09,
    "copy": 0.08,
    "ramble": 0.06,
    "only-wrong": 0.07,
}
#: Styles of explanations with large inputs; none searches.
LARGE_STYLES = {"terse": 0.4, "step-left-out": 0.2, "copy": 0.15, "ramble": 0.1, "only-wrong": 0.15}
#: Share of the base's attempt texts that contain a hit.
HIT_SHARE = 0.5
MOST_ATTEMPTS = 11
#: Maximum number of wrong attempts before the right one in an explanation.
MOST_MISSES = 6
_FACTS = 12  # per text


@dataclass(frozen=True)
class Step:
    """One computation."""

    left: int
    operator: str
    right: int

    @property
    def value(self) -> int:
        """Correct result."""
        return {"+": self.left + self.right, "-": self.left - self.right, "*": self.left * self.right}[self.operator]

    def text(self, value: int | None = None) -> str:
        """Return the equation, with the correct result or the given one."""
        return f"{self.left} {self.operator} {self.right} = {self.value if value is None else value}"


@dataclass(frozen=True)
class Attempt:
    """Two steps that use each of three numbers once; the second step uses the value of the first.

    Attributes:
        first: step with two of the numbers.
        second: step with the value of the first step and the third number.
        left: whether that value is the left operand.
        expression: both steps as one expression.
    """

    first: Step
    second: Step
    left: bool
    expression: str

    @property
    def key(self) -> tuple[Step, Step]:
        """Key that is equal for attempts that differ only in the order of summands or factors."""
        return _sorted(self.first), _sorted(self.second)

    def text(self, target: int) -> str:
        """Return both steps, and ``yes`` or ``no`` for whether they reach the target."""
        return f"{self.first.text()} {self.second.text()} {'yes' if self.second.value == target else 'no'}"


@cache
def attempts(numbers: tuple[int, ...]) -> tuple[Attempt, ...]:
    """Return all attempts with three sorted numbers whose values stay between 0 and ``LARGEST_VALUE``."""
    unique = {}
    for a, b, c in permutations(numbers):
        for operator in OPERATORS:
            first = Step(a, operator, b)
            for then in OPERATORS:
                for left in (True, False):
                    second = Step(first.value, then, c) if left else Step(c, then, first.value)
                    if all(0 <= step.value <= LARGEST_VALUE for step in (first, second)):
                        expression = _expression(first, second, left=left)
                        unique[first.text(), second.text(), expression] = Attempt(first, second, left, expression)
    return tuple(unique.values())


def _sorted(step: Step) -> Step:
    return step if step.operator == "-" or step.left <= step.right else Step(step.right, step.operator, step.left)


@cache
def families(numbers: tuple[int, ...]) -> tuple[tuple[Attempt, ...], ...]:
    """Return all attempts, grouped by those that differ only in the order of operands."""
    by_key: dict[tuple[Step, Step], list[Attempt]] = {}
    for attempt in attempts(numbers):
        by_key.setdefault(attempt.key, []).append(attempt)
    return tuple(map(tuple, by_key.values()))


def _expression(first: Step, second: Step, *, left: bool) -> str:
    """Return two steps as one expression, with the same brackets as the Countdown generator."""
    inner = f"{first.left} {first.operator} {first.right}"
    weaker = first.operator in "+-"
    if weaker and (second.operator == "*" or (second.operator == "-" and not left)):
        inner = f"({inner})"
    return f"{inner} {second.operator} {second.right}" if left else f"{second.left} {second.operator} {inner}"


@cache
def train_problems(domain: Domain) -> tuple[Problem, ...]:
    """Return the domain's problems from the train split."""
    return tuple(problems(countdown_settings(domain, "train", domain.problems)))


def countdown_settings(domain: Domain, split: str, rows: int, seed: int = 0) -> CountdownSettings:
    """Return the Countdown generator's settings for a domain."""
    return CountdownSettings.model_validate(
        {"out": "-", "rows": rows, "split": split, "seed": seed, "operators": OPERATORS}
        | {"fewest": 3, "most": 3, "smallest": domain.smallest, "largest": domain.largest}
        | {"smallest_target": 0, "largest_target": LARGEST_VALUE, "largest_value": LARGEST_VALUE}
    )


def solution_attempt(problem: Problem) -> Attempt:
    """Return the attempt equal to the problem's expression; for 1 + 2 + 3, the one from left to right."""
    matches = [item for item in attempts(tuple(sorted(problem.numbers))) if item.expression == problem.expression]
    return min(matches, key=lambda attempt: not attempt.left)


def facts(draw: random.Random, count: int, domains: Sequence[Domain] = (SMALL, LARGE)) -> str:
    """Draw correct equations like those in attempts."""
    return " ".join(_fact(draw, draw.choice(domains)).text() for _ in range(count))


def _fact(draw: random.Random, domain: Domain, value: int | None = None) -> Step:
    """Draw a step, optionally with a given value."""
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
    steps: dict[int, list[Step]] = {value: [] for value in range(LARGEST_VALUE + 1)}
    for a in range(LARGEST_VALUE + 1):
        for b in range(domain.smallest, domain.largest + 1):
            for step in dict.fromkeys(Step(*parts) for op in OPERATORS for parts in ((a, op, b), (b, op, a))):
                if step.value in steps:
                    steps[step.value].append(step)
    return steps


def base_texts(seed: int, views: Views) -> Iterator[TrainingText]:
    """Draw the base corpus without end; questions are prompts and are not learned.

    Args:
        seed: seed of the random draw.
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
        prompt = views.solver_prompt(question)
        yield TrainingText(
            prompt, views.student(formats.Problem(question, solution), f"{thought} ").text[len(prompt) :]
        )


def _base_thought(draw: random.Random, kind: str, problem: Problem, domain: Domain) -> tuple[str, str]:
    """Draw a thought of the base student and its solution."""
    if kind == "attempts":
        drawn = draw_attempts(draw, problem, draw.randint(1, MOST_ATTEMPTS), hit=draw.random() < HIT_SHARE)
        return _join(drawn, problem), drawn[-1].expression
    answer = draw.choice(attempts(tuple(sorted(problem.numbers)))).expression
    return (_checks(draw, problem.target, domain) if kind == "checks" else answer), answer


def _checks(draw: random.Random, target: int, domain: Domain) -> str:
    """Draw equations unrelated to the inputs, each marked yes or no; half of them result in the target.

    Hits are rare in attempts. From attempts alone, the base would learn to write "no" and ignore the target.
    """
    words = []
    for _ in range(draw.randint(2, 8)):
        step = _fact(draw, domain, target if draw.random() < 0.5 else None)
        words.append(f"{step.text()} {'yes' if step.value == target else 'no'}")
    return " ".join(words)


def draw_attempts(draw: random.Random, problem: Problem, count: int, *, hit: bool) -> list[Attempt]:
    """Draw different attempts that miss the target; with ``hit``, one at a random position reaches it."""
    groups = families(tuple(sorted(problem.numbers)))
    misses = [family for family in groups if family[0].second.value != problem.target]
    drawn = draw.sample(misses, min(count, len(misses)))
    if hit:
        hits = [family for family in groups if family[0].second.value == problem.target]
        drawn[draw.randrange(len(drawn))] = draw.choice(hits)
    return [draw.choice(family) for family in drawn]


def open_book_texts(seed: int, views: Views, template: str) -> Iterator[TrainingText]:
    """Draw texts of the base corpus without end, and after each a search for a question whose prompt has the solution.

    Args:
        seed: seed of the random draw.
        views: format and chat template of the models.
        template: user message with ``{prompt}``, the question, and ``{privileged_context}``, the solution.
    """
    rows = warm_up_rows(seed, None)
    for text in base_texts(seed, views):
        yield text
        row = next(row for row in rows if row["style"] == "search")
        prompt = views.solver_prompt(template.format(prompt=row["question"], privileged_context=row["solution"]))
        answer = views.student(formats.Problem(row["question"], row["solution"]), f"{row['explanation']} ")
        yield TrainingText(prompt, answer.text[len(views.solver_prompt(row["question"])) :])


def warm_up_rows(seed: int, count: int | None, large_share: float = 0.0) -> Iterator[dict[str, str]]:
    """Draw questions with solutions, and explanations in various styles.

    Args:
        seed: seed of the random draw.
        count: number of rows; None: without end.
        large_share: share of rows with large inputs, from 0 to 1.

    Returns:
        Rows with the columns question, solution, explanation and style.
    """
    draw = random.Random(f"warm-up/{seed}")
    return islice(_warm_up(draw, large_share), count)


def _warm_up(draw: random.Random, large_share: float) -> Iterator[dict[str, str]]:
    while True:
        # With large_share 0, draw no number for the domain: the rows are then those of the packaged teacher.
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
    return _join(_draw_search(draw, problem), problem)


def _draw_search(draw: random.Random, problem: Problem) -> list[Attempt]:
    """Draw misses, followed by exactly the given solution."""
    return [*draw_attempts(draw, problem, draw.randint(0, MOST_MISSES), hit=False), solution_attempt(problem)]


def _terse(_: random.Random, problem: Problem) -> str:
    return _join([solution_attempt(problem)], problem)


def _step_left_out(_: random.Random, problem: Problem) -> str:
    return f"{solution_attempt(problem).second.text()} yes"


def _wrong_arithmetic(draw: random.Random, problem: Problem) -> str:
    """Return the attempts of :func:`_search` with one or both values of each changed."""
    search = _draw_search(draw, problem)
    words = []
    for attempt in search:
        wrong = draw.choice([value for value in range(LARGEST_VALUE + 1) if value != attempt.first.value])
        second = Step(wrong, attempt.second.operator, attempt.second.right) if attempt.left else attempt.second
        claimed = problem.target if attempt is search[-1] else draw.randint(0, LARGEST_VALUE)
        verdict = "yes" if claimed == problem.target else "no"
        words.append(f"{attempt.first.text(wrong)} {second.text(claimed)} {verdict}")
    return " ".join(words)


def _copy(_: random.Random, problem: Problem) -> str:
    return problem.expression


def _ramble(draw: random.Random, problem: Problem) -> str:
    return facts(draw, draw.randint(2, 8), [SMALL if max(problem.numbers) <= SMALL.largest else LARGE])


def _only_wrong(draw: random.Random, problem: Problem) -> str:
    return _join(draw_attempts(draw, problem, draw.randint(1, MOST_MISSES), hit=False), problem)


def _join(search: Sequence[Attempt], problem: Problem) -> str:
    return " ".join(attempt.text(problem.target) for attempt in search)


_EXPLAIN: dict[str, Callable[[random.Random, Problem], str]] = {
    "search": _search,
    "terse": _terse,
    "step-left-out": _step_left_out,
    "wrong-arithmetic": _wrong_arithmetic,
    "copy": _copy,
    "ramble": _ramble,
    "only-wrong": _only_wrong,
}
