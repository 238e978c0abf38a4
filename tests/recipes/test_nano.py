"""The recipe of the miniature models: its tokenizer, and that its texts are right and hold no test problem."""

from __future__ import annotations

import json
import random
import re
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from rlt_data import formats
from rlt_data.formats import ChatTemplate, Format, Views, encode, load_format, tokens_inside
from rlt_data.recipes.nano.build import FORMAT
from rlt_data.recipes.nano.corpus import (
    LARGE,
    LARGE_STYLES,
    MOST_MISSES,
    SMALL,
    STYLES,
    Domain,
    attempts,
    base_texts,
    countdown_settings,
    draw_attempts,
    families,
    solution_attempt,
    warm_up_rows,
)
from rlt_data.recipes.nano.tokenizer import LARGEST_VALUE, build_tokenizer
from rlt_data.tasks.countdown import Problem, problems, question_text, split_of, why_wrong
from rlt_data.training.examples import tokenize_texts
from tests.conftest import Rlt

_STEP = re.compile(r"(\d+) ([-+*]) (\d+) = (\d+)")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


@pytest.fixture(scope="module")
def format() -> Format:
    return load_format(str(FORMAT))


@pytest.fixture(scope="module")
def views(tokenizer: Any, format: Format) -> Views:
    return Views(format, ChatTemplate(tokenizer))


def problem_of(text: str, expression: str = "") -> Problem | None:
    """Read a problem back from a text that shows its question."""
    match = re.search(r"Combine the numbers (\d+), (\d+) and (\d+) with .* to reach (\d+)\.", text)
    if not match:
        return None
    *numbers, target = map(int, match.groups())
    return Problem(tuple(numbers), target, expression)


def distinct(steps: list[tuple[int, str, int, int]]) -> bool:
    """Whether no two attempts of a trace have the same steps up to the order of summands and factors."""

    def plain(step: tuple[int, str, int, int]) -> tuple[int, str, int, int]:
        a, op, b, value = step
        return (a, op, b, value) if op == "-" else (min(a, b), op, max(a, b), value)

    tried = [(plain(first), plain(second)) for first, second in zip(steps[::2], steps[1::2], strict=True)]
    return len(set(tried)) == len(tried)


def in_order(step: tuple[int, str, int], expression: str) -> bool:
    """Return whether an expression contains a computation literally."""
    return " ".join(map(str, step)) in expression


def test_a_question_is_nine_tokens(tokenizer: Any) -> None:
    question = question_text((3, 4, 5), 7)
    ids = tokenizer(question)["input_ids"]
    assert len(ids) == 9 and tokenizer.unk_token_id not in ids
    assert tokenizer("3 apples")["input_ids"] == [tokenizer.convert_tokens_to_ids("3"), tokenizer.unk_token_id]


def test_every_integer_is_one_token_and_white_space_does_not_matter(tokenizer: Any) -> None:
    for number in range(LARGEST_VALUE + 1):
        assert tokenizer.convert_ids_to_tokens(tokenizer(str(number))["input_ids"]) == [str(number)]
    assert tokenizer("(3*4)-5")["input_ids"] == tokenizer(" ( 3 * 4 )\n- 5")["input_ids"]


def test_what_the_models_read_and_write_survives_decoding(tokenizer: Any, views: Views) -> None:
    for text in islice(base_texts(1, views), 300):
        ids = tokenizer(text.prompt + text.completion)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer(tokenizer.decode(ids))["input_ids"] == ids


def test_offsets_point_at_the_tokens(tokenizer: Any, views: Views) -> None:
    rendered = views.student(formats.Problem(question_text((3, 4, 5), 7), "3*4 - 5"), " 3 * 4 = 12 12-5 = 7 yes ")
    [encoding] = encode(tokenizer, [rendered.text])
    for name, expected in (("thought", "3 * 4 = 12 12 - 5 = 7 yes"), ("solution", "3 * 4 - 5")):
        inside = tokens_inside(encoding, *getattr(rendered, name))
        assert [rendered.text[slice(*encoding.offsets[token])] for token in inside] == expected.split()
        assert tokenizer.convert_ids_to_tokens(encoding.ids[inside].tolist()) == expected.split()


