from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path

import polars as pl
import pytest

from rlt_data.errors import InputError, SettingsError
from rlt_data.progress import Silent
from rlt_data.settings import CurateSettings
from rlt_data.signals.contamination import SIGNAL
from rlt_data.tasks.countdown import question_text
from tests.signals import problems

LATEX = list(problems.LATEX.values())


def benchmark(folder: Path, texts: list[str], name: str = "held-out.jsonl") -> str:
    file = folder / name
    file.write_text(
        "".join(json.dumps({"id": f"item{index}", "question": text}) + "\n" for index, text in enumerate(texts))
    )
    return str(file)


def frame_of(questions: list[str]) -> pl.DataFrame:
    return pl.DataFrame({"question_id": [f"q{number:05d}" for number in range(len(questions))], "question": questions})


def found_in(frames: Iterable[pl.DataFrame], *against: str) -> pl.DataFrame:
    settings = CurateSettings.model_validate({"in": "run", "against": against})
    return pl.concat(SIGNAL.compute(frames, settings, Silent())).sort("question_id")


def matches(questions: list[str], *against: str) -> list[str | None]:
    """Return what each question matches."""
    found = found_in([frame_of(questions)], *against)
    assert found["contaminated"].to_list() == found["contaminated_by"].is_not_null().to_list()
    return found["contaminated_by"].to_list()


def made(count: int, seed: int) -> tuple[list[str], list[str]]:
    rng = random.Random(seed)
    return [problems.word_problem(rng) for _ in range(count)], [problems.formula_problem(rng) for _ in range(count)]


def embedded(rng: random.Random, text: str) -> str:
    return rng.choice(
        ["{}", "You are a tutor.\n\nProblem: {}\n\nReason step by step.", "Answer 3 questions. 1) {} 2) Why?"]
    ).format(text)


@pytest.mark.parametrize("spelling", problems.LATEX)
def test_every_spelling_of_a_benchmark_question_is_found(tmp_path: Path, spelling: str) -> None:
    told, formulas = made(60, 1)
    against = benchmark(tmp_path, told + formulas)
    rng = random.Random(2)
    questions = [problems.LATEX[spelling](rng, text) for text in told + formulas]
    assert None not in matches(questions, against)
    assert None not in matches([embedded(rng, text) for text in questions], against)


def test_combined_spellings_are_found_among_clean_questions(tmp_path: Path) -> None:
    told, formulas = made(100, 3)
    against = benchmark(tmp_path, told + formulas)
    rng = random.Random(4)
    planted = told + formulas
    for _ in range(3):
        planted = [rng.choice(LATEX)(rng, text) for text in planted]
    clean = sum(made(1000, 5), [])
    found = matches([embedded(rng, text) for text in planted] + clean, against)
    assert found[:200].count(None) == 0
    assert sum(match is not None for match in found[200:]) < 0.005 * len(clean)


def test_near_duplicates_are_found(tmp_path: Path) -> None:
    told, _ = made(100, 6)
    rng = random.Random(7)
    changed = [problems.renamed(rng, problems.synonyms(rng, text)) for text in told]
    found = matches(changed, benchmark(tmp_path, told))
    assert sum(match is not None for match in found) >= 95
    assert any("near duplicate, similarity 0." in match for match in found if match)


def test_a_match_names_file_item_and_words(tmp_path: Path) -> None:
    items = [
        "A very long sentence about nothing in particular, with more than thirteen words before its end comes.",
        "What is the capital of Peru?",
    ]
    found = matches(
        ["Say: a VERY long sentence about nothing in particular, with more than thirteen WORDS again.",
         "Tell me: what is the capital of peru", "What is the capital of Chad?"],
        benchmark(tmp_path, items),
    )  # fmt: skip
    shared = "a very long sentence about nothing in particular with more than thirteen words"
    assert found == [
        f"held-out.jsonl item0: 13-gram '{shared}'",
        "held-out.jsonl item1: whole question",
        None,
    ]


def test_the_longest_short_question_is_named_and_one_without_words_matches_nothing(tmp_path: Path) -> None:
    against = benchmark(tmp_path, ["Find x", "???", "Find x now", "求 x"])
    assert matches(["Please find $x$ now!", "find x", "??? y", "请求x", ""], against) == [
        "held-out.jsonl item2: whole question", "held-out.jsonl item0: whole question", None,
        "held-out.jsonl item3: whole question", None,
    ]  # fmt: skip


def test_twelve_shared_words_do_not_flag_but_their_8_grams_are_counted(tmp_path: Path) -> None:
    item = "one cat sat on a large mat near the old red door and slept until the late evening came"
    against = benchmark(tmp_path, [item])
    words = item.split()
    questions = [" ".join(words[:12] + ["while", "I", "worked"]), " ".join(words[:13] + ["while", "I", "worked"]), "no"]
    found = found_in([frame_of(questions)], against)
    assert found["contaminated"].to_list() == [False, True, False]
    assert found["shared_8grams"].to_list() == [5, 6, 0]


