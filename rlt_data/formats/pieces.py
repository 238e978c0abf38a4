"""The bytes of tokens, from which the character ranges of a whole text follow without decoding each token.

Two kinds of tokenizers write a text as the bytes of its tokens in a row: byte-level ones (GPT-2 and most later models),
and those of SentencePiece, with a lower bar for spaces and tokens such as ``<0x0A>`` for bytes. The caller passes the
text, and ranges are returned only if the bytes of the tokens are exactly those of the text, so no property of a
tokenizer is taken on trust.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]

_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")


class Pieces(dict[int, bytes]):
    """The bytes of each token by id, read from the vocabulary at its first use.

    Args:
        backend: a tokenizer of the ``tokenizers`` library.
        to_bytes: returns the bytes of a token of the vocabulary.
        strips_space: whether the tokenizer omits a space at the start of a text.
    """

    def __init__(self, backend: Any, to_bytes: Callable[[str], bytes], *, strips_space: bool = False) -> None:
        super().__init__()
        self._token = backend.id_to_token
        self._to_bytes = to_bytes
        self._strips_space = strips_space

    def __missing__(self, id: int) -> bytes:
        token = self._token(id)
        piece = self[id] = b"" if token is None else self._to_bytes(token)
        return piece

    def offsets(self, ids: Sequence[int], text: str) -> Ints | None:
        """Return the character ranges of tokens in their text, shape (tokens, 2); None if their bytes differ from it.

        A token that begins or ends within a character gets the range of the complete character. A byte that is not
        UTF-8 is one character of the text, U+FFFD, together with the bytes that the decoder replaces along with it.
        """
        pieces = list(map(self.__getitem__, ids))
        data = b"".join(pieces)
        ends = np.fromiter(map(len, pieces), np.int32, len(pieces)).cumsum(dtype=np.int32)
        if self._strips_space and data.startswith(b" "):
            data, ends = data[1:], np.maximum(ends - np.int32(1), 0)
        invalid: list[tuple[int, int]] = []
        if data.decode(errors="replace") != text:
            return None
        if len(data) == len(text):  # one byte per character
            return _ranges(ends, ends)
        if "\ufffd" in text:
            invalid = _invalid(data)
        values = np.frombuffer(data, np.uint8)
        begins = (values & 0xC0) != 0x80
        for start, end in invalid:
            begins[start:end] = False
            begins[start] = True
        # Number of characters that begin before each byte.
        before = np.concatenate([np.zeros(1, np.int32), begins.cumsum(dtype=np.int32)])
        # A token begins within a character if its first byte does not begin one.
        within = np.concatenate([~begins, [False]]).astype(np.int32)
        return _ranges(before[ends], before[ends] - within[ends])


def pieces_of(backend: Any) -> Pieces | None:
    """Return the bytes of a tokenizer's tokens; None if its decoder does not write bytes in a row.

    Args:
        backend: a tokenizer of the ``tokenizers`` library, or None.
    """
    decoder = json.loads(backend.decoder.__getstate__()) if backend and backend.decoder else {}
    if decoder.get("type") == "ByteLevel":
        return Pieces(backend, _byte_level)
    kinds = [step["type"] for step in decoder.get("decoders", [])]
    if kinds[:3] == ["Replace", "ByteFallback", "Fuse"] and kinds[3:] in ([], ["Strip"]):
        return Pieces(backend, _byte_fallback, strips_space=len(kinds) > 3)
    return None


def _ranges(ends: Ints, next_starts: Ints) -> Ints:
    """Return ranges with these ends; each starts where ``next_starts`` says at the token before it."""
    ranges = np.zeros((len(ends), 2), np.int32)
    ranges[:, 1] = ends
    ranges[1:, 0] = next_starts[:-1]
    return ranges


def _invalid(data: bytes) -> list[tuple[int, int]]:
    """Return the ranges of bytes that a decoder replaces by one U+FFFD each."""
    found: list[tuple[int, int]] = []
    start, view = 0, memoryview(data)
    while True:
        try:
            str(view[start:], "utf-8")
            return found
        except UnicodeDecodeError as error:
            found.append((start + error.start, start + error.end))
            start += error.end


def _byte_alphabet() -> dict[int, int]:
    """Return the byte of each character of a byte-level vocabulary.

    Printable characters of Latin-1 stand for themselves, the characters from U+0100 on for the other bytes.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = sorted(set(range(256)) - set(printable))
    return {byte: byte for byte in printable} | {256 + number: byte for number, byte in enumerate(others)}


_ALPHABET = _byte_alphabet()
_CHARACTERS = frozenset(map(chr, _ALPHABET))


def _byte_level(token: str) -> bytes:
    if _CHARACTERS.issuperset(token):
        return token.translate(_ALPHABET).encode("latin-1")
    return token.encode()  # an added token, which the decoder does not translate


def _byte_fallback(token: str) -> bytes:
    byte = _BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace("\u2581", " ").encode()
