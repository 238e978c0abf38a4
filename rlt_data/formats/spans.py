"""Token ranges from the character offsets of one tokenisation; never a search for token sub-lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]

#: Tokens before a sampled text that decide how its first tokens are decoded (spaces, split characters).
CONTEXT_TOKENS = 8

#: Python lists of tokens are large; they are turned into arrays after this many texts.
_TEXTS_AT_A_TIME = 64


class Tokenizer(Protocol):
    """What this package uses of a Hugging Face fast tokenizer."""

    chat_template: Any
    name_or_path: str
    bos_token: Any
    bos_token_id: Any
    eos_token: Any
    eos_token_id: Any

    def __call__(self, text: Any, **options: Any) -> Any:
        """Tokenise one text or a list of texts."""

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """Render messages with the chat template."""

    def decode(self, token_ids: Any, **options: Any) -> Any:
        """Turn token ids back into text."""


@dataclass(frozen=True)
class Encoding:
    """A tokenised text: ids of shape (tokens,) and their character ranges of shape (tokens, 2), half-open."""

    ids: Ints
    offsets: Ints

    def __len__(self) -> int:
        return len(self.ids)


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Encoding]:
    """Tokenise rendered texts as they are: no special token is added, because the chat template wrote them."""
    encodings = []
    for start in range(0, len(texts), _TEXTS_AT_A_TIME):
        few = list(texts[start : start + _TEXTS_AT_A_TIME])
        encoded = tokenizer(few, add_special_tokens=False, return_offsets_mapping=True)
        encodings += [
            Encoding(np.asarray(ids, np.int32), _pairs(offsets))
            for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        ]
    return encodings


def _pairs(offsets: Sequence[tuple[int, int]]) -> Ints:
    # By far the fastest way from tuples to an array.
    return np.fromiter(chain.from_iterable(offsets), np.int32, 2 * len(offsets)).reshape(-1, 2)


def tokens_inside(encoding: Encoding, start: int, end: int) -> Ints:
    """Return the positions of the tokens that lie entirely inside the characters [start, end) and are not empty.

    A token that also covers a character of a neighbouring tag is outside; this is what the authors' reward code takes
    on ordinary rows.
    """
    begins, ends = encoding.offsets[:, 0], encoding.offsets[:, 1]
    return np.flatnonzero((begins >= start) & (ends <= end) & (ends > begins)).astype(np.int32)


def uncovered(text: str, start: int, end: int, offsets: Ints) -> int:
    """Count the characters of text[start:end], white space apart, that none of the given tokens covers."""
    # Tokens open and close ranges: what lies in none is where as many have closed as opened.
    changes = np.zeros(end - start + 1, np.int32)
    np.add.at(changes, offsets[:, 0] - start, 1)
    np.add.at(changes, offsets[:, 1] - start, -1)
    return sum(not text[start + at].isspace() for at in np.flatnonzero(changes.cumsum()[:-1] == 0).tolist())


def align(a: Ints, b: Ints) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Pair two tokenisations of one text by the longest runs that end at the same characters.

    Args:
        a: character ranges of the first tokenisation, shape (tokens, 2), ascending.
        b: the same for the second; both count characters from the same place.

    Returns:
        Two lists of equal length with half-open token ranges: the k-th range of ``a`` covers the same characters as
        the k-th range of ``b``, and neither can be split. Tokens without a counterpart are in no range. Where the two
        tokenisations are equal every range is one token (tokens that share one character stay together).
    """
    pieces_a, pieces_b = _pieces(a), _pieces(b)
    ranges_a: list[tuple[int, int]] = []
    ranges_b: list[tuple[int, int]] = []
    i = j = 0
    while i < len(pieces_a) and j < len(pieces_b):
        if pieces_a[i][0] != pieces_b[j][0]:
            if pieces_a[i][0] < pieces_b[j][0]:
                i += 1
            else:
                j += 1
            continue
        first_i, first_j = i, j
        # Both stand at the same character: let the shorter side catch up until they end together.
        while pieces_a[i][1] != pieces_b[j][1]:
            behind_a = pieces_a[i][1] < pieces_b[j][1]
            pieces, at = (pieces_a, i) if behind_a else (pieces_b, j)
            if at + 1 == len(pieces) or pieces[at + 1][0] != pieces[at][1]:
                break
            if behind_a:
                i += 1
            else:
                j += 1
        else:
            ranges_a.append((pieces_a[first_i][2], pieces_a[i][3]))
            ranges_b.append((pieces_b[first_j][2], pieces_b[j][3]))
        i, j = i + 1, j + 1
    return ranges_a, ranges_b


def _pieces(offsets: Ints) -> list[tuple[int, int, int, int]]:
    """Join tokens that share a character (byte tokens of one letter) into (start, end, first token, last token + 1)."""
    pieces: list[tuple[int, int, int, int]] = []
    for token, (start, end) in enumerate(offsets.tolist()):
        if pieces and start < pieces[-1][1]:
            begin, stop, first, _ = pieces[-1]
            pieces[-1] = (begin, max(stop, end), first, token + 1)
        elif end > start:
            pieces.append((start, end, token, token + 1))
    return pieces


def decode_after(tokenizer: Tokenizer, context: Sequence[int], ids: Sequence[int]) -> str:
    """Return the text that ``ids`` add after ``context`` (some tokens before them, which decide about spaces)."""
    before = _decode(tokenizer, context)
    both = _decode(tokenizer, [*context, *ids])
    return both[len(before) :] if both.startswith(before) else _decode(tokenizer, ids)


def sampled_offsets(tokenizer: Tokenizer, context: Sequence[int], ids: Sequence[int]) -> Ints:
    """Return the character ranges of sampled tokens inside the text they add after ``context``, shape (tokens, 2).

    Sampled tokens need not be the ones the tokenizer would choose for their text, so the ranges come from decoding:
    a token that ends in the middle of a character gets the range up to the end of that character.
    """
    offsets = np.zeros((len(ids), 2), np.int32)
    window = list(context)  # tokens since the last clean cut, enough context to decode the next one rightly
    position = pending = 0
    known = _decode(tokenizer, window)
    for index, token in enumerate(ids):
        window.append(int(token))
        text = _decode(tokenizer, window)
        if text.endswith("\ufffd") and index + 1 < len(ids):
            continue  # the bytes of a character are not complete yet
        added = len(text) - len(known)
        offsets[pending : index + 1] = (position, position + added)
        position, pending = position + added, index + 1
        if len(window) > 64:
            window = window[-16:]
            text = _decode(tokenizer, window)
        known = text
    return offsets


def _decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