def test_the_template_shows_system_texts_in_the_question_and_has_none_of_them_by_default(
    tokenizer: Any, views: Views
) -> None:
    views.check()
    assert views.template.source == "own"
    prompt = views.teacher_prompt(formats.Problem("3 and 4", "3 + 4"))
    words = "<bos> <question> 3 and 4 </question> <solution> 3 + 4 </solution> <explanation>"
    assert tokenizer(prompt)["input_ids"] == tokenizer.convert_tokens_to_ids(words.split())
    assert tokenizer.apply_chat_template([{"role": "system", "content": "x"}], tokenize=False) == "<bos>"


def of(problem: Problem) -> Domain:
    return LARGE if min(problem.numbers) >= LARGE.smallest else SMALL


def test_no_text_holds_a_problem_of_the_test_split(views: Views) -> None:
    settings = [countdown_settings(domain, "test", 1000) for domain in (SMALL, LARGE)]
    held_out = {problem.key for split_settings in settings for problem in problems(split_settings)}
    problems_or_none = [problem_of(text.prompt) for text in islice(base_texts(2, views), 2000)]
    problems_or_none += [problem_of(row["question"]) for row in warm_up_rows(2, 2000)]
    problems_in_texts = [problem for problem in problems_or_none if problem]
    assert len(problems_in_texts) > 3000
    assert not held_out & {problem.key for problem in problems_in_texts}
    assert all(split_of(problem, 0.2) == "train" for problem in problems_in_texts)


def test_the_base_knows_both_domains_and_the_warm_up_one(views: Views) -> None:
    problems_in_texts = [problem for text in islice(base_texts(2, views), 1000) if (problem := problem_of(text.prompt))]
    for problem in problems_in_texts:
        assert all(of(problem).smallest <= number <= of(problem).largest for number in problem.numbers)
    assert 0.2 < sum(of(problem) == LARGE for problem in problems_in_texts) / len(problems_in_texts) < 0.4
    warm = [problem_of(row["question"]) for row in warm_up_rows(2, 1000)]
    assert all(problem and max(problem.numbers) <= SMALL.largest for problem in warm)


def test_a_base_thought_about_a_question_ends_steps_with_a_value_that_is_used_or_marked(views: Views) -> None:
    """Idle facts are no thoughts, so that a student finds them improbable."""
    for text in islice(base_texts(6, views), 500):
        if not problem_of(text.prompt):
            continue
        after = re.split(_STEP, text.completion)[5::5]
        assert len(after) < 2 or sum(bool(re.match(" (yes|no)", following)) for following in after) * 2 >= len(after)


def test_the_base_computes_rightly_and_answers_its_last_attempt(views: Views) -> None:
    answered = checked = 0
    for text in islice(base_texts(3, views), 500):
        steps = [(int(a), op, int(b), int(value)) for a, op, b, value in _STEP.findall(text.completion)]
        assert all(value == {"+": a + b, "-": a - b, "*": a * b}[op] for a, op, b, value in steps)
        problem, verdicts = problem_of(text.prompt), re.findall("yes|no", text.completion)
        if not problem or not verdicts:
            continue
        if len(verdicts) == len(steps):  # facts that have nothing to do with the inputs
            assert [verdict == "yes" for verdict in verdicts] == [step[3] == problem.target for step in steps]
            checked += 1
            continue
        assert [verdict == "yes" for verdict in verdicts] == [step[3] == problem.target for step in steps[1::2]]
        assert distinct(steps)
        [solution] = re.findall("<solution> (.*) </solution>", text.completion)
        assert why_wrong(solution, problem.numbers, steps[-1][3]) is None
        assert in_order(steps[-2][:3], solution)
        answered += 1
    assert answered > 200 and checked > 50


@pytest.mark.parametrize("domain", [SMALL, LARGE])
def test_attempts_are_written_as_the_product_writes_them(domain: Domain) -> None:
    for problem in islice(problems(countdown_settings(domain, "train", 300, seed=7)), 300):
        solution = solution_attempt(problem)
        assert solution.expression == problem.expression and solution.second.value == problem.target
        assert in_order((solution.first.left, solution.first.operator, solution.first.right), problem.expression)
        numbers = tuple(sorted(problem.numbers))
        for attempt in attempts(numbers)[::7]:
            assert why_wrong(attempt.expression, numbers, attempt.second.value) is None


