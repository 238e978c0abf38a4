"""Near duplicates of texts: candidates by MinHash and locality-sensitive hashing, confirmed by Jaccard similarity.

The similarity of two texts is the Jaccard similarity of their shingles: the tokens, and pairs of neighbouring tokens.
Texts with other numbers, or other decisive words such as "odd", are never near duplicates. Neither are texts of fewer
than 13 tokens, in which each word counts. MinHash: Broder 1997; banding: Leskovec, Rajaraman and Ullman, Mining of
Massive Datasets, chapter 3.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np
from numpy.typing import NDArray

from rlt_data.errors import DiskError
from rlt_data.signals.ngrams import mixed, running
from rlt_data.signals.normalise import DECISIVE, FORMULA, Tokens

#: Tokens of the shortest text that has near duplicates.
SHORTEST = 13

#: Hashes of a signature. The standard error of a similarity of 0.8 that is estimated from 64 hashes is 0.05.
HASHES = 64

#: Chance that two texts of exactly the required similarity share no band.
_MISSED = 0.001

#: An estimate this far below the required similarity (4 standard errors) saves the exact comparison.
_MARGIN = 0.2

#: Shingles for which signatures are computed in one piece; their arrays fit in the cache.
_BLOCK = 1 << 16

#: Pairs whose signatures are compared in one piece.
_PAIRS = 1 << 16

_Codes = NDArray[np.uint32]

_FACTORS = mixed(np.arange(1, HASHES + 1, dtype=np.uint64)).astype(np.uint32) | np.uint32(1)
_TERMS = mixed(np.arange(HASHES + 1, 2 * HASHES + 1, dtype=np.uint64)).astype(np.uint32)


def totals(values: NDArray[np.uint64], offsets: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return the sum of each text's values, modulo 2**64."""
    sums = running(values)
    return np.asarray(sums[offsets[1:]] - sums[offsets[:-1]])


def text_hashes(tokens: Tokens) -> NDArray[np.uint64]:
    """Return a hash of each text's tokens in their order."""
    position = np.arange(len(tokens.codes)) - np.repeat(tokens.offsets[:-1], tokens.lengths)
    return totals(mixed(tokens.codes ^ mixed(position.astype(np.uint64))), tokens.offsets)


def decisive_hashes(tokens: Tokens, *, distinct: bool = False) -> NDArray[np.uint64]:
    """Return a hash of each text's decisive tokens as a multiset, or as a set if ``distinct``."""
    decisive = (tokens.codes & np.uint64(DECISIVE)) != 0
    values, texts = mixed(tokens.codes[decisive]), tokens.texts[decisive]
    if distinct and len(values):
        order = np.lexsort((values, texts))
        values, texts = values[order], texts[order]
        first = np.concatenate([[True], (values[1:] != values[:-1]) | (texts[1:] != texts[:-1])])
        values, texts = values[first], texts[first]
    return totals(values, np.searchsorted(texts, np.arange(len(tokens) + 1)))


@contextmanager
def _naming_tmpdir() -> Iterator[None]:
    """Say where temporary files are in errors about them."""
    try:
        yield
    except OSError as error:
        folder = f"{tempfile.tempdir}: " if tempfile.tempdir else ""  # empty: Python found none that it can write to
        raise DiskError(f"{folder}{error.strerror} (temporary files; set TMPDIR)") from None


class TokenStore:
    """The tokens of many texts in a temporary file, 4 bytes each, so that memory does not grow with the texts.

    Raises:
        DiskError: the disk with the temporary files is full, or there is no folder for them.
    """

    def __init__(self) -> None:
        with _naming_tmpdir():
            self._file: IO[bytes] = tempfile.TemporaryFile()
        self._lengths: list[NDArray[np.int64]] = []
        self._offsets = np.zeros(1, np.int64)
        self._codes: _Codes | None = None  # the file, mapped into memory after the last text

    def __enter__(self) -> TokenStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, tokens: Tokens) -> None:
        """Add texts.

        Raises:
            DiskError: the disk with the temporary files is full.
        """
        with _naming_tmpdir():
            self._file.write(tokens.short_codes.tobytes())
            self._file.flush()
        self._lengths.append(tokens.lengths)
        self._codes = None

    def __getitem__(self, text: int) -> _Codes:
        """Return the codes of a text, each with the upper half of its bits and the flags."""
        if self._codes is None:
            self._offsets = np.concatenate([[0], np.cumsum(np.concatenate([np.diff(self._offsets), *self._lengths]))])
            self._lengths = []
            self._codes = np.memmap(self._file, np.uint32, "r") if self._offsets[-1] else np.zeros(0, np.uint32)
        return np.array(self._codes[self._offsets[text] : self._offsets[text + 1]])


