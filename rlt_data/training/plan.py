"""What a training will take, worked out before weights are loaded: steps, tokens, memory on each GPU."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rlt_data.errors import SettingsError
from rlt_data.settings import FineTuneSettings, PolicySettings, TrainingSettings
from rlt_data.training.runs import missing_dependency, saved_dtype

#: Bytes that full fine-tuning keeps for each parameter: weights, gradients and AdamW's two moments in float32.
_BYTES_FULL = 16
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


def plan_of(settings: FineTuneSettings, config: Any, rows: Sequence[dict[str, list[int]]], left_out: int) -> Plan:
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
    accumulation = _accumulation(settings, settings.batch_size, "--batch-size")
    lengths = [len(row["input_ids"]) for row in rows]
    packs = _packed(rows, settings.max_length) if settings.packing else len(rows)
    steps = settings.max_steps or math.ceil(packs / settings.batch_size) * settings.epochs
    parameters, trained = _parameters(config, settings, settings.lora_rank)
    frozen = parameters * saved_dtype(settings, config).itemsize if settings.lora_rank else 0
    width = settings.micro_batch_size * (settings.max_length if settings.packing else max(lengths))
    return Plan(
        rows=len(rows),
        left_out=left_out,
        tokens=sum(lengths),
        learned_tokens=sum(label >= 0 for row in rows for label in row["labels"]),
        longest=max(lengths),
        steps=steps,
        processes=processes,
        accumulation=accumulation,
        parameters=parameters,
        state_gib=(_BYTES_FULL * trained + frozen) / processes / _GIB,
        activations_gib=_activations(config, width) / _GIB,
    )


def _packed(rows: Sequence[dict[str, list[int]]], length: int) -> int:
    """Return how many sequences the rows make when TRL packs them, as it will for the training."""
    try:
        from datasets import Dataset
        from trl import pack_dataset
    except ImportError as error:
        raise missing_dependency("TRL", error) from None
    return len(pack_dataset(Dataset.from_dict({"input_ids": [row["input_ids"] for row in rows]}), length, "bfd"))


@dataclass(frozen=True)
class PolicyPlan:
    """What a training by GRPO will take.

    Attributes:
        questions: questions to train on.
        held_out: questions kept to choose the best checkpoint by.
        left_out: questions whose prompt leaves too little room for a sample.
        longest: tokens of the longest prompt.
        steps: optimizer steps.
        epochs: times each question comes in them.
        samples: samples of a step.
        tokens: most tokens that all steps can take, if every sample has the longest length.
        processes: processes that train together.
        accumulation: forward passes of a process for each step.
        parameters: parameters of the policy.
        state_gib: memory of weights, gradients, optimizer and reference model on each GPU, in GiB, if they are sharded
            over all.
        student_gib: memory of the frozen student's weights on each GPU, in GiB; 0 without one.
        activations_gib: see :class:`Plan`.
    """

    questions: int
    held_out: int
    left_out: int
    longest: int
    steps: int
    epochs: float
    samples: int
    tokens: int
    processes: int
    accumulation: int
    parameters: int
    state_gib: float
    student_gib: float
    activations_gib: float


def policy_plan_of(
    settings: PolicySettings,
    config: Any,
    prompts: Sequence[int],
    *,
    held_out: int,
    left_out: int,
    student: Any = None,
    student_dtype: torch.dtype = torch.bfloat16,
) -> PolicyPlan:
    """Work out a training by GRPO.

    Args:
        settings: see there.
        config: the policy's configuration.
        prompts: tokens of each prompt to train on.
        held_out: questions that are kept out.
        left_out: questions that were too long.
        student: the frozen student's configuration, if there is one.
        student_dtype: type in which it runs.

    Raises:
        SettingsError: the samples of a step cannot be divided among the processes.
    """
    processes = world_size()
    samples = settings.questions * settings.group
    parameters, _ = _parameters(config, settings)
    longest = max(prompts)
    reference = (4 if settings.dtype == "float32" else 2) if settings.beta else 0
    student_bytes = _parameters(student, settings)[0] * student_dtype.itemsize if student is not None else 0
    width = settings.micro_batch_size * (longest + settings.max_tokens)
    return PolicyPlan(
        questions=len(prompts),
        held_out=held_out,
        left_out=left_out,
        longest=longest,
        steps=settings.steps,
        epochs=settings.steps * settings.questions / len(prompts),
        samples=samples,
        tokens=settings.steps * samples * (longest + settings.max_tokens),
        processes=processes,
        accumulation=_accumulation(settings, samples, "--questions times --group"),
        parameters=parameters,
        state_gib=(_BYTES_FULL + reference) * parameters / processes / _GIB,
        student_gib=student_bytes / _GIB,
        activations_gib=_activations(config, width) / _GIB,
    )


def _accumulation(settings: TrainingSettings, batch: int, named: str) -> int:
    """Return how many forward passes each process does for a step."""
    share = settings.micro_batch_size * world_size()
    if batch % share:
        raise SettingsError(
            f"{named}: {batch} is no multiple of --micro-batch-size {settings.micro_batch_size} times {world_size()} "
            "processes"
        )
    return batch // share


def _activations(config: Any, width: int) -> int:
    """Return the bytes of a micro-batch of so many tokens; see :class:`Plan`."""
    text = config.get_text_config()
    inside = 2 * (8 * text.hidden_size + 3 * (getattr(text, "intermediate_size", 0) or 4 * text.hidden_size))
    return int(width * (2 * text.hidden_size * text.num_hidden_layers + inside) + 4 * 1024 * text.vocab_size)


def _parameters(config: Any, settings: TrainingSettings, lora_rank: int = 0) -> tuple[int, int]:
    """Count the parameters of a model, and those that are trained, without allocating them."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, trust_remote_code=settings.trust_remote_code
        )
    total = sum(parameter.numel() for parameter in model.parameters())
    if not lora_rank:
        return total, total
    head = model.get_output_embeddings()
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear) and layer is not head]
    return total, sum(lora_rank * (layer.in_features + layer.out_features) for layer in layers)
