"""The dense reward of RLT, equations 3 to 5 of arXiv 2506.08388, as the authors' released code computes it.

Maths alone: token log-probs in, reward terms out. No model, no I/O, no text. All log-probs are natural logarithms of
the softmax over the whole vocabulary of logits divided by one temperature, the same for teacher and student.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]

#: What stands for the mean and the maximum of the KL where the explanation has no token (the released code's value).
EMPTY_KL = 1.0
#: The same for the student's negative log-probs: the released code puts log-probs of +1 there.
EMPTY_NEGATIVE_LOGPROB = -1.0


@dataclass(frozen=True)
class RewardTerms:
    """The reward of one trace and what it is made of; the terms without a teacher's log-probs are None.

    Attributes:
        reward: ``r_ss - lambda * r_kl + penalty``.
        reward_without_entropy: the same with ``-log p_student`` in place of each KL term, so that the teacher's
            entropy plays no part and no teacher is needed.
        penalty: what a missing closing tag costs, else 0.
        r_ss: ``solution_logprob_mean + alpha * solution_logprob_min``.
        r_kl: ``kl_mean + alpha * kl_max``.
        solution_logprob_mean: mean log-prob of the solution's tokens under the student.
        solution_logprob_min: their minimum.
        kl_mean: mean of the KL terms over the explanation, before lambda and alpha.
        kl_max: their maximum.
    """

    reward: float | None
    reward_without_entropy: float
    penalty: float
    r_ss: float
    r_kl: float | None
    solution_logprob_mean: float
    solution_logprob_min: float
    kl_mean: float | None
    kl_max: float | None


def kl_terms(teacher: Floats, student: Floats, estimate: Literal["k1", "k3"] = "k1") -> Floats:
    """Estimate KL(teacher || student) at each token that the teacher sampled.

    Args:
        teacher: log-probs of the sampled tokens given the solution, shape (tokens,).
        student: log-probs of the same tokens from the question alone, shape (tokens,).
        estimate: ``k1`` is the log-ratio, unbiased and of either sign (the paper's). ``k3`` is
            ``exp(-k1) - 1 + k1``, unbiased, never negative, of smaller variance where the two are close
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
    solution: Floats,
    thought: Floats,
    kl: Floats | None,
    closed: bool,
    lambda_: float = 3.0,
    alpha: float = 0.01,
    missing_tag_penalty: float = -1.0,
) -> RewardTerms:
    """Reduce token values to the reward of one trace.

    Args:
        solution: the student's log-probs of the solution's tokens given question and explanation, shape (tokens,).
        thought: the student's log-probs of the explanation's tokens given the question, shape (tokens,); empty for an
            explanation without tokens.
        kl: KL terms of the explanation, shape (terms,), or None without a teacher.
        closed: whether the explanation was ended by its closing tag.
        lambda_: weight of the KL term.
        alpha: weight of minimum and maximum beside the means.
        missing_tag_penalty: added where the closing tag is missing.

    Raises:
        ValueError: there is no solution token.
    """
    if not len(solution):
        raise ValueError("the solution has no token of its own between its tags")
    solution_mean, solution_min = float(np.mean(solution, dtype=np.float64)), float(np.min(solution))
    r_ss = solution_mean + alpha * solution_min
    penalty = 0.0 if closed else missing_tag_penalty

    surprise_mean, surprise_max = _mean_and_max(-np.asarray(thought), EMPTY_NEGATIVE_LOGPROB)
    without_entropy = r_ss - lambda_ * (surprise_mean + alpha * surprise_max) + penalty
    reward = r_kl = kl_mean = kl_max = None
    if kl is not None:
        kl_mean, kl_max = _mean_and_max(kl, EMPTY_KL)
        r_kl = kl_mean + alpha * kl_max
        reward = r_ss - lambda_ * r_kl + penalty
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


def _mean_and_max(values: Floats, if_empty: float) -> tuple[float, float]:
    if not len(values):
        return if_empty, if_empty
    return float(np.mean(values, dtype=np.float64)), float(np.max(values))
