"""The reward of a trace as a function of its row of scores: RLT's by default, or the user's (docs/extending.md)."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

from rlt_data.errors import one_line

#: Returns the reward of a trace. Its argument contains the columns that :func:`~rlt_data.scoring.score_trace` returns,
#: including ``reward`` (the RLT reward), and the texts ``question``, ``solution`` and ``explanation``.
RewardFunction = Callable[[dict[str, Any]], float | None]


class RewardError(Exception):
    """A reward function failed on a row; the message says how."""


def rlt(row: dict[str, Any]) -> float | None:
    """Return the reward of the paper."""
    reward: float | None = row["reward"]
    return reward


def compute_reward(
    function: RewardFunction, row: dict[str, Any], *, question: str, solution: str, explanation: str
) -> float | None:
    """Call a reward function on a row of scores.

    Args:
        function: the reward function.
        row: the columns that ``score_trace`` returned.
        question: the question.
        solution: its solution.
        explanation: the text that the teacher wrote between its tags.

    Returns:
        The reward, or None if the function returns None.

    Raises:
        RewardError: the function raised, or returned anything but a finite number or None.
    """
    if function is rlt:
        return rlt(row)
    try:
        reward: Any = function({**row, "question": question, "solution": solution, "explanation": explanation})
    except Exception as error:  # noqa: BLE001 - the user's code
        raise RewardError(f"the reward raised {type(error).__name__}: {one_line(error)}") from error
    if reward is None:
        return None
    if not isinstance(reward, Real) or not math.isfinite(reward):
        raise RewardError(f"the reward returned {reward!r}, not a finite number or None")
    return float(reward)
