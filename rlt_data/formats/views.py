"""Render a problem for teacher, student and solver.

Student and solver continue the template's generation prompt, which is what a server sends to the trained student. The
teacher continues an assistant's message that already begins with the solution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from rlt_data.errors import ModelError
from rlt_data.formats.control import ControlTokens
from rlt_data.formats.schema import Format
from rlt_data.formats.spans import unmarked
from rlt_data.formats.template import ChatTemplate, Message, Reasoning

#: Extracts the solution from a solver's completion; see :meth:`Views.solution_in`.
SolutionIn = Callable[[str], tuple[str, bool]]


class Problem(NamedTuple):
    """A question with its solution.

    Attributes:
        question: the question.
        solution: its solution; empty if it has none, which only scoring takes.
        system: system text for student and solver in place of the format's, if the question has one of its own.
    """

    question: str
    solution: str
    system: str | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any], trace: Mapping[str, Any] | None = None) -> Problem:
        """Return the problem in a row with these columns; the own solution of a trace replaces the question's."""
        own = trace["solution"] if trace else None
        return cls(row["question"], row["solution"] if own is None else own, row.get("system"))

    @property
    def has_solution(self) -> bool:
        """Whether the question has a solution."""
        return bool(self.solution.strip())


@dataclass(frozen=True)
class Rendered:
    """A rendered text, with the character ranges [start, end) of the thought and the solution, which are scored.

    Attributes:
        marked: the text for the tokenizer, with marks around control tokens that are text.
        thought: range of the thought in ``text``.
        solution: range of the solution in ``text``.
        skipped: characters of padding and explanation that precede the thought's first; 0 with tags.
        solution_skipped: characters of the solution's content in tags that precede the solution's first; 0 with tags.
    """

    marked: str
    thought: tuple[int, int]
    solution: tuple[int, int]
    skipped: int = 0
    solution_skipped: int = 0

    @cached_property
    def text(self) -> str:
        """The text without marks."""
        return unmarked(self.marked)


@dataclass(frozen=True)
class StudentMessage:
    """An assistant's message that a student learns: text around a thought and a solution."""

    opening: str
    thought: str
    middle: str
    solution: str
    closing: str

    @property
    def text(self) -> str:
        """The complete message."""
        return self.opening + self.thought + self.middle + self.solution + self.closing

    def inline(self, reasoning: Reasoning | None) -> str:
        """Return the message with the opening tag of the thought, also where the served prompt ends with the tag."""
        opening = reasoning.tag.lstrip("\n") if reasoning else self.opening
        return opening + self.text.removeprefix(self.opening)


