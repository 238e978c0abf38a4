"""Find token ranges by the character offsets of a single tokenisation, never by searching for token sequences."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from rlt_data.formats.pieces import Pieces, pieces_of

Ints = npt.NDArray[np.int32]

#: Number of preceding tokens that affect how the first sampled tokens are decoded (spaces, split characters).
CONTEXT_TOKENS = 8

#: Marks around a control token that is text, and inside it; Unicode reserves these code points for internal use.
OPEN, BREAK, CLOSE = "\ufdd0", "\ufdd1", "\ufdd2"
_MARKED = re.compile(f"{OPEN}(.){BREAK}([^{CLOSE}]*){CLOSE}", re.S)

#: Texts per tokenizer call. The result is converted to arrays after each call, because Python lists are large.
_TEXTS_PER_CALL = 64

#: Texts to compare the ways to tokenise: characters of one to four bytes, spaces and line breaks, rare characters in a
#: row, and a line break at the start.
_PROBES = [" The  sum is 3 + 4 = 7.\n\n\tOù est-il? 你好 🙂\r\n", "a ⵣⴰⵟ 🧿🪬 b", "\n.", "a"]


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
    fast = _fast(tokenizer)
    for start in range(0, len(texts), _TEXTS_PER_CALL):
        chunk = list(texts[start : start + _TEXTS_PER_CALL])
        found: Sequence[Encoding | None] = [None] * len(chunk)
        if fast.pieces is not None and fast.encodes:
            found = _encode_fast(tokenizer, fast.pieces, chunk)
        left = [text for text, encoding in zip(chunk, found, strict=True) if encoding is None]
        slow = iter(_encode_with_offsets(tokenizer, left))
        encodings += [next(slow) if encoding is None else encoding for encoding in found]
    return encodings


class _Fast(NamedTuple):
    """The bytes of a tokenizer's tokens, if it has them, and whether its texts can be tokenised with their help."""

    pieces: Pieces | None
    encodes: bool


_fast_by_tokenizer: WeakKeyDictionary[Tokenizer, _Fast] = WeakKeyDictionary()


def _fast(tokenizer: Tokenizer) -> _Fast:
    """Return how to read tokens quickly. A class that changes what its backend does may not tokenise quickly."""
    if tokenizer not in _fast_by_tokenizer:
        pieces, encodes = pieces_of(_backend(tokenizer)), False
        if pieces is not None and _encodes_by_backend(tokenizer):
            slow, fast = _encode_with_offsets(tokenizer, _PROBES), _encode_fast(tokenizer, pieces, _PROBES)
            encodes = all(
                b is not None and np.array_equal(a.ids, b.ids) and np.array_equal(a.offsets, b.offsets)
                for a, b in zip(slow, fast, strict=True)
            )
        _fast_by_tokenizer[tokenizer] = _Fast(pieces, encodes)
    return _fast_by_tokenizer[tokenizer]


def _encodes_by_backend(tokenizer: Tokenizer) -> bool:
    """Return whether Transformers calls the backend, and no class of another package changes what it gets."""
    methods = (getattr(type(tokenizer), name, None) for name in ("__call__", "_encode_plus", "_batch_encode_plus"))
    return all(method.__module__.startswith("transformers.") for method in methods if method is not None)


def _backend(tokenizer: Tokenizer) -> Any:
    """Return the ``tokenizers.Tokenizer`` of a tokenizer of Transformers, or None."""
    return getattr(tokenizer, "backend_tokenizer", None)


def _encode_fast(tokenizer: Tokenizer, pieces: Pieces, texts: list[str]) -> list[Encoding | None]:
    """Tokenise texts without offsets, and find these from the bytes of the tokens.

    Returns:
        None for a text that the bytes do not give, because it has marks or the tokenizer normalises it.
    """
    backend = _backend(tokenizer)
    # Other calls may have set these. Changing them fails while another thread uses the tokenizer, so only if needed.
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    split = bool(getattr(tokenizer, "split_special_tokens", False))
    if backend.encode_special_tokens != split:
        backend.encode_special_tokens = split
    encodings: list[Encoding | None] = []
    for text, encoded in zip(texts, backend.encode_batch_fast(texts, add_special_tokens=False), strict=True):
        ids = encoded.ids
        offsets = None if OPEN in text else pieces.offsets(ids, text)
        encodings.append(None if offsets is None else Encoding(np.asarray(ids, np.int32), offsets))
    return encodings


