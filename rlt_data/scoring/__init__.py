"""Compute the scores of a trace from token log-probs. Pure functions: no I/O, no storage, no engine, no torch.

Reading order: ``tokens`` (a trace's tokens for student and teacher, and their alignment), ``rows``
(:func:`score_trace`, which scores one trace), ``reward`` (the equations), ``rewards`` (rewards that users write). The
score step and the GRPO reward both call :func:`score_trace` and :func:`compute_reward`.
"""

from rlt_data.scoring.rewards import RewardError, RewardFunction, compute_reward
from rlt_data.scoring.rows import RewardWeights, score_trace
from rlt_data.scoring.tokens import (
    Alignment,
    StudentTokens,
    TeacherTokens,
    align_tokens,
    teacher_tokens_from_ids,
    teacher_tokens_from_text,
    tokenize_for_student,
)

__all__ = [
    "Alignment",
    "RewardError",
    "RewardFunction",
    "RewardWeights",
    "StudentTokens",
    "TeacherTokens",
    "align_tokens",
    "compute_reward",
    "score_trace",
    "teacher_tokens_from_ids",
    "teacher_tokens_from_text",
    "tokenize_for_student",
]
