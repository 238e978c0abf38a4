from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import polars as pl
import pytest

from rlt_data.progress import Silent
from rlt_data.settings import CurateSettings
from rlt_data.signals.duplicates import SIGNAL
from rlt_data.tasks.countdown import question_text
from tests.signals import problems

Change = Callable[[random.Random, str], str]


def run_of(questions: list[str], explanations: list[str] | None = None) -> pl.DataFrame:
    numbers = range(len(questions))
    return pl.DataFrame(
        {
            "trace_id": [f"t{number:05d}" for number in numbers],
            "question_id": [f"q{number:05d}" for number in numbers],
            "question": questions,
            "explanation": explanations or questions,
        }
    )


def duplicates(frames: Iterable[pl.DataFrame], **settings: float) -> pl.DataFrame:
    made = SIGNAL.compute(frames, CurateSettings.model_validate({"in": "run", **settings}), Silent())
    return pl.concat(made).sort("trace_id")


def question_duplicates(questions: list[str], **settings: float) -> dict[int, int]:
    """Return which question repeats which."""
    found = duplicates([run_of(questions)], **settings).filter(pl.col("question_duplicate_of").is_not_null())
    return {int(trace[1:]): int(other[1:]) for trace, _, other in found.iter_rows()}


def trace_duplicates(explanations: list[str | None], **settings: float) -> list[str | None]:
    """Return what each of the traces of one question repeats."""
    names = [f"t{number}" for number in range(len(explanations))]
    data = {"trace_id": names, "question_id": "q", "question": "What is it?", "explanation": explanations}
    frame = pl.DataFrame(data, schema_overrides={"explanation": pl.String})
    return duplicates([frame], **settings)["trace_duplicate_of"].to_list()


def word_problems(count: int, seed: int = 1) -> list[str]:
    rng = random.Random(seed)
    return [problems.word_problem(rng) for _ in range(count)]


@pytest.mark.parametrize(
    ("change", "recall"),
    [
        (problems.spelled, 1.0),
        (problems.reordered, 0.99),
        (problems.renamed, 0.95),
        (problems.synonyms, 0.99),
        (lambda rng, text: problems.spelled(rng, problems.synonyms(rng, problems.reordered(rng, text))), 0.9),
        (lambda rng, text: "Solve this problem. " + text, 0.99),
    ],
)
def test_changed_questions_are_found_and_others_are_not(change: Change, recall: float) -> None:
    questions = word_problems(1000)
    rng = random.Random(2)
    changed = [change(rng, text) for text in questions[:300]]
    found = question_duplicates(questions + changed)
    right = [found.get(1000 + number) == number for number in range(300)]
    assert sum(right) >= recall * 300
    assert found.keys() <= set(range(1000, 1300))
    assert all(found[number] == number - 1000 for number in found)


@pytest.mark.parametrize("change", [problems.other_number, problems.swapped_numbers])
def test_questions_with_other_numbers_are_no_duplicates(change: Change) -> None:
    questions = word_problems(300)
    rng = random.Random(3)
    changed = [change(rng, text) for text in questions]
    assert len(question_duplicates(questions + changed)) <= 0.02 * 300


def test_countdown_problems_are_duplicates_only_with_the_same_numbers_and_target() -> None:
    rng = random.Random(4)
    drawn = [([rng.randrange(1, 100) for _ in range(4)], rng.randrange(100, 1000)) for _ in range(500)]
    questions = [question_text(numbers, target) for numbers, target in drawn]
    assert question_duplicates(questions) == {}
    numbers, target = drawn[0]
    swapped = question_text([*numbers[:3], target], numbers[3])
    assert question_duplicates([*questions, swapped, problems.spelled(rng, questions[0])]) == {501: 0}


def test_short_questions_have_only_exact_duplicates() -> None:
    questions = ["What is the capital of Peru?", "What is the capital of Chad?", "what is the capital of  Peru"]
    assert question_duplicates(questions) == {2: 0}


def test_opposite_words_make_another_question() -> None:
    text = "Among all rectangles with a perimeter of 40 metres, what is the {} area that one can enclose with a fence?"
    assert question_duplicates([text.format("largest"), text.format("smallest"), text.format("largest")]) == {2: 0}


@pytest.mark.parametrize(("one", "other"), [("more", "fewer"), ("30%", "30"), ("the sum of", "the product of")])
def test_decisive_words_make_another_question(one: str, other: str) -> None:
    text = "A baker and two sons sell {} 45 loaves on Sunday and ask how many loaves are in {} all baskets of the shop."
    questions = [text.format(one, "and under"), text.format(other, "and under"), text.format(one, "or under")]
    assert question_duplicates(questions) == {2: 0}


