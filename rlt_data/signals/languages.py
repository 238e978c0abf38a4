"""Languages: their function words and phrases (``phrases/*.yaml``), and the share of a text in other languages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import polars as pl
import yaml
from numpy.typing import NDArray

from rlt_data.signals.ngrams import Ints
from rlt_data.signals.words import Words

Floats = NDArray[np.float64]

#: Scripts that are counted; all others count as one more.
_SCRIPTS = {
    "Latin": r"\p{Latin}",
    "Cyrillic": r"\p{Cyrillic}",
    "Chinese or Japanese": r"[\p{Han}\p{Hiragana}\p{Katakana}]",
    "Hangul": r"\p{Hangul}",
    "Arabic": r"\p{Arabic}",
    "Hebrew": r"\p{Hebrew}",
    "Devanagari": r"\p{Devanagari}",
    "Thai": r"\p{Thai}",
}
_OTHER_LETTERS = rf"[\p{{L}}--[\p{{Common}}\p{{Greek}}{''.join(_SCRIPTS.values())}]]"
#: Bounds a phrase. ``\b`` would be slow: Rust's regular expressions have no automaton for it outside ASCII.
_NO_LETTER = r"[^a-z\u00c0-\u024f\u0400-\u04ff]"
#: A question uses the scripts of at least this share of its letters.
_QUESTION_SHARE = 0.2
#: Minimum number of function words that decides the language of a question.
_KNOWN_FROM = 3


@dataclass(frozen=True)
class Language:
    """A language.

    Attributes:
        code: ISO 639-1 code.
        function_words: frequent words that no other listed language has; may be none.
        leak: regular expression, in lower case, of the phrases that mention a given solution.
    """

    code: str
    function_words: tuple[str, ...]
    leak: str


@cache
def languages() -> tuple[Language, ...]:
    """Return the languages in the package, by code."""
    folder = resources.files("rlt_data.signals").joinpath("phrases")
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".yaml")), key=lambda file: file.name)
    return tuple(_language(file.name[:-5], yaml.safe_load(file.read_text("utf-8"))) for file in files)


def _language(code: str, data: Mapping[str, Any]) -> Language:
    parts = {name: f"(?:{pattern})" for name, pattern in data["parts"].items()}
    phrases = [re.sub(r"\{(\w+)\}", lambda match: parts[match[1]], phrase) for phrase in data["phrases"]]
    start, end = (f"(?:^|{_NO_LETTER})", f"(?:{_NO_LETTER}|$)") if data.get("word_boundaries", True) else ("", "")
    pattern = f"{start}(?:{'|'.join(phrases)}){end}".replace(" ", r"\s+")
    return Language(code, tuple(data.get("function_words", ())), pattern)


def other_scripts(explanations: pl.Series, questions: pl.Series) -> pl.Series:
    """Return the share of each explanation's letters in scripts that its question does not use; null without letters.

    LaTeX commands do not count, nor do Greek letters unless three follow each other.
    """
    texts = pl.DataFrame({"explanation": explanations.fill_null(""), "question": questions.fill_null("")})
    ascii = pl.all_horizontal(pl.all().str.len_bytes() == pl.all().str.len_chars())
    plain = texts.select(
        pl.when(ascii).then(pl.col("explanation").str.contains(r"(?:^|[^\\A-Za-z])[A-Za-z]"))
    ).to_series()
    share = np.where(plain.fill_null(False), 0.0, np.nan)
    others = plain.is_null().to_numpy()
    share[others] = _share_of_other_scripts(texts.filter(others))
    return pl.Series("other_scripts", share).fill_nan(None)


def _share_of_other_scripts(texts: pl.DataFrame) -> Floats:
    asked, letters = (texts.select(_letters(column)).to_numpy() for column in ("question", "explanation"))
    allowed = asked >= np.maximum(_QUESTION_SHARE * asked.sum(1, keepdims=True), 1)
    allowed |= ~allowed.any(1, keepdims=True)  # a question without letters allows all scripts
    return _ratio((letters * ~allowed).sum(1), letters.sum(1))


def _ratio(part: NDArray[Any], total: NDArray[Any]) -> Floats:
    """Return part / total, NaN where the total is 0."""
    ratio = np.full(len(total), np.nan)
    np.divide(part, total, out=ratio, where=total > 0)
    return ratio


def _letters(column: str) -> list[pl.Expr]:
    text = pl.col(column).str.replace_all(r"\\[A-Za-z]+", " ")
    counts = {name: text.str.count_matches(pattern) for name, pattern in _SCRIPTS.items()}
    counts["Greek"] = 3 * text.str.count_matches(r"\p{Greek}{3}")
    counts["other"] = text.str.count_matches(_OTHER_LETTERS)
    return [count.cast(pl.Int64).alias(name) for name, count in counts.items()]


def other_languages(explanations: Words, questions: Words) -> pl.Series:
    """Return the share of each explanation's function words that belong to another language than its question's.

    The language of a question with fewer than three function words is the most frequent one of the explanation. The
    share is null for an explanation without function words.
    """
    counts, asked = _function_words(explanations), _function_words(questions)
    language = np.where(asked.sum(1) >= _KNOWN_FROM, asked.argmax(1), counts.argmax(1))
    total = counts.sum(1)
    own = counts[np.arange(len(counts)), language]
    return pl.Series("other_languages", _ratio(total - own, total)).fill_nan(None)


def _function_words(words: Words) -> Ints:
    """Return the function words of each language in each text, in an array of texts × languages."""
    listed = [(word, number) for number, language in enumerate(languages()) for word in language.function_words]
    ids = pl.Series([word for word, _ in listed]).hash().to_numpy()
    order = np.argsort(ids)
    ids, numbers = ids[order], np.array([number for _, number in listed])[order]
    found = np.minimum(np.searchsorted(ids, words.ids), len(ids) - 1)
    known = ids[found] == words.ids
    keys = words.rows[known] * len(languages()) + numbers[found[known]]
    return np.bincount(keys, minlength=len(words.counts) * len(languages())).reshape(-1, len(languages()))