def test_a_sum_is_computed_from_left_to_right() -> None:
    solution = solution_attempt(Problem((3, 4, 5), 12, "3 + 4 + 5"))
    assert solution.text(12) == "3 + 4 = 7 7 + 5 = 12 yes"
    assert solution_attempt(Problem((3, 4, 5), 6, "5 + 4 - 3")).text(6) == "5 + 4 = 9 9 - 3 = 6 yes"
    assert solution_attempt(Problem((3, 4, 5), 4, "5 - (4 - 3)")).text(4) == "4 - 3 = 1 5 - 1 = 4 yes"


def test_no_two_attempts_of_a_trace_are_alike() -> None:
    draw = random.Random(0)
    problem = Problem((3, 4, 5), 12, "3 + 4 + 5")
    for count in (1, 4, 100):
        drawn = draw_attempts(draw, problem, count, hit=True)
        assert len({attempt.key for attempt in drawn}) == len(drawn)
        assert sum(attempt.second.value == 12 for attempt in drawn) == 1
    assert len(families((3, 4, 5))) == len({attempt.key for attempt in attempts((3, 4, 5))})


def test_explanations_of_the_warm_up_are_what_their_style_says() -> None:
    styles = set()
    for row in warm_up_rows(4, 600):
        styles.add(row["style"])
        problem = problem_of(row["question"])
        assert problem and why_wrong(row["solution"], problem.numbers, problem.target) is None
        verdicts = re.findall("yes|no", row["explanation"])
        steps = _STEP.findall(row["explanation"])
        right = all(
            int(v) == {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[op] for a, op, b, v in steps
        )
        assert right == (row["style"] != "wrong-arithmetic")
        expected = {"search": (0, MOST_MISSES), "terse": (0, 0), "step-left-out": (0, 0)}
        if row["style"] in expected:
            assert verdicts[-1] == "yes" and verdicts.count("yes") == 1
            low, high = expected[row["style"]]
            assert low <= verdicts.count("no") <= high
        if row["style"] in ("search", "terse"):
            computed = [(int(a), op, int(b), int(value)) for a, op, b, value in steps]
            assert distinct(computed) and in_order(computed[-2][:3], row["solution"])
            solution = solution_attempt(Problem(problem.numbers, problem.target, row["solution"]))
            assert row["explanation"].endswith(solution.text(problem.target))
        if row["style"] == "only-wrong":
            assert set(verdicts) == {"no"}
        if row["style"] == "copy":
            assert row["explanation"] == row["solution"]
    assert styles == set(STYLES)


def test_a_warm_up_of_both_domains_searches_in_one() -> None:
    styles: dict[bool, set[str]] = {False: set(), True: set()}
    for row in warm_up_rows(8, 1000, large_share=0.3):
        problem = problem_of(row["question"])
        assert problem and split_of(problem, 0.2) == "train"
        large = of(problem) == LARGE
        styles[large].add(row["style"])
        if large and "yes" in row["explanation"]:
            assert "no" not in row["explanation"]
    assert styles == {False: set(STYLES), True: set(LARGE_STYLES)} and "search" not in LARGE_STYLES


def test_the_same_seed_draws_the_same_texts(views: Views) -> None:
    first, again, other = (list(islice(base_texts(seed, views), 200)) for seed in (5, 5, 6))
    assert first == again != other
    assert list(warm_up_rows(5, 100)) == list(warm_up_rows(5, 100)) != list(warm_up_rows(6, 100))


def test_the_loss_counts_what_follows_the_question(tokenizer: Any, views: Views) -> None:
    for text, example in zip(
        islice(base_texts(1, views), 50), tokenize_texts(islice(base_texts(1, views), 50), tokenizer), strict=True
    ):
        learned = [label for label in example["labels"] if label >= 0]
        assert tokenizer.decode(learned).split() == tokenizer.decode(tokenizer(text.completion)["input_ids"]).split()


def test_a_question_with_unknown_words_fails_with_the_word(rlt: Rlt, tmp_path: Path) -> None:
    rows = [
        {"id": "known", "question": question_text((3, 4, 5), 7), "solution": "3 * 4 - 5"},
        {"id": "apples", "question": "How many apples are 3 apples?", "solution": "3"},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rlt(
        "generate",
        "--teacher",
        "nano-teacher-warm",
        "--in",
        "in.jsonl",
        "--n",
        1,
        "--max-tokens",
        5,
        "--out",
        "run",
        code=4,
    )
    [error] = [json.loads(line) for line in Path("run/errors.jsonl").read_text().splitlines()]
    assert error["source_id"] == "apples"
    assert "the model's vocabulary lacks words of this question, such as 'How'" in json.dumps(error)
