"""Control tokens of a model inside texts of users and teachers.

A control token such as ``<|im_end|>`` in a question would end the question and turn the rest into other messages. Rows
with one are refused, or the token is marked as text: three noncharacters surround and split it, so that neither
templates nor tokenizers recognise it. :func:`rlt_data.formats.encode` reads the marks.
"""

from __future__ import annotations

import re

from rlt_data.formats.spans import BREAK, CLOSE, OPEN, Tokenizer, encode_as_text
from rlt_data.formats.template import ChatTemplate


class ControlTokens:
    """The control tokens of a model: special added tokens, and added tokens that its chat template writes.

    Args:
        tokenizer: the model's tokenizer.
        template: the model's chat template.
        model: name of the model, for messages.
        as_text: whether the tokens are encoded as text, where the tokenizer can.

    Attributes:
        identity: identifies the tokens that are refused.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, model: str, *, as_text: bool = False) -> None:
        written = template.rendered_probes
        tokens = {
            token.content
            for token in tokenizer.added_tokens_decoder.values()
            if token.content.strip() and (token.special or token.content in written)
        }
        self._model = model
        self._text = {token for token in tokens if as_text and encode_as_text(tokenizer, token)}
        self._any, self._refused = _pattern(tokens), _pattern(tokens - self._text)
        self.identity = self._refused.pattern

    def refused(self, text: str) -> str | None:
        """Return the first control token in a text that cannot be encoded as text, or None."""
        match = self._refused.search(text)
        return match[0] if match else None

    def problem_with(self, **texts: str | None) -> str | None:
        """Return why a row cannot be rendered, or None; keywords are names and texts of its fields."""
        for name, text in texts.items():
            if text and (token := self.refused(text)):
                return f"the {name} contains {token!r}, a control token of {self._model}"
        return None

    def mark(self, text: str) -> str:
        """Mark the control tokens in a text that are encoded as text."""
        if not self._text:
            return text
        return self._any.sub(lambda match: _marked(match[0]) if match[0] in self._text else match[0], text)


def _marked(token: str) -> str:
    return f"{OPEN}{token[0]}{BREAK}{token[1:]}{CLOSE}"


def _pattern(tokens: set[str]) -> re.Pattern[str]:
    """Return a pattern that finds any of the tokens, the longest first; nothing if there are none.

    Tokens are grouped by their first two characters, because a vocabulary may have hundreds and most texts none.
    """
    groups: dict[str, list[str]] = {}
    for token in sorted(tokens, key=lambda token: (-len(token), token)):
        groups.setdefault(token[:2], []).append(re.escape(token[2:]))
    starts = sorted(groups, key=lambda start: (-len(start), start))
    return re.compile("|".join(f"{re.escape(start)}(?:{'|'.join(groups[start])})" for start in starts) or r"(?!)")
