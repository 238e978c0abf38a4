"""Find token ranges by the character offsets of a single tokenisation, never by searching for token sequences."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]

#: Number of preceding tokens that affect how the first sampled tokens are decoded (spaces, split characters).
CONTEXT_TOKENS = 8

#: Marks around a control token that is text, and inside it; Unicode reserves these code points for internal use.
OPEN, BREAK, CLOSE = "\ufdd0", "\ufdd1", "\ufdd2"
_MARKED = re.compile(f"{OPEN}(.){BREAK}([^{CLOSE}]*){CLOSE}", re.S)

#: Texts per tokenizer call. The result is converted to arrays after each call, because Python lists are large.
_TEXTS_PER_CALL = 64


class Tokenizer(Protocol):
    """The part of the interface of a Hugging Face fast tokenizer that rlt-data uses."""

    chat_template: Any
    name_or_path: str
    bos_token: Any
    bos_token_id: Any
    eos_token: Any
    eos_token_id: Any

    @property
    def added_tokens_decoder(self) -> Any:
        """Added tokens by id, each with ``content`` and ``special``."""

    def __call__(self, text: Any, **options: Any) -> Any:
        """Tokenise a text or a list of texts."""

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """Render messages with the chat template."""

    def decode(self, token_ids: Any, **options: Any) -> Any:
        """Decode token ids to text."""


@dataclass(frozen=True)
class Encoding:
    """A tokenised text: ids of shape (tokens,) and their half-open character ranges of shape (tokens, 2)."""

    ids: Ints
    offsets: Ints

    def __len__(self) -> int:
        return len(self.ids)


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Encoding]:
    """Tokenise rendered texts without adding special tokens, because the chat template has written them.

    Control tokens that are marked as text become several ordinary tokens. Offsets count from the start of the text
    without marks (:func:`unmarked`).
    """
    encodings = []
    for start in range(0, len(texts), _TEXTS_PER_CALL):
        chunk = list(texts[start : start + _TEXTS_PER_CALL])
        encoded = tokenizer([unmarked(text) for text in chunk], add_special_tokens=False, return_offsets_mapping=True)
        for text, ids, offsets in zip(chunk, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            if OPEN in text:
                encodings.append(_encode_marked(tokenizer, text))
            else:
                encodings.append(Encoding(np.asarray(ids, np.int32), _cover_composed(text, _pairs(offsets))))
    return encodings


def unmarked(text: str) -> str:
    """Return a text without the marks of control tokens."""
    return _MARKED.sub(r"\1\2", text) if OPEN in text else text


def encode_as_text(tokenizer: Tokenizer, token: str) -> list[int]:
    """Return the ordinary tokens of a control token's text; empty if the tokenizer always takes it for the token."""
    ids: list[int] = tokenizer(token, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids if len(ids) > 1 else []


def _encode_marked(tokenizer: Tokenizer, text: str) -> Encoding:
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    position = 0

    def add(piece: str, *, as_text: bool) -> None:
        nonlocal position
        encoded = tokenizer(piece, add_special_tokens=False, split_special_tokens=as_text, return_offsets_mapping=True)
        ids.extend(encoded["input_ids"])
        offsets.extend((position + start, position + end) for start, end in encoded["offset_mapping"])
        position += len(piece)

    start = 0
    for match in _MARKED.finditer(text):
        add(text[start : match.start()], as_text=False)
        add(match[1] + match[2], as_text=True)
        start = match.end()
    add(text[start:], as_text=False)
    return Encoding(np.asarray(ids, np.int32), _cover_composed(unmarked(text), _pairs(offsets)))


def _cover_composed(text: str, offsets: Ints) -> Ints:
    """Extend the ranges of tokens over the characters that the tokenizer composed with their last character.

    A tokenizer that composes a letter and its accents gives the range of the letter alone.
    """
    if unicodedata.is_normalized("NFC", text):
        return offsets
    changes = np.zeros(len(text) + 1, np.int32)
    np.add.at(changes, offsets[:, 0], 1)
    np.add.at(changes, offsets[:, 1], -1)
    for position in np.flatnonzero(changes.cumsum()[:-1] == 0).tolist():
        if _composes(text[position]):
            offsets[(offsets[:, 1] == position) & (offsets[:, 0] < position), 1] = position + 1
    return offsets


def _composes(char: str) -> bool:
    """Return whether a character can combine with the one before: an accent, or the rest of a Korean syllable."""
    return unicodedata.combining(char) > 0 or "\u1160" <= char <= "\u11ff"


def _pairs(offsets: Sequence[tuple[int, int]]) -> Ints:
    # By far the fastest conversion of tuples to an array.
    return np.fromiter(chain.from_iterable(offsets), np.int32, 2 * len(offsets)).reshape(-1, 2)


def tokens_inside(encoding: Encoding, start: int, end: int) -> Ints:
    """Return the positions of the non-empty tokens that are entirely inside the characters [start, end).

    A token that also covers a character of an adjacent tag is outside. On ordinary rows, the reward code of the paper's
    authors selects the same tokens.
    """
    begins, ends = encoding.offsets[:, 0], encoding.offsets[:, 1]
    return np.flatnonzero((begins >= start) & (ends <= end) & (ends > begins)).astype(np.int32)


def uncovered(text: str, start: int, end: int, offsets: Ints) -> int:
    """Count the characters of text[start:end] other than white space that no token covers.

    Args:
        text: the text.
        start: first character.
        end: end of the characters, exclusive.
        offsets: character ranges of the tokens, shape (tokens, 2).
    """
    # A character is covered by no token if as many tokens have ended as begun.
    changes = np.zeros(end - start + 1, np.int32)
    np.add.at(changes, offsets[:, 0] - start, 1)
    np.add.at(changes, offsets[:, 1] - start, -1)
    return sum(not text[start + i].isspace() for i in np.flatnonzero(changes.cumsum()[:-1] == 0).tolist())


def align(a: Ints, b: Ints) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Align two tokenisations of the same text.

    Args:
        a: character ranges of the first tokenisation, shape (tokens, 2), ascending.
        b: character ranges of the second tokenisation, counted from the same character.

    Returns:
        Two lists of equal length with half-open token ranges. The k-th range of ``a`` covers the same characters as the
        k-th range of ``b``, and no range can be split further. Tokens without a counterpart are in no range. Equal
        tokenisations give ranges of one token each (tokens that share a character stay together).
    """
    pieces_a, pieces_b = _merge_overlapping(a), _merge_overlapping(b)
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
        # Both start at the same character. Extend the shorter side until both end at the same character.
        while pieces_a[i][1] != pieces_b[j][1]:
            a_is_shorter = pieces_a[i][1] < pieces_b[j][1]
            pieces, position = (pieces_a, i) if a_is_shorter else (pieces_b, j)
            if position + 1 == len(pieces) or pieces[position + 1][0] != pieces[position][1]:
                break
            if a_is_shorter:
                i += 1
            else:
                j += 1
        else:
            ranges_a.append((pieces_a[first_i][2], pieces_a[i][3]))
            ranges_b.append((pieces_b[first_j][2], pieces_b[j][3]))
        i, j = i + 1, j + 1
    return ranges_a, ranges_b


def _merge_overlapping(offsets: Ints) -> list[tuple[int, int, int, int]]:
    """Merge tokens that share a character, such as the byte tokens of one letter.

    Returns:
        For each piece (start, end, first token, last token + 1), where start and end are character positions.
    """
    pieces: list[tuple[int, int, int, int]] = []
    for token, (start, end) in enumerate(offsets.tolist()):
        if pieces and start < pieces[-1][1]:
            begin, stop, first, _ = pieces[-1]
            pieces[-1] = (begin, max(stop, end), first, token + 1)
        elif end > start:
            pieces.append((start, end, token, token + 1))
    return pieces


def decode_after(tokenizer: Tokenizer, context: Sequence[int], ids: Sequence[int]) -> str:
    """Return the text that ``ids`` add after ``context``, the preceding tokens, which affect spaces."""
    before = _decode(tokenizer, context)
    both = _decode(tokenizer, [*context, *ids])
    return both[len(before) :] if both.startswith(before) else _decode(tokenizer, ids)


def sampled_offsets(tokenizer: Tokenizer, context: Sequence[int], ids: Sequence[int]) -> Ints:
    """Return the character ranges of sampled tokens in the text that they add after ``context``, shape (tokens, 2).

    The tokenizer might encode the sampled text as other tokens, so the ranges are found by decoding. A token that ends
    within a character gets the range up to the end of that character.
    """
    offsets = np.zeros((len(ids), 2), np.int32)
    window = list(context)  # recent tokens, enough to decode the next one correctly
    position = pending = 0
    decoded = _decode(tokenizer, window)
    for index, token in enumerate(ids):
        window.append(int(token))
        text = _decode(tokenizer, window)
        if text.endswith("\ufffd") and index + 1 < len(ids):
            continue  # the bytes of a character are not complete yet
        added = len(text) - len(decoded)
        offsets[pending : index + 1] = (position, position + added)
        position, pending = position + added, index + 1
        if len(window) > 64:
            window = window[-16:]
            text = _decode(tokenizer, window)
        decoded = text
    return offsets


def _decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
