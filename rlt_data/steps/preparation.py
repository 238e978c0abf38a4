"""Prepare a block of traces for scoring: tokenise them for student and teacher, and align the explanation's tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from rlt_data.engines import Model
from rlt_data.engines.results import invalid_logprobs
from rlt_data.formats import Problem, Views
from rlt_data.scoring import StudentTokens, TeacherTokens, tokenize_for_student
from rlt_data.scoring.reward import NO_SOLUTION_TOKEN, Floats
from rlt_data.settings import ScoreSettings
from rlt_data.steps.further_passes import FurtherPasses
from rlt_data.steps.pending_scores import Groups, PendingScore
from rlt_data.steps.teacher_source import TeacherSource

#: Columns of a trace that only its preparation needs.
_TOKENS = ("token_ids", "logprobs", "prefill_token_ids", "prefill_logprobs")

Row = dict[str, Any]


@dataclass(frozen=True)
class Block:
    """Traces of a part to prepare.

    Attributes:
        part: the part.
        traces: rows of the traces table, with lists as arrays.
        questions: rows of their questions, by id.
        pending: ids of the traces whose score is missing.
    """

    part: int
    traces: list[Row]
    questions: Mapping[str, Row]
    pending: set[str]


@dataclass(frozen=True)
class PreparedBlock:
    """A block that is ready for the engines.

    Attributes:
        part: the part.
        groups: the traces of each question, longest group first.
        refused: id, reason and the question's own id of each pending trace that cannot be scored.
    """

    part: int
    groups: Groups
    refused: list[tuple[str, str, str | None]]


class Preparation:
    """Prepares blocks; worker processes get a copy.

    Args:
        settings: settings of the step.
        student: the student.
        views: the student's views.
        teacher: the source of the teacher's log-probs.
    """

    def __init__(self, settings: ScoreSettings, student: Model, views: Views, teacher: TeacherSource) -> None:
        self._settings = settings
        self._tokenizer = student.tokenizer
        self._views = views
        self._teacher = teacher
        self._further = FurtherPasses(settings, student, views)
        self._student_context = student.context_length
        reads = teacher.model if teacher.used else None
        self._teacher_context = reads.context_length if reads else None

    def __call__(self, block: Block) -> PreparedBlock:
        """Prepare a block."""
        refused: list[tuple[str, str, str | None]] = []

        def refuse(trace: Row, reason: str) -> None:
            if trace["trace_id"] in block.pending:
                refused.append((trace["trace_id"], reason, trace["source_id"]))

        traces, problems = [], []
        for trace in block.traces:
            problem = Problem.of(block.questions[trace["question_id"]], trace)
            if reason := self._views.format.problem_with(
                problem.question, problem.solution, needs_solution=problem.has_solution
            ):
                refuse(trace, reason)
            else:
                traces.append(trace)
                problems.append(problem)
        completions = [trace["completion"] for trace in traces]
        students = tokenize_for_student(self._tokenizer, self._views, problems, completions)
        teachers = self._teacher.tokens(traces, problems)
        further = self._further.texts(problems, students)
        scores = []
        for trace, problem, student, teacher, texts in zip(traces, problems, students, teachers, further, strict=True):
            if not problem.has_solution:
                teacher = None  # it reads the solution
            stored = _stored_logprobs(trace) if teacher and teacher.ids is None else None
            if reason := self._refuse(student, teacher, stored):
                refuse(trace, reason)
            else:
                alignment = self._teacher.align(trace, student, teacher) if teacher else None
                emit = trace["trace_id"] in block.pending
                by_key = {f"{trace['trace_id']} {number}": text for number, text in enumerate(texts)}
                row = {name: value for name, value in trace.items() if name not in _TOKENS}
                score = PendingScore(block.part, row, problem, emit, student, teacher, alignment, by_key)
                self._add_known_values(score, stored)
                scores.append(score)
        groups = [list(group) for _, group in groupby(scores, key=lambda score: score.trace["question_id"])]
        groups.sort(key=lambda group: -max(len(score.student.encoding) for score in group))
        return PreparedBlock(block.part, groups, refused)

    def _add_known_values(self, score: PendingScore, stored: Floats | None) -> None:
        """Set the teacher's values that need no forward pass."""
        if score.teacher is None or score.alignment is None or score.student.empty:
            return
        if stored is not None:
            score.teacher_logprobs = stored
        elif self._settings.kl == "full" and not len(score.alignment.single_tokens):
            score.full_kl = np.zeros(0, np.float32)

    def _refuse(self, student: StudentTokens, teacher: TeacherTokens | None, stored: Floats | None) -> str | None:
        """Return why a trace cannot be scored, or None."""
        if student.has_solution and not len(student.solution):
            return NO_SOLUTION_TOKEN
        if not len(student.scored):
            return "the question has no solution, and the explanation has no token"
        if teacher and stored is not None:  # earlier versions stored whatever a server had sent
            if reason := invalid_logprobs(stored, len(teacher.thought_ids)):
                return f"the trace was stored with {reason}; --teacher-logprobs compute does not use stored log-probs"
        texts = [("student's", len(student.encoding), self._student_context)]
        if teacher and teacher.ids is not None and self._teacher_context:
            texts.append(("teacher's", len(teacher.ids), self._teacher_context))
        for reader, length, context in texts:
            if length > context:
                return f"the {reader} text has {length} tokens, the context is {context}"
        return None


def _stored_logprobs(trace: Row) -> Floats:
    """Return the teacher's log-probs of the prefill's padding and of the completion, shape (tokens,)."""
    stored = [trace[name] for name in ("prefill_logprobs", "logprobs") if trace[name] is not None]
    return np.concatenate([np.zeros(0, np.float32), *stored])
