"""Score one trace: tokens, log-probs and weights in, columns of the scores table out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from rlt_data.formats.spans import Ints
from rlt_data.scoring.measures import explanation_measures
from rlt_data.scoring.reward import Floats, kl_terms, reward_terms
from rlt_data.scoring.tokens import Alignment, StudentTokens


@dataclass(frozen=True)
class RewardWeights:
    """Weights of the reward's terms; :func:`rlt_data.scoring.reward.reward_terms` has the formulas.

    Attributes:
        lambda_: weight of the KL term.
        alpha: weight of minimum and maximum relative to the means.
        kl: ``k1`` and ``k3`` estimate the KL from the sampled tokens; ``full`` sums over the vocabulary.
        missing_tag_penalty: added to the reward if the closing tag is missing.
        solution_weight: weight of the solution term.
        alpha_kl: weight of the maximum in the KL term; None: ``alpha``.
    """

    lambda_: float = 3.0
    alpha: float = 0.01
    kl: Literal["k1", "k3", "full"] = "k1"
    missing_tag_penalty: float = -1.0
    solution_weight: float = 1.0
    alpha_kl: float | None = None


def score_trace(
    student: StudentTokens,
    student_logprobs: Floats,
    alignment: Alignment | None,
    teacher_logprobs: Floats | None,
    weights: RewardWeights,
    *,
    truncated: bool,
    full_kl: Floats | None = None,
    measured_logprobs: Floats | None = None,
    ranks: Ints | None = None,
    per_token: bool = False,
) -> dict[str, Any]:
    """Score one trace.

    Args:
        student: the student's tokens.
        student_logprobs: the student's log-probs of ``student.scored``, shape (scored,).
        alignment: alignment of the teacher's tokens with the student's; None to score without a teacher.
        teacher_logprobs: the teacher's log-probs of the explanation's tokens, shape (teacher tokens,); None if
            ``weights.kl`` is ``full`` or no tokens align.
        weights: weights of the terms and kind of KL.
        truncated: whether the completion hit the token limit.
        full_kl: KL over the vocabulary at each of ``alignment.single_tokens``; only if ``weights.kl`` is ``full``.
        measured_logprobs: the student's log-probs of ``student.thought`` at the measure temperature, shape (thought,);
            None to leave the measures that need them null.
        ranks: ranks of the same tokens, shape (thought,); None likewise.
        per_token: whether to include the values of all tokens.

    Returns:
        Columns of the scores table: the reward's terms, token counts, flags and measures. The caller adds identity and
        provenance (``trace_id``, ``scored_by`` and so on).

    Raises:
        ValueError: the question has a solution, but it has no token.
    """
    thought, solution = np.split(student_logprobs, [len(student.thought)])
    kl, kl_tokens = _kl(thought, alignment, teacher_logprobs, full_kl, weights)
    closed = student.explanation.closed
    empty = student.empty or not student.explanation.text.strip()
    holds_tag = student.explanation.holds_tag is not None
    terms = reward_terms(
        solution=solution if student.has_solution else None,
        thought=thought,
        kl=kl,
        closed=closed,
        lambda_=weights.lambda_,
        alpha=weights.alpha,
        missing_tag_penalty=weights.missing_tag_penalty,
        solution_weight=weights.solution_weight,
        alpha_kl=weights.alpha_kl,
    )
    row = {
        **asdict(terms),
        "thought_tokens": len(student.thought),
        "solution_tokens": len(student.solution),
        "kl_tokens": 0 if kl is None else len(kl),
        "student_tokens": len(student.encoding),
        "uncovered_chars": student.uncovered,
        "closed": closed,
        "truncated": truncated,
        "empty": empty,
        "holds_tag": holds_tag,
        "control_token": student.control_token,
        "well_formed": closed and not (truncated or empty or holds_tag or student.control_token),
        **explanation_measures(measured_logprobs, ranks),
    }
    if per_token:
        row |= {
            "solution_logprobs": solution,
            "solution_offsets": student.solution_offsets[:, 0],
            "thought_logprobs": thought,
            "thought_offsets": student.thought_offsets[:, 0],
            "thought_kl": kl,
            "kl_offsets": None if kl is None else student.thought_offsets[kl_tokens, 0],
        }
    return row


def _kl(
    thought: Floats,
    alignment: Alignment | None,
    teacher_logprobs: Floats | None,
    full_kl: Floats | None,
    weights: RewardWeights,
) -> tuple[Floats | None, Ints]:
    """Return the KL terms (None without a teacher), and the index of each term's first thought token."""
    if alignment is None or not len(alignment):
        return None if alignment is None else np.zeros(0), np.zeros(0, np.int32)
    if weights.kl == "full":
        assert full_kl is not None
        return full_kl, alignment.single_tokens[:, 1]
    assert teacher_logprobs is not None
    teacher, student = _sums(teacher_logprobs, alignment.teacher), _sums(thought, alignment.student)
    return kl_terms(teacher, student, weights.kl), alignment.student[:, 0]


def _sums(values: Floats, ranges: Ints) -> Floats:
    """Sum values over half-open ranges of shape (ranges, 2)."""
    single = ranges[:, 1] - ranges[:, 0] == 1
    if single.all():
        return values[ranges[:, 0]].astype(np.float64)
    cumulative = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    sums: Floats = cumulative[ranges[:, 1]] - cumulative[ranges[:, 0]]
    sums[single] = values[ranges[single, 0]]
    return sums
