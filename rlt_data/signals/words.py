"""Words of many texts as arrays, so that signals compare them with numpy instead of Python loops."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rlt_data.signals.ngrams import Hashes, Ints, NGrams

#: Scripts without spaces between words; each character is a word.
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
WHOLE_WORD = rf"[\w--[{UNSPACED}]]+|[{UNSPACED}]"
#: A word, or 16 characters of a longer one, so that a loop of letters is a loop of words too.
WORD = WHOLE_WORD.replace("+", "{1,16}", 1)
_ROW_MULTIPLIER = np.uint64(0xD6E8FEB86659FD93)


@dataclass(frozen=True)
class Words:
    """The words of texts, in lower case and one text after the other.

    Attributes:
        text: the words.
        starts: index of the first word of each text, and the number of all words; one longer than the texts.
    """

    text: pl.Series
    starts: Ints

    @cached_property
    def ids(self) -> Hashes:
        """A hash of each word."""
        return self.text.hash().to_numpy()

    @cached_property
    def counts(self) -> Ints:
        """Number of words of each text."""
        return np.diff(self.starts)

    @cached_property
    def rows(self) -> Ints:
        """Index of the text of each word."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def ngrams(self, n: int) -> tuple[Ints, Hashes]:
        """Return the n-grams within texts: the index of the first word of each, and a hash of its words and text."""
        first, hashes = NGrams(self.ids, self.starts).of(n)
        return first, hashes + self.rows[first].astype(np.uint64) * _ROW_MULTIPLIER

    def count(self, marked: NDArray[np.bool_]) -> Ints:
        """Return the number of marked words of each text."""
        return np.bincount(self.rows[marked], minlength=len(self.counts))


def words_of(texts: pl.Series, pattern: str = WORD) -> Words:
    """Return the words of texts; null has none.

    Args:
        texts: the texts.
        pattern: regular expression of a word.
    """
    lists = texts.fill_null("").str.to_lowercase().str.extract_all(pattern)
    return Words(lists.explode().drop_nulls(), np.concatenate([[0], lists.list.len().cast(pl.Int64).cum_sum()]))
