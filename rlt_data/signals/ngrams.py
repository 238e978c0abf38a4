"""Hashes of n-grams of tokens, and a table that finds a few of them among many."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Ints = NDArray[np.int64]

#: An odd factor, and its inverse modulo 2**64.
_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)


def mixed(values: Hashes) -> Hashes:
    """Return hashes of 64-bit integers (the finalizer of MurmurHash3)."""
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> np.uint64(33))


def running(values: Hashes) -> Hashes:
    """Return the sums of all values before each position, and of all values, modulo 2**64."""
    return np.concatenate([np.zeros(1, np.uint64), np.cumsum(values)])


class NGrams:
    """Hashes of the n-grams of texts: polynomials of their codes, as differences of running sums.

    Args:
        codes: a code of each token, one text after the other.
        offsets: index of the first token of each text, and the number of all tokens; one longer than the texts.
    """

    def __init__(self, codes: Hashes, offsets: Ints) -> None:
        count = len(codes)
        powers: Hashes = np.cumprod(np.full(count, _BASE, np.uint64), dtype=np.uint64)
        self._inverse: Hashes = np.cumprod(np.full(count, _INVERSE, np.uint64), dtype=np.uint64)
        self._sums = running(mixed(codes) * powers)
        self._left = np.repeat(offsets[1:], np.diff(offsets)) - np.arange(count)

    def of(self, length: int) -> tuple[Ints, Hashes]:
        """Return the n-grams of this length within texts: where they start among all tokens, and their hashes."""
        starts = np.flatnonzero(self._left >= length)
        return starts, mixed((self._sums[starts + length] - self._sums[starts]) * self._inverse[starts])


class Lookup:
    """Finds hashes among a few; a table of their first bits dismisses most others quickly."""

    def __init__(self, hashes: Hashes, values: Ints) -> None:
        self._hashes, first = np.unique(hashes, return_index=True)
        self._values = values[first]
        bits = max(16, len(self._hashes).bit_length() + 5)
        self._shift = np.uint64(64 - bits)
        self._table = np.zeros(1 << bits, bool)
        self._table[self._hashes >> self._shift] = True

    def find(self, hashes: Hashes) -> tuple[Ints, Ints]:
        """Return the positions of the hashes that are known, and their values."""
        positions = np.flatnonzero(self._table[hashes >> self._shift])
        places = np.searchsorted(self._hashes, hashes[positions])
        places[places == len(self._hashes)] = 0
        known = self._hashes[places] == hashes[positions]
        return positions[known], self._values[places[known]]
