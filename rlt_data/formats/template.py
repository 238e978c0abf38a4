"""Render conversations with a model's chat template.

A template is a program, so everything about it is found out by rendering short conversations: how an assistant's turn
begins and ends, whether there is a system role, and how the model marks its reasoning. Models without a chat template
use :data:`PLAIN`. Templates see a fixed date instead of the clock.
"""

from __future__ import annotations

import hashlib
import json
import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from rlt_data.errors import ModelError, SettingsError, first_line
from rlt_data.formats.spans import Tokenizer

logger = logging.getLogger(__name__)

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

#: Pairs of tags that enclose a thought.
THOUGHT_TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)

#: Names of the thought in an assistant's message, the most common first.
THOUGHT_KEYS = ("reasoning_content", "thinking", "reasoning")

Message = dict[str, str]

#: Conversations for examining templates, with texts that no template contains.
_SYSTEM, _USER = {"role": "system", "content": "RLTDATASYSTEM"}, {"role": "user", "content": "RLTDATAQUESTION"}
_ANSWER, _THOUGHT = "RLTDATAANSWER", "RLTDATATHOUGHT"
_PROBE_SECONDS = 20.0


@dataclass(frozen=True)
class Reasoning:
    """How a template marks the reasoning of an assistant's turn.

    Attributes:
        opening: text between the generation prompt and the thought; empty if the prompt ends with the opening tag.
        tag: the opening tag with the white space around it, also if the prompt ends with it.
        closing: text between the thought and the answer.
        key: key of the message that the template reads the thought from; None if it reads it from nowhere.
    """

    opening: str
    tag: str
    closing: str
    key: str | None


@dataclass(frozen=True)
class TemplateFacts:
    """What is recorded about a template in run.json.

    Attributes:
        source: ``own``, ``plain`` or the name of a file.
        options: values of ``--template-option``.
        date: the date that the template sees.
        merges_system: whether the system text precedes the first user message, because there is no system role.
        end: text after the assistant's text.
        reasoning: the reasoning markup, if the template has one.
    """

    source: str
    options: dict[str, Any]
    date: str
    merges_system: bool
    end: str
    reasoning: Reasoning | None


