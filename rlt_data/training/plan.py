"""Estimate steps, tokens and GPU memory of a training before weights are loaded."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlt_data.errors import SettingsError
from rlt_data.progress import is_main_process
from rlt_data.settings import FineTuneSettings, PolicySettings, TrainingSettings
from rlt_data.settings.training import DEFAULT_STEPS
from rlt_data.training.launch import world_size
from rlt_data.training.memory import Estimator, Memory, batch_of, common_machines, count_parameters, this_machine
from rlt_data.training.requirements import missing_dependency

logger = logging.getLogger(__name__)


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
        parameters: number of model parameters, without adapters.
        memory: memory per GPU of this launch, and in a dry run of other machines.
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
    memory: tuple[Memory, ...] = ()


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
    lengths = [len(row["input_ids"]) for row in rows]
    sequences = _packed(rows, settings.max_length) if settings.packing else len(rows)
    steps = settings.max_steps or math.ceil(sequences / settings.batch_size) * settings.epochs
    longest = settings.max_length if settings.packing else max(lengths)
    return Plan(
        rows=len(rows),
        left_out=left_out,
        tokens=sum(lengths),
        learned_tokens=sum(label >= 0 for row in rows for label in row["labels"]),
        longest=max(lengths),
        steps=steps,
        processes=processes,
        accumulation=_accumulation(settings),
        parameters=count_parameters(config, settings),
        memory=_memory(settings, Estimator(config, longest)),
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
        parameters: number of policy parameters, without adapters.
        memory: as in :class:`Plan`.
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
    memory: tuple[Memory, ...] = ()


def plan_policy(
    settings: PolicySettings,
    config: Any,
    prompts: Sequence[int],
    *,
    held_out: int,
    left_out: int,
    student_bytes: int = 0,
) -> PolicyPlan:
    """Compute the plan of a GRPO training.

    Args:
        settings: hyperparameters and batch sizes.
        config: Transformers configuration of the policy.
        prompts: number of tokens of each training prompt.
        held_out: number of held-out questions.
        left_out: number of questions whose prompt is too long.
        student_bytes: size of the frozen student, if the training process loads one.

    Raises:
        SettingsError: the samples of a step are not divisible among the processes.
    """
    processes = world_size()
    samples = settings.questions * settings.group
    longest = max(prompts)
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
        accumulation=_accumulation(settings),
        parameters=count_parameters(config, settings),
        memory=_memory(settings, Estimator(config, longest + settings.max_tokens, student_bytes)),
    )


def _memory(settings: TrainingSettings, estimator: Estimator) -> tuple[Memory, ...]:
    """Return the memory of this launch, with a warning if it does not fit, and in a dry run of other machines."""
    here = estimator.with_remedies(settings, this_machine(settings))
    if here.fits is False and not settings.dry_run and is_main_process():
        logger.warning("%s", here.verdict)
    others = common_machines(settings) if settings.dry_run else ()
    return (here, *(estimator.with_remedies(settings, machine) for machine in others))


def _accumulation(settings: TrainingSettings) -> int:
    """Return the number of forward passes per process and optimizer step."""
    batch, flag = batch_of(settings)
    share = settings.micro_batch_size * world_size()
    if batch % share:
        raise SettingsError(
            f"{flag}: {batch} must be a multiple of --micro-batch-size {settings.micro_batch_size} times "
            f"{world_size()} processes"
        )
    return batch // share
