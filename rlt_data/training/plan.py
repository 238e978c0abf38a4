"""What a training will take, worked out before weights are loaded: steps, tokens, memory on each GPU."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlt_data.errors import SettingsError
from rlt_data.settings import TrainStudentSettings

#: Bytes that full fine-tuning keeps for each parameter: weights, gradients and AdamW's two moments in float32.
_BYTES_FULL = 16
#: Bytes of a frozen bfloat16 parameter under LoRA.
_BYTES_FROZEN = 2
_GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """What a training will take.

    Attributes:
        rows: rows to train on.
        left_out: rows that are longer than ``max_length``.
        tokens: tokens of an epoch.
        learned_tokens: those that count in the loss.
        longest: tokens of the longest row.
        steps: optimizer steps.
        processes: processes that train together.
        accumulation: forward passes of a process for each step.
        parameters: parameters of the model.
        state_gib: memory of weights, gradients and optimizer on each GPU, in GiB, if they are sharded over all.
        activations_gib: memory of one micro-batch of the longest rows with checkpointed layers, in GiB: each layer's
            input in bfloat16, one layer's inside, and float32 logits of one block of 1024 tokens.
    """

    rows: int
    left_out: int
    tokens: int
    learned_tokens: int
    longest: int
    steps: int
    processes: int
    accumulation: int
    parameters: int
    state_gib: float
    activations_gib: float


def world_size() -> int:
    """Return how many processes ``accelerate launch`` or torchrun started for this training."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def plan_of(settings: TrainStudentSettings, config: Any, rows: Sequence[dict[str, list[int]]], left_out: int) -> Plan:
    """Work out a training.

    Args:
        settings: see there.
        config: the model's configuration.
        rows: ``input_ids`` and ``labels``.
        left_out: rows that were too long.

    Raises:
        SettingsError: the batch cannot be divided among the processes.
    """
    processes = world_size()
    share = settings.micro_batch_size * processes
    if settings.batch_size % share:
        raise SettingsError(
            f"--batch-size: {settings.batch_size} is no multiple of --micro-batch-size {settings.micro_batch_size} "
            f"times {processes} processes"
        )
    lengths = [len(row["input_ids"]) for row in rows]
    packs = math.ceil(sum(lengths) / settings.max_length) if settings.packing else len(rows)
    steps = settings.max_steps or math.ceil(packs / settings.batch_size) * settings.epochs
    parameters, trained = _parameters(config, settings.lora_rank)
    frozen = parameters if settings.lora_rank else 0
    text = config.get_text_config()
    width = settings.micro_batch_size * (settings.max_length if settings.packing else max(lengths))
    inside = 2 * (8 * text.hidden_size + 3 * (getattr(text, "intermediate_size", 0) or 4 * text.hidden_size))
    activations = width * (2 * text.hidden_size * text.num_hidden_layers + inside) + 4 * 1024 * text.vocab_size
    return Plan(
        rows=len(rows),
        left_out=left_out,
        tokens=sum(lengths),
        learned_tokens=sum(label >= 0 for row in rows for label in row["labels"]),
        longest=max(lengths),
        steps=steps,
        processes=processes,
        accumulation=settings.batch_size // share,
        parameters=parameters,
        state_gib=(_BYTES_FULL * trained + _BYTES_FROZEN * frozen) / processes / _GIB,
        activations_gib=activations / _GIB,
    )


def _parameters(config: Any, lora_rank: int) -> tuple[int, int]:
    """Count the parameters of a model, and those that are trained, without allocating them."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    total = sum(parameter.numel() for parameter in model.parameters())
    if not lora_rank:
        return total, total
    head = model.get_output_embeddings()
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear) and layer is not head]
    return total, sum(lora_rank * (layer.in_features + layer.out_features) for layer in layers)
