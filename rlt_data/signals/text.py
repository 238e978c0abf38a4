"""Signal ``text``: lengths, loops, other scripts and languages, LaTeX and control tokens of an explanation."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from functools import partial

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rlt_data.progress import Progress
from rlt_data.settings import CurateSettings
from rlt_data.signals.base import Column, Signal
from rlt_data.signals.languages import other_languages, other_scripts
from rlt_data.signals.ngrams import Ints
from rlt_data.signals.parallel import by_slices
from rlt_data.signals.words import WHOLE_WORD, WORD, Words, words_of

_TOKEN = rf"\\[a-z]+|{WORD}|\S"
#: Two equal runs of this many words in a text suggest a loop with their distance as its period.
_NGRAM = 6
#: (minimum words of a passage, occurrences in a row that make a loop): longer passages need fewer.
_COPIES = ((1, 4), (20, 3), (100, 2))
#: Periods that are tried in each text, the most frequent distances first, so that time is linear.
_MOST_PERIODS = 8
#: Characters of the window in which loops are counted. Texts shorter than ``_SHORTEST`` count as that long.
_STRETCH, _SHORTEST = 500, 300
#: Weight of a symbol or a LaTeX command: rules, tables and matrices have many equal ones.
_SYMBOL_WEIGHT = 0.25

_CONTROL = (
    r"<\|/?[A-Za-z][\w ./-]{1,40}\|>|<｜[^<>｜\n]{1,40}｜>|</?s>|<(?:bos|eos|pad|unk)>|<(?:start|end)_of_turn>"
    r"|<\|(?:turn|channel|tool\w*)>|<(?:turn|channel|tool\w*)\|>|</?seed:\w+>"
    r"|\[/?(?:INST|THINK|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|gMASK)\]|<</?SYS>>"
    r"|</?(?:think|thinking|thought|reasoning|explanation|solution|answer|tool_call|tool_response)>"
)
_PAIRS = ((r"\(", r"\)"), (r"\[", r"\]"), (r"\begin{", r"\end{"))


def loops(words: Words) -> NDArray[np.bool_]:
    """Return which words are part of a loop: a passage that occurs several times in a row.

    Args:
        words: the words of texts; symbols count as words.
    """
    looped = np.zeros(len(words.ids) + 1, np.int64)
    for row, period in zip(*_periods(words), strict=True):
        start, end = words.starts[row], words.starts[row + 1]
        equal = np.zeros(end - start - period + 2, np.int8)  # whether a word equals the one a period earlier
        equal[1:-1] = words.ids[start + period : end] == words.ids[start : end - period]
        edges = np.flatnonzero(np.diff(equal))
        first, last = edges[::2], edges[1::2]
        copies = next(copies for least, copies in reversed(_COPIES) if period >= least)
        loop = last - first >= (copies - 1) * period
        looped[start + first[loop]] += 1
        looped[start + last[loop] + period] -= 1
    return np.cumsum(looped[:-1]) > 0


def _periods(words: Words) -> tuple[Ints, Ints]:
    """Return the texts that may have loops, and the period of each in words."""
    first, hashes = words.ngrams(_NGRAM)
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    later, earlier = first[order[same + 1]], first[order[same]]
    longest = np.int64(max(words.counts.max(initial=0), 1))
    pairs, counts = np.unique(words.rows[later] * longest + later - earlier, return_counts=True)
    enough = counts >= np.maximum(2 * _NGRAM, 0.75 * (pairs % longest))
    rows, periods, counts = pairs[enough] // longest, pairs[enough] % longest, counts[enough]
    order = np.lexsort((periods, -counts, rows))
    rows, periods = rows[order], periods[order]
    rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
    return rows[rank < _MOST_PERIODS], periods[rank < _MOST_PERIODS]


def repetition(words: Words, looped: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the largest share of loops in any 500 characters of each text, with one space per word.

    Symbols and LaTeX commands count a quarter. A text shorter than 300 characters counts as 300.

    Args:
        words: the words of texts.
        looped: which words are part of a loop.
    """
    share = np.zeros(len(words.counts))
    for row in np.unique(words.rows[looped]):
        part = slice(words.starts[row], words.starts[row + 1])
        text = words.text[part.start : part.stop]
        weights = np.where(text.str.contains(r"^\w"), text.str.len_chars() + 1, _SYMBOL_WEIGHT)
        before, loops_before = (
            np.concatenate([[0], np.cumsum(values)]) for values in (weights, weights * looped[part])
        )
        first = np.searchsorted(before, before[1:] - _STRETCH)
        share[row] = (loops_before[1:] - loops_before[first]).max() / min(max(before[-1], _SHORTEST), _STRETCH)
    return np.minimum(share, 1.0)