class ChatTemplate:
    """A tokenizer's chat template.

    Args:
        tokenizer: a Hugging Face fast tokenizer.
        override: ``"plain"`` for :data:`PLAIN`, the path of a Jinja file, or None for the tokenizer's template.
        options: variables for the template, such as ``enable_thinking``.
        date: the date that the template sees, as YYYY-MM-DD.

    Attributes:
        source: the source of the template: ``"own"``, ``"plain"`` or the name of the file.
        text: the Jinja text of the template.
        merges_system: whether the system text is put before the first user message, because the template refuses
            system messages.
        end: the text that ends the assistant's turn, without trailing white space.
        has_end: whether the template writes it; otherwise it is the model's end-of-text token.
        reasoning: the reasoning markup that continues the generation prompt; None if there is none.

    Raises:
        ModelError: the template fails on a short conversation, or omits a text.
        SettingsError: the file does not exist.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        override: str | None = None,
        options: Mapping[str, Any] | None = None,
        date: str = "2025-01-01",
    ) -> None:
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
        self.text: str = _default_template(tokenizer) if self._template is None else self._template
        if "strftime_now" in self.text:
            self._template = _date_macro(date) + self.text
        first = tokenizer("a")["input_ids"][:1]
        plain_bos = bool(tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id])
        self._options = dict(options or {})
        self._date = date
        for option in self._options:
            if option not in self.text:
                logger.warning("%s does not read --template-option %s", self.name, option)
        self._variables = {"plain_bos": plain_bos, **self._options}
        self.merges_system = False
        self.end, self.has_end = "", True
        self.reasoning: Reasoning | None = None
        _run_with_timeout(_PROBE_SECONDS, self._examine)
        if self.end and not self.has_end:
            logger.info("%s does not end the assistant's turn; %s, the end-of-text token, does", self.name, self.end)

    def prompt(self, messages: Sequence[Message]) -> str:
        """Render a conversation with the generation prompt: the text that a server continues.

        Args:
            messages: the conversation, which ends with a user message.

        Raises:
            ModelError: the template cannot render the conversation.
        """
        return self._render(messages, add_generation_prompt=True)

    def split(self, messages: Sequence[Message]) -> tuple[str, str]:
        """Render a conversation before and after the text of an assistant's message that follows it.

        A template may render such a message differently from its generation prompt, for example with an empty thought.

        Args:
            messages: the conversation without the assistant's message.

        Returns:
            The text before and the text after the assistant's text.

        Raises:
            ModelError: the template cannot render the conversation, or omits the assistant's text.
        """
        text = self._render([*messages, {"role": "assistant", "content": _ANSWER}])
        before, answer, after = text.rpartition(_ANSWER)
        if not answer:
            raise ModelError(self._refusal("omits the assistant's text"))
        return before, after

    def render_message(self, messages: Sequence[Message], answer: Message) -> str:
        """Render a conversation with an assistant's message as a trainer does; empty if the template fails."""
        try:
            return self._render([*messages, answer])
        except ModelError:
            return ""

    def assistant_text(self, message: Message) -> str:
        """Return the text that continues the generation prompt for an assistant's message.

        Args:
            message: ``content``, and ``thought`` if the thought is not part of the content. A thought in the content is
                left as it is, without the opening tag if the generation prompt already has it.

        Raises:
            ModelError: the template has no place for the thought, or opens one that the message lacks.
        """
        reasoning, content = self.reasoning, message["content"]
        if thought := message.get("thought"):
            if reasoning is None:
                raise ModelError(f"{self.name} has no reasoning markup for the message's thought")
            return reasoning.opening + thought.strip() + reasoning.closing + content.strip()
        if reasoning and not reasoning.opening:
            if reasoning.closing.strip() not in content:
                raise ModelError(
                    f"the generation prompt of {self.name} opens a thought, which the message does not close; use data "
                    "of --format native, or a --template-option that disables thinking if the template has one"
                )
            return content.removeprefix(reasoning.tag.strip()).lstrip("\n")
        return content

    def check_shows(self, messages: Sequence[Message]) -> None:
        """Check that the template renders the texts of all messages, so that no instruction is lost.

        Args:
            messages: the conversation, as for :meth:`prompt`. The template may strip white space around texts.

        Raises:
            ModelError: the template omits or changes a text.
        """
        if role := _missing_text(messages, self.prompt(messages)):
            raise ModelError(self._refusal(f"omits or changes the {role} text"))

    def prefix(self, messages: Sequence[Message]) -> str:
        """Render a conversation up to the text of a prefilled assistant's message.

        This is the template's own rendering of such a message, which may have an empty thought before the text. Some
        templates omit the system text there; then it is the generation prompt.

        Args:
            messages: the conversation, as for :meth:`prompt`.
        """
        before, _ = self.split(messages)
        return self.prompt(messages) if _missing_text(messages, before) else before

    @property
    def name(self) -> str:
        """Name of the template in messages."""
        return f"the chat template of {self._tokenizer.name_or_path}"

    @property
    def facts(self) -> TemplateFacts:
        """What run.json records about the template."""
        return TemplateFacts(self.source, self._options, self._date, self.merges_system, self.end, self.reasoning)

    @cached_property
    def identity(self) -> str:
        """Hash of the template's text and of rendered conversations; 16 hex digits.

        Templates with the same text can render differently, by their options and the date.
        """
        content = json.dumps([self.text, self.rendered_probes, asdict(self.facts)], sort_keys=True, ensure_ascii=False)
        return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()

    @cached_property
    def rendered_probes(self) -> str:
        """Several short conversations, rendered."""
        assistant = {"role": "assistant", "content": _ANSWER}
        reasoning = assistant | {key: _THOUGHT for key in THOUGHT_KEYS}
        probes = (
            [_USER],
            [_SYSTEM, _USER],
            [_SYSTEM, _USER, assistant, _USER],
            [_USER, assistant],
            [_USER, reasoning],
        )
        return "\n".join(map(self._render_or_error, probes))

    def _render_or_error(self, messages: Sequence[Message]) -> str:
        try:
            return self._render(messages, add_generation_prompt=messages[-1]["role"] == "user")
        except ModelError as error:
            return str(error)

    def _examine(self) -> None:
        """Set the attributes that are found out by rendering."""
        try:
            self.prompt([_SYSTEM, _USER])
        except ModelError:
            self.merges_system = True
        self.check_shows([_USER])
        end = self.split([_USER])[1].rstrip()
        self.end, self.has_end = end or str(self._tokenizer.eos_token or ""), bool(end)
        self.reasoning = self._find_reasoning()

    def _find_reasoning(self) -> Reasoning | None:
        prompt = self.prompt([_USER])
        tags = [opening for opening, _ in THOUGHT_TAGS if prompt.rstrip().endswith(opening)]
        open_tag = prompt[prompt.rindex(tags[0]) :] if tags else ""
        for key in THOUGHT_KEYS:
            try:
                text = self._render([_USER, {"role": "assistant", "content": _ANSWER, key: _THOUGHT}])
            except ModelError:
                continue
            start = text.find(_THOUGHT)
            answer = text.find(_ANSWER, start)
            if 0 <= start < answer and text.startswith(prompt) and len(prompt) <= start:
                opening = text[len(prompt) : start]
                return Reasoning(opening, opening or open_tag, text[start + len(_THOUGHT) : answer], key)
        return Reasoning("", open_tag, f"\n{dict(THOUGHT_TAGS)[tags[0]]}\n\n", None) if tags else None

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        if self.merges_system and messages and messages[0]["role"] == "system":
            system, user, *others = messages
            messages = [{"role": "user", "content": system["content"] + "\n\n" + user["content"]}, *others]
        variables = self._variables if self._template is None else {**self._variables, "chat_template": self._template}
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=add_generation_prompt, **variables
            )
        except Exception as error:  # noqa: BLE001 - templates are programs and can raise anything
            raise ModelError(self._refusal(f"cannot render a conversation ({first_line(error)})")) from None
        return str(text)

    def _refusal(self, reason: str) -> str:
        return f"{self.name} {reason}; use --chat-template plain instead"