def test_phrases_of_several_benchmark_questions_do_not_flag(tmp_path: Path) -> None:
    end = (
        r"is the quotient $\frac{{{0}}}{{{1}}}$, where ${0}$ and ${1}$ are coprime positive numbers. Find ${0} + {1}$."
    )
    items = [
        "The chance that two coins of a bag with seven old coins match " + end.format("m", "n"),
        "The area of the smallest square around the blue hexagon " + end.format("p", "q"),
    ]
    against = benchmark(tmp_path, items)
    clean = "The slope of the road between both villages in the valley " + end.format("p", "q")
    found = matches([clean, *items, "Hint: it is hard. " + items[1]], against)
    assert found[0] is None
    assert None not in found[1:]


def test_phrases_of_several_own_questions_do_not_flag(tmp_path: Path) -> None:
    end = "can be written as m/n, where m and n are relatively prime positive integers. Find m+n."
    item = "The chance that two coins of a bag with seven old coins match if one takes three of them " + end
    against = benchmark(tmp_path, [item])
    clean = [f"The slope of road {number} in the valley of the {number + 7} lakes {end}" for number in range(5)]
    assert matches([*clean, item, "Hint: it is hard. " + item.upper()], against)[:5] == [None] * 5
    assert None not in matches([*clean, item, "Hint: it is hard. " + item.upper()], against)[5:]
    assert matches(clean[:1], against) != [None]  # a single question does not show that it is a stock phrase


def test_template_questions_are_found_only_with_the_same_numbers(tmp_path: Path) -> None:
    rng = random.Random(8)
    texts = [question_text([rng.randrange(1, 100) for _ in range(4)], rng.randrange(100, 1000)) for _ in range(400)]
    found = matches(
        texts[:200] + [problems.spelled(rng, text) for text in texts[200:]], benchmark(tmp_path, texts[200:])
    )
    assert found[:200] == [None] * 200
    assert None not in found[200:]


def test_a_benchmark_that_is_given_twice_still_counts(tmp_path: Path) -> None:
    told, _ = made(20, 9)
    against = [
        benchmark(tmp_path, texts, name) for texts, name in ((told, "a.jsonl"), ([*map(str.upper, told)], "b.jsonl"))
    ]
    fragment = "Also: " + told[0][: len(told[0]) * 2 // 3]
    found = matches([told[1], fragment], *against)
    assert [match.partition(":")[0] for match in found if match] == ["a.jsonl item1", "a.jsonl item0"]


def test_order_of_rows_and_frames_changes_nothing(tmp_path: Path) -> None:
    told, formulas = made(100, 10)
    against = benchmark(tmp_path, told + formulas)
    rng = random.Random(11)
    frame = frame_of([embedded(rng, rng.choice(LATEX)(rng, text)) for text in told + formulas] + sum(made(200, 12), []))
    expected = found_in([frame], against)
    for seed in range(3):
        shuffled = frame.sample(fraction=1, shuffle=True, seed=seed)
        assert found_in(shuffled.iter_slices(23), against).equals(expected)


def test_every_format_of_inputs_is_read(tmp_path: Path) -> None:
    told, _ = made(3, 13)
    pl.DataFrame({"problem": told, "level": 1}).write_parquet(tmp_path / "held.parquet")
    pl.DataFrame({"prompt": told}).write_csv(tmp_path / "held.csv")
    for file in ("held.parquet", "held.csv"):
        assert matches([told[2]], str(tmp_path / file))[0].startswith(f"{file} 2: ")  # type: ignore[union-attr]


def test_unreadable_benchmarks_are_errors_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="^--against: missing.jsonl: no such file"):
        matches(["a"], "missing.jsonl")
    with pytest.raises(SettingsError, match="^--against math: has no data set; name a file$"):
        matches(["a"], "math")
    with pytest.raises(InputError, match=r"^--against: HuggingFaceH4/MATH-500: .*Hub: [^\n]*$"):
        matches(["a"], "math500")


def test_a_changed_benchmark_is_another_content(tmp_path: Path) -> None:
    def content(*against: str) -> object:
        assert SIGNAL.content
        return SIGNAL.content(CurateSettings.model_validate({"in": "run", "against": against}))

    first = content(benchmark(tmp_path, ["Why?"]), "math500")
    (tmp_path / "moved").mkdir()
    assert content(benchmark(tmp_path / "moved", ["Why?"]), "math500") == first
    assert content(benchmark(tmp_path, ["Why not?"]), "math500") != first


def test_an_empty_run_has_no_rows(tmp_path: Path) -> None:
    settings = CurateSettings.model_validate({"in": "run", "against": (benchmark(tmp_path, ["Why?"]),)})
    assert sum(len(frame) for frame in SIGNAL.compute([], settings, Silent())) == 0
