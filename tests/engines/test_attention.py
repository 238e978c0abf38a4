"""Attention in blocks against the plain forward pass, for every kind of attention."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from rlt_data.engines.transformers import attention
from rlt_data.engines.transformers.model import CausalModel
from rlt_data.errors import ModelError

_COMMON: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.2,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
_MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "grouped heads": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**_COMMON)),
    "one head per key": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**{**_COMMON, "num_key_value_heads": 4})
    ),
    "windows": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**_COMMON, sliding_window=24)),
    "windows in some layers": lambda: transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(**_COMMON, head_dim=16, sliding_window=24, layer_types=_MIXED)
    ),
    "soft cap": lambda: transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(
            **_COMMON, head_dim=16, query_pre_attn_scalar=16, sliding_window=24, attn_logit_softcapping=3.0
        )
    ),
    "latent heads": lambda: transformers.DeepseekV3ForCausalLM(
        transformers.DeepseekV3Config(
            **{**_COMMON, "num_key_value_heads": 4},
            q_lora_rank=32,
            kv_lora_rank=16,
            qk_rope_head_dim=8,
            qk_nope_head_dim=16,
            v_head_dim=12,
            first_k_dense_replace=3,
            rope_scaling=None,
        )
    ),
    "sinks": lambda: transformers.GptOssForCausalLM(
        transformers.GptOssConfig(
            **_COMMON, head_dim=16, num_local_experts=2, num_experts_per_tok=1, sliding_window=24, rope_scaling=None
        )
    ),
    "unused window": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**_COMMON, sliding_window=24, use_sliding_window=False)
    ),
    "shared keys": lambda: transformers.Gemma4ForCausalLM(
        transformers.Gemma4TextConfig(
            **_COMMON | {"num_hidden_layers": 6, "initializer_range": 0.1},
            layer_types=_MIXED * 2,
            head_dim=16,
            global_head_dim=16,
            sliding_window=24,
            vocab_size_per_layer_input=300,
            hidden_size_per_layer_input=8,
            num_kv_shared_layers=3,
        )
    ),
    "own masks": lambda: transformers.DogeForCausalLM(transformers.DogeConfig(**_COMMON)),
}
KINDS = pytest.mark.parametrize("kind", _MODELS)

#: Lengths of the prompts, and of the texts with their continuations.
_PROMPTS, _TEXTS = (150, 70, 137), (380, 300, 200)
_TOKENS = max(_TEXTS)
#: Largest difference of outputs of about 1; with Gemma 4, rounding differs most.
_ROUNDING = 1e-4


def pair(kind: str, dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, CausalModel]:
    """Return an unmodified model, and a copy with attention in blocks."""
    torch.manual_seed(0)
    plain = _MODELS[kind]().to(dtype).eval()
    model = CausalModel(copy.deepcopy(plain), kind, exact=dtype == torch.float32)
    model.use_blocks()
    return plain, model


def texts() -> torch.Tensor:
    return torch.randint(3, 300, (3, _TOKENS), generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def expected(plain: PreTrainedModel) -> list[torch.Tensor]:
    """Return the outputs of each text, computed alone."""
    return [
        plain.base_model(input_ids=ids[None, :length]).last_hidden_state[0]
        for ids, length in zip(texts(), _TEXTS, strict=True)
    ]


def padded_prompts() -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask of the prompts, padded on the left."""
    longest = max(_PROMPTS)
    ids, mask = torch.zeros(3, longest, dtype=torch.int64), torch.zeros(3, longest, dtype=torch.int64)
    for row, length in enumerate(_PROMPTS):
        ids[row, longest - length :] = texts()[row, :length]
        mask[row, longest - length :] = 1
    return ids, mask


def largest(found: list[torch.Tensor], right: list[torch.Tensor]) -> float:
    return max(float((a.float() - b.float()).abs().max()) for a, b in zip(found, right, strict=True))


