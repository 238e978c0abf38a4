"""Ranges from the bytes of tokens, against those of the tokenizers themselves."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rlt_data.formats import encode
from rlt_data.formats.pieces import pieces_of
from rlt_data.formats.spans import sampled_offsets
from tests.conftest import examples
from tests.formats.test_spans import KINDS, tokenizer_of

Tiny = Callable[..., Path]

#: Characters of one to four bytes, some composed of several, spaces of every kind, control tokens, what bytes become.
texts = st.text(st.sampled_from(list("ab 1+.<|>\n\té你🙂\u0301\u2581\ufffd\u00a0\x00한\u1112\u1161한")), max_size=30)
mixed = st.lists(st.one_of(texts, st.sampled_from(["<|im_end|>", "<bos>", "<0x0A>", " </s> ", "👨‍👩‍👧"])), max_size=4)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=examples(40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=mixed)
def test_tokens_and_ranges_are_those_of_the_tokenizer(tiny: Tiny, kind: str, parts: list[str]) -> None:
    tokenizer, text = tokenizer_of(tiny(kind)), unicodedata.normalize("NFC", "".join(parts))
    own = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    [encoding] = encode(tokenizer, [text])
    assert encoding.ids.tolist() == own["input_ids"]
    assert list(map(tuple, encoding.offsets.tolist())) == own["offset_mapping"]


@pytest.mark.parametrize("kind", KINDS)
def test_one_call_tokenises_a_text_and_one_decodes_all_tokens(tiny: Tiny, kind: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny(kind))
    text = "Où est l'élève? 🙂 The number 17 times 23 is 391.\n\n" * 50
    encode(tokenizer, ["the first call compares ways to tokenise"])
    calls = mock.patch.object(type(tokenizer), "__call__", autospec=True, side_effect=AssertionError("not needed"))
    with calls, mock.patch.object(tokenizer, "decode", wraps=tokenizer.decode) as decode:
        [encoding] = encode(tokenizer, [text])
        ranges = sampled_offsets(tokenizer, [], encoding.ids.tolist())
    assert decode.call_count == 1
    assert ranges.tolist() == encoding.offsets.tolist()


def test_bytes_that_are_no_character_have_the_range_of_their_replacement(tiny: Tiny) -> None:
    tokenizer = tokenizer_of(tiny("chat"))
    ids = {byte: tokenizer.convert_tokens_to_ids(char) for byte, char in {0xF0: "ð", 0x9F: "Ł", 0xFF: "ÿ"}.items()}
    [a] = tokenizer("a")["input_ids"]
    [face] = encode(tokenizer, ["🙂"])
    # F0 9F is the beginning of a character, which one U+FFFD replaces; FF is never part of one.
    sampled = [a, ids[0xF0], ids[0x9F], a, ids[0xFF], ids[0xFF], *face.ids.tolist(), ids[0xF0]]
    assert tokenizer.decode(sampled) == "a\ufffda\ufffd\ufffd🙂\ufffd"
    expected = [[0, 1], [1, 2], [1, 2], [2, 3], [3, 4], [4, 5], *[[5, 6]] * len(face), [6, 7]]
    assert sampled_offsets(tokenizer, [a, a], sampled).tolist() == expected


def test_bytes_of_sentencepiece_that_are_no_character(tiny: Tiny) -> None:
    """Its decoder replaces each byte, so the ranges come from decoding token after token."""
    tokenizer = tokenizer_of(tiny("sliding"))
    first, second = tokenizer.convert_tokens_to_ids(["<0xF0>", "<0x9F>"])
    [a] = tokenizer("a", add_special_tokens=False)["input_ids"]
    assert sampled_offsets(tokenizer, [a], [a, first, second, a]).tolist() == [[0, 1], [1, 4], [1, 4], [1, 4]]


def _word_tokenizer(decoder: Any, normalizer: Any = None, cls: type = PreTrainedTokenizerFast) -> Any:
    words = ["<unk>", "\u2581a", "\u2581b", "a", "b", "\u2581", "c", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {word: id for id, word in enumerate(words)}
    merges = [("\u2581", "a"), ("\u2581", "b")]
    backend = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>"))
    backend.decoder = decoder
    if normalizer:
        backend.normalizer = normalizer
    return cls(tokenizer_object=backend, clean_up_tokenization_spaces=False)


def test_a_tokenizer_that_adds_a_space_before_a_text_and_removes_it_after() -> None:
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer = _word_tokenizer(decoders.Sequence(steps), normalizer)
    assert pieces_of(tokenizer.backend_tokenizer) is not None
    for text in ("a b", " a b", "", "a🙂b", "  "):
        own = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        [encoding] = encode(tokenizer, [text])
        assert encoding.ids.tolist() == own["input_ids"]
        assert list(map(tuple, encoding.offsets.tolist())) == own["offset_mapping"]
    [encoding] = encode(tokenizer, ["a b"])
    ids = encoding.ids.tolist()
    assert sampled_offsets(tokenizer, [], ids).tolist() == [[0, 1], [1, 3]]
    assert sampled_offsets(tokenizer, ids, ids).tolist() == [[0, 2], [2, 4]]


def test_a_tokenizer_with_another_decoder() -> None:
    tokenizer = _word_tokenizer(decoders.Metaspace(), normalizers.Replace(" ", "\u2581"))
    assert pieces_of(tokenizer.backend_tokenizer) is None
    [encoding] = encode(tokenizer, ["a b c"])
    assert encoding.offsets.tolist() == [[0, 1], [1, 3], [3, 4], [4, 5]]
    ids = encoding.ids.tolist()
    assert sampled_offsets(tokenizer, ids, ids).tolist() == encoding.offsets.tolist()


class Lowercasing(PreTrainedTokenizerFast):
    """A class that does more than its backend for some texts, as the code of a model may."""

    def _encode_plus(self, text: Any, *arguments: Any, **options: Any) -> Any:
        texts = text if isinstance(text, list) else [text]
        lower = [one.lower() if one.startswith("A B") else one for one in texts]
        return super()._encode_plus(lower if isinstance(text, list) else lower[0], *arguments, **options)


def test_a_class_that_changes_what_its_backend_does_is_asked() -> None:
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer = _word_tokenizer(decoders.Sequence(steps), normalizers.Replace(" ", "\u2581"), Lowercasing)
    [encoding] = encode(tokenizer, ["A B"])
    assert tokenizer.convert_ids_to_tokens(encoding.ids.tolist()) == ["a", "\u2581b"]


def test_truncation_and_padding_of_earlier_calls_have_no_effect(tiny: Tiny) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny("chat"))
    text = "A text of some tokens. <|im_end|>"
    [before] = encode(tokenizer, [text])
    assert len(before) > 5
    tokenizer([text], truncation=True, max_length=5)
    assert np.array_equal(encode(tokenizer, [text])[0].ids, before.ids)
    tokenizer([text], padding="max_length", max_length=100, split_special_tokens=True)
    assert np.array_equal(encode(tokenizer, [text])[0].ids, before.ids)
