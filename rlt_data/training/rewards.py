"""What a policy is rewarded by: the dense reward of a frozen student, or the correctness of answers.

Both are callables as TRL's GRPOTrainer takes them, over :class:`~rlt_data.training.rollouts.Rollout`.
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
from rlt_data.formats import Format, Tokenizer, Views
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
from rlt_data.steps.evaluate import solution_in
from rlt_data.steps.score import reward_weights
from rlt_data.tasks.grading import Grader, Kind
from rlt_data.training.rollouts import Rollout

logger = logging.getLogger(__name__)

Row = dict[str, Any]
LogMetric = Callable[[str, float], None]

_WORD = re.compile(r"\w+|[^\w\s]")
#: Words of a run that counts as copied or repeated.
_RUN = 4
_TERMS = ("reward", "penalty", "r_ss", "r_kl", "solution_logprob_mean", "solution_logprob_min", "kl_mean", "kl_max")
_SHARES = ("well_formed", "closed", "truncated", "empty")


def copied(explanation: str, solution: str) -> float:
    """Return the share of an explanation's runs of four words that stand in the solution too, from 0 to 1."""
    words, theirs = _WORD.findall(explanation), _WORD.findall(solution)
    if 0 < len(words) < _RUN:
        return float(" ".join(words) in " ".join(theirs))
    runs, known = _runs(words), set(_runs(theirs))
    return sum(run in known for run in runs) / len(runs) if runs else 0.0


def repeated(text: str) -> float:
    """Return the share of a text's runs of four words that came before in it, from 0 to 1."""
    runs = _runs(_WORD.findall(text))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def _runs(words: list[str]) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + _RUN]) for start in range(len(words) - _RUN + 1)]


class Reward:
    """A reward that notes what it saw.

    Attributes:
        latest: one row for each sample of the last call: what was asked and written, and all figures.
    """

    def __init__(self) -> None:
        self.latest: list[Row] = []

    def __call__(self, *, rollout: Sequence[Rollout], log_metric: LogMetric, **columns: Any) -> list[float | None]:
        """Reward samples; None where one cannot be rewarded, which then has no advantage."""
        questions = [dict(zip(columns, values, strict=True)) for values in _transposed(columns, len(rollout))]
        rows = self.rows(questions, rollout)
        for row, each in zip(rows, rollout, strict=True):
            row["completion_tokens"] = len(each.token_ids)
        self.latest = [
            {"question": question["question"], "completion": each.text, **row}
            for question, each, row in zip(questions, rollout, rows, strict=True)
        ]
        named = {name: None for row in rows for name, value in row.items() if not isinstance(value, str)}
        for name in named:  # a sample that could not be scored has fewer figures than others
            values = [float(row[name]) for row in rows if row.get(name) is not None]
            if values and name != "reward":
                log_metric(name, float(np.mean(values)))
        log_metric("unrewarded", float(np.mean([row["reward"] is None for row in rows])))
        return [row["reward"] for row in rows]

    def rows(self, questions: Sequence[Row], rollouts: Sequence[Rollout]) -> list[Row]:
        """Return ``reward`` and every other figure of each sample."""
        raise NotImplementedError


def _transposed(columns: dict[str, Any], count: int) -> list[tuple[Any, ...]]:
    """Return the rows of the columns that hold one value for each sample."""
    for name in [name for name, values in columns.items() if not isinstance(values, list) or len(values) != count]:
        del columns[name]
    return list(zip(*columns.values(), strict=True))


class DenseReward(Reward):
    """The reward of RLT, computed by the function that ``rlt-data score`` scores with.

    Args:
        settings: weights, kind of KL and temperature.
        student: the frozen student.
        format: the format of questions, solutions and explanations.
        tokenizer: the teacher's tokenizer.
        same_tokenizer: whether the student has the same tokenizer.
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
        self._views = Views(format, student.template)
        self._tokenizer = tokenizer
        self._same_tokenizer = same_tokenizer

    def rows(self, questions: Sequence[Row], rollouts: Sequence[Rollout]) -> list[Row]:
        """Return the terms of the reward of each sample, and signs of a collapse."""
        problems = [(question["question"], question["solution"]) for question in questions]
        completions = [rollout.text for rollout in rollouts]
        students = tokenize_for_student(self._student.tokenizer, self._views, problems, completions)
        logprobs = self._student_logprobs(questions, students)
        return [
            self._row(question, rollout, student, logprobs.get(str(index)))
            for index, (question, rollout, student) in enumerate(zip(questions, rollouts, students, strict=True))
        ]

    def _student_logprobs(self, questions: Sequence[Row], students: Sequence[StudentTokens]) -> dict[str, Floats]:
        """Return the student's log-probs by the index of the sample; none where a text cannot be scored."""
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
            "copied": copied(explanation, question["solution"]),
            "repeated": repeated(explanation),
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
    """One number for an answer that is not in its tags, one for a wrong one, one for a right one.

    Args:
        settings: the three numbers.
        format: the tags.
        kind: how answers are graded.
        grader: a running grader.
    """

    def __init__(self, settings: TrainSolverSettings, format: Format, kind: Kind, grader: Grader) -> None:
        super().__init__()
        self._settings = settings
        self._format = format
        self._kind: Kind = kind
        self._grader = grader

    def rows(self, questions: Sequence[Row], rollouts: Sequence[Rollout]) -> list[Row]:
        """Return whether each answer is in its tags, and right."""
        return [self._row(question, each) for question, each in zip(questions, rollouts, strict=True)]

    def _row(self, question: Row, rollout: Rollout) -> Row:
        settings = self._settings
        solution, formatted = solution_in(self._format, rollout.text)
        grade = self._grader.grade(self._kind, solution, question["answer"], **json.loads(question["problem"]))
        correct = formatted and grade.correct
        reward = settings.correct_reward if correct else settings.wrong_reward
        return {
            "reward": reward if formatted else settings.unformatted_reward,
            "correct": correct,
            "well_formed": formatted,
            "truncated": rollout.finish_reason == "length",
            "repeated": repeated(rollout.text),
        }
