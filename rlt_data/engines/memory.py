"""Estimate the GPU memory of a model that samples or scores, from its configuration and files, before it is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rlt_data.engines.config import cache_bytes, load_config
from rlt_data.engines.open import Model
from rlt_data.engines.vllm.loading import SCORING_BATCH_TOKENS
from rlt_data.settings import ModelSettings

_GIB = 2**30

#: Tokens of a forward pass without ``--batch-tokens``; vLLM scores fewer at a time.
_PASS_TOKENS = 16384
#: Samples of a step of decoding without ``--batch-size``.
_SAMPLES = 256
#: Bytes per entry of the vocabulary: float32 logits; for the log-probs of a text, vLLM's first model runner has
#: bfloat16 logits and their float32 log-softmax.
_LOGIT_BYTES, _VLLM_SCORING_LOGIT_BYTES = 4, 6
#: Logits of the transformers engine when it scores: 1,024 tokens by a block of 16,384 entries.
_SCORING_LOGITS = 1024 * 16384


@dataclass(frozen=True)
class ModelMemory:
    """Estimated memory of a model on each of its GPUs, in GiB.

    Attributes:
        model: name of the model.
        dtype: data type of its weights.
        weights_gib: weights.
        cache_gib: keys and values of one text of the given length.
        pass_gib: inner activations of one layer in a forward pass, and logits.
    """

    model: str
    dtype: str
    weights_gib: float
    cache_gib: float
    pass_gib: float


def model_memory(model: Model, tokens: int) -> ModelMemory:
    """Estimate the memory of a model on GPUs, of which this machine may have none.

    Args:
        model: the model; its weights need not be loaded.
        tokens: length of the longest text.
    """
    config = load_config(model.checkpoint, model.settings)
    name, weights = model.checkpoint.name, model.weight_bytes
    return estimate_memory(name, config, model.settings, weights, model.gpu_dtype, tokens, scoring=model.scoring)


def estimate_memory(
    name: str,
    config: Any,
    settings: ModelSettings,
    weight_bytes: float,
    dtype: torch.dtype,
    tokens: int,
    *,
    scoring: bool,
) -> ModelMemory:
    """Estimate the memory of a model without its files.

    Args:
        name: name of the model.
        config: Transformers configuration.
        settings: settings of the engine.
        weight_bytes: size of the loaded weights.
        dtype: their data type on GPUs.
        tokens: length of the longest text.
        scoring: the engine scores texts; otherwise it samples.
    """
    gpus, text = settings.tensor_parallel, config.get_text_config()
    return ModelMemory(
        model=name,
        dtype=str(dtype).removeprefix("torch."),
        weights_gib=weight_bytes / gpus / _GIB,
        cache_gib=cache_bytes(config, tokens, dtype.itemsize, gpus=gpus) / _GIB,
        pass_gib=_pass_bytes(text, settings, dtype, scoring=scoring) / _GIB,
    )


def _pass_bytes(config: Any, settings: ModelSettings, dtype: torch.dtype, *, scoring: bool) -> int:
    scores_by_vllm = scoring and settings.engine == "vllm"
    tokens = settings.batch_tokens or (SCORING_BATCH_TOKENS if scores_by_vllm else _PASS_TOKENS)
    if scores_by_vllm:
        logits = tokens * config.vocab_size * _VLLM_SCORING_LOGIT_BYTES
    elif scoring:
        logits = _SCORING_LOGITS * _LOGIT_BYTES
    else:
        logits = (settings.batch_size or _SAMPLES) * config.vocab_size * _LOGIT_BYTES
    inner = 8 * config.hidden_size + 3 * _inner_size(config) / settings.tensor_parallel
    return int(tokens * inner * dtype.itemsize + logits)


def _inner_size(config: Any) -> int:
    """Return how many inner activations the MLP of a layer has for a token."""
    dense = getattr(config, "intermediate_size", 0) or 4 * config.hidden_size
    expert = getattr(config, "moe_intermediate_size", 0) or dense
    return int(max(dense, expert * (getattr(config, "num_experts_per_tok", 0) or 0)))


def fitting_texts(models: Sequence[ModelMemory], gpu_gib: float) -> int:
    """Return how many texts of the given length each model can have in memory; 0 if the models do not fit.

    Models that share a GPU have equal parts of what their weights leave, as in :func:`rlt_data.engines.memory_shares`.

    Args:
        models: memory of the models that share the GPU.
        gpu_gib: memory of the GPU that they may use, in GiB.
    """
    rest = (gpu_gib - sum(model.weights_gib for model in models)) / len(models)
    return max(min(int((rest - model.pass_gib) / model.cache_gib) for model in models), 0)
