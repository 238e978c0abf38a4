from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rlt_data.formats import ControlTokens


def control(*tokens: str, written: str = "", special: bool = True) -> ControlTokens:
    """Return the control tokens of a tokenizer with these added tokens and a template that writes ``written``."""
    added = {number: SimpleNamespace(content=token, special=special) for number, token in enumerate(tokens)}
    tokenizer: Any = SimpleNamespace(added_tokens_decoder=added)
    template: Any = SimpleNamespace(rendered_probes=written)
    return ControlTokens(tokenizer, template, "m")


@pytest.mark.parametrize(
    ("tokens", "text", "found"),
    [
        (("<a>", "<a>b"), "see <a>b", "<a>b"),
        (("x", "xy"), "wxyz", "xy"),
        (("<|end|>", "[INST]", "</s>"), "a < b, a </s c and [INST]", "[INST]"),
        (("<|end|>",), "an <|END|> or <|end|", None),
        (tuple(f"<|reserved_{i}|>" for i in range(300)), "<|reserved_12|>", "<|reserved_12|>"),
        (("(a.*)",), "(a.*) but not (abc)", "(a.*)"),
        ((), "anything", None),
        ((" ", "\n\n"), "white  space\n\n", None),  # tokens of white space are ordinary text
    ],
)
def test_the_longest_token_is_found_and_taken_literally(tokens: tuple[str, ...], text: str, found: str | None) -> None:
    assert control(*tokens).refused(text) == found


def test_an_added_token_that_is_not_special_counts_if_the_template_writes_it() -> None:
    tokens = "<think>", "<table>"
    assert control(*tokens, written="assistant\n<think>\n", special=False).refused("<table><think>") == "<think>"
    assert control(*tokens, special=False).refused("<table><think>") is None