class Views:
    """Renders problems for teacher, student and solver with a format and a chat template.

    Args:
        format: the format.
        template: the model's chat template.
        control: the model's control tokens, which are marked or found in questions, solutions and explanations.
    """

    def __init__(self, format: Format, template: ChatTemplate, control: ControlTokens | None = None) -> None:
        self.format = format
        self.template = template
        self._control = control
        self._teacher_shots = tuple(
            (shot.question, self._prefill(shot.solution) + format.completion_of(shot.explanation))
            for shot in format.shots
        )
        self._student_shots: tuple[tuple[str, str], ...] = tuple(
            (
                format.student_question(shot.question),
                self.message(shot.solution, shot.explanation.strip() + format.padding).text,
            )
            for shot in format.shots
        )
        self._checked: set[tuple[bool, bool]] = set()
        # A small cache is enough, because the traces of a question follow each other.
        self._before = lru_cache(8)(self._render_before)

    def __reduce__(self) -> tuple[type[Views], tuple[Any, ...]]:
        """Pickle without caches."""
        return Views, (self.format, self.template, self._control)

    def teacher_prompt(self, problem: Problem) -> str:
        """Return the text that the teacher continues: conversation and prefill, padding included."""
        return self._before(self.format.teacher_system, self.mark(problem.question), True) + self.mark(
            self._prefill(problem.solution)
        )

    def student(self, problem: Problem, explanation: str | None) -> Rendered:
        """Return the student's complete text for an explanation, with the ranges of thought and solution.

        Args:
            problem: the problem.
            explanation: the explanation without the prefill's padding; None for an empty thought.
        """
        format, before = self.format, self.served_prompt(problem)
        message = self.message(problem.solution, explanation)
        start = len(unmarked(before)) + len(message.opening)
        end = start + len(message.thought)
        solution = end + len(message.middle)
        skipped = solution_skipped = 0
        if format.native:
            solution_skipped = format.solution_content(problem.solution).find(message.solution)
            if explanation:
                skipped = len(format.padding) + len(explanation) - len(explanation.lstrip())
                # White space after the thought belongs to it: many tokens join it with a full stop.
                end += len(message.middle) - len(message.middle.lstrip())
        marked = message.opening + self.mark(message.thought) + message.middle + self.mark(message.solution)
        return Rendered(
            before + marked + message.closing + self.template.end,
            (start, end),
            (solution, solution + len(message.solution)),
            skipped,
            solution_skipped,
        )

    def mark(self, text: str) -> str:
        """Mark the control tokens in a text of users or teachers that are encoded as text."""
        return self._control.mark(text) if self._control else text

    def problem_with(self, problem: Problem, explanation: str | None = None) -> str | None:
        """Return why a problem or its explanation cannot be rendered for this model, or None."""
        return self.format.problem_with(problem.question, problem.solution) or self.control_token(problem, explanation)

    def control_token(self, problem: Problem, explanation: str | None = None) -> str | None:
        """Return which text contains a control token of the model that is not encoded as text, or None."""
        texts = problem._asdict() | {"explanation": explanation}
        return self._control.problem_with(**texts) if self._control else None

    def message(self, solution: str, explanation: str | None) -> StudentMessage:
        """Return the text between the served prompt and the end of the turn."""
        return student_message(self.format, self._reasoning() if self.format.native else None, solution, explanation)

    def served_prompt(self, problem: Problem) -> str:
        """Return the text before the student's own: the template's generation prompt for the question."""
        question = self.format.student_question(self.mark(problem.question))
        if problem.system is None:
            return self._before(self.format.student_system, question, False)
        try:
            return self._before(self.mark(problem.system), question, False)
        except ModelError as error:
            raise ModelError(f"{error}, or import the file without its system texts (--system format)") from None

    def solver_prompt(self, question: str, system: str | None = None) -> str:
        """Return the text that a student continues at test time."""
        text = self.format.solver_text if system is None else self.mark(system)
        return self._before(text, self.format.student_question(self.mark(question)), False)

    @property
    def solver_stop(self) -> str:
        """The text that ends a solver's answer."""
        return self.template.end if self.format.native else self.format.solution_tags[1]

    @property
    def thought_end(self) -> str:
        """The text that ends a solver's thought."""
        return self._reasoning().closing.strip() if self.format.native else self.format.thought_tags[1]

    @property
    def thought_closing(self) -> str:
        """What to append to a thought so that the answer follows."""
        format = self.format
        closing = format.padding + format.thought_tags[1] + format.separator
        return self._reasoning().closing if format.native else closing

    def solution_in(self, completion: str) -> tuple[str, bool]:
        """Extract the solution from a solver's completion.

        Returns:
            The solution, or everything after the thought if it is not marked; and whether the completion follows the
            format: a thought and a solution as in the student's messages, and nothing else.
        """
        if not self.format.native:
            return tagged_solution(self.format, completion)
        reasoning = self._reasoning()
        thought, closing, solution = completion.partition(reasoning.closing.strip())
        solution = (solution if closing else thought).strip().removesuffix(self.template.end).strip()
        return solution, bool(closing and solution and thought.strip().startswith(reasoning.opening.strip()))

    def read(self, completion: str) -> Explanation:
        """Return the explanation in a teacher's completion; the student's reasoning markup must not be inside."""
        reasoning = self.template.reasoning if self.format.native else None
        tags = (reasoning.tag.strip(), reasoning.closing.strip()) if reasoning else ()
        return read_completion(self.format, completion, [tag for tag in tags if tag])

    def check_teacher(self) -> None:
        """Raise ModelError if the template omits a text of the teacher's prompt."""
        self.teacher_prompt(Problem("a question", "a solution"))

    def check(self) -> None:
        """Check format and template of a student against each other, before any work.

        Raises:
            ModelError: the template omits a text, or its generation prompt opens a thought that the format does not
                close, or the format needs what the template lacks.
        """
        format, template = self.format, self.template
        if format.native:
            self._reasoning()
            if not template.end:
                raise ModelError(
                    f"{template.name} ends no turn, and the model has no end-of-text token; choose a --format"
                )
        elif template.reasoning and not template.reasoning.opening:
            raise ModelError(
                f"the generation prompt of {template.name} opens a thought, which --format {format.name} does not "
                "close; use --format native, or a --template-option that disables thinking if the template has one"
            )
        self.served_prompt(Problem("a question", "a solution"))

    def check_own_system(self) -> None:
        """Raise ModelError if the template omits a question's own system text."""
        self.served_prompt(Problem("a question", "a solution", "a system text"))

    @property
    def rendering(self) -> dict[str, str]:
        """How the template renders a student's text if a trainer passes it as messages.

        Returns:
            For ``messages`` (the thought under the template's key, if it has one) and ``inline`` (the thought in the
            content): ``equal`` to the student's text, ``differs``, or ``drops`` the thought.
        """
        problem, explanation = Problem("a question", "an answer"), "First this.\n\nThen that."
        expected = self.student(problem, explanation).text
        message = self.message(problem.solution, explanation)
        reasoning = self.template.reasoning if self.format.native else None
        inline = {"content": message.inline(reasoning)}
        keyed = (
            {"content": message.solution, str(reasoning.key): message.thought}
            if reasoning and reasoning.key
            else inline
        )
        system = self.format.student_system
        conversation: list[Message] = [{"role": "system", "content": system}] if system.strip() else []
        conversation.append({"role": "user", "content": self.format.student_question(problem.question)})
        found = {}
        for name, content in (("messages", keyed), ("inline", inline)):
            text = self.template.render_message(conversation, {"role": "assistant", **content})
            same = text.startswith(expected) and not text[len(expected) :].strip()
            found[name] = "equal" if same else "differs" if "First this." in text else "drops"
        return found

    def _reasoning(self) -> Reasoning:
        if self.template.reasoning is None:
            raise ModelError(
                f"--format {self.format.name}: {self.template.name} has no reasoning markup that continues its "
                "generation prompt; use --format rlt"
            )
        return self.template.reasoning

    def _prefill(self, solution: str) -> str:
        format = self.format
        return format.solution_tags[0] + format.solution_content(solution) + format.boundary + format.padding

    def _render_before(self, system: str, question: str, prefilled: bool) -> str:
        messages: list[Message] = [{"role": "system", "content": system}] if system.strip() else []
        for shot_question, shot_answer in self._teacher_shots if prefilled else self._student_shots:
            messages += [{"role": "user", "content": shot_question}, {"role": "assistant", "content": shot_answer}]
        kind = bool(messages), prefilled
        if kind not in self._checked:
            self.template.check_shows([*messages, {"role": "user", "content": "a question"}])
            self._checked.add(kind)
        messages.append({"role": "user", "content": question})
        return self.template.prefix(messages) if prefilled else self.template.prompt(messages)