def _encode_with_offsets(tokenizer: Tokenizer, texts: list[str]) -> list[Encoding]:
    if not texts:
        return []
    encodings = []
    encoded = tokenizer([unmarked(text) for text in texts], add_special_tokens=False, return_offsets_mapping=True)
    for text, ids, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
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
    begun, ended = (np.bincount(bounds, minlength=len(text) + 1) for bounds in offsets.T)
    for position in np.flatnonzero(np.cumsum(begun - ended)[:-1] == 0).tolist():
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
    begun, ended = (np.bincount(bounds - start, minlength=end - start + 1) for bounds in offsets.T)
    return sum(not text[start + i].isspace() for i in np.flatnonzero(np.cumsum(begun - ended)[:-1] == 0).tolist())


def align(a: Ints, b: Ints) -> tuple[Ints, Ints]:
    """Align two tokenisations of the same text.

    Args:
        a: character ranges of the first tokenisation, shape (tokens, 2), ascending.
        b: character ranges of the second tokenisation, counted from the same character.

    Returns:
        Half-open token ranges of both, shape (ranges, 2). The k-th range of ``a`` covers the same characters as the
        k-th range of ``b``, and no range can be split further. Tokens without a counterpart are in no range. Equal
        tokenisations give ranges of one token each (tokens that share a character stay together).
    """
    pieces_a, pieces_b = _merge_overlapping(a), _merge_overlapping(b)
    starts, first_a, first_b = np.intersect1d(pieces_a.start, pieces_b.start, True, return_indices=True)
    ends, last_a, last_b = np.intersect1d(pieces_a.end, pieces_b.end, True, return_indices=True)
    # From a character where both have a piece that starts, to the next where both have one that ends.
    nearest = np.searchsorted(ends, starts, side="right")
    found = nearest < len(ends)
    first_a, first_b, nearest = first_a[found], first_b[found], nearest[found]
    last_a, last_b = last_a[nearest], last_b[nearest]
    complete = pieces_a.contiguous(first_a, last_a) & pieces_b.contiguous(first_b, last_b)
    ranges_a = np.stack([pieces_a.first[first_a], pieces_a.stop[last_a]], 1)
    ranges_b = np.stack([pieces_b.first[first_b], pieces_b.stop[last_b]], 1)
    return ranges_a[complete], ranges_b[complete]


class _Pieces(NamedTuple):
    """Runs of tokens that share characters, such as the byte tokens of one letter; each array has shape (runs,).

    Attributes:
        start: first character.
        end: last character + 1.
        first: first token.
        stop: last token + 1.
    """

    start: Ints
    end: Ints
    first: Ints
    stop: Ints

    def contiguous(self, first: npt.NDArray[np.integer], last: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
        """Return whether each run from ``first`` to ``last`` begins where the run before it ends."""
        gaps = np.concatenate([[0], np.cumsum(self.start[1:] != self.end[:-1])])
        contiguous: npt.NDArray[np.bool_] = gaps[last] == gaps[first]
        return contiguous


def _merge_overlapping(offsets: Ints) -> _Pieces:
    """Merge tokens that share a character; leave out empty tokens between others."""
    starts, ends = offsets[:, 0], np.maximum.accumulate(offsets[:, 1])
    before = np.concatenate([np.full(1, np.iinfo(np.int32).min, np.int32), ends])[:-1]
    shares = starts < before
    opens = ~shares & (offsets[:, 1] > starts)
    kept = np.flatnonzero(shares | opens)
    first = np.flatnonzero(opens[kept])
    last = kept[np.append(first[1:], len(kept))[: len(first)] - 1]
    first = kept[first]
    return _Pieces(starts[first], ends[last], first.astype(np.int32), (last + 1).astype(np.int32))


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
    fast, tokens = _fast(tokenizer), [*context, *ids]
    if fast.pieces is not None and (ranges := fast.pieces.offsets(tokens, _decode(tokenizer, tokens))) is not None:
        first = len(context)
        return ranges[first:] - (ranges[first - 1, 1] if first else np.int32(0))
    return _offsets_by_decoding(tokenizer, context, ids)


def _offsets_by_decoding(tokenizer: Tokenizer, context: Sequence[int], ids: Sequence[int]) -> Ints:
    """Find the ranges of :func:`sampled_offsets` by decoding token after token, which any tokenizer can."""
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
    array = np.asarray(ids, np.int64)  # Transformers would check each element of a list
    return str(tokenizer.decode(array, skip_special_tokens=False, clean_up_tokenization_spaces=False))
