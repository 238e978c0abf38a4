"""Questions that are in a benchmark: a shared 13-gram, a whole short question, or a near duplicate.

docs/signals.md explains the rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rlt_data.errors import InputError, SettingsError
from rlt_data.inputs.check import good_rows
from rlt_data.inputs.questions import QuestionReader
from rlt_data.inputs.rows import Row
from rlt_data.progress import Progress
from rlt_data.settings import CurateSettings, InputSettings
from rlt_data.signals.base import Column, Signal
from rlt_data.signals.normalise import Tokens, tokens, words
from rlt_data.signals.similarity import (
    SHORTEST,
    TokenStore,
    bands,
    decisive_hashes,
    estimates,
    mixed,
    representatives,
    signatures,
    similarity_of,
    text_hashes,
)
from rlt_data.tasks.benchmarks import BENCHMARKS, Benchmark

#: Tokens of the n-grams that make a question contaminated, and of those that are only counted.
_TELLING, _COUNTED = 13, 8

_Hashes = NDArray[np.uint64]
_Indices = NDArray[np.int64]

#: An odd factor, and its inverse modulo 2**64.
_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)


class _NGrams:
    """Hashes of the n-grams of texts: polynomials of their codes, as differences of running sums."""

    def __init__(self, texts: Tokens) -> None:
        count = len(texts.codes)
        powers = np.cumprod(np.full(count, _BASE, np.uint64))
        self._inverse = np.cumprod(np.full(count, _INVERSE, np.uint64))
        self._sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed(texts.codes) * powers)])
        self._left = np.repeat(texts.offsets[1:], texts.lengths) - np.arange(count)

    def of(self, length: int) -> tuple[_Indices, _Hashes]:
        """Return where n-grams of this length start, among all tokens, and their hashes."""
        starts = np.flatnonzero(self._left >= length)
        return starts, mixed((self._sums[starts + length] - self._sums[starts]) * self._inverse[starts])


class _Lookup:
    """Finds hashes among a few; a table of their first bits dismisses most others quickly."""

    def __init__(self, hashes: _Hashes, values: _Indices) -> None:
        self._hashes, first = np.unique(hashes, return_index=True)
        self._values = values[first]
        bits = max(16, int(len(self._hashes)).bit_length() + 5)
        self._shift = np.uint64(64 - bits)
        self._table = np.zeros(1 << bits, bool)
        self._table[self._hashes >> self._shift] = True

    def find(self, hashes: _Hashes) -> tuple[_Indices, _Indices]:
        """Return the positions of the hashes that are known, and their values."""
        positions = np.flatnonzero(self._table[hashes >> self._shift])
        places = np.searchsorted(self._hashes, hashes[positions])
        places[places == len(self._hashes)] = 0
        known = self._hashes[places] == hashes[positions]
        return positions[known], self._values[places[known]]


class _Index:
    """The questions of benchmarks, and what finds them in others."""

    def __init__(self, items: list[tuple[str, str, str]], similarity: float) -> None:
        self._similarity = similarity
        texts = tokens(pl.Series([text for *_, text in items], dtype=pl.String))
        _, first = np.unique(text_hashes(texts), return_index=True)
        kept = np.sort(first)[texts.lengths[np.sort(first)] > 0]
        self._names = [f"{items[index][0]} {items[index][1]}" for index in kept]
        self._texts = texts.take(kept)
        self._index_ngrams()
        self._index_near()

    def _index_ngrams(self) -> None:
        texts, ngrams = self._texts, _NGrams(self._texts)
        text_of = texts.texts
        _, counted = ngrams.of(_COUNTED)
        self._counted = _Lookup(counted, np.zeros(len(counted), np.int64))
        starts, hashes = ngrams.of(_TELLING)
        owners = text_of[starts]
        pairs = np.unique(np.stack([hashes, self._families()[owners].astype(np.uint64)], axis=1), axis=0)
        values, counts = np.unique(pairs[:, 0], return_counts=True)
        telling = np.isin(hashes, values[counts == 1])
        self._telling = _Lookup(hashes[telling], owners[telling])
        whole = np.setdiff1d(np.arange(len(texts)), owners[telling])
        self._whole: dict[int, _Lookup] = {}
        for length in np.unique(texts.lengths[whole]).tolist():
            chosen = whole[texts.lengths[whole] == length]
            starts, hashes = ngrams.of(length)
            at = np.searchsorted(starts, texts.offsets[chosen])
            self._whole[length] = _Lookup(hashes[at], chosen)

    def _families(self) -> _Indices:
        """Return the representative of each question's near duplicates."""
        with TokenStore() as store:
            store.append(self._texts)
            order = np.arange(len(self._texts))
            hashes = text_hashes(self._texts)
            return representatives(store, hashes, self._keys(self._texts), order, self._similarity, ordered=False)

    @staticmethod
    def _keys(texts: Tokens) -> _Hashes:
        return np.where(texts.lengths >= SHORTEST, decisive_hashes(texts) | np.uint64(1), np.uint64(0))

    def _index_near(self) -> None:
        keys = self._keys(self._texts)
        self._near = np.flatnonzero(keys)
        self._codes = self._texts.take(self._near).split()
        self._near_keys = keys[self._near]
        self._signatures = signatures(self._codes, ordered=False)
        self._bands = []
        for values in bands(self._signatures, self._near_keys, self._similarity):
            order = np.argsort(values, kind="stable")
            self._bands.append((values[order], order))

    def matches(self, questions: pl.Series) -> tuple[list[str | None], _Indices]:
        """Return what each question matches, if anything, and how many of its 8-grams are in a benchmark."""
        texts = tokens(questions)
        ngrams, text_of = _NGrams(texts), texts.texts
        found: list[str | None] = [None] * len(texts)
        starts, hashes = ngrams.of(_TELLING)
        positions, items = self._telling.find(hashes)
        for start, item in zip(starts[positions].tolist(), items.tolist(), strict=True):
            text = int(text_of[start])
            if found[text] is None:
                first = start - int(texts.offsets[text])
                shared = " ".join(words(questions[text])[first : first + _TELLING])
                found[text] = f"{self._names[item]}: 13-gram '{shared}'"
        for text, item, similarity in self._near_matches(texts):
            found[text] = f"{self._names[item]}: near duplicate, similarity {similarity:.2f}"
        for length, lookup in self._whole.items():
            starts, hashes = ngrams.of(length)
            positions, items = lookup.find(hashes)
            for start, item in zip(starts[positions].tolist(), items.tolist(), strict=True):
                found[int(text_of[start])] = f"{self._names[item]}: whole question"
        starts, hashes = ngrams.of(_COUNTED)
        positions, _ = self._counted.find(hashes)
        shared_ones = np.stack([text_of[starts[positions]].astype(np.uint64), hashes[positions]], axis=1)
        distinct = np.unique(shared_ones, axis=0)[:, 0].astype(np.int64)
        return found, np.bincount(distinct, minlength=len(texts))

    def _near_matches(self, texts: Tokens) -> Iterator[tuple[int, int, float]]:
        """Yield questions with the most similar item, if it is similar enough."""
        keys = self._keys(texts)
        chosen = np.flatnonzero((keys != 0) & np.isin(keys, self._near_keys))
        if not len(chosen):
            return
        codes = texts.take(chosen).split()
        ours = signatures(codes, ordered=False)
        pairs: set[tuple[int, int]] = set()
        for values, (known, order) in zip(bands(ours, keys[chosen], self._similarity), self._bands, strict=True):
            low, high = np.searchsorted(known, values, "left"), np.searchsorted(known, values, "right")
            for text in np.flatnonzero(high > low).tolist():
                pairs.update((text, int(item)) for item in order[low[text] : high[text]])
        best: dict[int, tuple[float, int]] = {}
        for text, item in sorted(pairs):
            if estimates(ours[text : text + 1], self._signatures[item : item + 1])[0] < self._similarity - 0.2:
                continue
            similarity = similarity_of(codes[text], self._codes[item], ordered=False)
            if similarity >= self._similarity and similarity > best.get(text, (0.0, 0))[0]:
                best[text] = similarity, item
        for text, (similarity, item) in best.items():
            yield int(chosen[text]), int(self._near[item]), similarity


