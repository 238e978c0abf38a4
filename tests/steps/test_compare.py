"""Two evaluations, question by question."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Sequence
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rlt_data
from rlt_data.errors import RunFolderError, SettingsError
from rlt_data.steps.compare import mean_interval
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import to_table
from tests.conftest import Rlt

stats = pytest.importorskip("scipy.stats", reason="needs the extra eval")


def evaluation(
    folder: Path, correct: dict[str, Sequence[bool]], *, benchmark: str = "math", n: int | None = None, **settings: Any
) -> str:
    """Make a finished evaluation with these grades by question."""
    run = RunFolder(folder)
    samples = [(key, index, right) for key, row in correct.items() for index, right in enumerate(row)]
    keys = [{"question_id": key, "sample_index": index, "answer_id": f"{key}-{index}"} for key, index, _ in samples]
    questions = [{"question_id": key, "question": key, "solution": "s"} for key in correct]
    answers = [row | {"completion": "c", "completion_tokens": 1, "made_by": "m"} for row in keys]
    grade = {"answer": "a", "formatted": True, "truncated": False, "completion_tokens": 1}
    grades = [row | grade | {"correct": right} for row, (_, _, right) in zip(keys, samples, strict=True)]
    for table, rows in (("questions", questions), ("answers", answers), ("grades", grades)):
        run.write_part(table, 0, to_table(table, rows))
    n = n or max(map(len, correct.values()))
    run.record(
        "evaluate",
        {
            "settings": {"benchmark": benchmark, "n": n},
            "depends_on": {"benchmark": benchmark, "model": folder.name} | settings,
            "models": {"model": {"name": folder.name, "revision": None}},
        },
    )
    run.write_json("evaluation.json", {})
    return str(folder)


def table_of(both: int, only_first: int, only_second: int, neither: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the grades of two evaluations with these numbers of questions."""
    pairs = [(True, True)] * both + [(True, False)] * only_first + [(False, True)] * only_second
    pairs += [(False, False)] * neither
    first, second = ({f"{index:04}": [pair[side]] for index, pair in enumerate(pairs)} for side in (0, 1))
    return first, second


@pytest.mark.parametrize(
    ("counts", "p_value"),
    [
        ((20, 1, 9, 5), 2 * (1 + 10) / 2**10),
        ((0, 25, 10, 0), 2 * sum(comb(35, k) for k in range(11)) / 2**35),
        ((3, 0, 5, 2), 2 / 2**5),
        ((3, 4, 4, 2), 1.0),
        ((7, 0, 0, 2), 1.0),
    ],
)
def test_counts_and_mcnemars_test_follow_from_the_table(
    tmp_path: Path, counts: tuple[int, int, int, int], p_value: float
) -> None:
    first, second = table_of(*counts)
    result = rlt_data.compare(evaluation(tmp_path / "a", first), evaluation(tmp_path / "b", second))
    both, only_first, only_second, _ = counts
    assert (result.questions, result.both) == (sum(counts), both)
    assert (result.first.solved, result.second.solved) == (both + only_first, both + only_second)
    assert result.p_value == pytest.approx(p_value)
    assert result.overlap == pytest.approx(both / (both + only_first + only_second))
    assert result.difference == pytest.approx((only_second - only_first) / sum(counts))
    assert result.low <= result.difference <= result.high


def test_several_answers_count_as_rates_and_by_majority(tmp_path: Path) -> None:
    first = {"p": [True, True, False, False], "q": [True] * 4, "r": [False] * 4, "only here": [True] * 4}
    second = {"r": [True, False], "q": [True, True], "p": [True, False], "there": [True], "too": [False]}
    result = rlt_data.compare(evaluation(tmp_path / "a", first), evaluation(tmp_path / "b", second))
    assert (result.questions, result.first.other_questions, result.second.other_questions) == (3, 1, 2)
    assert result.first.accuracy == pytest.approx((0.5 + 1 + 0) / 3) and result.first.answers == 4
    assert result.difference == pytest.approx((0 + 0 + 0.5) / 3)
    # Two answers of each count: p is solved by the first; half of the answers are not enough.
    assert (result.first.solved, result.second.solved, result.both) == (2, 1, 1)


@pytest.mark.parametrize(("n", "other"), [(1, 2), (1, 4), (1, 64), (4, 64)])
def test_different_numbers_of_answers_of_one_model_do_not_differ(rlt: Rlt, tmp_path: Path, n: int, other: int) -> None:
    random = np.random.default_rng(0)
    first, second = ({f"{index}": list(random.random(count) < 0.6) for index in range(200)} for count in (n, other))
    runs = evaluation(tmp_path / "a", first), evaluation(tmp_path / "b", second)
    assert rlt_data.compare(*runs).p_value > 0.05
    assert "more than half of the answers are correct; equally many of both count" in rlt("compare", *runs).stdout


