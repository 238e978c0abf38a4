from __future__ import annotations

import math

import numpy as np
import pytest

from rlt_data.scoring.measures import (
    RANK_LIMIT,
    explanation_measures,
    instruction_following_difficulty,
    local_logprob_mean,
    rank_surprisal_ratio,
    token_steps,
    without_repeats,
)


def test_the_formulas_on_a_worked_example() -> None:
    logprobs, ranks = np.log(np.array([0.5, 0.25, 0.001], np.float32)), np.array([1, 2, 4000], np.int32)
    measures = explanation_measures(logprobs, ranks)
    surprisal = math.log(2) + math.log(4) + math.log(1000)
    assert measures["thought_logprob_mean"] == pytest.approx(-surprisal / 3)
    assert measures["thought_logprob_min"] == pytest.approx(math.log(0.001))
    assert measures["perplexity"] == pytest.approx(8000 ** (1 / 3))
    assert measures["token_rank_mean"] == pytest.approx(4003 / 3)
    assert measures["rsr"] == pytest.approx((1 + 2 + RANK_LIMIT) / surprisal)
    assert measures["surprising_share"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("tokens", [None, np.zeros(0, np.float32)])
def test_measures_are_null_without_values_or_tokens(tokens: np.ndarray | None) -> None:
    assert set(explanation_measures(tokens, None).values()) == {None}
    ranks = None if tokens is None else tokens.astype(np.int32)
    assert set(explanation_measures(tokens, ranks).values()) == {None}


def test_ranks_and_log_probs_are_used_without_each_other() -> None:
    only_ranks = explanation_measures(None, np.array([1, 3], np.int32))
    assert only_ranks.pop("token_rank_mean") == 2 and set(only_ranks.values()) == {None}
    without_ranks = explanation_measures(np.array([-1.0, -2.0]), None)
    assert [name for name, value in without_ranks.items() if value is None] == ["token_rank_mean", "rsr"]


def test_a_certain_student_has_no_ratio_and_a_hopeless_one_an_infinite_perplexity() -> None:
    assert rank_surprisal_ratio(np.zeros(3), np.ones(3, np.int32)) is None
    assert explanation_measures(np.full(2, -9000.0), None)["perplexity"] == math.inf


def test_ifd_is_a_ratio_of_perplexities() -> None:
    helped, alone = np.log([0.5, 0.5]), np.log([0.1, 0.1])
    assert instruction_following_difficulty(helped, alone) == pytest.approx(2 / 10)


def test_steps_count_equally_whatever_their_length() -> None:
    assert local_logprob_mean([np.full(9, -1.0), np.full(1, -3.0)]) == pytest.approx(-2)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("We add. Then 3.5 is left! Done", ["We add.", " Then 3.5 is left!", " Done"]),
        ("\n\nFirst line\n\nSecond line\n", ["\n\nFirst line", "\n\nSecond line\n"]),
        ("1. Add both.\n2. Halve it.", ["1. Add both.", "\n2. Halve it."]),
        ("先加。然后减去三。", ["先加。然后减去三。"]),
        ("我们先把两个数加起来。然后再减去三个。", ["我们先把两个数加起来。", "然后再减去三个。"]),
        ("No end", ["No end"]),
        ("So it is. Ok", ["So it is. Ok"]),
    ],
)
def test_steps_are_sentences_and_lines(text: str, steps: list[str]) -> None:
    """Each character is a token, but two line breaks are one."""
    firsts = [at for at in range(len(text)) if not text[max(at - 1, 0) : at + 1] == "\n\n" or at == 0]
    ranges = token_steps(text, np.array(firsts, np.int32))
    ends = [*firsts, len(text)]
    assert [text[ends[first] : ends[last]] for first, last in ranges] == steps
    assert [first for first, _ in ranges[1:]] == [last for _, last in ranges[:-1]]


SOLUTION = "There are 17 * 23 = 391 rolls in all."


@pytest.mark.parametrize(
    ("explanation", "kept"),
    [
        ("We see that there are  17 *\n23 = 391 Rolls in all. Good.", "We see that  Good."),
        ("First: 17 * 23 = 391 apples.", "First: 17 * 23 = 391 apples."),  # five words and signs
        ("", ""),
    ],
)
def test_repeated_runs_are_removed(explanation: str, kept: str) -> None:
    assert without_repeats(explanation, SOLUTION) == kept


def test_a_short_solution_counts_as_a_whole() -> None:
    assert without_repeats("It is 42, not 421 or 4.", "42") == "It is , not 421 or 4."
    assert without_repeats("x = 7; X=7", "x = 7") == "; "
    assert without_repeats("x = 8", "x = 7") == "x = 8"
    assert without_repeats("Nothing.", "") == "Nothing."
