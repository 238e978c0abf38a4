from __future__ import annotations

import random
import tempfile

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from rlt_data.errors import DiskError
from rlt_data.signals.normalise import tokens
from rlt_data.signals.similarity import (
    TokenStore,
    bands,
    estimates,
    representatives,
    shingles,
    signatures,
    similarity_of,
)

Codes = NDArray[np.uint32]


def pairs_of(similarity: float, count: int) -> tuple[list[Codes], list[Codes]]:
    """Return pairs of texts of 120 words that share so many that their similarity is about the given one."""
    rng = random.Random(1)
    shared = round(120 * 2 * similarity / (1 + similarity))
    ours, theirs = [], []
    for pair in range(count):
        words = [f"word{pair}{chr(97 + index // 26)}{chr(97 + index % 26)}" for index in range(240 - shared)]
        words = [word.translate(str.maketrans("0123456789", "ghijklmnop")) for word in words]
        rng.shuffle(words)
        ours.append(" ".join(words[:120]))
        theirs.append(" ".join(words[120 - shared :]))
    return tokens(pl.Series(ours)).split(), tokens(pl.Series(theirs)).split()


@pytest.mark.parametrize("similarity", [0.3, 0.7, 0.9])
def test_signatures_estimate_the_jaccard_similarity(similarity: float) -> None:
    ours, theirs = pairs_of(similarity, 400)
    exact = [similarity_of(one, other, ordered=False) for one, other in zip(ours, theirs, strict=True)]
    estimated = estimates(signatures(ours, ordered=False), signatures(theirs, ordered=False))
    assert np.mean(exact) == pytest.approx(similarity, abs=0.01)
    assert np.mean(estimated) == pytest.approx(np.mean(exact), abs=0.01)
    assert np.std(estimated - exact) < 1.3 * (similarity * (1 - similarity) / 64) ** 0.5


@pytest.mark.parametrize("similarity", [0.5, 0.7, 0.8, 0.95])
def test_pairs_of_the_required_similarity_share_a_band(similarity: float) -> None:
    ours, theirs = pairs_of(similarity, 1000)
    keys = np.zeros(1000, np.uint64)
    both = zip(
        bands(signatures(ours, ordered=False), keys, similarity),
        bands(signatures(theirs, ordered=False), keys, similarity),
        strict=True,
    )
    assert sum(np.any([one == other for one, other in both], axis=0)) >= 990
    one_band = next(bands(signatures(ours, ordered=False), keys, similarity))
    assert len(np.unique(one_band)) > 900  # different texts rarely share one


def test_shingles_are_tokens_and_pairs_in_formulas_or_all_pairs() -> None:
    [codes] = tokens(pl.Series(["the sum of x and y is known"])).split()
    assert len(shingles(codes, ordered=True)) == 8 + 7
    assert len(shingles(codes, ordered=False)) == 8 + 4


def test_the_store_returns_what_was_appended() -> None:
    texts = tokens(pl.Series(["a b c", "", "d"]))
    with TokenStore() as store:
        for _ in range(2):
            store.append(texts)
            assert [len(store[text]) for text in (2, 0, 1)] == [1, 3, 0]
        assert store[3].tolist() == texts.short_codes[:3].tolist()


def test_signatures_do_not_depend_on_blocks_and_a_long_text_is_one() -> None:
    long = " ".join(f"word{chr(97 + index % 26)} {index}" for index in range(50_000))
    texts = [*pairs_of(0.7, 3)[0], *tokens(pl.Series([long])).split(), *pairs_of(0.7, 3)[1]]
    together = signatures(texts, ordered=True)
    assert together.tolist() == [signatures([codes], ordered=True)[0].tolist() for codes in texts]
    assert signatures([], ordered=True).shape == (0, 64)


def test_pairs_are_compared_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlt_data.signals.similarity._PAIRS", 2)
    text = " ".join(chr(97 + index) * 3 for index in range(20))
    texts = tokens(pl.Series([f"{text} {chr(97 + number) * 4}" for number in range(9)]))
    with TokenStore() as store:
        store.append(texts)
        order = np.arange(9)
        found = representatives(store, order.astype(np.uint64), np.ones(9, np.uint64), order, 0.7, ordered=False)
        assert found.tolist() == [0] * 9


def test_a_full_disk_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: open("/dev/full", "r+b", buffering=0))
    with (
        TokenStore() as store,
        pytest.raises(DiskError, match=r"No space left on device \(temporary files; set TMPDIR\)$"),
    ):
        store.append(tokens(pl.Series(["a b c"])))


def test_no_folder_for_temporary_files_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/dev/null/no folder"])
    with pytest.raises(DiskError, match=r"^No usable .* \(temporary files; set TMPDIR\)$"):
        TokenStore()


def test_keys_separate_texts_and_key_0_has_no_near_duplicates() -> None:
    text = " ".join(chr(97 + index) * 3 for index in range(20))
    texts = tokens(pl.Series([text, text + " new"] * 3))
    keys = np.array([5, 5, 6, 7, 0, 0], np.uint64)
    with TokenStore() as store:
        store.append(texts)
        order = np.arange(6)
        found = representatives(store, order.astype(np.uint64), keys, order, 0.7, ordered=True)
        assert found.tolist() == [0, 0, 2, 3, 4, 5]
        found = representatives(store, order.astype(np.uint64), keys, order[::-1].copy(), 0.7, ordered=True)
        assert found.tolist() == [1, 1, 2, 3, 4, 5]
