"""Signal ``leak``: whether an explanation copies the solution or says that it was given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rlt_data.progress import Progress
from rlt_data.settings import CurateSettings
from rlt_data.signals.base import Column, Signal
from rlt_data.signals.languages import languages
from rlt_data.signals.normalise import plain
from rlt_data.signals.parallel import by_slices
from rlt_data.signals.words import WHOLE_WORD, Words, words_of

_READS = ("explanation", "question_solution")
#: Words in an n-gram that counts as copied. Symbols are left out and LaTeX has one spelling, so that changed LaTeX does
#: not hide a copy.
_NGRAM = 8
#: Texts of fewer words count as this long: every good explanation of a short solution repeats much of it.
_LEAST_WORDS = 30
#: A text with at least two sentences; the first group is all but the last.
_LAST_SENTENCE = r"(?s)^(.*(?:[.!?。！？]\s|[。！？]|\n)).*?\S.*$"


def copied(words: Words, others: Words) -> NDArray[np.bool_]:
    """Return which words are part of an 8-gram that the other text of the same row has too.

    Args:
        words: the words of texts.
        others: the words of as many texts.
    """
    first, hashes = words.ngrams(_NGRAM)
    known = np.sort(others.ngrams(_NGRAM)[1])
    if not len(known):
        return np.zeros(len(words.ids), np.bool_)
    starts = first[known[np.minimum(np.searchsorted(known, hashes), len(known) - 1)] == hashes]
    edges = np.zeros(len(words.ids) + 1, np.int64)
    edges[starts] += 1
    edges[starts + _NGRAM] -= 1
    return np.cumsum(edges[:-1]) > 0


def leak_share(explanations: pl.Series, solutions: pl.Series) -> NDArray[np.float64]:
    """Return how much of each explanation or solution is copied: the larger of two shares, 0 to 1.

    The first is the share of the explanation's words that are copied from the solution. The second is the share of the
    solution's words before its last sentence that are copied. Fewer than 30 words count as 30.

    Args:
        explanations: the explanations.
        solutions: the solution of each.
    """
    explained, solved, body = (
        words_of(plain(texts), WHOLE_WORD)
        for texts in (explanations, solutions, solutions.str.extract(_LAST_SENTENCE, 1))
    )
    of_explanation = explained.count(copied(explained, solved)) / np.maximum(explained.counts, _LEAST_WORDS)
    of_solution = body.count(copied(body, explained)) / np.maximum(body.counts, _LEAST_WORDS)
    return np.maximum(of_explanation, of_solution)


def leak_phrases(explanations: pl.Series) -> pl.Series:
    """Return the first phrase of each explanation that mentions a given solution, in lower case; null if none does."""
    pattern = "|".join(language.leak for language in languages())
    phrases = explanations.str.to_lowercase().str.extract(pattern, 0)
    return phrases.str.replace_all(r"^\W+|\W+$", "").str.replace_all(r"\s+", " ").alias("leak_phrase")


def _slice(frame: pl.DataFrame, max_leak: float) -> pl.DataFrame:
    share = leak_share(frame["explanation"], frame["question_solution"])
    phrase = leak_phrases(frame["explanation"])
    leaks = pl.Series("leaks", share > max_leak) | phrase.is_not_null()
    return frame.select("trace_id", leaks, pl.Series("leak_share", share), phrase)


def _compute(frames: Iterable[pl.DataFrame], settings: CurateSettings, progress: Progress) -> Iterator[pl.DataFrame]:
    return by_slices(
        frames, partial(_slice, max_leak=settings.max_leak), ("explanation", "question_solution"), progress
    )


SIGNAL = Signal(
    name="leak",
    level="trace",
    columns={
        "leaks": Column(
            pl.Boolean,
            "whether the explanation shows that its writer saw the solution: leak_share is larger than --max-leak, or "
            "leak_phrase is not null",
        ),
        "leak_share": Column(
            pl.Float64,
            "share of the explanation copied from the solution or of the solution copied, whichever is larger",
        ),
        "leak_phrase": Column(pl.String, "first phrase that mentions a given solution; null: none"),
    },
    reads=_READS,
    compute=_compute,
    depends_on=("max_leak",),
    version=2,
)