@KINDS
def test_padded_texts_have_the_outputs_of_a_plain_pass(kind: str) -> None:
    plain, model = pair(kind)
    mask = (torch.arange(_TOKENS) < torch.tensor(_TEXTS)[:, None]).long()
    positions = torch.arange(_TOKENS).expand(3, -1)
    hidden = model.hidden(texts(), mask, positions)
    assert largest([row[:length] for row, length in zip(hidden, _TEXTS, strict=True)], expected(plain)) < _ROUNDING


@KINDS
@pytest.mark.parametrize("step", [1, 50, 1000])
def test_continuations_of_cached_prompts_have_the_outputs_of_a_plain_pass(kind: str, step: int) -> None:
    plain, model = pair(kind)
    ids, mask = padded_prompts()
    cache = model.new_cache()
    prompt_hidden = model.hidden(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), cache)
    right = expected(plain)
    found = [row[max(_PROMPTS) - length :] for row, length in zip(prompt_hidden, _PROMPTS, strict=True)]
    assert largest(found, [row[:length] for row, length in zip(right, _PROMPTS, strict=True)]) < _ROUNDING

    count = min(text - prompt for prompt, text in zip(_PROMPTS, _TEXTS, strict=True))
    order = [2, 0, 1, 0]  # rows of prompts can repeat, in any order
    prompts = [_PROMPTS[row] for row in order]
    new_ids = torch.stack([texts()[row, length : length + count] for row, length in zip(order, prompts, strict=True)])
    first = torch.tensor(prompts)[:, None]
    cache, mask = cache.select(torch.tensor(order), 8), mask[torch.tensor(order)]
    parts = []
    for start in range(0, count, step):
        part = new_ids[:, start : start + step]
        mask = torch.cat([mask, mask.new_ones(part.shape)], 1)
        positions = first + torch.arange(start, start + part.shape[1])
        parts.append(model.hidden(part, mask, positions, cache))
    continued = [right[row][length : length + count] for row, length in zip(order, prompts, strict=True)]
    assert largest(list(torch.cat(parts, 1)), continued) < _ROUNDING


@pytest.mark.parametrize(
    "kind", [kind for kind in _MODELS if kind not in ("soft cap", "sinks", "own masks", "shared keys")]
)
def test_the_bits_do_not_depend_on_how_a_text_is_split(kind: str) -> None:
    _, model = pair(kind)
    ids = texts()[:1]
    complete = model.hidden(ids)
    for start in (1, 63, 64, 100, 201):
        assert torch.equal(model.hidden(ids[:, :start]), complete[:, :start])
        cache = model.new_cache()
        ones = torch.ones(1, _TOKENS, dtype=torch.int64)
        model.hidden(ids[:, :start], ones[:, :start], torch.arange(start)[None], cache)
        for begin, end in ((start, start + 1), (start + 1, start + 60), (start + 60, _TOKENS)):
            hidden = model.hidden(ids[:, begin:end], ones[:, :end], torch.arange(begin, end)[None], cache)
            assert torch.equal(hidden, complete[:, begin:end])


@KINDS
def test_half_precision_agrees_within_rounding(kind: str) -> None:
    plain, model = pair(kind, torch.bfloat16)
    mask = (torch.arange(_TOKENS) < torch.tensor(_TEXTS)[:, None]).long()
    hidden = model.hidden(texts(), mask, torch.arange(_TOKENS).expand(3, -1))
    for row, right in zip(hidden, expected(plain), strict=True):
        assert (row[: len(right)].float() - right.float()).abs().mean() < 0.02 * right.float().abs().mean()


