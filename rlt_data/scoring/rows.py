"""A trace on its way to a score: what the models are asked about it, and the row their answers make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rlt_data.engines import SequenceBlock, SequenceRequest
from rlt_data.formats.spans import Ints
from rlt_data.scoring.reward import Floats, kl_terms, reward_terms
from rlt_data.scoring.tokens import StudentReading, TeacherReading
from rlt_data.settings import RewardSettings


@dataclass
class Item:
    """A trace on its way to a score.

    Attributes:
        part: where its score goes.
        trace: its row of the traces table.
        owed: whether its score is not there yet.
        student: the student's reading.
        teacher: the teacher's reading; None where the teacher plays no part.
        pairs: token ranges of teacher and student that cover the same characters; None where nothing is compared.
        student_logprobs: of the student's wanted tokens, once they are there.
        teacher_logprobs: of the teacher's explanation tokens, once they are there.
        full_kl: KL over the vocabulary at the compared tokens, where that was asked for, once it is there.
    """

    part: int
    trace: dict[str, Any]
    owed: bool
    student: StudentReading
    teacher: TeacherReading | None
    pairs: tuple[Ints, Ints] | None = None
    student_logprobs: Floats | None = None
    teacher_logprobs: Floats | None = None
    full_kl: Floats | None = None

    @property
    def key(self) -> str:
        """The trace's id."""
        return str(self.trace["trace_id"])

    @property
    def complete(self) -> bool:
        """Whether the models have answered all that was asked."""
        return self.student_logprobs is not None and (
            self.teacher is None or self.student.empty or self.teacher_logprobs is not None or self.full_kl is not None
        )

    @property
    def compared(self) -> Ints:
        """Pairs of single tokens, teacher's and student's, shape (pairs, 2): where whole distributions compare."""
        assert self.pairs is not None
        theirs, ours = self.pairs
        single = (theirs[:, 1] - theirs[:, 0] == 1) & (ours[:, 1] - ours[:, 0] == 1)
        return np.stack([theirs[single, 0], ours[single, 0]], 1)


def student_requests(groups: Sequence[Sequence[Item]]) -> SequenceBlock:
    """Ask the student for the log-probs of explanations and solutions."""
    return [
        [SequenceRequest(item.key, item.student.encoding.ids, item.student.wanted, item.owed) for item in group]
        for group in groups
    ]


def teacher_requests(groups: Sequence[Sequence[Item]]) -> SequenceBlock:
    """Ask the teacher for the log-probs of explanations that did not bring theirs along."""
    return [
        [
            SequenceRequest(item.key, item.teacher.ids, item.teacher.wanted, item.owed)
            for item in group
            if item.teacher is not None and item.teacher.ids is not None and not item.student.empty
        ]
        for group in groups
    ]


def full_kl_requests(group: Sequence[Item]) -> tuple[list[SequenceRequest], list[SequenceRequest]]:
    """Ask teacher and student for their distributions at the tokens that compare."""
    theirs, ours = [], []
    for item in group:
        if item.teacher is not None and item.teacher.ids is not None and item.pairs is not None and item.owed:
            at = item.compared
            theirs.append(SequenceRequest(item.key, item.teacher.ids, item.teacher.wanted[at[:, 0]]))
            ours.append(SequenceRequest(item.key, item.student.encoding.ids, item.student.thought[at[:, 1]]))
    return theirs, ours


def score_row(item: Item, settings: RewardSettings, scored_by: str, *, per_token: bool = False) -> dict[str, Any]:
    """Make the row of the scores table of an item whose log-probs are there.

    Args:
        item: the item.
        settings: weights and kind of KL.
        scored_by: hash of the settings.
        per_token: keep the values of all tokens.
    """
    student, trace = item.student, item.trace
    assert item.student_logprobs is not None
    thought, solution = np.split(item.student_logprobs, [len(student.thought)])
    kl, kl_tokens = _kl(item, thought, settings)
    closed, truncated = student.explanation.closed, trace["finish_reason"] == "length"
    holds_tag = student.explanation.holds_tag is not None
    empty = student.empty or not student.explanation.text.strip()
    terms = reward_terms(
        solution=solution,
        thought=thought,
        kl=kl,
        closed=closed,
        lambda_=settings.lambda_,
        alpha=settings.alpha,
        missing_tag_penalty=settings.missing_tag_penalty,
    )
    computed = item.teacher is not None and item.teacher.ids is not None
    row = {
        **{column: trace[column] for column in ("trace_id", "question_id", "source_id", "sample_index")},
        **asdict(terms),
        "thought_tokens": len(student.thought),
        "solution_tokens": len(student.solution),
        "kl_tokens": 0 if kl is None else len(kl),
        "student_tokens": len(student.encoding),
        "uncovered_chars": student.uncovered,
        "finish_reason": trace["finish_reason"],
        "closed": closed,
        "truncated": truncated,
        "empty": empty,
        "holds_tag": holds_tag,
        "well_formed": closed and not truncated and not empty and not holds_tag,
        "teacher_logprobs": "none" if item.teacher is None else "computed" if computed else "trace",
        "scored_by": scored_by,
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


def _kl(item: Item, thought: Floats, settings: RewardSettings) -> tuple[Floats | None, Ints]:
    """Return the KL terms, None without a teacher, and the first thought token of each."""
    nothing = np.zeros(0, np.int32)
    if item.teacher is None:
        return None, nothing
    if item.pairs is None:
        return np.zeros(0), nothing
    if item.full_kl is not None:
        return item.full_kl, item.compared[:, 1]
    assert item.teacher_logprobs is not None
    theirs, ours = item.pairs
    teacher, student = _sums(item.teacher_logprobs, theirs), _sums(thought, ours)
    return kl_terms(teacher, student, "k3" if settings.kl == "k3" else "k1"), ours[:, 0]


def _sums(values: Floats, ranges: Ints) -> Floats:
    """Sum values over half-open ranges, shape (ranges, 2) to (ranges,)."""
    running = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    single = ranges[:, 1] - ranges[:, 0] == 1
    sums: Floats = running[ranges[:, 1]] - running[ranges[:, 0]]
    sums[single] = values[ranges[single, 0]]
    return sums