class _BenchmarkQuestions:
    """Turns records of a benchmark into rows that have a question, an id and no solution."""

    preset = "benchmark"

    def __init__(self, benchmark: Benchmark, first: dict[str, Any], source: str) -> None:
        self.found: dict[str, Any] = {}
        self._benchmark = benchmark

    def __call__(self, data: dict[str, Any], number: int) -> list[Row]:
        question, _, _ = self._benchmark.row(data)
        return [Row(question, "", source_id=str(data.get("id", data.get("unique_id", number))))]


def _items(name: str) -> list[tuple[str, str, str]]:
    """Return name, id and text of the questions of a benchmark or file.

    Raises:
        InputError: the file or data set cannot be read.
        SettingsError: the benchmark has no data set.
    """
    benchmark = BENCHMARKS.get(name)
    if benchmark is None:
        rows = good_rows(InputSettings(input=name), None, QuestionReader)
    elif benchmark.hub is None:
        raise SettingsError(f"--against {name}: has no data set; name a file")
    else:
        source = InputSettings(input=benchmark.hub, subset=benchmark.subset, split=benchmark.split)
        try:
            rows = good_rows(source, None, partial(_BenchmarkQuestions, benchmark))
        except InputError as error:
            raise InputError(f"--against {name}: {error}") from None
    return [(name, str(row.source_id), row.question) for row in rows]


def _compute(frames: Iterable[pl.DataFrame], settings: CurateSettings, progress: Progress) -> Iterator[pl.DataFrame]:
    index = _Index([item for name in settings.against for item in _items(name)], settings.similarity)
    for frame in frames:
        found, shared = index.matches(frame["question"])
        yield pl.DataFrame(
            {
                "question_id": frame["question_id"],
                "contaminated": [match is not None for match in found],
                "contaminated_by": pl.Series(found, dtype=pl.String),
                "shared_8grams": shared,
            },
        )
        progress.advance(len(frame))


SIGNAL = Signal(
    name="contamination",
    level="question",
    columns={
        "contaminated": Column(pl.Boolean, "whether the question is in a benchmark (--against)"),
        "contaminated_by": Column(pl.String, "which question of which benchmark matches, and how"),
        "shared_8grams": Column(pl.Int64, "distinct 8-grams that are in a benchmark; they do not flag a question"),
    },
    reads=("question",),
    compute=_compute,
    depends_on=("against", "similarity"),
)
