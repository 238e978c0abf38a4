"""Questions that are in a benchmark: a shared 13-gram, a whole short question, or a near duplicate.

docs/signals.md explains the rules.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rlt_data.errors import InputError, SettingsError
from rlt_data.inputs.check import good_rows
from rlt_data.inputs.files import digest_of, find_sources
from rlt_data.inputs.questions import QuestionReader
from rlt_data.inputs.rows import Row
from rlt_data.progress import Progress
from rlt_data.settings import CurateSettings, InputSettings
from rlt_data.signals.base import Column, Signal
from rlt_data.signals.ngrams import Hashes, Ints, Lookup, NGrams, running
from rlt_data.signals.normalise import DECISIVE, FORMULA, Tokens, tokens, words
from rlt_data.signals.similarity import (
    SHORTEST,
    TokenStore,
    bands,
    decisive_hashes,
    representatives,
    signatures,
    similarity_of,
    text_hashes,
)
from rlt_data.tasks.benchmarks import BENCHMARKS, Benchmark

#: Tokens of the n-grams that make a question contaminated, and of phrases.
_NGRAM, _PHRASE = 13, 8

#: A phrase in this many questions of the data that differ in their numbers is a stock phrase.
_STOCK = 3

#: Rows of a frame of results.
_ROWS = 1 << 16


class _Index:
    """The questions of benchmarks, and what finds them in others.

    Args:
        items: source, id and text of each question.
        similarity: smallest Jaccard similarity of near duplicates.
    """

    def __init__(self, items: list[tuple[str, str, str]], similarity: float) -> None:
        self._similarity = similarity
        texts = tokens(pl.Series([text for *_, text in items], dtype=pl.String))
        hashes = text_hashes(texts)
        _, first = np.unique(hashes, return_index=True)
        kept = np.sort(first)
        kept = kept[texts.lengths[kept] > 0]
        self._items = [items[index] for index in kept]
        self._texts = texts.take(kept)
        self._text_of = self._texts.texts
        self._keys = _keys(self._texts)
        self._index_ngrams(hashes[kept])
        self._index_near()

    def _index_ngrams(self, text_hashes: Hashes) -> None:
        texts, ngrams = self._texts, NGrams(self._texts.codes, self._texts.offsets)
        starts, hashes = ngrams.of(_PHRASE)
        self._counted = Lookup(hashes, starts)
        phrases, numbers = np.unique(_phrases(texts, starts, hashes), return_inverse=True)
        self._phrases = Lookup(phrases, np.arange(len(phrases)))
        self._phrase_at = (starts, numbers)
        with TokenStore() as store:
            store.append(texts)
            order = np.arange(len(texts))
            families = representatives(store, text_hashes, self._keys, order, self._similarity, ordered=False)
        pairs = np.unique(np.stack([numbers, families[self._text_of[starts]]], axis=1), axis=0)
        self._is_stock = np.bincount(pairs[:, 0], minlength=len(phrases)) > 1
        self._questions: dict[int, set[int]] = defaultdict(set)  # of the run, by phrase; as hashes of their numbers
        starts, hashes = ngrams.of(_NGRAM)
        telling = self._telling()[starts]
        starts, hashes = starts[telling], hashes[telling]
        self._ngrams = Lookup(hashes, starts)
        _, first = np.unique(hashes, return_index=True)
        self._ngrams_of = np.bincount(self._text_of[starts[first]], minlength=len(texts))
        whole = np.flatnonzero(self._ngrams_of == 0)
        self._whole: dict[int, Lookup] = {}
        for length in np.unique(texts.lengths[whole])[::-1].tolist():  # the longest question that fits is named
            chosen = whole[texts.lengths[whole] == length]
            starts, hashes = ngrams.of(length)
            self._whole[length] = Lookup(hashes[np.searchsorted(starts, texts.offsets[chosen])], chosen)

    def _telling(self) -> NDArray[np.bool_]:
        """Return for each token whether the 13-gram that starts there has at least 5 tokens outside stock phrases."""
        starts, numbers = self._phrase_at
        stock = starts[self._is_stock[numbers]]
        changes = np.zeros(len(self._texts.codes) + _NGRAM + 1, np.int64)
        np.add.at(changes, stock, 1)
        np.add.at(changes, stock + _PHRASE, -1)
        free = np.concatenate([[0], np.cumsum(np.cumsum(changes) == 0)])
        count = len(self._texts.codes)
        return np.asarray(free[_NGRAM : _NGRAM + count] - free[:count] >= _NGRAM - _PHRASE)

    def _index_near(self) -> None:
        self._near = np.flatnonzero(self._keys)
        self._codes = self._texts.take(self._near).split()
        self._bands = []
        for values in bands(signatures(self._codes, ordered=False), self._keys[self._near], self._similarity):
            order = np.argsort(values, kind="stable")
            self._bands.append((values[order], order))

    def name(self, item: int) -> str:
        """Return source and id of an item."""
        source, item_id, _ = self._items[item]
        return f"{source} {item_id}"

    def shared_8grams(self, texts: Tokens, starts: Ints, hashes: Hashes) -> Ints:
        """Return how many distinct 8-grams of each text, given with their starts, are in a benchmark."""
        positions, _ = self._counted.find(hashes)
        shared = np.stack([texts.texts[starts[positions]].astype(np.uint64), hashes[positions]], axis=1)
        distinct = np.unique(shared, axis=0)[:, 0].astype(np.int64)
        return np.bincount(distinct, minlength=len(texts))

    def note_phrases(self, texts: Tokens, starts: Ints, hashes: Hashes) -> None:
        """Note which phrases are in several questions of the data, given the 8-grams with their starts."""
        positions, phrases = self._phrases.find(_phrases(texts, starts, hashes))
        new = ~self._is_stock[phrases]
        questions = decisive_hashes(texts)[texts.texts[starts[positions[new]]]]
        pairs = np.unique(np.stack([phrases[new].astype(np.uint64), questions], axis=1), axis=0)
        for phrase, question in pairs.tolist():
            self._questions[phrase].add(question)
            if len(self._questions[phrase]) >= _STOCK:
                self._is_stock[phrase] = True

    def fragments(self, texts: Tokens, ngrams: NGrams) -> dict[tuple[int, int], Ints]:
        """Return the 13-grams that texts share with items, by text and item, as positions among the items' tokens."""
        starts, hashes = ngrams.of(_NGRAM)
        positions, places = self._ngrams.find(hashes)
        found = np.unique(np.stack([texts.texts[starts[positions]], self._text_of[places], places], axis=1), axis=0)
        cuts = np.flatnonzero((np.diff(found[:, :2], axis=0) != 0).any(axis=1)) + 1
        return {(int(part[0, 0]), int(part[0, 1])): part[:, 2] for part in np.split(found, cuts) if len(part)}

    def judge(self, fragments: dict[int, list[tuple[int, Ints]]]) -> dict[int, str]:
        """Return why shared 13-grams make questions contaminated, except those that consist of stock phrases.

        All texts must have been noted, because they show which phrases are stock phrases.

        Args:
            fragments: items and positions of the shared 13-grams, by question.
        """
        telling = self._telling()
        items = sorted({item for shared in fragments.values() for item, _ in shared})
        texts = words(pl.Series([self._items[item][2] for item in items], dtype=pl.String))
        words_of = dict(zip(items, texts, strict=True))
        reasons: dict[int, str] = {}
        for question, shared in fragments.items():
            for item, places in shared:
                own = places[telling[places]]
                if len(own):
                    first = int(own[0] - self._texts.offsets[item])
                    reason = "13-gram '" + " ".join(words_of[item][first : first + _NGRAM]) + "'"
                elif 2 * len(places) >= self._ngrams_of[item]:
                    reason = f"{len(places)} of its {self._ngrams_of[item]} 13-grams"
                else:
                    continue
                reasons.setdefault(question, f"{self.name(item)}: {reason}")
        return reasons

    def whole(self, texts: Tokens, ngrams: NGrams) -> Iterator[tuple[int, int]]:
        """Yield texts with the items that they contain, of those items that have no telling 13-gram."""
        for length, lookup in self._whole.items():
            starts, hashes = ngrams.of(length)
            positions, items = lookup.find(hashes)
            yield from zip(texts.texts[starts[positions]].tolist(), items.tolist(), strict=True)

    def near(self, texts: Tokens) -> Iterator[tuple[int, int, float]]:
        """Yield texts with the items that are near duplicates, and the similarity."""
        keys = _keys(texts)
        chosen = np.flatnonzero((keys != 0) & np.isin(keys, self._keys))
        if not len(chosen):
            return
        codes = texts.take(chosen).split()
        signed = signatures(codes, ordered=False)
        pairs: set[tuple[int, int]] = set()
        for values, (known, order) in zip(bands(signed, keys[chosen], self._similarity), self._bands, strict=True):
            low, high = np.searchsorted(known, values, "left"), np.searchsorted(known, values, "right")
            for text in np.flatnonzero(high > low).tolist():
                pairs.update((text, int(item)) for item in order[low[text] : high[text]])
        for text, item in sorted(pairs):
            similarity = similarity_of(codes[text], self._codes[item], ordered=False)
            if similarity >= self._similarity:
                yield int(chosen[text]), int(self._near[item]), similarity


