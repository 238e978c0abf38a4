from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from rlt_data.formats import Encoding, align, encode, load_format, tokens_inside
from rlt_data.formats.spans import BREAK, CLOSE, OPEN, Ints, decode_after, sampled_offsets, uncovered, unmarked
from tests.conftest import examples

KINDS = ("chat", "base", "sliding")


@cache
def tokenizer_of(model: Path) -> Any:
    return AutoTokenizer.from_pretrained(model)


#: Words, marks, spaces, characters of several bytes and ones that combine.
texts = st.text(st.sampled_from(list("ab 1+.<|>\n\té你🙂\u0301")), max_size=30)


def test_a_token_that_crosses_the_boundary_is_outside() -> None:
    encoding = Encoding(np.arange(4, dtype=np.int32), np.array([[0, 2], [2, 3], [3, 3], [3, 6]], np.int32))
    assert tokens_inside(encoding, 0, 5).tolist() == [0, 1]
    assert tokens_inside(encoding, 1, 6).tolist() == [1, 3]
    assert uncovered("ab c.<", 0, 5, encoding.offsets[:2]) == 2


@given(text=texts.filter(len), ranges=st.lists(st.tuples(st.integers(2, 31), st.integers(0, 5)), max_size=6))
def test_uncovered_characters_are_those_in_no_token(text: str, ranges: list[tuple[int, int]]) -> None:
    start, end = 2, 2 + len(text)
    inside = [(begin, begin + length) for begin, length in ranges if begin + length <= end]
    covered = set().union(*(range(*span) for span in inside))
    expected = sum(not text[at - start].isspace() for at in range(start, end) if at not in covered)
    assert uncovered("ab" + text + "cd", start, end, np.array(inside, np.int32).reshape(-1, 2)) == expected


def _align(a: Ints, b: Ints) -> tuple[list[tuple[int, ...]], ...]:
    return tuple([tuple(pair) for pair in ranges.tolist()] for ranges in align(a, b))


def test_equal_tokenisations_pair_one_to_one() -> None:
    offsets = np.array([[0, 1], [1, 4], [4, 5]], np.int32)
    assert _align(offsets, offsets) == ([(0, 1), (1, 2), (2, 3)],) * 2


def test_pairs_are_the_shortest_runs_that_end_together() -> None:
    first = np.array([[0, 3], [3, 5], [5, 9]], np.int32)
    second = np.array([[0, 1], [1, 3], [3, 6], [6, 9]], np.int32)
    assert _align(first, second) == ([(0, 1), (1, 3)], [(0, 2), (2, 4)])


def test_tokens_without_a_counterpart_are_in_no_pair() -> None:
    first = np.array([[0, 2], [2, 3], [3, 4]], np.int32)
    second = np.array([[2, 3]], np.int32)
    assert _align(first, second) == ([(1, 2)], [(0, 1)])
    assert _align(first, np.zeros((0, 2), np.int32)) == ([], [])


def test_tokens_of_one_character_stay_together() -> None:
    bytes_of_a_face = np.array([[0, 1], [0, 1], [1, 2]], np.int32)
    characters = np.array([[0, 1], [1, 2]], np.int32)
    assert _align(bytes_of_a_face, characters) == ([(0, 2), (2, 3)], [(0, 1), (1, 2)])


@pytest.mark.parametrize("kinds", [("chat", "base"), ("chat", "sliding"), ("base", "sliding")])
@settings(max_examples=examples(20), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=texts)
def test_any_two_tokenizers_pair_every_character(tiny: Callable[..., Path], kinds: tuple[str, str], text: str) -> None:
    first, second = (encode(tokenizer_of(tiny(kind)), [text])[0] for kind in kinds)
    ranges_a, ranges_b = _align(first.offsets, second.offsets)
    covered = [_characters(first, pair) for pair in ranges_a]
    assert covered == [_characters(second, pair) for pair in ranges_b]
    assert set().union(*covered) >= _characters(first, (0, len(first))) & _characters(second, (0, len(second)))