def _default_template(tokenizer: Tokenizer) -> str:
    templates = tokenizer.chat_template
    return str(templates.get("default") if isinstance(templates, Mapping) else templates)


def _date_macro(date: str) -> str:
    """Return a Jinja macro ``strftime_now`` that takes the place of the one that reads the clock.

    Transformers passes no functions to templates, so the macro replaces each directive by its value on the date.
    """
    day = datetime.fromisoformat(date)
    values = {letter: day.strftime(f"%{letter}") for letter in "aAbBcdfGHIjmMpSuUVwWxXyYzZ"}
    values |= {f"-{letter}": value.lstrip("0") or "0" for letter, value in values.items()}
    replaced = "".join(f" | replace('%{name}', {value!r})" for name, value in values.items())
    return f"{{%- macro strftime_now(format) -%}}{{{{ format{replaced} }}}}{{%- endmacro %}}{{{{ '' }}}}"


def _missing_text(messages: Sequence[Message], rendered: str) -> str | None:
    """Return the role of the first message whose text is not rendered, or None."""
    return next((message["role"] for message in messages if message["content"].strip() not in rendered), None)


def _run_with_timeout(seconds: float, work: Callable[[], None]) -> None:
    """Run a function. After a timeout, its thread keeps running.

    Raises:
        ModelError: the function takes too long.
    """
    done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again below
            done.put(error)
        else:
            done.put(None)

    threading.Thread(target=run, daemon=True).start()
    try:
        error = done.get(timeout=seconds)
    except queue.Empty:
        raise ModelError(f"the chat template takes more than {seconds:g} s for a short conversation") from None
    if error is not None:
        raise error