def shingles(codes: _Codes, *, ordered: bool) -> _Codes:
    """Return the tokens of a text, and pairs of neighbouring tokens: all if ``ordered``, else those in formulas.

    A changed name or another order of clauses changes few of the shingles without the pairs of plain words, while
    ``f(g(3))`` and ``g(f(3))`` remain different.
    """
    pairs = codes[:-1] * np.uint32(0x9E3779B1) + (codes[1:] ^ (codes[1:] >> np.uint32(15)))
    if not ordered:
        pairs = pairs[((codes[:-1] | codes[1:]) & np.uint32(FORMULA)) != 0]
    return np.concatenate([codes, pairs])


def signatures(texts: Iterable[_Codes], *, ordered: bool) -> _Codes:
    """Return the MinHash signatures of texts that have tokens, texts x HASHES."""
    found = [np.empty((0, HASHES), np.uint32)]
    for block in _blocks(shingles(codes, ordered=ordered) for codes in texts):
        starts = np.concatenate([[0], np.cumsum([len(items) for items in block])[:-1]])
        values = mixed(np.concatenate(block).astype(np.uint64)).astype(np.uint32)
        columns = zip(_FACTORS, _TERMS, strict=True)
        found.append(np.stack([np.minimum.reduceat(values * factor + term, starts) for factor, term in columns], 1))
    return np.concatenate(found)


def _blocks(sets: Iterable[_Codes]) -> Iterator[list[_Codes]]:
    block: list[_Codes] = []
    size = 0
    for items in sets:
        if block and size + len(items) > _BLOCK:
            yield block
            block, size = [], 0
        block.append(items)
        size += len(items)
    if block:
        yield block