def test_formulas_in_other_places_differ() -> None:
    text = (
        "Let f and g be the functions from before, with all the values that the table lists. What is $f(g(3)) + g({})$?"
    )
    assert (
        question_duplicates([text.format("f(5)"), text.replace("f(g(3))", "g(f(3))").format("f(5)")], similarity=0.95)
        == {}
    )


def test_texts_without_words_are_compared_literally() -> None:
    assert question_duplicates(["???", "!!!", "???", "", "", "？？？"]) == {2: 0, 4: 3}


@pytest.mark.parametrize(
    "text",
    [
        "एक दुकानदार के पास {} सेब थे और उसने अपने दोस्त को {} सेब दे दिए तो अब उसके पास कितने सेब बचे",
        "كان لدى صاحب المتجر {} تفاحة وأعطى صديقه {} تفاحات فكم تفاحة بقيت لديه في المتجر الآن يا ترى",
        "小明有{}个苹果，他给了他的好朋友小红{}个苹果，请问小明现在还剩下几个苹果？",
    ],
)
def test_questions_in_other_scripts_with_other_numbers_are_no_duplicates(text: str) -> None:
    numbers = {"ए": ("१२", "५", "८"), "ك": ("١٢", "٥", "٨"), "小": ("十二", "五", "八")}[text[0]]
    questions = [text.format(numbers[0], number) for number in numbers[1:]]
    assert question_duplicates([*questions, questions[0] + " !"]) == {2: 0}


def test_a_chain_of_near_duplicates_is_one_cluster_with_the_smallest_id() -> None:
    words = [f"word{chr(97 + index)}{chr(97 + index)}" for index in range(20)]
    chain = [
        " ".join(["changed"] * bool(step) + words[step * 2 :] + [f"new{'x' * index}" for index in range(step * 2)])
        for step in range(4)
    ]
    assert question_duplicates(chain) == {1: 0, 2: 0, 3: 0}
    assert question_duplicates([chain[0], chain[3]]) == {}


def test_a_higher_similarity_finds_less() -> None:
    [text] = word_problems(1)
    changed = problems.renamed(random.Random(5), text)
    assert question_duplicates([text, changed], similarity=0.7) == {1: 0}
    assert question_duplicates([text, changed], similarity=0.99) == {}


def test_traces_of_a_question_are_found_and_those_of_others_are_not() -> None:
    text = "First add 3 and 4, which makes 7. Then take twice that sum to get 14, so the answer that we look for is 14."
    assert trace_duplicates([text, text.upper(), text.replace("which makes", "that makes"), None, None]) == [
        None, "t0", "t0", None, None,
    ]  # fmt: skip
    found = duplicates([run_of(["Add 3 and 4.", "Double 7."], [text, text])])
    assert found["trace_duplicate_of"].to_list() == [None, None]


def test_traces_with_other_results_are_kept() -> None:
    text = "First add 3 and 4, which makes {0}. Then take twice that sum to get {1}, so the answer is {1}."
    assert trace_duplicates([text.format(7, 14), text.format(8, 16)]) == [None, None]


def test_every_trace_names_the_question_that_its_question_repeats() -> None:
    [one, other] = word_problems(2)
    frame = run_of([one, one, other, one.upper()], ["a", "b", "c", "d"]).with_columns(
        question_id=pl.Series(["q1", "q1", "q2", "q3"])
    )
    assert duplicates([frame])["question_duplicate_of"].to_list() == [None, None, None, "q1"]


def test_order_of_rows_and_frames_changes_nothing() -> None:
    rng = random.Random(6)
    questions = word_problems(200)
    questions += [problems.spelled(rng, problems.renamed(rng, text)) for text in questions]
    asked = [text for text in questions for _ in range(3)]
    explained = [f"By rule {rng.randrange(2)} we get {problems.renamed(rng, text)}" for text in asked]
    frame = run_of(asked, explained).with_columns(question_id=pl.Series([f"q{row // 3}" for row in range(len(asked))]))
    expected = duplicates([frame])
    assert expected["question_duplicate_of"].is_not_null().any()
    assert expected["trace_duplicate_of"].is_not_null().any()
    for seed in range(3):
        shuffled = frame.sample(fraction=1, shuffle=True, seed=seed)
        assert duplicates(shuffled.iter_slices(37)).equals(expected)


def test_an_empty_run_has_no_rows() -> None:
    settings = CurateSettings.model_validate({"in": "run"})
    assert list(SIGNAL.compute([], settings, Silent())) == []


def test_progress_counts_every_row() -> None:
    class Counting(Silent):
        rows = 0

        def advance(self, rows: int = 1, tokens: int = 0) -> None:
            self.rows += rows

    progress = Counting()
    list(
        SIGNAL.compute(run_of(word_problems(10)).iter_slices(4), CurateSettings.model_validate({"in": "run"}), progress)
    )
    assert progress.rows == 10
