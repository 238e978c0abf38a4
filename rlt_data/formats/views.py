"""Render question, solution and explanation for teacher, student and solver.

The chat template is rendered once per question with a placeholder for the assistant's text. So any template works, the
assistant's text reaches the model unchanged, and the result does not depend on how a template renders an unfinished
message. Models without a chat template use :data:`PLAIN`.
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

#: Chat template for base models: paragraphs with headings, and the end-of-text token after the last one.
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

#: A conversation for testing templates, with texts that no template contains.
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
        override: ``"plain"`` for :data:`PLAIN`, the path of a Jinja file, or None for the tokenizer's template.

    Attributes:
        source: the source of the template: ``"own"``, ``"plain"`` or the name of the file.
        text: the Jinja text of the template.
        merges_system: whether the system text is put before the first user message, because the template refuses or
            omits system messages (some render one only before the last message).
        end: the text that the template writes after the assistant's text.
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
        self.text: str = str(tokenizer.chat_template) if self._template is None else self._template
        first = tokenizer("a")["input_ids"][:1]
        self._plain_bos = bool(tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id])
        self.merges_system = False
        self.end = _run_with_timeout(_PROBE_SECONDS, self._find_end)

    def _find_end(self) -> str:
        """Set ``merges_system``, and return the text that the template writes after the assistant's text."""
        *conversation, _ = _PROBE
        system = conversation[0]["content"]
        try:
            self.merges_system = system not in self.split(conversation)[0]
        except ModelError:
            self.merges_system = True
        self.check_shows(conversation)
        return self.split(conversation)[1]

    def split(self, messages: Sequence[Message]) -> tuple[str, str]:
        """Render a conversation before and after the text of its last message, the assistant's.

        Args:
            messages: the conversation without the last message.

        Returns:
            The text before and the text after the assistant's text.

        Raises:
            ModelError: the template cannot render the conversation, or omits the assistant's text.
        """
        text = self._render([*messages, {"role": "assistant", "content": _PLACEHOLDER}])
        before, placeholder, after = text.rpartition(_PLACEHOLDER)
        if not placeholder:
            raise ModelError(self._refusal("omits the assistant's text"))
        return before, after

    def check_shows(self, messages: Sequence[Message]) -> None:
        """Check that the template renders the texts of all messages, so that no instruction is lost.

        Args:
            messages: the conversation, as for :meth:`split`. The template may strip white space around texts.

        Raises:
            ModelError: the template omits or changes a text.
        """
        before, _ = self.split(messages)
        for message in messages:
            if message["content"].strip() not in before:
                raise ModelError(self._refusal(f"omits or changes the {message['role']} text"))

    def check_keeps(self, content: str) -> None:
        """Check that the template renders an assistant's text unchanged, because students are trained on it.

        Raises:
            ModelError: the template changes the text. The message shows the first difference.
        """
        *conversation, _ = _PROBE
        expected = content.join(self.split(conversation))
        got = self._render([*conversation, {"role": "assistant", "content": content}])
        if got != expected:
            pairs = enumerate(zip(got, expected, strict=False))
            position = next((i for i, (x, y) in pairs if x != y), len(expected))
            excerpt = slice(max(position - 20, 0), position + 30)
            raise ModelError(
                f"the chat template of {self._tokenizer.name_or_path} changes the student's text: it writes "
                f"{got[excerpt]!r} instead of {expected[excerpt]!r}. Use a --format whose tags the template does not "
                "change, or another --chat-template (a Jinja file, or plain for rlt-data's)."
            )

    def _render(self, messages: Sequence[Message]) -> str:
        if self.merges_system and messages[0]["role"] == "system":
            system, user, *others = messages
            messages = [{"role": "user", "content": system["content"] + "\n\n" + user["content"]}, *others]
        options: dict[str, Any] = {"plain_bos": self._plain_bos}
        if self._template is not None:
            options["chat_template"] = self._template
        try:
            return str(self._tokenizer.apply_chat_template(list(messages), tokenize=False, **options))
        except Exception as error:  # noqa: BLE001 - templates are programs and can raise anything
            raise ModelError(self._refusal(f"cannot render a conversation ({first_line(error)})")) from None

    def _refusal(self, reason: str) -> str:
        return f"the chat template of {self._tokenizer.name_or_path} {reason}; use --chat-template plain instead"