def _characters(encoding: Encoding, pair: tuple[int, int]) -> set[int]:
    return {char for start, end in encoding.offsets[slice(*pair)].tolist() for char in range(start, end)}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=examples(20), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(st.integers(4, 320), max_size=40))
def test_offsets_of_sampled_tokens_cover_their_text(tiny: Callable[..., Path], kind: str, ids: list[int]) -> None:
    tokenizer = tokenizer_of(tiny(kind))
    context = tokenizer("Say: ")["input_ids"]
    offsets = sampled_offsets(tokenizer, context, ids)
    assert len(offsets) == len(ids)
    assert (np.diff(offsets, axis=1) >= 0).all()
    assert (np.diff(offsets[:, 0]) >= 0).all()
    if ids:
        assert offsets[0, 0] == 0
        assert offsets[-1, 1] == len(decode_after(tokenizer, context, ids))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=examples(20), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=texts)
def test_offsets_of_a_text_by_decoding_are_those_of_its_tokenisation(
    tiny: Callable[..., Path], kind: str, text: str
) -> None:
    tokenizer = tokenizer_of(tiny(kind))
    context, both = encode(tokenizer, ["x:", "x:" + text])
    if both.ids[: len(context)].tolist() != context.ids.tolist() or "\u0301" in text:
        return  # the text fuses with what is before it, or is normalised
    decoded = sampled_offsets(tokenizer, context.ids.tolist(), both.ids[len(context) :].tolist())
    ranges = _align(decoded, both.offsets[len(context) :] - np.int32(2))
    assert ranges[0] == ranges[1]


@pytest.mark.parametrize("text", ["Cộng một với một, được hai ở đây.", "하나를 더하면 둘입니다."])
def test_decomposed_characters_belong_to_the_token_of_their_letter(tiny: Callable[..., Path], text: str) -> None:
    """A tokenizer that composes characters gives the range of the letter without its accents."""
    composed, decomposed = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
    composing, plain = (AutoTokenizer.from_pretrained(tiny(kind)) for kind in ("chat", "sliding"))
    for tokenizer in (composing, plain):
        [encoding] = encode(tokenizer, [decomposed])
        assert uncovered(decomposed, 0, len(decomposed), encoding.offsets) == 0
    counts = []
    for form in (composed, decomposed):
        [a], [b] = encode(composing, [form]), encode(plain, [form])
        pairs = list(zip(*_align(a.offsets, b.offsets), strict=True))
        for (first, last), (begin, end) in pairs:
            assert a.offsets[first, 0] == b.offsets[begin, 0] and a.offsets[last - 1, 1] == b.offsets[end - 1, 1]
        assert sum(last - first for (first, last), _ in pairs) == len(a)  # every token has a counterpart
        counts.append(len(pairs))
    assert counts[0] == counts[1]


def test_marks_are_read_only_where_they_are_complete(tiny: Callable[..., Path]) -> None:
    tokenizer = tokenizer_of(tiny())
    lone = f"a{OPEN}b{CLOSE} c{BREAK}"
    assert unmarked(lone) == lone
    [encoding] = encode(tokenizer, [lone])
    assert encoding.ids.tolist() == tokenizer(lone, add_special_tokens=False)["input_ids"]
    marked = f"a{OPEN}<{BREAK}|im_end|>{CLOSE}b<|im_end|>"
    assert unmarked(marked) == "a<|im_end|>b<|im_end|>"
    [encoding] = encode(tokenizer, [marked])
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert encoding.ids.tolist().count(end) == 1 and encoding.ids[-1] == end
    assert "".join(unmarked(marked)[a:b] for a, b in encoding.offsets.tolist()) == unmarked(marked)
    assert "the noncharacter U+FDD0" in str(load_format("rlt").problem_with(f"q{OPEN}", "s"))