def test_only_visible_pairs_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = 0
    real = attention.scaled_dot_product_attention

    def count(query: torch.Tensor, key: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        nonlocal pairs
        pairs += query.shape[2] * key.shape[2]
        return real(query, key, *arguments, **options)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", count)
    _, model = pair("windows")
    model.hidden(texts()[:, :384])
    block, window = attention.BLOCK, 24
    assert pairs <= 3 * 3 * 384 * (block + window)  # of 384 keys
    pairs = 0
    _, model = pair("grouped heads")
    model.hidden(texts()[:, :384])
    assert pairs <= 3 * 3 * (384 * 384 / 2 + 384 * block)


def test_caches_of_window_layers_keep_the_window() -> None:
    for dtype, spare in ((torch.float32, attention.BLOCK), (torch.bfloat16, 0)):
        _, model = pair("windows in some layers", dtype)
        cache, ids = model.new_cache(), texts()[:2, :50]
        for start in range(0, 1000, 50):
            ones = torch.ones(2, start + 50, dtype=torch.int64)
            model.hidden(ids, ones, torch.arange(start, start + 50).expand(2, -1), cache)
        assert [layer.states[0].shape[2] for layer in cache.layers] == [23 + spare, 1000, 23 + spare]
        assert cache.layers[0]._buffers[0].shape[2] < 500 < cache.get_seq_length() == 1000  # type: ignore[index]


def test_other_masks_are_left_to_transformers() -> None:
    plain, model = pair("grouped heads")
    ids = texts()[:1, :40]
    packed = torch.cat([torch.arange(25), torch.arange(15)])[None]  # two texts in one row
    with torch.inference_mode():
        right = plain.base_model(input_ids=ids, position_ids=packed, use_cache=False).last_hidden_state
    assert largest([model.hidden(ids, position_ids=packed)], [right]) < _ROUNDING
    holes = torch.ones(1, 40, dtype=torch.int64)
    holes[0, 10:20] = 0
    with torch.inference_mode():
        right = plain.base_model(input_ids=ids, attention_mask=holes, use_cache=False).last_hidden_state
    assert largest([model.hidden(ids, holes)[0, 20:]], [right[0, 20:]]) < _ROUNDING


def test_models_in_other_implementations_are_left_as_they_are() -> None:
    assert pair("grouped heads")[1]._model.config._attn_implementation == attention.NAME
    assert pair("sinks")[1]._model.config._attn_implementation == "eager"
    assert pair("own masks")[1]._model.config._attn_implementation == "sdpa"


def test_a_model_whose_tokens_see_later_tokens_is_refused() -> None:
    config = transformers.LlamaConfig(**_COMMON)
    config.is_causal = False
    model = CausalModel(transformers.LlamaForCausalLM(config).eval(), "mutual")
    with pytest.raises(ModelError, match="mutual: not a causal language model; its tokens see later tokens"):
        model._check()


def test_noise_does_not_look_like_tokens_that_see_later_tokens() -> None:
    """The first tokens of a vocabulary are often untrained, with equal embeddings, so their order changes nothing."""
    _, model = pair("grouped heads", torch.bfloat16)
    model._model.get_input_embeddings().weight.data[:10] = 0.5
    torch.manual_seed(0)

    def change(_module: torch.nn.Module, _input: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits + 0.005 * logits.float().std() * torch.randn(logits.shape)  # such as by sums in any order

    model._model.lm_head.register_forward_hook(change)
    model._check()


@pytest.mark.parametrize(("scale", "noise", "accepted"), [(1.0, 0.0, True), (1.0, 0.02, True), (1.3, 0.0, False)])
def test_an_lm_head_is_refused_for_another_scale_but_not_for_rounding(
    scale: float, noise: float, accepted: bool
) -> None:
    _, model = pair("grouped heads", torch.bfloat16)
    model._model.lm_head.weight.data.mul_(20)
    torch.manual_seed(0)

    def change(_module: torch.nn.Module, _input: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits * scale + noise * logits.float().std() * torch.randn(logits.shape)

    model._model.lm_head.register_forward_hook(change)
    if accepted:
        model._check()
    else:
        with pytest.raises(ModelError, match="does not support this model's LM head"):
            model._check()


def test_a_model_that_ignores_positions_is_refused() -> None:
    config = transformers.BartConfig(
        vocab_size=300, d_model=64, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=64, is_decoder=True
    )
    with pytest.raises(ModelError, match="bart: padding before a text changes its outputs"):
        CausalModel(transformers.BartForCausalLM(config).eval(), "bart")._check()


def test_exact_products_keep_layers_that_do_more_than_multiply() -> None:
    config = transformers.PhimoeConfig(**_COMMON | {"num_local_experts": 2, "num_experts_per_tok": 1})
    model = CausalModel(transformers.PhimoeForCausalLM(config).eval(), "phimoe", exact=True)
    model.use_blocks()
    model._check()
