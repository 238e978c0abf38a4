"""Rewards of a policy: the dense reward of a frozen student, or the correctness of answers.

Both are reward functions for TRL's GRPOTrainer, over :class:`~rlt_data.training.rollouts.Rollout`.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from rlt_data.engines import Failure, Model, SequenceRequest
from rlt_data.formats import Format, Problem, Tokenizer, Views
from rlt_data.formats.views import SolutionIn
from rlt_data.plugins import REWARDS
from rlt_data.scoring import (
    RewardError,
    StudentTokens,
    align_tokens,
    compute_reward,
    score_trace,
    teacher_tokens_from_ids,
    tokenize_for_student,
)
from rlt_data.scoring.reward import Floats
from rlt_data.settings import TrainSolverSettings, TrainTeacherSettings
from rlt_data.steps.score import reward_weights
from rlt_data.tasks.grading import Grader, Kind
from rlt_data.training.rollouts import Rollout

logger = logging.getLogger(__name__)

Row = dict[str, Any]
LogMetric = Callable[[str, float], None]

_WORD = re.compile(r"\w+|[^\w\s]")
#: Words in an n-gram that counts as copied or repeated.
_NGRAM = 4
_TERMS = ("reward", "penalty", "r_ss", "r_kl", "solution_logprob_mean", "solution_logprob_min", "kl_mean", "kl_max")
_SHARES = ("well_formed", "closed", "truncated", "empty")


def copied_fraction(explanation: str, solution: str) -> float:
    """Return the fraction of the explanation's 4-grams of words that occur in the solution, from 0 to 1."""
    words, solution_words = _WORD.findall(explanation), _WORD.findall(solution)
    if 0 < len(words) < _NGRAM:
        return float(" ".join(words) in " ".join(solution_words))
    ngrams, solution_ngrams = _ngrams(words), set(_ngrams(solution_words))
    return sum(ngram in solution_ngrams for ngram in ngrams) / len(ngrams) if ngrams else 0.0


def repeated_fraction(text: str) -> float:
    """Return the fraction of a text's 4-grams of words that occurred earlier in it, from 0 to 1."""
    ngrams = _ngrams(_WORD.findall(text))
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def _ngrams(words: list[str]) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + _NGRAM]) for start in range(len(words) - _NGRAM + 1)]


class Reward:
    """Base class of rewards: logs the mean of each metric and keeps the last samples.

    Attributes:
        latest: one row per sample of the last call: question, completion and all metrics.
    """

    def __init__(self) -> None:
        self.latest: list[Row] = []

    def __call__(self, *, rollout: Sequence[Rollout], log_metric: LogMetric, **columns: Any) -> list[float | None]:
        """Return the reward of each sample, or None for a sample that cannot be scored; TRL ignores those."""
        questions = [dict(zip(columns, values, strict=True)) for values in _transposed(columns, len(rollout))]
        rows = self.rows(questions, rollout)
        for row, sample in zip(rows, rollout, strict=True):
            row["completion_tokens"] = len(sample.token_ids)
        self.latest = [
            {"question": question["question"], "completion": sample.text, **row}
            for question, sample, row in zip(questions, rollout, rows, strict=True)
        ]
        names = {name: None for row in rows for name, value in row.items() if not isinstance(value, str)}
        for name in names:  # a sample that could not be scored has fewer metrics than others
            values = [float(row[name]) for row in rows if row.get(name) is not None]
            if values and name != "reward":
                log_metric(name, float(np.mean(values)))
        log_metric("unrewarded", float(np.mean([row["reward"] is None for row in rows])))
        return [row["reward"] for row in rows]

    def rows(self, questions: Sequence[Row], rollouts: Sequence[Rollout]) -> list[Row]:
        """Return ``reward`` and the other metrics of each sample."""
        raise NotImplementedError


def _transposed(columns: dict[str, Any], count: int) -> list[tuple[Any, ...]]:
    """Remove columns that do not have one value per sample, and return the rows of the others."""
    for name in [name for name, values in columns.items() if not isinstance(values, list) or len(values) != count]:
        del columns[name]
    return list(zip(*columns.values(), strict=True))


