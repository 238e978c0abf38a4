"""A trace as student and teacher read it: token ids, which of them count, and how the two sides pair up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlt_data.formats import Encoding, Format, Tokenizer, Views, align, encode, tokens_inside
from rlt_data.formats.spans import CONTEXT_TOKENS, Ints, sampled_offsets, uncovered
from rlt_data.formats.views import Explanation, Rendered, read_completion


@dataclass(frozen=True)
class StudentReading:
    """The student's text of a trace.

    Attributes:
        rendered: the text.
        encoding: its tokens.
        thought: positions of the explanation's tokens; none if the explanation is empty.
        solution: positions of the solution's tokens.
        explanation: what the completion held.
        empty: whether the explanation has no token; the student is then shown an empty thought.
    """

    rendered: Rendered
    encoding: Encoding
    thought: Ints
    solution: Ints
    explanation: Explanation
    empty: bool

    @property
    def wanted(self) -> Ints:
        """Positions of all tokens to score: the thought's, then the solution's."""
        return np.concatenate([self.thought, self.solution])

    @property
    def thought_offsets(self) -> Ints:
        """Character ranges of the explanation's tokens, counted from the start of the thought."""
        return self.encoding.offsets[self.thought] - np.int32(self.rendered.thought[0])

    @property
    def solution_offsets(self) -> Ints:
        """Character ranges of the solution's tokens, counted from the start of the solution's content."""
        return self.encoding.offsets[self.solution] - np.int32(self.rendered.solution[0])

    @property
    def uncovered(self) -> int:
        """Visible characters of thought and solution that share a token with a tag and are not scored."""
        text, offsets = self.rendered.text, self.encoding.offsets
        return uncovered(text, *self.rendered.thought, offsets[self.thought]) + uncovered(
            text, *self.rendered.solution, offsets[self.solution]
        )


def read_as_student(
    tokenizer: Tokenizer, views: Views, problems: Sequence[tuple[str, str]], completions: Sequence[str]
) -> list[StudentReading]:
    """Render and tokenise traces as the student sees them.

    Args:
        tokenizer: the student's.
        views: the student's views.
        problems: question and solution of each trace.
        completions: raw completion of each trace.
    """
    format = views.format
    explanations = [read_completion(format, completion) for completion in completions]
    readings = _read(tokenizer, views, problems, explanations, [format.padding + each.text for each in explanations])
    emptied = [i for i, reading in enumerate(readings) if _says_nothing(tokenizer, reading)]
    again = _read(
        tokenizer, views, [problems[i] for i in emptied], [explanations[i] for i in emptied], [""] * len(emptied)
    )
    for i, reading in zip(emptied, again, strict=True):
        readings[i] = reading
    return readings


def _read(
    tokenizer: Tokenizer,
    views: Views,
    problems: Sequence[tuple[str, str]],
    explanations: Sequence[Explanation],
    thoughts: Sequence[str],
) -> list[StudentReading]:
    rendered = [views.student(*problem, thought) for problem, thought in zip(problems, thoughts, strict=True)]
    return [
        StudentReading(
            text,
            encoding,
            thought=tokens_inside(encoding, *text.thought),
            solution=tokens_inside(encoding, *text.solution),
            explanation=explanation,
            empty=text.thought[0] == text.thought[1],
        )
        for text, encoding, explanation in zip(
            rendered, encode(tokenizer, [each.text for each in rendered]), explanations, strict=True
        )
    ]


def _says_nothing(tokenizer: Tokenizer, reading: StudentReading) -> bool:
    """Whether an explanation has no token of its own.

    That is: it has none between the tags, or only the padding's; or it has no letter or digit, and every token it has
    there comes about only through the tags beside it (five spaces are one token alone, but four and one before a tag).
    """
    if not len(reading.thought) or not reading.explanation.text:
        return True
    if any(char.isalnum() for char in reading.explanation.text):
        return False
    start, end = reading.rendered.thought
    [alone] = encode(tokenizer, [reading.rendered.text[start:end]])
    own = set(map(tuple, alone.offsets.tolist()))
    return not any(tuple(pair) in own for pair in reading.thought_offsets.tolist())


