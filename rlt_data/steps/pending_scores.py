"""Traces that are being scored: what they request from the models, and where the results are stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from rlt_data.engines import Failure, Measured, SequenceBlock, SequenceLogprobs, SequenceRequest
from rlt_data.formats import Problem
from rlt_data.scoring import Alignment, StudentTokens, TeacherTokens
from rlt_data.scoring.reward import Floats
from rlt_data.steps.further_passes import FurtherText


@dataclass
class PendingScore:
    """A trace that is being scored.

    Attributes:
        part: part of the table that gets its score.
        trace: row of the traces table.
        problem: the problem.
        emit: whether its score is missing; other traces only keep batches the same after a resume.
        student: the student's tokens.
        teacher: the teacher's tokens; None without a teacher.
        alignment: alignment of the two; None without a teacher.
        further: texts of further passes, by key.
        student_logprobs: the student's log-probs of ``student.scored`` and their measures; None until they arrive.
        further_logprobs: results of the further texts that have arrived, by key.
        teacher_logprobs: the teacher's log-probs of ``teacher.thought_ids``; None until they arrive.
        full_kl: with ``--kl full``, the KL at ``alignment.single_tokens``; None until it arrives.
    """

    part: int
    trace: dict[str, Any]
    problem: Problem
    emit: bool
    student: StudentTokens
    teacher: TeacherTokens | None
    alignment: Alignment | None
    further: dict[str, FurtherText]
    student_logprobs: SequenceLogprobs | None = None
    further_logprobs: dict[str, SequenceLogprobs] = field(default_factory=dict)
    teacher_logprobs: Floats | None = None
    full_kl: Floats | None = None

    @property
    def key(self) -> str:
        """The trace's id."""
        return str(self.trace["trace_id"])

    @property
    def source_id(self) -> str | None:
        """The question's id in the user's data."""
        return self.trace["source_id"]  # type: ignore[no-any-return]

    @property
    def complete(self) -> bool:
        """Whether all log-probs have arrived."""
        needs_no_kl = self.teacher is None or self.student.empty
        has_kl = needs_no_kl or self.teacher_logprobs is not None or self.full_kl is not None
        has_further = len(self.further_logprobs) == len(self.further)
        return has_kl and has_further and self.student_logprobs is not None


Groups = list[list[PendingScore]]


def student_requests(groups: Groups, temperature: float) -> SequenceBlock:
    """Request the log-probs of the student's texts and of the further ones.

    Args:
        groups: the traces of each question.
        temperature: the measure temperature.
    """
    block = []
    for group in groups:
        # Texts without the question do not share the others' prompt, which is computed once per group.
        requests: list[SequenceRequest] = []
        without_question: list[SequenceRequest] = []
        for score in group:
            student, thought = score.student, len(score.student.thought)
            measured = Measured(thought, temperature) if thought else None
            requests.append(SequenceRequest(score.key, student.encoding.ids, student.scored, score.emit, measured))
            for key, text in score.further.items():
                measured = None if text.measure == "leak" else Measured(len(text.positions), temperature)
                request = SequenceRequest(key, text.ids, text.positions, score.emit, measured)
                (without_question if text.measure == "ifd" else requests).append(request)
        block += [requests, without_question] if without_question else [requests]
    return block


def teacher_requests(groups: Groups) -> SequenceBlock:
    """Request the teacher's log-probs that are not stored with the traces; omit empty groups."""
    block = [
        [
            SequenceRequest(score.key, score.teacher.ids, score.teacher.thought, score.emit)
            for score in group
            if score.teacher is not None and score.teacher.ids is not None and not score.student.empty
        ]
        for group in groups
    ]
    return [group for group in block if group]


def full_kl_requests(group: list[PendingScore]) -> tuple[list[SequenceRequest], list[SequenceRequest]]:
    """Request the distributions of teacher and student at the aligned single tokens."""
    of_teacher, of_student = [], []
    for score in group:
        teacher, alignment = score.teacher, score.alignment
        if score.emit and not score.student.empty and teacher and teacher.ids is not None and alignment is not None:
            pairs, student = alignment.single_tokens, score.student
            of_teacher.append(SequenceRequest(score.key, teacher.ids, teacher.thought[pairs[:, 0]]))
            of_student.append(SequenceRequest(score.key, student.encoding.ids, student.thought[pairs[:, 1]]))
    return of_teacher, of_student


def store_results(
    results: Iterator[SequenceLogprobs | Failure], pending: dict[str, PendingScore], name: str
) -> Iterator[SequenceLogprobs | Failure]:
    """Yield results, and store each under ``name`` in its pending score."""
    for result in results:
        if isinstance(result, SequenceLogprobs) and result.key in pending:
            setattr(pending[result.key], name, result.logprobs)
        yield result


def store_student_results(
    results: Iterator[SequenceLogprobs | Failure], pending: dict[str, PendingScore]
) -> Iterator[SequenceLogprobs | Failure]:
    """Yield results under the keys of their traces, and store each in its pending score."""
    for result in results:
        trace, _, further = result.key.partition(" ")
        if isinstance(result, SequenceLogprobs) and trace in pending:
            if further:
                pending[trace].further_logprobs[result.key] = result
            else:
                pending[trace].student_logprobs = result
        yield replace(result, key=trace)
