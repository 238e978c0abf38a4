"""Tokens of a trace in the student's and the teacher's text, and the alignment of the explanation's tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rlt_data.formats import Encoding, Format, Problem, Tokenizer, Views, align, encode, tokens_inside
from rlt_data.formats.spans import CONTEXT_TOKENS, Ints, sampled_offsets, uncovered, unmarked
from rlt_data.formats.views import Explanation, Rendered, read_completion


@dataclass(frozen=True)
class StudentTokens:
    """A trace, tokenised as the student reads it.

    Attributes:
        rendered: the student's text.
        encoding: tokens of the text.
        thought: positions of the explanation's tokens; empty if it has none.
        solution: positions of the solution's tokens; empty if the question has none.
        explanation: the explanation, parsed from the completion.
        empty: whether the explanation has no token; the student then reads an empty thought.
        control_token: whether question, solution or explanation contain a control token of the student.
        has_solution: whether the question has a solution.
        uncovered: visible characters of thought and solution that share a token with a tag and are not scored.
    """

    rendered: Rendered
    encoding: Encoding
    thought: Ints
    solution: Ints
    explanation: Explanation
    empty: bool
    uncovered: int
    control_token: bool = False
    has_solution: bool = True

    @property
    def scored(self) -> Ints:
        """Positions of all scored tokens: the thought's, then the solution's."""
        return np.concatenate([self.thought, self.solution])

    @property
    def thought_offsets(self) -> Ints:
        """Character ranges of the explanation's tokens, counted from the start of the prefill's padding."""
        return self.encoding.offsets[self.thought] - np.int32(self.rendered.thought[0] - self.rendered.skipped)

    @property
    def solution_offsets(self) -> Ints:
        """Character ranges of the solution's tokens, counted from the start of the solution's content."""
        skipped = self.rendered.solution_skipped
        return self.encoding.offsets[self.solution] - np.int32(self.rendered.solution[0] - skipped)


@dataclass(frozen=True)
class TeacherTokens:
    """A trace, tokenised as the teacher writes it.

    Attributes:
        ids: tokens of the text; None if the teacher's log-probs are stored with the trace and need no forward pass.
        thought: positions of the explanation's tokens in ``ids``.
        thought_ids: the explanation's tokens: the prefill's padding, then the completion.
        padding_tokens: number of padding tokens.
        offsets: character ranges of ``thought_ids``, counted from the start of the thought; None for sampled tokens,
            whose ranges need decoding and are rarely used.
    """

    ids: Ints | None
    thought: Ints
    thought_ids: Ints
    padding_tokens: int = 0
    offsets: Ints | None = None


@dataclass(frozen=True)
class Alignment:
    """Token ranges of teacher and student that cover the same characters of the explanation.

    Ranges are half-open, have shape (ranges, 2), and count from the explanation's first token.

    Attributes:
        teacher: ranges of the teacher's tokens.
        student: ranges of the student's tokens, in the same order.
    """

    teacher: Ints
    student: Ints

    def __len__(self) -> int:
        return len(self.teacher)

    @property
    def single_tokens(self) -> Ints:
        """Ranges of exactly one token on both sides, as (teacher, student) pairs of shape (pairs, 2)."""
        single = (self.teacher[:, 1] - self.teacher[:, 0] == 1) & (self.student[:, 1] - self.student[:, 0] == 1)
        return np.stack([self.teacher[single, 0], self.student[single, 0]], 1)


def tokenize_for_student(
    tokenizer: Tokenizer, views: Views, problems: Sequence[Problem], completions: Sequence[str]
) -> list[StudentTokens]:
    """Render and tokenise traces as the student reads them.

    Args:
        tokenizer: the student's tokenizer.
        views: the student's views.
        problems: problem of each trace.
        completions: raw completion of each trace.
    """
    explanations = [views.read(completion) for completion in completions]
    tokens = _tokenize(tokenizer, views, problems, explanations)
    empty = [i for i, student in enumerate(tokens) if _has_no_token(tokenizer, student)]
    tokens_without_thought = _tokenize(
        tokenizer, views, [problems[i] for i in empty], [explanations[i] for i in empty], empty=True
    )
    for i, student in zip(empty, tokens_without_thought, strict=True):
        tokens[i] = student
    return tokens


def _tokenize(
    tokenizer: Tokenizer,
    views: Views,
    problems: Sequence[Problem],
    explanations: Sequence[Explanation],
    *,
    empty: bool = False,
) -> list[StudentTokens]:
    texts = [
        views.student(problem, None if empty else explanation.text)
        for problem, explanation in zip(problems, explanations, strict=True)
    ]
    encodings = encode(tokenizer, [text.marked for text in texts])
    tokens = []
    for problem, text, encoding, explanation in zip(problems, texts, encodings, explanations, strict=True):
        thought = tokens_inside(encoding, *text.thought)
        solution = tokens_inside(encoding, *text.solution) if problem.has_solution else np.zeros(0, np.int32)
        student = StudentTokens(
            text,
            encoding,
            thought,
            solution,
            explanation,
            empty,
            uncovered(text.text, *text.thought, encoding.offsets[thought])
            + uncovered(text.text, *text.solution, encoding.offsets[solution]),
            control_token=views.control_token(problem, explanation.text) is not None,
            has_solution=problem.has_solution,
        )
        tokens.append(student)
    return tokens


def _has_no_token(tokenizer: Tokenizer, student: StudentTokens) -> bool:
    """Return whether no token belongs only to the explanation.

    True if there are no tokens between the tags except the padding's. Also true if the explanation has no letter or
    digit, and each of its tokens exists only because a tag follows (five spaces alone are one token; before a tag they
    are four and one).
    """
    if not len(student.thought) or not student.explanation.text:
        return True
    if any(char.isalnum() for char in student.explanation.text):
        return False
    start, end = student.rendered.thought
    [separate] = encode(tokenizer, [student.rendered.text[start:end]])
    separate_ranges = set(map(tuple, separate.offsets.tolist()))
    return not any(tuple(pair) in separate_ranges for pair in student.thought_offsets.tolist())


def teacher_tokens_from_ids(
    prefill_ids: npt.ArrayLike, sampled_ids: npt.ArrayLike, prompt: Encoding | None = None
) -> TeacherTokens:
    """Return the teacher's tokens of a generated trace, as it sampled them.

    Args:
        prefill_ids: tokens of the prefill's padding, shape (padding,).
        sampled_ids: tokens of the completion, shape (sampled,).
        prompt: the teacher's prompt if the log-probs need a forward pass, else None.
    """
    padding, sampled = np.asarray(prefill_ids, np.int32), np.asarray(sampled_ids, np.int32)
    thought_ids = np.concatenate([padding, sampled])
    ids = None if prompt is None else np.concatenate([prompt.ids, sampled])
    first = 0 if ids is None else len(ids) - len(thought_ids)
    positions = np.arange(first, first + len(thought_ids), dtype=np.int32)
    return TeacherTokens(ids, positions, thought_ids, len(padding))


def teacher_tokens_from_text(
    tokenizer: Tokenizer, format: Format, prompt: str, completion: str, mark: Callable[[str], str] = str
) -> TeacherTokens:
    """Return the teacher's tokens of a trace from any source, by tokenising prompt and explanation.

    Args:
        tokenizer: the teacher's tokenizer.
        format: the format of the completion.
        prompt: the teacher's prompt.
        completion: raw completion.
        mark: marks control tokens in the explanation that are text (:meth:`rlt_data.formats.Views.mark`).
    """
    text = read_completion(format, completion).text
    length = len(unmarked(prompt))
    start, end = length - len(format.padding), length + len(text)
    [encoding] = encode(tokenizer, [prompt + mark(text) + format.explanation_tags[1]])
    thought = tokens_inside(encoding, start, end)
    return TeacherTokens(
        encoding.ids, thought, encoding.ids[thought], offsets=encoding.offsets[thought] - np.int32(start)
    )


def align_tokens(
    student: StudentTokens, teacher: TeacherTokens, tokenizer: Tokenizer, format: Format, *, same_tokenizer: bool
) -> Alignment:
    """Align the explanation's tokens of teacher and student where they cover the same characters.

    Args:
        student: the student's tokens.
        teacher: the teacher's tokens.
        tokenizer: the teacher's tokenizer.
        format: the teacher's format.
        same_tokenizer: whether the student has the same tokenizer.

    Returns:
        Ranges of one token each if both sides have the same tokens, else the ranges of
        :func:`rlt_data.formats.align`. No ranges if the explanation is empty.
    """
    if student.empty:
        return Alignment(np.zeros((0, 2), np.int32), np.zeros((0, 2), np.int32))
    student_ids = student.encoding.ids[student.thought]
    count = len(student_ids)
    skipped = student.rendered.skipped
    first = teacher.padding_tokens if skipped else 0
    teacher_ids = teacher.thought_ids[first : first + count]
    if same_tokenizer and (skipped == 0 or (first and skipped == len(format.padding))) and len(teacher_ids) == count:
        # Without tags, the last token may join the full stop with other white space than the teacher's.
        equal = count - int(skipped > 0 and student_ids[-1] != teacher_ids[-1])
        if equal and np.array_equal(student_ids[:equal], teacher_ids[:equal]):
            single = np.stack([np.arange(equal), np.arange(1, equal + 1)], 1).astype(np.int32)
            return Alignment(single + np.int32(first), single)
    offsets = _sampled_ranges(teacher, tokenizer, format) if teacher.offsets is None else teacher.offsets
    end = student.rendered.thought[1] - student.rendered.thought[0] + skipped
    inside = offsets[: int(np.searchsorted(offsets[:, 1], end, side="right"))]
    return Alignment(*align(inside, student.thought_offsets))


def _sampled_ranges(teacher: TeacherTokens, tokenizer: Tokenizer, format: Format) -> Ints:
    """Return the character ranges of sampled tokens, counted from the start of the thought."""
    padding, sampled = np.split(teacher.thought_ids, [teacher.padding_tokens])
    [context] = encode(tokenizer, [format.explanation_tags[0] + format.padding])
    padding_ranges = sampled_offsets(tokenizer, [], padding.tolist())
    if len(padding_ranges):
        padding_ranges = padding_ranges + np.int32(len(format.padding) - padding_ranges[-1, 1])
    completion_ranges = sampled_offsets(tokenizer, context.ids[-CONTEXT_TOKENS:].tolist(), sampled.tolist())
    return np.concatenate([padding_ranges, completion_ranges + np.int32(len(format.padding))])
