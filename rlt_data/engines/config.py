"""Load a checkpoint's configuration and tokenizer, and pick device and dtype; all before weights are loaded."""

from __future__ import annotations

import math
import os
import re
from typing import Any, cast

import torch

from rlt_data.engines.gpus import unusable_gpu
from rlt_data.engines.models import Checkpoint
from rlt_data.errors import ModelError, SettingsError, first_line
from rlt_data.formats import ChatTemplate, Tokenizer
from rlt_data.libraries import paused_gc
from rlt_data.settings import ModelSettings

#: Kinds of layers that have no keys and values, in Transformers' names.
_WITHOUT_KEYS = {"linear_attention", "mamba", "conv", "moe"}


@paused_gc()
def load_config(checkpoint: Checkpoint, settings: ModelSettings) -> Any:
    """Load a checkpoint's configuration.

    Raises:
        ModelError: it cannot be read, or needs the checkpoint's code and ``--trust-remote-code`` was not given.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=settings.trust_remote_code)
    except Exception as error:  # noqa: BLE001 - wrong types in the file raise anything
        raise ModelError(f"{checkpoint.name}: the configuration cannot be loaded: {first_line(error)}") from None


@paused_gc()
def open_tokenizer(checkpoint: Checkpoint, settings: ModelSettings) -> tuple[Tokenizer, ChatTemplate]:
    """Load a checkpoint's tokenizer and chat template.

    Raises:
        ModelError: the tokenizer is missing, cannot be loaded or gives no character offsets.
        SettingsError: the file of ``--chat-template`` does not exist.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=settings.trust_remote_code)
        tokenizer("a")
    except Exception as error:  # noqa: BLE001 - wrong types in the file raise anything
        raise ModelError(f"{checkpoint.name}: the tokenizer cannot be loaded: {first_line(error)}") from None
    if not tokenizer.is_fast:
        raise ModelError(f"{checkpoint.name}: the tokenizer gives no character offsets (a fast tokenizer is required)")
    template = ChatTemplate(tokenizer, settings.chat_template, settings.template_options, settings.template_date)
    return cast(Tokenizer, tokenizer), template


def context_length_of(config: Any) -> int:
    """Return the context length in a configuration, in tokens; 2**31 - 1 if it sets no limit."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", 0) or 2**31 - 1)


def vocabulary_size(config: Any) -> int:
    """Return the vocabulary size in a configuration; 2**31 - 1 if it gives none."""
    return int(getattr(config.get_text_config(), "vocab_size", 0) or 2**31 - 1)


def cache_bytes(config: Any, tokens: int, itemsize: int, *, gpus: int = 1) -> int:
    """Return the size of a text's keys and values on each GPU, in bytes.

    Layers with windows or chunks keep no more tokens than these have. The states of recurrent layers are not counted.

    Args:
        config: the model's configuration.
        tokens: length of the text.
        itemsize: bytes of a value.
        gpus: GPUs that share the heads.
    """
    text = config.get_text_config()
    if rank := getattr(text, "kv_lora_rank", None):
        values = rank + text.qk_rope_head_dim  # DeepSeek's latent attention has one vector for all heads, on each GPU
    else:
        attention_heads = getattr(text, "num_attention_heads", 0)
        heads = getattr(text, "num_key_value_heads", None) or attention_heads
        size = getattr(text, "head_dim", None) or text.hidden_size // max(attention_heads, 1)
        values = 2 * math.ceil(heads / gpus) * size
    window = getattr(text, "sliding_window", None)
    limits = {"sliding_attention": window, "chunked_attention": getattr(text, "attention_chunk_size", None)}
    # Without kinds of layers, a window is that of all layers (Mistral).
    kinds = getattr(text, "layer_types", None) or ["sliding_attention"] * text.num_hidden_layers
    kept = sum(min(tokens, limits.get(kind) or tokens) for kind in kinds if kind not in _WITHOUT_KEYS)
    return int(kept * values * itemsize)


def pick_device(name: str) -> torch.device:
    """Return the device that ``--device`` names.

    If ``accelerate launch`` or torchrun started several processes, ``auto`` and ``cuda`` give each a different GPU.

    Raises:
        SettingsError: this machine has no such device, or ``auto`` would run on the CPU because PyTorch cannot use
            the GPU.
    """
    if name == "auto":
        if problem := unusable_gpu():
            raise SettingsError(f"--device: {problem}; --device cpu or CUDA_VISIBLE_DEVICES= runs on the CPU")
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    chosen_here = name == "cuda" and launched
    if chosen_here:
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        device = torch.device(name)
        if chosen_here:
            # Otherwise every process would open a context of half a gigabyte on GPU 0, the default device.
            torch.cuda.set_device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = unusable_gpu() or first_line(error)
        if re.fullmatch(r"cuda:\d+", name) and torch.cuda.is_available():
            chosen = "accelerate or torchrun started more processes than there are GPUs; " if chosen_here else ""
            reason = f"{chosen}PyTorch sees {torch.cuda.device_count()} GPUs, numbered from 0 ({reason})"
        raise SettingsError(f"--device: {name!r} cannot be used on this machine: {reason}") from None
    return device


def describe_device(device: torch.device) -> str:
    """Return a device and its GPU's name, such as ``cuda:0, NVIDIA H100 80GB HBM3``."""
    return f"{device}, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else str(device)


def stored_dtype(config: Any) -> torch.dtype:
    """Return the dtype of the weights in a configuration; float32 if it gives none."""
    stored = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    return cast(torch.dtype, stored or torch.float32)


def pick_dtype(name: str, config: Any, device: torch.device) -> torch.dtype:
    """Return the dtype that ``--dtype`` names; ``auto`` is the checkpoint's, unless a CPU would have to emulate it."""
    if name != "auto":
        return cast(torch.dtype, getattr(torch, name))
    stored = stored_dtype(config)
    if device.type != "cpu":
        return stored
    capabilities = torch.cpu.get_capabilities()
    has_bfloat16 = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if stored == torch.bfloat16 and has_bfloat16 else torch.float32
