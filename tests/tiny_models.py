"""Real models of a few hundred kilobytes with random weights: one for each kind of tokenizer or attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_CORPUS = [
    "A tag such as <|begin_of_thought|> or <|end_of_explanation|> opens and closes a text between two lines.\n\n",
    "The number 17 times 23 is 391, because 17 * 20 = 340 and 17 * 3 = 51.\n\nThe sum is 340 + 51.\n\n",
    "We count the rolls, the pages and the apples; there are (3 + 4) * 2 = 14 of them... Is that right? Yes!\n",
    "def add(a, b):\n    return a + b\n\n\tfor each line of code, indent by four spaces\n",
    "Où est l'élève? L'équation x² − 5x + 6 = 0 a deux solutions, 2 et 3. 🙂 你好\n",
    "<think> and </think>, <answer> and </answer>, <explain> and </explain> are tags as well.\n",
] * 4

_WORDS = r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def make_tiny(folder: Path, kind: str, seed: int = 0) -> Path:
    """Make a model and its tokenizer.

    Args:
        folder: where to save it.
        kind: ``chat``: Qwen2 with a ChatML template, byte-level tokens, no BOS. ``base``: Llama without a template,
            with BOS and a byte-level tokenizer of another vocabulary. ``sliding``: Gemma 3 with a window of 24 tokens,
            tokens with BOS, byte fallback and "\u2581" for spaces, no template. ``fusing``: like ``chat``, but
            ``.<`` and ``)<`` are one token, as in vocabularies learned from web pages. ``wide``: like ``chat``, with
            attention heads of size 32, the smallest that vLLM supports on a CPU.
        seed: random seed of the weights.
    """
    torch.manual_seed(seed)
    tokenizer = {
        "chat": _chat_tokenizer,
        "wide": _chat_tokenizer,
        "fusing": _fusing_tokenizer,
        "base": _base_tokenizer,
        "sliding": _gemma_like_tokenizer,
    }[kind]()
    common: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128 if kind == "wide" else 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "initializer_range": 0.18 if kind == "wide" else 0.3,  # smaller, as wide layers sum more terms
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model: Any
    if kind in ("chat", "fusing", "wide"):
        model = Qwen2ForCausalLM(Qwen2Config(**common, tie_word_embeddings=False))
    elif kind == "base":
        model = LlamaForCausalLM(LlamaConfig(**common, tie_word_embeddings=True))
    else:
        layers = ["sliding_attention", "full_attention"]
        model = Gemma3ForCausalLM(Gemma3TextConfig(**common, head_dim=16, sliding_window=24, layer_types=layers))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _chat_tokenizer(corpus: list[str] = _CORPUS) -> PreTrainedTokenizerFast:
    tokenizer = _byte_level(400, corpus)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHATML,
        clean_up_tokenization_spaces=False,
    )


def _fusing_tokenizer() -> PreTrainedTokenizerFast:
    return _chat_tokenizer([".<", ")<"] * 100 + _CORPUS)


def _base_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = _byte_level(330)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )
    _prepend_bos(wrapped)
    return wrapped


def _byte_level(size: int, corpus: list[str] = _CORPUS) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet))
    return tokenizer


def _gemma_like_tokenizer() -> PreTrainedTokenizerFast:
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=tokens)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.train_from_iterator(_CORPUS, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    _prepend_bos(wrapped)
    return wrapped


def _prepend_bos(tokenizer: PreTrainedTokenizerFast) -> None:
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
