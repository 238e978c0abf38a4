"""Split the text of a reasoning model into its thought and its solution."""

from __future__ import annotations

import re

from rlt_data.formats.template import THOUGHT_TAGS

#: Pairs of tags that enclose the solution after a thought.
SOLUTION_TAGS = (
    ("<|begin_of_solution|>", "<|end_of_solution|>"),
    ("<answer>", "</answer>"),
    ("<solution>", "</solution>"),
)


class UnclosedThoughtError(ValueError):
    """A text starts with a thought that does not end.

    Attributes:
        thought: the text after the opening tag.
    """

    def __init__(self, opening: str, thought: str) -> None:
        super().__init__(f"the thought that {opening} opens is not closed")
        self.thought = thought


def split_thought(text: str) -> tuple[str | None, str]:
    """Return the thought and the rest of a text; the thought is None if the text has none.

    Tags count only where they enclose something: a text that merely mentions a tag is not split. The opening tag may be
    missing, because many templates put it into the prompt.

    Raises:
        UnclosedThoughtError: the thought has no closing tag.
    """
    if "<" not in text:
        return None, text
    stripped = text.lstrip()
    for opening, closing in THOUGHT_TAGS:
        if stripped.startswith(opening):
            inner = stripped[len(opening) :]
            end = _closing_position(inner, closing)
            if end is None:
                end = inner.find(closing)
            if end < 0:
                raise UnclosedThoughtError(opening, inner.strip())
            return inner[:end].strip() or None, _unwrap_solution(inner[end + len(closing) :])
    for _, closing in THOUGHT_TAGS:
        end = _closing_position(text, closing)
        if end is not None:
            return text[:end].strip() or None, _unwrap_solution(text[end + len(closing) :])
    return None, text


def _closing_position(text: str, tag: str) -> int | None:
    """Return the position of the first closing tag, or None; a tag after a space or a quotation mark is a mention.

    At the start of a line a tag always closes.
    """
    for match in re.finditer(re.escape(tag), text):
        line = text[text.rfind("\n", 0, match.start()) + 1 : match.start()]
        if not line.strip() or not (line[-1].isspace() or line[-1] in _QUOTES):
            return match.start()
    return None


_QUOTES = "`'\"“‘«([{<"


def _unwrap_solution(text: str) -> str:
    """Remove a pair of tags around a whole solution. The closing tag may be missing, or the only one."""
    text = text.strip()
    for opening, closing in SOLUTION_TAGS:
        inner = text.removeprefix(opening)
        if text.startswith(opening) or opening.startswith("<|"):
            inner = inner.removesuffix(closing)
        if inner != text and opening not in inner and closing not in inner:
            return inner.strip()
    return text
