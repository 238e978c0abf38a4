"""The measures that need further forward passes of the student (``score --measures``).

Each measure makes further texts of a trace (:meth:`FurtherPasses.texts`), and its value from their log-probs
(:func:`further_measures`). The tokens of an explanation are always those of the first pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rlt_data.engines import Model, SequenceLogprobs
from rlt_data.formats import Problem, Views, encode, tokens_inside
from rlt_data.formats.spans import Ints
from rlt_data.scoring import StudentTokens, tokenize_for_student
from rlt_data.scoring.measures import (
    WINDOW_STEPS,
    instruction_following_difficulty,
    local_logprob_mean,
    token_steps,
    without_repeats,
)
from rlt_data.scoring.reward import Floats, solution_mean_and_min
from rlt_data.settings import ScoreSettings

#: Characters of an explanation that can share a token with the prompt before it.
_HEAD_CHARACTERS = 16


@dataclass(frozen=True)
class FurtherText:
    """A text of a further pass.

    Attributes:
        measure: the measure that needs it.
        ids: token ids of the text, shape (tokens,).
        positions: ascending indices of the tokens to score.
    """

    measure: Literal["ifd", "local", "leak"]
    ids: Ints
    positions: Ints


class FurtherPasses:
    """Makes the texts of the requested measures.

    Args:
        settings: the measures and the temperatures.
        student: the student.
        views: the student's views.
    """

    def __init__(self, settings: ScoreSettings, student: Model, views: Views) -> None:
        self._settings = settings
        self._tokenizer = student.tokenizer
        self._views = views

    def texts(self, problems: Sequence[Problem], students: Sequence[StudentTokens]) -> list[list[FurtherText]]:
        """Return the texts of each trace; none for an explanation without tokens.

        Args:
            problems: problem of each trace.
            students: the student's tokens of each trace.
        """
        texts: list[list[FurtherText]] = [[] for _ in students]
        measures = self._settings.measures
        if "ifd" in measures:
            prompts = self._prompts_without_question(problems, students)
        for problem, student, own in zip(problems, students, texts, strict=True):
            if len(student.thought) and "ifd" in measures:
                prompt = prompts[problem.system, _head(student)]
                own.append(self._continued(prompt, student, 0, 0, len(student.thought), "ifd"))
            if len(student.thought) and "local" in measures:
                own.extend(self._steps(student))
        if "leak" in measures:
            self._add_without_repeats(problems, students, texts)
        return texts

    def _prompts_without_question(
        self, problems: Sequence[Problem], students: Sequence[StudentTokens]
    ) -> dict[tuple[str | None, str], Ints]:
        """Return the tokens before an explanation if the question is empty, by system text and explanation's head.

        The head decides which characters share a token with the prompt's last.
        """
        keys = dict.fromkeys(
            (problem.system, _head(student)) for problem, student in zip(problems, students, strict=True)
        )
        rendered = [self._views.student(Problem("", "", system), head) for system, head in keys]
        encodings = encode(self._tokenizer, [text.marked for text in rendered])
        prompts = {}
        for key, text, encoding in zip(keys, rendered, encodings, strict=True):
            inside = tokens_inside(encoding, *text.thought)
            prompts[key] = encoding.ids[: inside[0]] if len(inside) else encoding.ids[:0]
        return prompts

    def _steps(self, student: StudentTokens) -> list[FurtherText]:
        """Return one text per step: the prompt, the steps of its window, and the step."""
        start, end = student.rendered.thought
        firsts = student.encoding.offsets[student.thought, 0] - np.int32(start)
        steps = token_steps(student.rendered.text[start:end], firsts)
        prompt = student.encoding.ids[: student.thought[0]]
        return [
            self._continued(prompt, student, steps[max(0, number - WINDOW_STEPS)][0], first, last, "local")
            for number, (first, last) in enumerate(steps)
        ]

    def _continued(
        self, prompt: Ints, student: StudentTokens, window: int, first: int, last: int, measure: Literal["ifd", "local"]
    ) -> FurtherText:
        """Return a prompt with the explanation's tokens from ``window`` to ``last``, scored from ``first`` on."""
        thought = student.thought[window:last]
        ids = np.concatenate([prompt, student.encoding.ids[thought[0] : thought[-1] + 1]])
        positions = thought[first - window :] - thought[0] + np.int32(len(prompt))
        return FurtherText(measure, ids, positions)

    def _add_without_repeats(
        self, problems: Sequence[Problem], students: Sequence[StudentTokens], texts: list[list[FurtherText]]
    ) -> None:
        """Add the texts whose explanations lack the parts that repeat the solution, where there are any."""
        shortened = {}
        for index, (problem, student) in enumerate(zip(problems, students, strict=True)):
            if student.has_solution and not student.empty:
                text = without_repeats(student.explanation.text, self._views.format.bare_solution(problem.solution))
                if text != student.explanation.text:
                    shortened[index] = text
        tokens = tokenize_for_student(
            self._tokenizer, self._views, [problems[index] for index in shortened], list(shortened.values())
        )
        for index, student in zip(shortened, tokens, strict=True):
            if len(student.solution):
                texts[index].append(FurtherText("leak", student.encoding.ids, student.solution))


def _head(student: StudentTokens) -> str:
    """Return the first characters of an explanation."""
    return student.explanation.text[:_HEAD_CHARACTERS]


def further_measures(
    settings: ScoreSettings,
    student: StudentTokens,
    measured_logprobs: Floats | None,
    r_ss: float | None,
    results: Sequence[tuple[FurtherText, SequenceLogprobs]],
) -> dict[str, float | None]:
    """Return the columns of the requested measures; None where a trace has none.

    Args:
        settings: the measures, and the weight of the minimum in ``r_ss``.
        student: the student's tokens.
        measured_logprobs: log-probs of the explanation's tokens at the measure temperature, shape (thought,).
        r_ss: the solution term of the complete explanation.
        results: the further texts of the trace and their log-probs.
    """
    measured: dict[str, list[Floats]] = {"ifd": [], "local": []}
    for text, result in results:
        if text.measure != "leak" and result.measured_logprobs is not None:
            measured[text.measure].append(result.measured_logprobs)
    row: dict[str, float | None] = {}
    if "ifd" in settings.measures:
        row["ifd"] = None
        if measured_logprobs is not None and measured["ifd"]:
            row["ifd"] = instruction_following_difficulty(measured_logprobs, measured["ifd"][0])
    if "local" in settings.measures:
        row["local_logprob_mean"] = local_logprob_mean(measured["local"]) if measured["local"] else None
    if "leak" in settings.measures:
        row["leak_drop"] = None if r_ss is None or student.empty else 0.0  # unless something repeats the solution
        for text, result in results:
            if text.measure == "leak" and r_ss is not None:
                mean, lowest = solution_mean_and_min(result.logprobs)
                row["leak_drop"] = r_ss - (mean + settings.alpha * lowest)
    return row