class DenseReward(Reward):
    """The RLT reward, computed by the same function as in ``rlt-data score``.

    Args:
        settings: reward weights, KL estimator and temperature.
        student: frozen student.
        format: format of questions, solutions and explanations.
        tokenizer: tokenizer of the teacher.
        same_tokenizer: whether teacher and student share a tokenizer.
    """

    def __init__(
        self,
        settings: TrainTeacherSettings,
        student: Model,
        format: Format,
        tokenizer: Tokenizer,
        *,
        same_tokenizer: bool,
    ) -> None:
        super().__init__()
        self._temperature = settings.temperature
        self._weights = reward_weights(settings)
        self._reward_name = settings.reward
        self._reward = REWARDS.load(settings.reward)
        self._student = student
        self._format = format
        self._views = Views(format, student.template, student.control)
        self._tokenizer = tokenizer
        self._same_tokenizer = same_tokenizer

    def rows(self, questions: Sequence[Row], rollouts: Sequence[Rollout]) -> list[Row]:
        """Return reward terms and collapse metrics of each sample."""
        problems = [Problem.of(row) for row in questions]
        completions = [rollout.text for rollout in rollouts]
        students = tokenize_for_student(self._student.tokenizer, self._views, problems, completions)
        logprobs = self._student_logprobs(questions, students)
        return [
            self._row(question, rollout, student, logprobs.get(str(index)))
            for index, (question, rollout, student) in enumerate(zip(questions, rollouts, students, strict=True))
        ]

    def _student_logprobs(self, questions: Sequence[Row], students: Sequence[StudentTokens]) -> dict[str, Floats]:
        """Return the student's log-probs by sample index; samples that cannot be scored are missing."""
        block = []
        for _, group in groupby(range(len(students)), key=lambda index: questions[index]["question_id"]):
            requests = []
            for index in group:
                student = students[index]
                if len(student.solution) and len(student.encoding) <= self._student.engine.context_length:
                    requests.append(SequenceRequest(str(index), student.encoding.ids, student.scored))
            if requests:
                block.append(requests)
        results = self._student.logprobs([block], self._temperature)
        return {result.key: result.logprobs for result in results if not isinstance(result, Failure)}

    def _row(self, question: Row, rollout: Rollout, student: StudentTokens, student_logprobs: Floats | None) -> Row:
        explanation = student.explanation.text
        signs = {
            "explanation": explanation,
            "copied": copied_fraction(explanation, question["solution"]),
            "repeated": repeated_fraction(explanation),
        }
        if student_logprobs is None:
            return {"reward": None, **signs}
        teacher = teacher_tokens_from_ids(rollout.tail_ids, rollout.token_ids)
        row = score_trace(
            student,
            student_logprobs,
            align_tokens(student, teacher, self._tokenizer, self._format, same_tokenizer=self._same_tokenizer),
            np.concatenate([rollout.tail_logprobs, rollout.logprobs]),
            self._weights,
            truncated=rollout.finish_reason == "length",
        )
        try:
            row["reward"] = compute_reward(
                self._reward,
                row,
                question=question["question"],
                solution=question["solution"],
                explanation=explanation,
            )
        except RewardError as error:
            logger.warning("question %s: %s (%s)", question["question_id"], error, self._reward_name)
            row["reward"] = None
        if row["reward"] is not None and not np.isfinite(row["reward"]):
            row["reward"] = None
        return {name: row[name] for name in (*_TERMS, *_SHARES, "thought_tokens")} | signs


class CorrectnessReward(Reward):
    """Fixed rewards for right, wrong and unformatted answers.

    Args:
        settings: the three rewards.
        solution_in: extracts the solution from an answer.
        kind: grading method.
        grader: running grader.
    """

    def __init__(self, settings: TrainSolverSettings, solution_in: SolutionIn, kind: Kind, grader: Grader) -> None:
        super().__init__()
        self._settings = settings
        self._solution_in = solution_in
        self._kind: Kind = kind
        self._grader = grader

    def rows(self, questions: Sequence[Row], rollouts: Sequence[Rollout]) -> list[Row]:
        """Return reward, correctness and format of each answer."""
        return [self._row(question, rollout) for question, rollout in zip(questions, rollouts, strict=True)]

    def _row(self, question: Row, rollout: Rollout) -> Row:
        settings = self._settings
        solution, formatted = self._solution_in(rollout.text)
        grade = self._grader.grade(self._kind, solution, question["answer"], **json.loads(question["problem"]))
        correct = formatted and grade.correct
        reward = settings.correct_reward if correct else settings.wrong_reward
        return {
            "reward": reward if formatted else settings.unformatted_reward,
            "correct": correct,
            "well_formed": formatted,
            "truncated": rollout.finish_reason == "length",
            "repeated": repeated_fraction(rollout.text),
        }
