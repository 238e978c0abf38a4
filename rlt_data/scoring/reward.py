"""The dense reward of RLT, equations 3 to 5 of arXiv 2506.08388, as the authors' released code computes it.

Only arithmetic: token log-probs in, reward terms out. All log-probs are natural logarithms of the softmax over the full
vocabulary, with the logits divided by one temperature for teacher and student.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]

#: Mean and maximum of the KL if the explanation has no token, as in the released code.
EMPTY_KL = 1.0
#: Mean and maximum of the student's negative log-probs in the same case: the released code sets log-probs of +1.
EMPTY_NEGATIVE_LOGPROB = -1.0
#: Why a trace without solution tokens cannot be scored.
NO_SOLUTION_TOKEN = "no token lies entirely within the solution"


@dataclass(frozen=True)
class RewardTerms:
    """The reward of one trace and its terms. Terms that need a teacher or a solution are None without one.

    Attributes:
        reward: ``solution_weight * r_ss - lambda * r_kl + penalty``.
        reward_without_entropy: the reward with ``-log p_student`` in place of each KL term; needs no teacher.
        penalty: ``missing_tag_penalty`` if the closing tag is missing, else 0.
        r_ss: ``solution_logprob_mean + alpha * solution_logprob_min``.
        r_kl: ``kl_mean + alpha_kl * kl_max``.
        solution_logprob_mean: mean of the student's log-probs of the solution's tokens.
        solution_logprob_min: minimum of the same log-probs.
        kl_mean: mean of the KL terms of the explanation.
        kl_max: maximum of the KL terms of the explanation.
    """

    reward: float | None
    reward_without_entropy: float | None
    penalty: float
    r_ss: float | None
    r_kl: float | None
    solution_logprob_mean: float | None
    solution_logprob_min: float | None
    kl_mean: float | None
    kl_max: float | None


def kl_terms(teacher: Floats, student: Floats, estimate: Literal["k1", "k3"] = "k1") -> Floats:
    """Estimate KL(teacher || student) at each token that the teacher sampled.

    Args:
        teacher: the teacher's log-probs of the sampled tokens given question and solution, shape (tokens,).
        student: the student's log-probs of the same tokens given only the question, shape (tokens,).
        estimate: ``k1`` is the log-ratio, as in the paper: unbiased, positive or negative. ``k3`` is
            ``exp(-k1) - 1 + k1``: unbiased, never negative, with smaller variance if the models are close
            (http://joschu.net/blog/kl-approx.html).

    Returns:
        Shape (tokens,), in nats.

    Raises:
        ValueError: the shapes differ, or there is no such estimate.
    """
    if estimate not in ("k1", "k3"):
        raise ValueError(f"estimate: takes k1 or k3 (got {estimate!r})")
    ratio = np.asarray(teacher, np.float64) - np.asarray(student, np.float64)
    return ratio if estimate == "k1" else np.expm1(-ratio) + ratio


def reward_terms(
    *,
    solution: Floats | None,
    thought: Floats,
    kl: Floats | None,
    closed: bool,
    lambda_: float = 3.0,
    alpha: float = 0.01,
    missing_tag_penalty: float = -1.0,
    solution_weight: float = 1.0,
    alpha_kl: float | None = None,
) -> RewardTerms:
    """Compute the reward of one trace from its token values.

    Args:
        solution: the student's log-probs of the solution's tokens given question and explanation, shape (tokens,);
            None if the question has no solution.
        thought: the student's log-probs of the explanation's tokens given the question, shape (tokens,); empty if the
            explanation has no token.
        kl: KL terms of the explanation, shape (terms,), or None without a teacher.
        closed: whether the explanation has its closing tag.
        lambda_: weight of the KL term.
        alpha: weight of minimum and maximum relative to the means.
        missing_tag_penalty: added to the reward if the closing tag is missing.
        solution_weight: weight of the solution term.
        alpha_kl: weight of the maximum in the KL term; ``alpha`` is then only that of the minimum. None: ``alpha``.

    Raises:
        ValueError: the solution has no token.
    """
    penalty = 0.0 if closed else missing_tag_penalty
    alpha_kl = alpha if alpha_kl is None else alpha_kl
    r_kl = kl_mean = kl_max = None
    if kl is not None:
        kl_mean, kl_max = _mean_and_max(kl, EMPTY_KL)
        r_kl = kl_mean + alpha_kl * kl_max
    reward = without_entropy = r_ss = solution_mean = solution_min = None
    if solution is not None:
        solution_mean, solution_min = solution_mean_and_min(solution)
        r_ss = solution_mean + alpha * solution_min
        surprise_mean, surprise_max = _mean_and_max(-np.asarray(thought), EMPTY_NEGATIVE_LOGPROB)
        weighted = solution_weight * r_ss
        without_entropy = weighted - lambda_ * (surprise_mean + alpha_kl * surprise_max) + penalty
        if r_kl is not None:
            reward = weighted - lambda_ * r_kl + penalty
    return RewardTerms(
        reward=reward,
        reward_without_entropy=without_entropy,
        penalty=penalty,
        r_ss=r_ss,
        r_kl=r_kl,
        solution_logprob_mean=solution_mean,
        solution_logprob_min=solution_min,
        kl_mean=kl_mean,
        kl_max=kl_max,
    )


def solution_mean_and_min(solution: Floats) -> tuple[float, float]:
    """Return mean and minimum of the student's log-probs of the solution's tokens.

    Raises:
        ValueError: the solution has no token.
    """
    if not len(solution):
        raise ValueError(NO_SOLUTION_TOKEN)
    return float(np.mean(solution, dtype=np.float64)), float(np.min(solution))


def _mean_and_max(values: Floats, if_empty: float) -> tuple[float, float]:
    if not len(values):
        return if_empty, if_empty
    return float(np.mean(values, dtype=np.float64)), float(np.max(values))
