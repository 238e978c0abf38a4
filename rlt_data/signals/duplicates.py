"""Exact and near duplicates: traces of the same question, and questions of the run.

docs/signals.md explains the rules, :mod:`rlt_data.signals.similarity` the method.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import polars as pl

from rlt_data.progress import Progress
from rlt_data.settings import CurateSettings
from rlt_data.signals.base import Column, Signal
from rlt_data.signals.ngrams import Hashes, mixed
from rlt_data.signals.normalise import tokens
from rlt_data.signals.parallel import slices
from rlt_data.signals.similarity import SHORTEST, TokenStore, decisive_hashes, representatives, text_hashes

#: Rows of a frame of results.
_ROWS = 1 << 16


class _Texts:
    """Ids and hashes of texts in memory, and their tokens in a temporary file.

    Args:
        ordered: whether these are traces: all pairs of tokens are shingles, and decisive tokens agree as a set.
    """

    def __init__(self, *, ordered: bool) -> None:
        self._store = TokenStore()
        self._ordered = ordered
        self._ids: list[pl.Series] = [pl.Series(dtype=pl.String)]
        self._hashes = [np.zeros(0, np.uint64)]
        self._keys = [np.zeros(0, np.uint64)]

    def append(self, ids: pl.Series, texts: pl.Series, scopes: pl.Series | None = None) -> None:
        """Add texts; duplicates must have the same scope."""
        found = tokens(texts)
        self._store.append(found)
        has_tokens = found.lengths > 0
        # Texts without tokens, such as "?", have only literal duplicates, and null has none.
        literal = np.where(texts.is_null(), _hashes(ids), _hashes(texts))
        scope = np.uint64(0) if scopes is None else _hashes(scopes)
        self._ids.append(ids)
        self._hashes.append(mixed(np.where(has_tokens, text_hashes(found), literal) ^ scope))
        keys = mixed(decisive_hashes(found, distinct=self._ordered) ^ scope) | np.uint64(1)
        self._keys.append(np.where(found.lengths >= SHORTEST, keys, np.uint64(0)))

    def representatives(self, similarity: float) -> pl.DataFrame:
        """Return the ids in their order as ``id``, and the id of each representative as ``of``; null if it is kept."""
        ids = pl.concat(self._ids)
        order = ids.arg_sort().to_numpy().astype(np.int64)
        hashes, keys = np.concatenate(self._hashes), np.concatenate(self._keys)
        with self._store as store:
            kept = representatives(store, hashes, keys, order, similarity, ordered=self._ordered)
        found = pl.DataFrame({"id": ids, "of": ids.gather(kept)})[order]
        return found.with_columns(of=pl.when(pl.col("of") != pl.col("id")).then("of"))


def _hashes(texts: pl.Series) -> Hashes:
    return texts.hash(0).to_numpy()


def _compute(frames: Iterable[pl.DataFrame], settings: CurateSettings, progress: Progress) -> Iterator[pl.DataFrame]:
    traces, questions = _Texts(ordered=True), _Texts(ordered=False)
    question_of: list[pl.DataFrame] = []
    for frame in frames:
        for piece in slices(frame, ("explanation",)):
            traces.append(piece["trace_id"], piece["explanation"], piece["question_id"])
            progress.advance(len(piece))
        asked = frame.unique("question_id")
        questions.append(asked["question_id"], asked["question"])
        question_of.append(frame.select(id="trace_id", question_id="question_id"))
    if not question_of:
        return
    found_questions = questions.representatives(settings.similarity).select(
        question_id="id", question_duplicate_of="of"
    )
    found_questions = found_questions.unique("question_id")  # frames may share a question
    found = traces.representatives(settings.similarity).join(pl.concat(question_of), on="id", maintain_order="left")
    found = found.join(found_questions, on="question_id", how="left", maintain_order="left")
    columns = found.select("question_duplicate_of", trace_id="id", trace_duplicate_of="of")
    yield from columns.select("trace_id", *SIGNAL.columns).iter_slices(_ROWS)


SIGNAL = Signal(
    name="duplicates",
    level="trace",
    columns={
        "trace_duplicate_of": Column(pl.String, "the trace of the same question that this one repeats; null: kept"),
        "question_duplicate_of": Column(pl.String, "the question that this one repeats; null: kept"),
    },
    reads=("question_id", "question", "explanation"),
    compute=_compute,
    depends_on=("similarity",),
    whole=True,
    version=2,
)