def test_an_interval_of_many_questions_needs_little_memory() -> None:
    values = np.random.default_rng(1).random(5_000)
    tracemalloc.start()
    low, high = mean_interval(values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert low < values.mean() < high and peak < 100 * 2**20


def test_only_the_samples_of_the_last_call_count(tmp_path: Path) -> None:
    first = evaluation(tmp_path / "a", {"p": [True, False, False], "q": [True, False, False]}, n=1)
    second = evaluation(tmp_path / "b", {"p": [True], "q": [True]})
    assert rlt_data.compare(first, second).difference == 0


def test_the_interval_is_that_of_scipy() -> None:
    values = np.random.default_rng(1).binomial(4, 0.3, 60) / 4 - np.random.default_rng(2).binomial(4, 0.4, 60) / 4
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=0).confidence_interval
    assert mean_interval(values) == pytest.approx((theirs.low, theirs.high), abs=0.005)


@pytest.mark.parametrize("n", [1, 4])
def test_the_interval_covers_the_difference(n: int) -> None:
    """Models of different accuracy on questions of different difficulty, with n answers to each question."""
    random = np.random.default_rng(0)
    trials, questions, covered = 200, 80, 0
    for _ in range(trials):
        difficulty = random.beta(1, 1, questions)
        first = random.binomial(n, 0.9 * difficulty) / n
        second = random.binomial(n, 0.1 + 0.9 * difficulty) / n
        low, high = mean_interval(second - first)
        covered += low <= 0.1 <= high
    assert 0.91 <= covered / trials <= 0.985


def test_the_command_prints_what_it_found(rlt: Rlt, tmp_path: Path) -> None:
    first, second = table_of(10, 2, 6, 3)
    second |= {"extra": [True]}
    runs = evaluation(tmp_path / "a", first, seed=1), evaluation(tmp_path / "b", second, seed=2)
    text = rlt("compare", *runs).stdout
    assert "math, 21 common questions" in text and "second - first: +19.0 points" in text
    assert "both 10 (55.6% of those that at least one solves), only the first 2" in text
    assert "only the second 6, neither 3" in text and "p = 0.289" in text
    assert f"left out: questions 1 only in {runs[1]}" in text
    assert "different settings: seed: 1 and 2" in text
    assert json.loads(rlt("compare", *runs, "--json").stdout)["second"]["other_questions"] == 1


def test_what_cannot_be_compared_gets_one_line(rlt: Rlt, tmp_path: Path) -> None:
    one = evaluation(tmp_path / "one", {"p": [True], "q": [True]})
    other = evaluation(tmp_path / "other", {"r": [True], "s": [True]})
    aime = evaluation(tmp_path / "aime", {"p": [True]}, benchmark="aime24")
    unfinished = evaluation(tmp_path / "unfinished", {"p": [True]})
    (tmp_path / "unfinished" / "evaluation.json").unlink()
    damaged = evaluation(tmp_path / "damaged", {"p": [True]})
    (tmp_path / "damaged" / "run.json").write_text('{"steps": {}}')
    with pytest.raises(SettingsError, match="one evaluated math and .*aime evaluated aime24; compare takes"):
        rlt_data.compare(one, aime)
    with pytest.raises(SettingsError, match="have 0 common questions"):
        rlt_data.compare(one, other)
    with pytest.raises(RunFolderError, match="unfinished: is not a finished evaluation"):
        rlt_data.compare(one, unfinished)
    with pytest.raises(RunFolderError, match="damaged: is not a finished evaluation"):
        rlt_data.compare(one, damaged)
    with pytest.raises(RunFolderError, match="no such run folder"):
        rlt_data.compare(one, tmp_path / "none")
    assert "requires two runs" in rlt("compare", one, code=2).stderr


@pytest.mark.parametrize(
    ("value", "lowest", "low", "high"),
    [(0.0, 0.0, 0.0, 0.3085), (1.0, 0.0, 0.6915, 1.0), (0.5, 0.0, 0.3458, 0.6542)]
    + [(1.0, -1.0, 0.3830, 1.0), (-1.0, -1.0, -1.0, -0.3830), (0.0, -1.0, -0.3085, 0.3085)],
)
def test_equal_values_have_an_interval_too(value: float, lowest: float, low: float, high: float) -> None:
    """Of ten questions none differs with 2.5 % probability if 30.85 % of all questions differ."""
    assert mean_interval(np.full(10, value), lowest=lowest) == pytest.approx((low, high), abs=1e-4)
    assert (1 - 0.3085) ** 10 == pytest.approx(0.025, rel=1e-3)


def test_data_types_are_compared_and_templates_of_one_model(tmp_path: Path) -> None:
    grades = {"p": [True], "q": [False]}
    first = evaluation(tmp_path / "a", grades, dtype="float32", chat_template="x")
    other = {"dtype": "bfloat16", "chat_template": "y"}
    second = evaluation(tmp_path / "b", grades, **other)
    assert rlt_data.compare(first, second).settings == "dtype: 'float32' and 'bfloat16'"
    same = evaluation(tmp_path / "c", grades, **other, model="a")
    assert rlt_data.compare(first, same).settings == ("the chat template differs; dtype: 'float32' and 'bfloat16'")