def _phrases(texts: Tokens, starts: Ints, hashes: Hashes) -> Hashes:
    """Return hashes of 8-grams, equal for those that differ only in numbers and variables if three tokens are words.

    Args:
        texts: the texts.
        starts: where the 8-grams start among all tokens.
        hashes: their hashes.
    """
    changing = (texts.codes & np.uint64(DECISIVE | FORMULA)) != 0
    _, alike = NGrams(np.where(changing, np.uint64(0), texts.codes), texts.offsets).of(_PHRASE)
    before = running(changing.astype(np.uint64))
    has_words = before[starts + _PHRASE] - before[starts] <= _PHRASE - 3
    return np.where(has_words, alike, ~hashes)


def _keys(texts: Tokens) -> Hashes:
    return np.where(texts.lengths >= SHORTEST, decisive_hashes(texts) | np.uint64(1), np.uint64(0))


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
    """Return source, id and text of the questions of a benchmark or file.

    Raises:
        InputError: the file or data set cannot be read.
        SettingsError: the benchmark has no data set.
    """
    benchmark = BENCHMARKS.get(name)
    with _naming_the_flag():
        if benchmark is None:
            rows = good_rows(InputSettings(input=name), None, QuestionReader)
        elif benchmark.hub is None:
            raise SettingsError(f"--against {name}: has no data set; name a file")
        else:
            source = InputSettings(input=benchmark.hub, subset=benchmark.subset, split=benchmark.split)
            rows = good_rows(source, None, partial(_BenchmarkQuestions, benchmark))
    return [(Path(name).name, str(row.source_id), row.question) for row in rows]