@dataclass(frozen=True)
class TeacherReading:
    """The teacher's text of a trace.

    Attributes:
        ids: tokens of the whole text; None where the trace brought its log-probs along and no pass is needed.
        wanted: positions in ``ids`` of the explanation's tokens.
        content_ids: the explanation's tokens: those of the prefill's padding, then those of the completion.
        padding_tokens: how many of them are the padding's.
        offsets: their character ranges from the start of the thought; None where they are the tokens as sampled,
            whose ranges cost some decoding and are seldom needed.
        problem: why the stored log-probs cannot be those of the tokens, or None.
    """

    ids: Ints | None
    wanted: Ints
    content_ids: Ints
    padding_tokens: int = 0
    offsets: Ints | None = None
    problem: str | None = None


def read_sampled(trace: dict[str, Any], prompt: Encoding | None) -> TeacherReading:
    """Read a generated trace by the tokens the teacher sampled.

    Args:
        trace: a row of the traces table with token ids.
        prompt: the teacher's prompt, where a forward pass is to be made over it.
    """
    padding = np.asarray(trace["prefill_token_ids"], np.int32)
    sampled = np.asarray(trace["token_ids"], np.int32)
    content = np.concatenate([padding, sampled])
    ids = None if prompt is None else np.concatenate([prompt.ids, sampled])
    first = 0 if ids is None else len(ids) - len(content)
    return TeacherReading(ids, np.arange(first, first + len(content), dtype=np.int32), content, len(padding))


def read_written(tokenizer: Tokenizer, format: Format, prompt: str, completion: str) -> TeacherReading:
    """Read a trace of any origin by its text, after the teacher's prompt."""
    text = read_completion(format, completion).text
    start, end = len(prompt) - len(format.padding), len(prompt) + len(text)
    [encoding] = encode(tokenizer, [prompt + text + format.explanation_tags[1]])
    wanted = tokens_inside(encoding, start, end)
    offsets = encoding.offsets[wanted] - np.int32(start)
    return TeacherReading(encoding.ids, wanted, encoding.ids[wanted], offsets=offsets)


def pair(
    student: StudentReading, teacher: TeacherReading, tokenizer: Tokenizer, format: Format, *, same_tokenizer: bool
) -> tuple[Ints, Ints]:
    """Pair the explanation's tokens of teacher and student where they cover the same characters.

    Args:
        student: the student's reading.
        teacher: the teacher's.
        tokenizer: the teacher's.
        format: the teacher's format.
        same_tokenizer: whether both sides speak the same tokens.

    Returns:
        Half-open ranges of the teacher's and of the student's tokens, each of shape (pairs, 2), counted from the
        first token of the explanation. Where both sides have the same tokens every range is one token; elsewhere see
        :func:`rlt_data.formats.align`.
    """
    mine = student.encoding.ids[student.thought]
    count = len(mine)
    if same_tokenizer and count <= len(teacher.content_ids) and np.array_equal(mine, teacher.content_ids[:count]):
        single = np.stack([np.arange(count), np.arange(1, count + 1)], 1).astype(np.int32)
        return single, single
    offsets = _sampled_ranges(teacher, tokenizer, format) if teacher.offsets is None else teacher.offsets
    end = student.rendered.thought[1] - student.rendered.thought[0]
    inside = offsets[: int(np.searchsorted(offsets[:, 1], end, side="right"))]
    theirs, ours = align(inside, student.thought_offsets)
    return np.asarray(theirs, np.int32).reshape(-1, 2), np.asarray(ours, np.int32).reshape(-1, 2)


def _sampled_ranges(teacher: TeacherReading, tokenizer: Tokenizer, format: Format) -> Ints:
    padding, sampled = np.split(teacher.content_ids, [teacher.padding_tokens])
    [context] = encode(tokenizer, [format.explanation_tags[0] + format.padding])
    of_padding = sampled_offsets(tokenizer, [], padding.tolist())
    if len(of_padding):
        of_padding = of_padding + np.int32(len(format.padding) - of_padding[-1, 1])
    of_sampled = sampled_offsets(tokenizer, context.ids[-CONTEXT_TOKENS:].tolist(), sampled.tolist())
    return np.concatenate([of_padding, of_sampled + np.int32(len(format.padding))])