def student_message(
    format: Format, reasoning: Reasoning | None, solution: str, explanation: str | None
) -> StudentMessage:
    """Return a student's message.

    Args:
        format: the format.
        reasoning: the reasoning markup of the student's template; required for a native format.
        solution: the solution.
        explanation: the explanation without the prefill's padding; None for an empty thought.
    """
    if format.native:
        assert reasoning is not None
        thought, inner = (explanation or "").strip(), format.bare_solution(solution).strip()
        return StudentMessage(reasoning.opening, thought, reasoning.closing, inner, "")
    return StudentMessage(
        format.thought_prefix + format.thought_tags[0],
        "" if explanation is None else format.padding + explanation,
        format.thought_tags[1] + format.separator + format.solution_tags[0],
        format.solution_content(solution),
        format.solution_tags[1],
    )


def tagged_solution(format: Format, completion: str) -> tuple[str, bool]:
    """Extract the solution from a completion in the tags of the format; see :meth:`Views.solution_in`."""
    if parts := format.split_message(completion):
        return parts[1], True
    tail = completion.rpartition(format.thought_tags[1])[2].rpartition(format.solution_tags[0])[2]
    return tail.partition(format.solution_tags[1])[0].strip(), False


@dataclass(frozen=True)
class Explanation:
    """The explanation in a completion.

    Attributes:
        text: the text between the explanation tags as the teacher wrote it, without the padding of the prefill.
        closed: whether the closing explanation tag exists.
        holds_tag: a tag of the format inside the text, or None.
    """

    text: str
    closed: bool
    holds_tag: str | None


def read_completion(format: Format, completion: str, other_tags: Sequence[str] = ()) -> Explanation:
    """Split a completion, the text after the prefill, at the first closing explanation tag.

    Args:
        format: the format.
        completion: the text.
        other_tags: further tags that an explanation must not contain.
    """
    text, closing, _ = completion.partition(format.explanation_tags[1])
    tags = (format.explanation_tags[0], *format.thought_tags, *format.solution_tags, *other_tags)
    return Explanation(text, bool(closing), next((tag for tag in tags if tag in text), None))
