"""The workloads of scoring.py and exactness.py: a prompt, and texts that continue it."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlt_data.engines import find_checkpoint, open_tokenizer
from rlt_data.settings import ModelSettings

DOCS = Path(__file__).parent.parent / "docs"


@dataclass(frozen=True)
class Shape:
    """Texts of equal length that share a prompt; all of their tokens are scored.

    Attributes:
        prompt: number of tokens of the prompt.
        text: number of tokens after the prompt.
        traces: number of texts.
    """

    prompt: int
    text: int
    traces: int

    def __str__(self) -> str:
        return f"{self.prompt} + {self.text:,} tokens × {self.traces}"

    @property
    def tokens(self) -> int:
        """Number of different tokens."""
        return self.prompt + self.text * self.traces

    def group(self, ids: list[int]) -> list[list[list[int]]]:
        """Return the token ids of each prompt and text, cut from the ids of a long text."""
        starts = range(self.prompt, self.tokens, self.text)
        return [[ids[: self.prompt], ids[start : start + self.text]] for start in starts]


#: A: short explanations of one question. B: reasoning of medium length. C: as long as reasoning models write.
SHAPES = {"A": Shape(419, 181, 16), "B": Shape(90, 1620, 2), "C": Shape(90, 6120, 1)}


def shape(text: str) -> Shape:
    """Parse A, B, C, or PROMPT+TEXTxTRACES such as 419+181x16."""
    if text in SHAPES:
        return SHAPES[text]
    match = re.fullmatch(r"(\d+)\+(\d+)x(\d+)", text)
    if not match or not all(map(int, match.groups())):
        raise argparse.ArgumentTypeError(f"{text!r} is not A, B, C or PROMPT+TEXTxTRACES, such as 419+181x16")
    return Shape(*map(int, match.groups()))


def document_ids(model: str, tokens: int) -> list[int]:
    """Return the first tokens of this project's documentation, repeated where it is too short."""
    tokenizer, _ = open_tokenizer(find_checkpoint(model, tokenizer_only=True), ModelSettings())
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md")))
    ids = tokenizer(text[: 20 * tokens])["input_ids"]
    return np.resize(ids, tokens).tolist()  # type: ignore[no-any-return]
