"""Rendering: question, solution and explanation as teacher, student and solver see them.

The chat template is rendered once per question with a placeholder where the assistant's text goes, so any template
works, the assistant's text reaches the model unchanged, and nothing depends on how a template treats a half-finished
message. Models without a chat template get :data:`PLAIN`.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from rlt_data.errors import ModelError, SettingsError, first_line
from rlt_data.formats.schema import Format
from rlt_data.formats.spans import Tokenizer

#: Chat template for base models: headed paragraphs, and the end-of-text token after the last one.
PLAIN = """\
{%- if plain_bos %}{{ bos_token }}{% endif -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}{{ message.content + '\n\n' }}
{%- elif message.role == 'user' -%}{{ '### Question\n\n' + message.content + '\n\n' }}
{%- else -%}{{ '### Answer\n\n' + message.content + (eos_token if loop.last else '\n\n') }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '### Answer\n\n' }}{%- endif -%}
"""

_PLACEHOLDER = "RLTDATAPLACEHOLDER"

Message = dict[str, str]

#: A conversation to try templates with; no template has these texts of its own.
_PROBE: Sequence[Message] = (
    {"role": "system", "content": "RLTDATASYSTEM"},
    {"role": "user", "content": "RLTDATAQUESTION"},
    {"role": "assistant", "content": "RLTDATAANSWER"},
)
_PROBE_SECONDS = 20.0


class ChatTemplate:
    """A tokenizer's chat template, split around the assistant's text.

    Args:
        tokenizer: a Hugging Face fast tokenizer.
        override: ``None`` for the tokenizer's own template, ``"plain"`` for ours, or the path of a Jinja file.

    Attributes:
        source: where the template came from: ``"own"``, ``"plain"`` or the file's name.
        merges_system: whether the system text goes to the head of the first user message, because the template
            refuses system messages or leaves them out (some show one only before the last message).
    """

    def __init__(self, tokenizer: Tokenizer, override: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._template: str | None = None
        self.source = "own"
        if override == "plain" or (override is None and not tokenizer.chat_template):
            self._template, self.source = PLAIN, "plain"
        elif override is not None:
            path = Path(override)
            if not path.is_file():
                raise SettingsError(f"--chat-template: {override!r} is neither 'plain' nor a file")
            try:
                self._template, self.source = path.read_text(encoding="utf-8"), path.name
            except (OSError, ValueError) as error:
                raise SettingsError(f"--chat-template: {override}: {first_line(error)}") from None
        #: The template's Jinja text.
        self.text: str = str(tokenizer.chat_template) if self._template is None else self._template
        first = tokenizer("a")["input_ids"][:1]
        self._plain_bos = bool(tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id])
        self.merges_system = False
        self.end = _within(_PROBE_SECONDS, self._find_end)

    def _find_end(self) -> str:
        """Find out whether the template takes a system text, and return what it writes after the assistant's text."""
        *conversation, _ = _PROBE
        system = conversation[0]["content"]
        try:
            self.merges_system = system not in self.split(conversation)[0]
        except ModelError:
            self.merges_system = True
        self.check_shows(conversation)
        return self.split(conversation)[1]

    def split(self, messages: Sequence[Message]) -> tuple[str, str]:
        """Render a conversation up to its assistant's text, and what follows that text.

        Args:
            messages: the conversation without its last, the assistant's, message.

        Returns:
            The text before and the text after the assistant's text.
        """
        text = self._render([*messages, {"role": "assistant", "content": _PLACEHOLDER}])
        before, found, after = text.rpartition(_PLACEHOLDER)
        if not found:
            raise ModelError(self._refusal("leaves out the assistant's text"))
        return before, after

    def check_shows(self, messages: Sequence[Message]) -> None:
        """Make sure that the template shows the texts before an assistant's, so that no instruction is lost.

        Args:
            messages: as for :meth:`split`. White space around their texts may be lost.

        Raises:
            ModelError: the template leaves one out, or changes it.
        """
        before, _ = self.split(messages)
        for message in messages:
            if message["content"].strip() not in before:
                raise ModelError(self._refusal(f"leaves out or changes a text of the {message['role']}"))

    def check_keeps(self, content: str) -> None:
        """Make sure that the template writes an assistant's text as it is, since students are trained through it.

        Raises:
            ModelError: it does not; the message shows the first difference.
        """
        *conversation, _ = _PROBE
        expected = content.join(self.split(conversation))
        got = self._render([*conversation, {"role": "assistant", "content": content}])
        if got != expected:
            at = next((i for i, (x, y) in enumerate(zip(got, expected, strict=False)) if x != y), len(expected))
            raise ModelError(
                f"the chat template of {self._tokenizer.name_or_path} changes the student's text: it writes "
                f"{got[max(at - 20, 0) : at + 30]!r} where the format says {expected[max(at - 20, 0) : at + 30]!r}. "
                "Use a --format whose tags the template leaves alone, or another --chat-template (a Jinja file, or "
                "plain for ours)."
            )

    def _render(self, messages: Sequence[Message]) -> str:
        if self.merges_system and messages[0]["role"] == "system":
            system, user, *rest = messages
            messages = [{"role": "user", "content": system["content"] + "\n\n" + user["content"]}, *rest]
        options: dict[str, Any] = {"plain_bos": self._plain_bos}
        if self._template is not None:
            options["chat_template"] = self._template
        try:
            return str(self._tokenizer.apply_chat_template(list(messages), tokenize=False, **options))
        except Exception as error:  # noqa: BLE001 - templates are programs and raise anything
            raise ModelError(self._refusal(f"cannot show a conversation ({first_line(error)})")) from None

    def _refusal(self, problem: str) -> str:
        return f"the chat template of {self._tokenizer.name_or_path} {problem}; --chat-template plain uses ours"