@contextmanager
def _naming_the_flag() -> Iterator[None]:
    """Name the flag in errors of its inputs."""
    try:
        yield
    except InputError as error:
        raise InputError(f"--against: {error}") from None


def _content(settings: CurateSettings) -> list[tuple[str, str]]:
    """Return name and content of each benchmark: the hash of a file, or the id of a data set."""
    found = []
    for name in settings.against:
        if benchmark := BENCHMARKS.get(name):
            found.append((name, f"{benchmark.hub} {benchmark.subset} {benchmark.split}"))
        else:
            with _naming_the_flag():
                found.append((Path(name).name, digest_of(find_sources(InputSettings(input=name))) or name))
    return found


def _compute(frames: Iterable[pl.DataFrame], settings: CurateSettings, progress: Progress) -> Iterator[pl.DataFrame]:
    index = _Index([item for name in settings.against for item in _items(name)], settings.similarity)
    ids: list[pl.Series] = [pl.Series(dtype=pl.String)]
    shared: list[Ints] = [np.zeros(0, np.int64)]
    found: dict[int, str] = {}
    fragments: dict[int, list[tuple[int, Ints]]] = defaultdict(list)
    rows = 0
    for frame in frames:
        texts = tokens(frame["question"])
        ngrams = NGrams(texts.codes, texts.offsets)
        phrases = ngrams.of(_PHRASE)
        shared.append(index.shared_8grams(texts, *phrases))
        index.note_phrases(texts, *phrases)
        for (text, item), places in index.fragments(texts, ngrams).items():
            fragments[rows + text].append((item, places))
        for text, item in index.whole(texts, ngrams):
            found.setdefault(rows + text, f"{index.name(item)}: whole question")
        for text, item, similarity in index.near(texts):
            found.setdefault(rows + text, f"{index.name(item)}: near duplicate, similarity {similarity:.2f}")
        ids.append(frame["question_id"])
        rows += len(frame)
        progress.advance(len(frame))
    found = index.judge(fragments) | found
    result = pl.DataFrame({"question_id": pl.concat(ids), "shared_8grams": np.concatenate(shared)})
    matches = pl.DataFrame(
        {"row": found.keys(), "contaminated_by": found.values()}, {"row": pl.UInt32, "contaminated_by": pl.String}
    )
    result = result.with_row_index("row").join(matches, on="row", how="left", maintain_order="left")
    result = result.with_columns(contaminated=pl.col("contaminated_by").is_not_null())
    yield from result.select("question_id", *SIGNAL.columns).iter_slices(_ROWS)


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
    depends_on=("similarity",),
    whole=True,
    content=_content,
    version=2,
)
