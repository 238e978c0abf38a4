"""Hashes of n-grams of tokens, and a table that finds a few of them among many."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rlt_data.signals.normalise import DECISIVE, FORMULA, Tokens
from rlt_data.signals.similarity import mixed, running

Hashes = NDArray[np.uint64]
Indices = NDArray[np.int64]

#: An odd factor, and its inverse modulo 2**64.
_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)


class NGrams:
    """Hashes of the n-grams of texts: polynomials of their codes, as differences of running sums."""

    def __init__(self, texts: Tokens) -> None:
        count = len(texts.codes)
        powers: Hashes = np.cumprod(np.full(count, _BASE, np.uint64), dtype=np.uint64)
        self._inverse: Hashes = np.cumprod(np.full(count, _INVERSE, np.uint64), dtype=np.uint64)
        self._sums = running(mixed(texts.codes) * powers)
        general = (texts.codes & np.uint64(DECISIVE | FORMULA)) != 0
        self._general = running(general.astype(np.uint64))
        self._general_sums = running(mixed(np.where(general, np.uint64(0), texts.codes)) * powers)
        self._left = np.repeat(texts.offsets[1:], texts.lengths) - np.arange(count)

    def of(self, length: int) -> tuple[Indices, Hashes]:
        """Return where n-grams of this length start, among all tokens, and their hashes."""
        starts = np.flatnonzero(self._left >= length)
        return starts, self._of(self._sums, starts, length)

    def phrases(self, starts: Indices, length: int) -> Hashes:
        """Return hashes of n-grams that are equal apart from numbers and variables, if about half is words."""
        is_phrase = self._general[starts + length] - self._general[starts] <= length // 2 + 1
        return np.where(
            is_phrase,
            self._of(self._general_sums, starts, length),
            ~self._of(self._sums, starts, length),
        )

    def _of(self, sums: Hashes, starts: Indices, length: int) -> Hashes:
        return mixed((sums[starts + length] - sums[starts]) * self._inverse[starts])


class Lookup:
    """Finds hashes among a few; a table of their first bits dismisses most others quickly."""

    def __init__(self, hashes: Hashes, values: Indices) -> None:
        self._hashes, first = np.unique(hashes, return_index=True)
        self._values = values[first]
        bits = max(16, int(len(self._hashes)).bit_length() + 5)
        self._shift = np.uint64(64 - bits)
        self._table = np.zeros(1 << bits, bool)
        self._table[self._hashes >> self._shift] = True

    def find(self, hashes: Hashes) -> tuple[Indices, Indices]:
        """Return the positions of the hashes that are known, and their values."""
        positions = np.flatnonzero(self._table[hashes >> self._shift])
        places = np.searchsorted(self._hashes, hashes[positions])
        places[places == len(self._hashes)] = 0
        known = self._hashes[places] == hashes[positions]
        return positions[known], self._values[places[known]]