def _latex_balanced() -> pl.Expr:
    """Return whether the delimiters of LaTeX have partners; their order is not checked.

    An odd number of dollar signs is allowed next to a number, because it may be a price.
    """
    text = pl.col("explanation").str.replace_all(r"\\", "", literal=True)
    count = text.str.count_matches
    braces = count("{", literal=True) - count(r"\{", literal=True) == count("}", literal=True) - count(
        r"\}", literal=True
    )
    pairs = [count(opening, literal=True) == count(closing, literal=True) for opening, closing in _PAIRS]
    sides = count(r"\\left[^a-zA-Z]") == count(r"\\right[^a-zA-Z]")
    dollars = ((count("$", literal=True) - count(r"\$", literal=True)) % 2 == 0) | text.str.contains(r"\$[.\d]|\d\$")
    return pl.all_horizontal(braces, sides, dollars, *pairs)


def _slice(frame: pl.DataFrame, max_repetition: float) -> pl.DataFrame:
    frame = frame.with_columns(pl.col("explanation").fill_null(""))
    tokens = words_of(frame["explanation"], _TOKEN)
    share = repetition(tokens, loops(tokens))
    compressed = np.array([len(zlib.compress(text.encode(), 1)) for text in frame["explanation"]])
    text = pl.col("explanation")
    return frame.select(
        "trace_id",
        pl.Series("repeats", share > max_repetition),
        pl.Series("repetition", share),
        text.str.len_chars().cast(pl.Int64).alias("characters"),
        text.str.count_matches(WHOLE_WORD).cast(pl.Int64).alias("words"),
        pl.Series("compression_ratio", frame["explanation"].str.len_bytes() / compressed),
        other_scripts(frame["explanation"], frame["question"]),
        other_languages(tokens, words_of(frame["question"], _TOKEN)),
        _latex_balanced().alias("latex_balanced"),
        text.str.extract(_CONTROL, 0).alias("control_string"),
    )


def _compute(frames: Iterable[pl.DataFrame], settings: CurateSettings, progress: Progress) -> Iterator[pl.DataFrame]:
    return by_slices(
        frames, partial(_slice, max_repetition=settings.max_repetition), ("explanation", "question"), progress
    )


SIGNAL = Signal(
    name="text",
    level="trace",
    columns={
        "repeats": Column(pl.Boolean, "whether the explanation has loops: repetition is larger than --max-repetition"),
        "repetition": Column(pl.Float64, "largest share of loops in any 500 characters of the explanation, 0 to 1"),
        "characters": Column(pl.Int64, "length of the explanation in characters"),
        "words": Column(pl.Int64, "length of the explanation in words"),
        "compression_ratio": Column(
            pl.Float64, "bytes of the explanation / bytes after zlib; repetitive texts have more"
        ),
        "other_scripts": Column(
            pl.Float64, "share of the explanation's letters in scripts that the question does not use; null: no letters"
        ),
        "other_languages": Column(
            pl.Float64,
            "share of the explanation's function words in other languages than the question's; null: none found",
        ),
        "latex_balanced": Column(pl.Boolean, "whether braces, dollar signs and environments have partners"),
        "control_string": Column(pl.String, "first control token of a common model in the explanation; null: none"),
    },
    reads=("question", "explanation"),
    compute=_compute,
    depends_on=("max_repetition",),
    version=2,
)
