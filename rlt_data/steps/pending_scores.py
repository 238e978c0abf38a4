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
        further_logprobs: log-probs of the further texts that have arrived, by key.
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
    further_logprobs: dict[str, Floats] = field(default_factory=dict)
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

    def logprobs_of_measures(self) -> dict[str, list[Floats]]:
        """Return the log-probs of the further texts by measure, in order."""
        by_measure: dict[str, list[Floats]] = {}
        for key, text in self.further.items():
            by_measure.setdefault(text.measure, []).append(self.further_logprobs[key])
        return by_measure


Groups = list[list[PendingScore]]


def student_requests(groups: Groups, temperature: float) -> SequenceBlock:
    """Request the student's log-probs, and the measures of the explanations' tokens at a temperature."""
    return [
        [
            SequenceRequest(
                score.key,
                score.student.encoding.ids,
                score.student.scored,
                score.emit,
                Measured(len(score.student.thought), temperature) if len(score.student.thought) else None,
            )
            for score in group
        ]
        for group in groups
    ]


def further_requests(groups: Groups, temperature: float) -> SequenceBlock:
    """Request the further texts of a temperature; those of one measure of a question form a group."""
    block: dict[tuple[int, str], list[SequenceRequest]] = {}
    for number, group in enumerate(groups):
        for score in group:
            for key, text in score.further.items():
                if text.temperature == temperature:
                    request = SequenceRequest(key, text.ids, text.positions, score.emit)
                    block.setdefault((number, text.measure), []).append(request)
    return list(block.values())


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
    """Yield results, and store each in its pending score."""
    for result in results:
        if isinstance(result, SequenceLogprobs) and result.key in pending:
            pending[result.key].student_logprobs = result
        yield result


def store_further_results(
    results: Iterator[SequenceLogprobs | Failure], pending: dict[str, PendingScore]
) -> Iterator[SequenceLogprobs | Failure]:
    """Yield results under the keys of their traces, and store each in its pending score."""
    for result in results:
        trace, _, _ = result.key.partition(" ")
        if isinstance(result, SequenceLogprobs) and trace in pending:
            pending[trace].further_logprobs[result.key] = result.logprobs
        yield replace(result, key=trace)