def _run_with_timeout(seconds: float, work: Callable[[], str]) -> str:
    """Return the result of a function. After a timeout, its thread keeps running.

    Raises:
        ModelError: the function takes too long.
    """
    done: queue.SimpleQueue[str | BaseException] = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put(work())
        except BaseException as error:  # noqa: BLE001 - raised again below
            done.put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        result = done.get(timeout=seconds)
    except queue.Empty:
        raise ModelError(f"the chat template takes more than {seconds:g} s for a short conversation") from None
    if isinstance(result, BaseException):
        raise result
    return result


@dataclass(frozen=True)
class Rendered:
    """A rendered text, with the character ranges [start, end) of the thought and the solution, which are scored."""

    text: str
    thought: tuple[int, int]
    solution: tuple[int, int]


class Views:
    """Renders problems for teacher, student and solver with a format and a chat template."""

    def __init__(self, format: Format, template: ChatTemplate) -> None:
        self.format = format
        self.template = template
        self._checked_prompts: set[tuple[str, Sequence[tuple[str, str]]]] = set()
        padding = format.padding
        self._teacher_shots = tuple(
            (shot.question, self._prefill(shot.solution) + format.completion_of(shot.explanation))
            for shot in format.shots
        )
        self._student_shots = tuple(
            (shot.question, student_message(format, shot.solution, padding + shot.explanation.strip() + padding))
            for shot in format.shots
        )
        # A small cache is enough, because the traces of a question follow each other.
        self._before = lru_cache(8)(self._render_before)

    def teacher_prompt(self, question: str, solution: str) -> str:
        """Return the text that the teacher continues: conversation and prefill, padding included."""
        before = self._before(self.format.teacher_system, self._teacher_shots, question)
        return before + self._prefill(solution)

    def student(self, question: str, solution: str, thought: str) -> Rendered:
        """Return the student's complete text for a thought, with the ranges of thought and solution."""
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

    def student_prompt(self, question: str) -> str:
        """Return the student's text before the thought."""
        format = self.format
        before = self._before(format.student_system, self._student_shots, question)
        return before + format.thought_prefix + format.thought_tags[0]

    def solver_prompt(self, question: str) -> str:
        """Return the text that a student continues at test time."""
        system = self.format.solver_system or self.format.student_system
        return self._before(system, self._student_shots, question)

    def check(self) -> None:
        """Raise ModelError if the template changes a student's text or prompt in this format."""
        padding = self.format.padding
        self._before(self.format.student_system, self._student_shots, "a question")
        thought = f"{padding}First this.\n\nThen that.{padding}"
        self.template.check_keeps(student_message(self.format, "an answer", thought))

    def _prefill(self, solution: str) -> str:
        format = self.format
        return format.solution_tags[0] + format.solution_content(solution) + format.boundary + format.padding

    def _render_before(self, system: str, shots: Sequence[tuple[str, str]], question: str) -> str:
        messages = [{"role": "system", "content": system}]
        for shot_question, shot_answer in shots:
            messages += [{"role": "user", "content": shot_question}, {"role": "assistant", "content": shot_answer}]
        if (system, shots) not in self._checked_prompts:
            self.template.check_shows([*messages, _PROBE[1]])
            self._checked_prompts.add((system, shots))
        return self.template.split([*messages, {"role": "user", "content": question}])[0]


def student_message(format: Format, solution: str, thought: str) -> str:
    """Return the text of a student's assistant message: thought and solution in the tags of the format."""
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
    """The explanation in a completion.

    Attributes:
        text: the text between the explanation tags as the teacher wrote it, without the padding of the prefill.
        closed: whether the closing explanation tag exists.
        holds_tag: a tag of the format inside the text, or None.
    """

    text: str
    closed: bool
    holds_tag: str | None


def read_completion(format: Format, completion: str) -> Explanation:
    """Split a completion, the text after the prefill, at the first closing explanation tag."""
    text, closing, _ = completion.partition(format.explanation_tags[1])
    tags = (format.explanation_tags[0], *format.thought_tags, *format.solution_tags)
    return Explanation(text, bool(closing), next((tag for tag in tags if tag in text), None))
