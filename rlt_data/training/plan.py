"""Estimate steps, tokens and GPU memory of a training before weights are loaded."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rlt_data.errors import SettingsError
from rlt_data.settings import FineTuneSettings, PolicySettings, TrainingSettings
from rlt_data.settings.training import DEFAULT_STEPS
from rlt_data.training.runs import missing_dependency, saved_dtype

#: Bytes per parameter in full fine-tuning: weights, gradients and AdamW's two moments in float32.
_BYTES_FULL = 16
_GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """Cost of a fine-tuning.

    Attributes:
        rows: number of training rows.
        left_out: number of rows longer than ``max_length``.
        tokens: tokens per epoch.
        learned_tokens: tokens per epoch that count in the loss.
        longest: tokens of the longest row.
        steps: optimizer steps.
        processes: number of training processes.
        accumulation: forward passes of each process per optimizer step.
        parameters: number of model parameters.
        state_gib: weights, gradients and optimizer state per GPU in GiB, if sharded over all GPUs.
        activations_gib: one micro-batch of the longest rows in GiB, with activation checkpointing: the bfloat16 inputs
            of all layers, the inner activations of one layer, and float32 logits of 1024 tokens.
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
    """Return the number of processes that ``accelerate launch`` or torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def plan_fine_tuning(
    settings: FineTuneSettings, config: Any, rows: Sequence[dict[str, list[int]]], left_out: int
) -> Plan:
    """Compute the plan of a fine-tuning.

    Args:
        settings: hyperparameters and batch sizes.
        config: Transformers configuration of the model.
        rows: training rows with ``input_ids`` and ``labels``.
        left_out: number of rows that were too long.

    Raises:
        SettingsError: the batch size is not divisible among the processes.
    """
    processes = world_size()
    accumulation = _accumulation(settings, settings.batch_size, "--batch-size")
    lengths = [len(row["input_ids"]) for row in rows]
    sequences = _packed(rows, settings.max_length) if settings.packing else len(rows)
    steps = settings.max_steps or math.ceil(sequences / settings.batch_size) * settings.epochs
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
    """Return the number of sequences into which TRL packs the rows."""
    try:
        from datasets import Dataset
        from trl import pack_dataset
    except ImportError as error:
        raise missing_dependency("TRL", error) from None
    return len(pack_dataset(Dataset.from_dict({"input_ids": [row["input_ids"] for row in rows]}), length, "bfd"))


@dataclass(frozen=True)
class PolicyPlan:
    """Cost of a GRPO training.

    Attributes:
        questions: number of training questions.
        held_out: number of questions that select the best checkpoint.
        left_out: number of questions whose prompt leaves no room for a sample.
        longest: tokens of the longest prompt.
        steps: optimizer steps.
        epochs: passes over the questions.
        samples: samples per step.
        tokens: upper bound of prompt and sample tokens in all steps.
        processes: number of training processes.
        accumulation: forward passes of each process per optimizer step.
        parameters: number of policy parameters.
        state_gib: weights, gradients, optimizer state and reference model per GPU in GiB, if sharded over all GPUs.
        student_gib: weights of the frozen student per GPU in GiB, 0 without a student.
        activations_gib: as in :class:`Plan`.
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


def plan_policy(
    settings: PolicySettings,
    config: Any,
    prompts: Sequence[int],
    *,
    held_out: int,
    left_out: int,
    student: Any = None,
    student_dtype: torch.dtype = torch.bfloat16,
) -> PolicyPlan:
    """Compute the plan of a GRPO training.

    Args:
        settings: hyperparameters and batch sizes.
        config: Transformers configuration of the policy.
        prompts: number of tokens of each training prompt.
        held_out: number of held-out questions.
        left_out: number of questions whose prompt is too long.
        student: Transformers configuration of the frozen student, if the reward needs one.
        student_dtype: dtype of the student's weights.

    Raises:
        SettingsError: the samples of a step are not divisible among the processes.
    """
    processes = world_size()
    samples = settings.questions * settings.group
    parameters, _ = _parameters(config, settings)
    longest = max(prompts)
    reference = (4 if settings.dtype == "float32" else 2) if settings.beta else 0
    student_bytes = _parameters(student, settings)[0] * student_dtype.itemsize if student is not None else 0
    width = settings.micro_batch_size * (longest + settings.max_tokens)
    steps = settings.steps or DEFAULT_STEPS
    if settings.epochs:
        steps = math.ceil(settings.epochs * len(prompts) / settings.questions)
    return PolicyPlan(
        questions=len(prompts),
        held_out=held_out,
        left_out=left_out,
        longest=longest,
        steps=steps,
        epochs=steps * settings.questions / len(prompts),
        samples=samples,
        tokens=steps * samples * (longest + settings.max_tokens),
        processes=processes,
        accumulation=_accumulation(settings, samples, "--questions-per-step times --samples-per-question"),
        parameters=parameters,
        state_gib=(_BYTES_FULL + reference) * parameters / processes / _GIB,
        student_gib=student_bytes / _GIB,
        activations_gib=_activations(config, width) / _GIB,
    )


def _accumulation(settings: TrainingSettings, batch: int, flag: str) -> int:
    """Return the number of forward passes per process and optimizer step."""
    share = settings.micro_batch_size * world_size()
    if batch % share:
        raise SettingsError(
            f"{flag}: {batch} must be a multiple of --micro-batch-size {settings.micro_batch_size} times "
            f"{world_size()} processes"
        )
    return batch // share


def _activations(config: Any, width: int) -> int:
    """Return the bytes of the activations of ``width`` tokens; see :class:`Plan`."""
    text = config.get_text_config()
    inner = 2 * (8 * text.hidden_size + 3 * (getattr(text, "intermediate_size", 0) or 4 * text.hidden_size))
    return int(width * (2 * text.hidden_size * text.num_hidden_layers + inner) + 4 * 1024 * text.vocab_size)


def _parameters(config: Any, settings: TrainingSettings, lora_rank: int = 0) -> tuple[int, int]:
    """Return the numbers of all and of trained parameters, without allocating them."""
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