def _within(seconds: float, work: Callable[[], str]) -> str:
    """Return what a function returns, unless it takes too long: then its thread is left behind.

    Raises:
        ModelError: it takes too long.
    """
    done: queue.SimpleQueue[str | BaseException] = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put(work())
        except BaseException as error:  # noqa: BLE001 - raised again below
            done.put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        found = done.get(timeout=seconds)
    except queue.Empty:
        raise ModelError(f"the chat template takes more than {seconds:g} s for a short conversation") from None
    if isinstance(found, BaseException):
        raise found
    return found


@dataclass(frozen=True)
class Rendered:
    """A rendered text and the character ranges [start, end) of the contents that are scored."""

    text: str
    thought: tuple[int, int]
    solution: tuple[int, int]


class Views:
    """The three views of a problem through one tokenizer's chat template."""

    def __init__(self, format: Format, template: ChatTemplate) -> None:
        self.format = format
        self.template = template
        self._checked: set[tuple[str, Sequence[tuple[str, str]]]] = set()
        padding = format.padding
        self._teacher_shots = tuple(
            (shot.question, self._prefill(shot.solution) + format.completion_of(shot.explanation))
            for shot in format.shots
        )
        self._student_shots = tuple(
            (shot.question, student_message(format, shot.solution, padding + shot.explanation.strip() + padding))
            for shot in format.shots
        )
        #: Remembers the last few: the traces of a question come one after the other.
        self._before = lru_cache(8)(self._render_before)

    def teacher_prompt(self, question: str, solution: str) -> str:
        """Return the text the teacher continues: conversation and prefill, padding included."""
        before = self._before(self.format.teacher_system, self._teacher_shots, question)
        return before + self._prefill(solution)

    def student(self, question: str, solution: str, thought: str) -> Rendered:
        """Return the student's whole text for a thought, with the ranges of thought and solution."""
        format = self.format
        before = self._before(format.student_system, self._student_shots, question)
        thought_start = len(before) + len(format.thought_prefix) + len(format.thought_tags[0])
        thought_end = thought_start + len(thought)
        between = format.thought_tags[1] + format.separator + format.solution_tags[0]
        content = format.solution_content(solution)
        solution_start = thought_end + len(between)
        return Rendered(
            before + student_message(format, solution, thought) + self.template.end,
            thought=(thought_start, thought_end),
            solution=(solution_start, solution_start + len(content)),
        )

    def solver_prompt(self, question: str) -> str:
        """Return the text a student continues at test time."""
        system = self.format.solver_system or self.format.student_system
        return self._before(system, self._student_shots, question)

    def check(self) -> None:
        """Raise ModelError if the template would change a student's text or prompt of this format."""
        padding = self.format.padding
        self._before(self.format.student_system, self._student_shots, "a question")
        thought = f"{padding}First this.\n\nThen that.{padding}"
        self.template.check_keeps(student_message(self.format, "an answer", thought))

    def _prefill(self, solution: str) -> str:
        format = self.format
        return format.solution_tags[0] + format.solution_content(solution) + format.boundary + format.padding

    def _render_before(self, system: str, shots: Sequence[tuple[str, str]], question: str) -> str:
        messages = [{"role": "system", "content": system}]
        for asked, answered in shots:
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        if (system, shots) not in self._checked:
            self.template.check_shows([*messages, _PROBE[1]])
            self._checked.add((system, shots))
        return self.template.split([*messages, {"role": "user", "content": question}])[0]


def student_message(format: Format, solution: str, thought: str) -> str:
    """Return the assistant's text of a student: thought and solution in the format's tags."""
    return (
        format.thought_prefix
        + format.thought_tags[0]
        + thought
        + format.thought_tags[1]
        + format.separator
        + format.solution_tags[0]
        + format.solution_content(solution)
        + format.solution_tags[1]
    )


@dataclass(frozen=True)
class Explanation:
    """What a completion holds.

    Attributes:
        text: the text between the explanation tags without the prefill's padding, as the teacher wrote it.
        closed: whether the closing explanation tag is there.
        holds_tag: a tag of the format that stands inside the text, or None.
    """

    text: str
    closed: bool
    holds_tag: str | None


def read_completion(format: Format, completion: str) -> Explanation:
    """Take a completion (what followed the prefill) apart at the first closing explanation tag."""
    text, closing, _ = completion.partition(format.explanation_tags[1])
    tags = (format.explanation_tags[0], *format.thought_tags, *format.solution_tags)
    return Explanation(text, bool(closing), next((tag for tag in tags if tag in text), None))