def bands(signatures: _Codes, keys: NDArray[np.uint64], similarity: float) -> Iterator[NDArray[np.uint64]]:
    """Yield the hashes of each band of signatures; texts that share one, and their key, are candidates.

    The bands have as many rows as allow a chance of 1 in 1,000 to miss a pair of exactly this similarity.
    """
    rows = HASHES
    while rows > 1 and (1 - similarity**rows) ** (HASHES // rows) > _MISSED:
        rows -= 1
    for band in range(HASHES // rows):
        values = keys
        for column in range(band * rows, (band + 1) * rows):
            values = mixed(values ^ signatures[:, column])
        yield values


def estimates(first: _Codes, second: _Codes) -> NDArray[np.float64]:
    """Return the similarity of pairs of signatures."""
    return np.asarray((first == second).mean(axis=1))


def similarity_of(one: _Codes, other: _Codes, *, ordered: bool) -> float:
    """Return the Jaccard similarity of two texts with the same numbers; 0 if their numbers changed places.

    Numbers in another order are the same only if each keeps a neighbouring token, and if no place (the tokens before
    and after) has another number, so that "3 apples and 5 pears" and "5 apples and 3 pears" differ. This does not apply
    to ``ordered`` texts.
    """
    if not ordered and not _same_places(one, other):
        return 0.0
    first = set(shingles(one, ordered=ordered).tolist())
    second = set(shingles(other, ordered=ordered).tolist())
    shared = len(first & second)
    return shared / (len(first) + len(second) - shared)


def _same_places(one: _Codes, other: _Codes) -> bool:
    if np.array_equal(one[one & DECISIVE != 0], other[other & DECISIVE != 0]):
        return True
    places, other_places = _places(one), _places(other)
    if any(numbers != other_places.get(place, numbers) for place, numbers in places.items()):
        return False
    first, second = _neighbours(places), _neighbours(other_places)
    return first.keys() == second.keys() and all(first[number] & second[number] for number in first)


def _places(codes: _Codes) -> dict[tuple[int, int], set[int]]:
    """Return the numbers between each two tokens that have one between them."""
    found: dict[tuple[int, int], set[int]] = {}
    padded = [0, *codes.tolist(), 0]
    for position in np.flatnonzero(codes & DECISIVE):
        before, number, after = padded[position : position + 3]
        found.setdefault((before, after), set()).add(number)
    return found


def _neighbours(places: dict[tuple[int, int], set[int]]) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {}
    for place, numbers in places.items():
        for number in numbers:
            found.setdefault(number, set()).update(place)
    return found


def representatives(
    store: TokenStore,
    hashes: NDArray[np.uint64],
    keys: NDArray[np.uint64],
    order: NDArray[np.int64],
    similarity: float,
    *,
    ordered: bool,
) -> NDArray[np.int64]:
    """Return the representative of each text: the first in its cluster of exact and near duplicates.

    Clusters are the connected components of duplicate pairs. In a band with many texts, each is compared with the
    first and with the one before, so that the work grows linearly.

    Args:
        store: the texts.
        hashes: hash of each text; equal hashes are exact duplicates.
        keys: only texts with the same key are near duplicates. Texts with key 0 have none.
        order: the texts in the order in which they are preferred as representatives.
        similarity: smallest Jaccard similarity of near duplicates.
        ordered: whether all pairs of tokens are shingles (:func:`shingles`).
    """
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    # From here on, texts are numbered by their rank.
    _, first, group = np.unique(hashes[order], return_index=True, return_inverse=True)
    cluster = np.asarray(first, np.int64)[group]
    unique = np.sort(first)
    ranked_keys = keys[order]
    _, inverse, counts = np.unique(ranked_keys[unique], return_inverse=True, return_counts=True)
    members = unique[(counts[inverse] > 1) & (ranked_keys[unique] != 0)]
    if len(members) > 1:
        near = _near(store, order[members], ranked_keys[members], similarity, ordered=ordered)
        parent = np.arange(len(order))
        parent[members] = members[near]
        cluster = parent[cluster]
    result = np.empty(len(order), np.int64)
    result[order] = order[cluster]
    return result


def _near(
    store: TokenStore, texts: NDArray[np.int64], keys: NDArray[np.uint64], similarity: float, *, ordered: bool
) -> NDArray[np.int64]:
    """Return the index of each text's representative in ``texts``."""
    signed = signatures((store[text] for text in texts), ordered=ordered)
    pairs = np.zeros(0, np.int64)  # first * len(texts) + second
    for values in bands(signed, keys, similarity):
        found = _candidates(values)
        pieces = np.array_split(found, len(found) // _PAIRS + 1)
        close = np.concatenate([estimates(signed[one], signed[other]) for one, other in (piece.T for piece in pieces)])
        pairs = np.union1d(pairs, found[close >= similarity - _MARGIN] @ np.array([len(texts), 1]))
    parent = list(range(len(texts)))

    def root(text: int) -> int:
        while parent[text] != text:
            parent[text] = parent[parent[text]]
            text = parent[text]
        return text

    for one, other in zip(*np.divmod(pairs, len(texts)), strict=True):
        low, high = sorted((root(one), root(other)))
        if low != high and similarity_of(store[texts[one]], store[texts[other]], ordered=ordered) >= similarity:
            parent[high] = low
    return np.fromiter(map(root, range(len(texts))), np.int64, len(texts))


def _candidates(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return pairs of texts with the same value: each with the one before, and with the first."""
    order = np.argsort(values, kind="stable")
    same = values[order][1:] == values[order][:-1]
    later = np.flatnonzero(same) + 1
    is_first = np.concatenate([[True], ~same])
    first = np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))[later]
    return np.concatenate([np.stack([order[other], order[later]], axis=1) for other in (later - 1, first)])
